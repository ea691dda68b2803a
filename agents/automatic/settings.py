"""Whether and how far an energy is explored before an agent learns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vgs_rl.checks import require_positive
from vgs_rl.fields import settle

When = Literal["auto", "always", "never"]
Tails = Literal["none", "radial", "coordinates", "components"]
# Settings of a value-gradient agent that exploration leaves alone.
KEPT = ("lr", "final_lr", "warmup", "clip_norm", "ema", "fit_noise_scale")


@dataclass(kw_only=True)
class ExplorationConfig:
    """Whether an energy is explored first, and what was decided then.

    Exploration chooses the chain's coordinates, `mdp`, and of the agent objective, network and
    prior_std; its seed is that of the run. A resolved configuration has these choices. With
    `effort` it repeats exploration, so that the same run comes out on the same machine; with
    another `mdp` or `agent` than were chosen, these are taken.

    Args:
        when: `always`, `never`, or `auto`: `vgs-rl train` explores an energy on R^D that comes
            without settings, where neither file nor options say anything of `mdp`, or of the agent
            more than learning rates, `clip_norm`, `ema` and `fit_noise_scale`.
        seconds: about how long exploration and the choice may take together.
        unit: what has unit size in the chain's coordinates, the target or a component of the start;
            known afterwards.
        tails: heavy tails that the coordinates take away, of the target or of each component; known
            afterwards.
        bends: how many of its maps undo funnels and bananas; known afterwards.
        effort: how much was done, by name and in its order; known afterwards.
    """

    when: When = "auto"
    seconds: float = 60.0
    unit: Literal["target", "component"] | None = None
    tails: Tails | None = None
    bends: int | None = None
    effort: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settle(self, "exploration")
        require_positive("exploration", seconds=self.seconds)
        if not all(isinstance(each, list) for each in self.effort.values()):
            raise ValueError(f"exploration.effort must be lists by name, got {self.effort!r:.80}")
        if self.effort and self.when != "always":
            raise ValueError(
                f"exploration.when must be always where there is an effort, got {self.when}"
            )

    @property
    def done(self) -> bool:
        """Whether it says what was decided."""
        return bool(self.effort)

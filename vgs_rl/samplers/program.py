"""Samplers in files: programs in PyTorch's own format, which run without this package, and ours."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from vgs_rl.checks import one_line
from vgs_rl.files.checkpoint import write_atomically
from vgs_rl.mdp import SamplingMDP
from vgs_rl.transitions import KernelPolicy, Policy, State
from vgs_rl.trust import Trust

if TYPE_CHECKING:
    from vgs_rl.samplers.base import Sampler


class _Step(nn.Module):
    """One step of a chain, as a function of its number and its noise."""

    def __init__(self, mdp: SamplingMDP, control: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.parts = [(mdp, control)]  # not submodules: what is used of them becomes constants

    def forward(self, x: Tensor, t: Tensor, normal: Tensor) -> tuple[Tensor, Tensor]:
        """The next states (B, D) and the log-ratio (B,), from x (B, D), t (1,) and noise (B, D)."""
        ((mdp, control),) = self.parts
        u = mdp.geometry.tangent(control(x, t), x)
        step = mdp.transition(State(x, t), u, mdp.geometry.tangent(normal, x))
        return step.state.x, step.log_ratio


class ChainProgram(nn.Module):
    """A chain as a function of its random numbers.

    Args:
        mdp: the chain.
        step: :class:`_Step`, traced.
        last: the same of the last step.
        weights: whether log-weights are part of the result.
    """

    def __init__(
        self, mdp: SamplingMDP, step: nn.Module, last: nn.Module, *, weights: bool
    ) -> None:
        super().__init__()
        self.mdp, self.step, self.last, self.weights = [mdp], step, last, weights

    def forward(self, uniform: Tensor, normal: Tensor) -> tuple[Tensor, ...]:
        """Samples, and their log-weights.

        Args:
            uniform: numbers in [0, 1), shape (B, D).
            normal: standard normal numbers, shape (T + 1, B, D).

        Returns:
            x of shape (B, D), and log w of shape (B,) if the program has weights.
        """
        from torch._higher_order_ops.while_loop import while_loop

        (mdp,) = self.mdp
        x = mdp.start.of_noise(uniform, mdp.geometry.project(normal[0]))
        log_weight = mdp.initial_log_weight(x) if self.weights else x.new_zeros(x.shape[0])
        t = torch.zeros(1, dtype=torch.long, device=mdp.device)
        most = mdp.num_steps - 1

        def going(t: Tensor, *_: Tensor) -> Tensor:
            return (t < most).squeeze()

        def advance(t: Tensor, x: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x, log_ratio = self.step(x, t, normal.index_select(0, t + 1).squeeze(0))
            return t + 1, x.clone(), log_weight + log_ratio

        if most:
            t, x, log_weight = while_loop(going, advance, (t, x, log_weight))
        x, log_ratio = self.last(x, t, normal[most + 1])
        if not self.weights:
            return (x,)
        return x, log_weight + log_ratio - mdp.energy(x) / mdp.temperature


def export_program(
    mdp: SamplingMDP, policy: Policy, path: Path | str, *, weights: bool = True
) -> None:
    """Writes a chain as a program: see :meth:`vgs_rl.samplers.base.ChainSampler.export`.

    Raises:
        ValueError: if the chain has a part that cannot be traced, such as an energy that computes
            outside of PyTorch, or PyTorch is too old to trace a loop.
        OSError: if the file cannot be written.
    """
    if "check_guards" not in inspect.signature(torch.export.ExportedProgram.module).parameters:
        raise ValueError(f"a program needs a newer PyTorch than {torch.__version__}")
    if isinstance(policy, KernelPolicy):
        raise ValueError(f"a policy that draws cannot be exported, got {type(policy).__name__}")
    if weights:
        mdp.start.require_density("a program with weights")
    rows = mdp.num_steps + mdp.dim + 2  # no other size, which the tracer would take it for
    normal = torch.zeros(mdp.num_steps + 1, rows, mdp.dim, device=mdp.device, dtype=mdp.dtype)
    states, t = normal[0].clone(), torch.zeros(1, dtype=torch.long, device=mdp.device)
    last = mdp.num_steps - 1
    controls: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda x, t: policy(x, t.expand(x.shape[0])),  # type: ignore[arg-type]
        lambda x, t: policy(x, last),
    )
    batch = Dim("batch", min=2)
    export = functools.partial(torch.export.export, strict=False)
    with torch.no_grad(), warnings.catch_warnings(), mdp.uncounted():
        warnings.simplefilter("ignore")  # of the tracer, about its own future
        what, hint = "policy", ""
        try:
            first, final = (
                _without_aliases(
                    export(
                        _Step(mdp, control),
                        (states, t, states.clone()),
                        dynamic_shapes=({0: batch}, None, {0: batch}),
                    )
                    .run_decompositions({})
                    .module(check_guards=False)
                )
                for control in controls
            )
            what, hint = "energy", "; weights=False leaves it out" if weights else ""
            program = export(
                ChainProgram(mdp, first, final, weights=weights),
                (states, normal),
                dynamic_shapes=({0: batch}, {1: batch}),
            )
        except Exception as error:  # the tracer and a user's code may raise anything
            reason = one_line(error)[:200]
            raise ValueError(
                f"the sampler of {type(mdp.energy).__name__} cannot be exported with its {what}"
                f"{hint}: {type(error).__name__}: {reason}"
            ) from error
    write_atomically(path, lambda file: torch.export.save(program, file))


def _without_aliases(module: Any) -> nn.Module:
    """Each constant of a traced module once and in its own memory, as loops want it."""
    names: dict[Any, str] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr":
            continue
        value = functools.reduce(getattr, node.target.split("."), module)
        if not isinstance(value, Tensor):
            continue
        key = value.data_ptr(), value.shape, value.stride()
        if key in names:
            node.target = names[key]
            continue
        names[key] = node.target
        owner = module.get_submodule(node.target.rpartition(".")[0])
        copied = value.detach().clone()
        if isinstance(value, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=False)
        setattr(owner, node.target.rpartition(".")[2], copied)
    module.recompile()
    traced: nn.Module = module
    return traced


def load_sampler(
    name: str | Path, device: str = "auto", *, compiled: bool = False, trust: Trust = False
) -> Sampler:
    """A trained sampler that the package ships, or one from an exported file.

    Args:
        name: the path of a file that ``scripts/evaluate.py RUN --export FILE`` wrote, or the name
            of a shipped one (``vgs_rl.experiments.pretrained.shipped_samplers()`` lists them).
        device: `auto`, `cpu` or `cuda`.
        compiled: of a particle system: compile the drift at the first call, which takes about a
            minute and halves what many samples take
            (:class:`vgs_rl.networks.compiled.CompiledValue`).
        trust: True imports what the file names, though it is not this package's, such as the
            module of an energy of your own (:mod:`vgs_rl.trust`); False refuses it.

    Raises:
        FileNotFoundError: if there is none of that name.
        ValueError: if the file is damaged, its drift cannot be compiled, or it names foreign code
            without `trust`.
    """
    pretrained = importlib.import_module("vgs_rl.experiments.pretrained")
    agent = pretrained.load_pretrained(name, device, trust=trust)[1]
    sampler: Sampler = agent.sampler(compiled=compiled)
    return sampler

"""What a value-gradient agent of a conditional energy can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgs_rl.agents.value_gradient.objectives import GradientMatching
from vgs_rl.mdp import SamplingMDP
from vgs_rl.networks.config import ClusterNetwork, MixtureNetwork, MLPNetwork

if TYPE_CHECKING:
    from vgs_rl.agents.value_gradient.agent import ValueGradientConfig


def require_conditional(config: ValueGradientConfig, mdp: SamplingMDP) -> None:
    """Refuses settings that know no parameters, where the energy has some.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    if mdp.conditions is None:
        return
    of = f"for an energy with parameters ({', '.join(mdp.conditions.names)})"
    objective = config.objective
    if not isinstance(objective, GradientMatching):
        name = type(objective).__name__
        raise ValueError(f"agent.objective must be GradientMatching {of}, got {name}")
    if config.drift != "posterior":
        raise ValueError(f"agent.drift must be posterior {of}, got {config.drift}")
    network = config.network
    if not isinstance(network, MLPNetwork | MixtureNetwork | ClusterNetwork):
        known, name = "MLPNetwork, MixtureNetwork or ClusterNetwork", type(network).__name__
        raise ValueError(f"agent.network must be {known} {of}, got {name}")
    if isinstance(network, ClusterNetwork) and network.guide:
        raise ValueError(f"agent.network.guide must be 0 {of}, got {network.guide}")
    if objective.references:
        raise ValueError(f"agent.objective.references must be 0 {of}, got {objective.references}")

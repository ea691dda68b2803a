"""Laws of configurations and agents: what is built from one shares nothing, and can be copied."""

import copy
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vgs_rl.agents
import vgs_rl.envs
from vgs_rl import Energy, MDPConfig, SamplingMDP
from vgs_rl.agents import (
    TD0,
    AgentConfig,
    ClusterNetwork,
    DistilledConfig,
    GradientMatching,
    LogVarianceConfig,
    MLPNetwork,
    PISConfig,
    PublishedNetwork,
    SB3Config,
    SoftBellman,
    TianshouConfig,
    TrajectoryBalanceConfig,
    ValueGradientConfig,
)
from vgs_rl.agents.base import Agent
from vgs_rl.chain import ScheduleConfig
from vgs_rl.envs import DW4, FourGauss
from vgs_rl.starts import StartConfig

SMALL = {"width": 8, "depth": 1}
QUICK = {"batch_size": 32, "refresh_every": 2, "refresh_size": 32, "first_size": 64}
PATHS = {"batch_size": 16, **SMALL}
LIBRARY = {"num_envs": 8, "batch_size": 16, "epochs": 1, "hidden": (8,), "buffer_size": 200}


def value_gradient(objective: object, **options: object) -> ValueGradientConfig:
    options.setdefault("network", MLPNetwork(**SMALL))
    return ValueGradientConfig(objective=objective, prior_std=2.0, **options)  # type: ignore[arg-type]


CONFIGS: dict[str, AgentConfig] = {
    "matching": value_gradient(GradientMatching(capacity=256, start_size=64, **QUICK)),
    "matching, refined": value_gradient(
        GradientMatching(
            capacity=128, start_size=64, refine_steps=2, references=64, posterior_steps=1, **QUICK
        )
    ),
    "matching, clusters": value_gradient(
        GradientMatching(capacity=128, start_size=64, refine_steps=1, **QUICK),
        network=ClusterNetwork(width=8, guide=4),
    ),
    "td0": value_gradient(TD0(batch_size=16)),
    "td0, published": value_gradient(
        TD0(batch_size=16), drift="bellman", network=PublishedNetwork(width=8)
    ),
    "soft bellman": value_gradient(SoftBellman(batch_size=16, draws=2)),
    "distilled": DistilledConfig(components=2, batch_size=16, reverse_size=8, **SMALL),
    "pis": PISConfig(**PATHS),
    "tb": TrajectoryBalanceConfig(**PATHS),
    "logvar": LogVarianceConfig(**PATHS, exploration=1.2),
    **{
        f"sb3 {kind}": SB3Config(algorithm=kind, **LIBRARY) for kind in ("PPO", "A2C", "SAC", "TD3")
    },
    **{f"tianshou {kind}": TianshouConfig(algorithm=kind, **LIBRARY) for kind in ("PPO", "SAC")},
}
LIBRARIES = {"sb3": "stable_baselines3", "tianshou": "tianshou"}


def config_of(name: str) -> AgentConfig:
    if (library := LIBRARIES.get(name.partition(" ")[0])) is not None:
        pytest.importorskip(library)
    return copy.deepcopy(CONFIGS[name])


def mdp_of(name: str, settings: MDPConfig) -> SamplingMDP:
    energy: Energy = DW4() if "clusters" in name else FourGauss()
    return SamplingMDP(energy, settings)


def settings() -> MDPConfig:
    return MDPConfig(
        chain="ve",
        num_steps=4,
        schedule=ScheduleConfig(kind="geometric", first=0.3, last=0.02),
        start=StartConfig(scale=1.5),
    )


def numbers(agent: Agent) -> list[torch.Tensor]:
    """What an agent has become: a draw, and every tensor that a checkpoint holds."""

    def leaves(state: object) -> Iterator[torch.Tensor]:
        if isinstance(state, torch.Tensor):
            yield state
        elif isinstance(state, dict):
            for value in state.values():
                yield from leaves(value)
        elif isinstance(state, (list, tuple)):
            for value in state:
                yield from leaves(value)

    return [agent.sampler().sample(16, 5).x, *leaves(agent.state_dict())]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def trained_alone(name: str, seed: int, updates: int) -> Agent:
    agent = config_of(name).build(mdp_of(name, settings()), seed=seed)
    for _ in range(updates):
        agent.update()
    return agent


def subclasses(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)


def test_every_agent_configuration_is_among_those_tried() -> None:
    tried = {type(config) for config in CONFIGS.values()}
    kinds = {kind for kind in subclasses(AgentConfig) if kind.__module__.startswith("vgs_rl.")}
    assert {kind for kind in kinds if not kind.__subclasses__()} <= tried


@pytest.mark.parametrize("name", CONFIGS)
def test_two_agents_of_one_configuration_are_independent_bit_for_bit(name: str) -> None:
    config, chain = config_of(name), settings()
    before = copy.deepcopy((config, chain))
    agents = [config.build(mdp_of(name, chain), seed=seed) for seed in (1, 2)]
    for update in range(3):
        for agent in agents[:: 1 if update % 2 else -1]:
            agent.update()
    assert (config, chain) == before
    for agent, seed in zip(agents, (1, 2), strict=True):
        assert same(numbers(agent), numbers(trained_alone(name, seed, 3)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_copy_of_an_agent_goes_on_as_the_agent_does(name: str) -> None:
    agent = trained_alone(name, 1, 2)
    copies = [pickle.loads(pickle.dumps(agent)), copy.deepcopy(agent)]
    for _ in range(2):
        agent.update()
    alone = numbers(agent)
    for other in copies:
        for _ in range(2):
            other.update()
        assert same(numbers(other), alone)


def test_changing_a_configuration_later_leaves_its_agents_alone() -> None:
    config = CONFIGS["pis"]
    config = copy.deepcopy(config)
    assert isinstance(config, PISConfig)
    agent = config.build(mdp_of("pis", settings()), seed=1)
    config.batch_size = 3
    agent.update()
    assert agent.counters.env_steps == PATHS["batch_size"] * 4


@pytest.mark.parametrize("package", [vgs_rl, vgs_rl.agents, vgs_rl.envs])
def test_importing_a_file_of_the_package_gives_its_module(package: ModuleType) -> None:
    for folder in package.__path__:
        for file in sorted(Path(folder).glob("[!_]*.py")):
            try:
                importlib.import_module(f"{package.__name__}.{file.stem}")
            except ModuleNotFoundError as error:
                assert not str(error.name).startswith("vgs_rl")  # an extra that is not here
                continue
            assert isinstance(getattr(package, file.stem), ModuleType), file

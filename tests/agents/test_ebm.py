"""Energies that learn: networks, contrastive divergence and its guards, the loop, environments."""

import copy
import math
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from sklearn.metrics import roc_auc_score

from vgs_rl import (
    MDPConfig,
    SamplingMDP,
    ScheduleConfig,
    StartConfig,
)
from vgs_rl.agents import (
    AgentNegatives,
    EBMConfig,
    EBMTrainer,
    GradientMatching,
    LangevinNegatives,
    PISConfig,
    SB3Config,
    SoftBellman,
    ValueGradientConfig,
)
from vgs_rl.ebm.contrastive import ContrastiveConfig, EnergyLearner, contrastive_loss
from vgs_rl.ebm.energies import (
    AutoencoderEnergy,
    AutoencoderEnergyConfig,
    GaussianEnergy,
    GaussianEnergyConfig,
    MLPEnergy,
    MLPEnergyConfig,
    ModuleEnergyConfig,
    PrototypeEnergy,
    PrototypeEnergyConfig,
)
from vgs_rl.envs import (
    EBMEnv,
    EBMVectorEnv,
    SamplingVectorEnv,
    check_energy,
    check_vector_env,
    digits_energy,
)
from vgs_rl.envs.targets.gaussian import Gaussian
from vgs_rl.files.checkpoint import load_checkpoint, save_checkpoint
from vgs_rl.training.config import BudgetConfig, ConfigError, given, make_parser, parse
from vgs_rl.training.folder import RunFolder


def eight(n=1000, seed=0):
    """Eight Gaussians on a circle of radius 2."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=generator) * math.pi / 4
    centre = 2 * torch.stack([angle.cos(), angle.sin()], -1)
    return centre + 0.1 * torch.randn(n, 2, generator=generator)


def caps(n=1000, seed=0):
    """Unit vectors near two axes of R^6."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.15 * torch.randn(n, 6, generator=generator)
    x[torch.arange(n), torch.randint(2, (n,), generator=generator)] += 1
    return torch.nn.functional.normalize(x, dim=-1)


def plane(negatives, *, num_steps=10, learner=None, **options):
    schedule = ScheduleConfig(total_noise=0.5)
    start = StartConfig(kind="data")
    mdp = MDPConfig(chain="ve", num_steps=num_steps, schedule=schedule, start=start)
    return EBMConfig(
        energy=options.pop("energy", MLPEnergyConfig(hidden=(64, 64))),
        mdp=mdp,
        negatives=negatives,
        learner=learner or ContrastiveConfig(gamma=0.1, lr=2e-3),
        **options,
    )


SAMPLERS = {
    "vgs": AgentNegatives(),
    "vgs-soft": AgentNegatives(
        agent=ValueGradientConfig(
            objective=SoftBellman(batch_size=64), final_lr=1.0, ema=0.9, warmup=0, prior_std=2.0
        )
    ),
    "langevin": LangevinNegatives(steps=20, step_size=0.02),
    "persistent": LangevinNegatives(steps=10, step_size=0.02, persistent=True, chains=1024),
    "pis": AgentNegatives(agent=PISConfig(batch_size=32, final_lr=1.0)),
    "sb3": AgentNegatives(agent=SB3Config(num_envs=16, batch_size=160, epochs=2)),
}


# --- energies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "energy",
    [
        MLPEnergy(3, hidden=(16,), prior_std=2.0),
        MLPEnergy(4, hidden=(16, 16), on_sphere=True),
        AutoencoderEnergy(5, hidden=(16,), latent=3),
        PrototypeEnergy(3, prototypes=7, width=0.8),
        PrototypeEnergy(4, prototypes=7, width=0.6, on_sphere=True),
        GaussianEnergy(3),
        GaussianEnergy(4, temperature=2.0, on_sphere=True),
        ModuleEnergyConfig(
            class_path="torch.nn.Linear", init_args={"in_features": 3, "out_features": 1}
        ).build(3, on_sphere=False, seed=0),
    ],
    ids=[
        "mlp",
        "mlp-sphere",
        "autoencoder",
        "prototypes",
        "prototypes-sphere",
        "gaussian",
        "gaussian-sphere",
        "module",
    ],
)
def test_learned_energies_pass_the_check_in_both_precisions(energy):
    check_energy(energy)


def test_the_autoencoder_energy_is_the_papers_formula():
    energy = AutoencoderEnergy(272)
    sizes = [layer.weight.shape for layer in energy.encoder[::2]]
    assert sizes == [(1024, 272), (1024, 1024), (1024, 1024), (128, 1024)]
    mirrored = [layer.weight.shape for layer in energy.decoder[::2]]
    assert mirrored == [(1024, 128), (1024, 1024), (1024, 1024), (272, 1024)]
    with torch.no_grad():
        energy.scale.fill_(3.0)
    x = energy.geometry.project(torch.randn(7, 272, generator=torch.Generator().manual_seed(0)))
    latent = energy.encoder(x)
    out = energy.decoder(latent / latent.norm(dim=-1, keepdim=True))
    error = x - out / out.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(energy(x), 9 * error.square().sum(-1) / 0.1)
    assert float(energy(x).detach().max()) <= 9 * 4 / 0.1
    assert energy.geometry.effective_dim == 271


def test_the_prototype_energy_begins_as_a_kernel_density_of_its_data():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(6, 2, generator=generator)
    energy = PrototypeEnergy(2, prototypes=12, width=0.7)  # every row twice
    energy.attach(data)
    x = torch.randn(9, 2, generator=generator)
    kernels = torch.distributions.MultivariateNormal(data, 0.49 * torch.eye(2))
    density = kernels.log_prob(x.unsqueeze(1)).logsumexp(-1) - math.log(6)
    constant = math.log(2 * math.pi * 0.49)
    torch.testing.assert_close(energy(x), -density - constant)


def test_the_gaussian_energy_begins_as_the_mahalanobis_distance_of_its_data():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(500, 3, generator=generator) @ torch.randn(3, 3, generator=generator)
    energy = GaussianEnergyConfig(shrinkage=1e-6, temperature=2.0).build(3, on_sphere=False, seed=0)
    energy.attach(data)
    x = torch.randn(9, 3, generator=generator)
    apart = x - data.mean(0)
    squares = (apart @ data.T.cov(correction=0).inverse() * apart).sum(-1)
    torch.testing.assert_close(energy(x), 0.25 * (squares - 3), rtol=1e-4, atol=1e-3)
    # E is 0 on the data's average.
    assert abs(float(energy(data).detach().mean())) < 1e-3
    with pytest.raises(ValueError, match="data must vary"):
        energy.attach(torch.ones(4, 3))


def test_the_same_seed_gives_the_same_energy_and_the_global_rng_is_untouched():
    before = torch.get_rng_state()
    module = ModuleEnergyConfig(
        class_path="torch.nn.Linear", init_args={"in_features": 2, "out_features": 1}
    )
    for config in (
        MLPEnergyConfig(hidden=(8,)),
        AutoencoderEnergyConfig(hidden=(8,), latent=2),
        PrototypeEnergyConfig(prototypes=3),
        module,
    ):
        x = torch.eye(2)
        first, same, other = (config.build(2, on_sphere=True, seed=s)(x) for s in (0, 0, 1))
        assert torch.equal(first, same) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_modules_and_data_are_refused_by_name():
    with pytest.raises(ValueError, match="energy.class_path 'no.such.Net'"):
        ModuleEnergyConfig(class_path="no.such.Net").build(2, on_sphere=False, seed=0)
    with pytest.raises(ValueError, match="energy.init_args of torch.nn.Linear"):
        ModuleEnergyConfig(class_path="torch.nn.Linear").build(2, on_sphere=False, seed=0)
    with pytest.raises(ValueError, match="module must have parameters, Identity has none"):
        ModuleEnergyConfig(class_path="torch.nn.Identity").build(2, on_sphere=False, seed=0)
    energy = MLPEnergy(2, hidden=(4,), on_sphere=True)
    with pytest.raises(
        ValueError, match="data must be unit vectors, got a row off the sphere by 1"
    ):
        energy.attach(torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match=r"data must have shape \(N, 2\).*got \(5, 3\)"):
        energy.attach(torch.ones(5, 3))
    with pytest.raises(ValueError, match="data must be finite"):
        energy.attach(torch.full((3, 2), torch.nan))
    with pytest.raises(ValueError, match="MLPEnergy has no data to learn from"):
        EnergyLearner(energy)
    with pytest.raises(NotImplementedError, match="MLPEnergy has nothing to pre-train on"):
        energy.pretraining_loss(torch.ones(1, 2))


def test_pretraining_lowers_the_reconstruction_error():
    energy = AutoencoderEnergy(6, hidden=(32,), latent=2)
    energy.attach(caps())
    learner = EnergyLearner(energy)
    before = float(energy.pretraining_loss(energy.data).detach())
    after = float(learner.pretrain(150, 3e-3))
    assert after < 0.5 * before
    assert learner.counters.updates == 0 and float(energy.scale.detach()) == 1.0


# --- contrastive divergence -----------------------------------------------------------------------


def test_the_loss_is_the_formula_and_its_minimum_bounds_the_gap():
    data, negatives = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 5.0, -1.0])
    expected = 2.0 - 2.0 + 0.5 * (5.0 + 10.0)
    torch.testing.assert_close(contrastive_loss(data, negatives, 0.5), torch.tensor(expected))
    present = torch.tensor([True, True, False])
    expected = 2.0 - 3.5 + 0.5 * (5.0 + 14.5)
    torch.testing.assert_close(
        contrastive_loss(data, negatives, 0.5, present), torch.tensor(expected)
    )
    e = torch.zeros(2, requires_grad=True)
    optimum = torch.tensor([-1.0, 1.0]) / (2 * 0.7)
    loss = contrastive_loss(e[:1] + optimum[0], e[1:] + optimum[1], 0.7)
    torch.testing.assert_close(torch.autograd.grad(loss, e)[0], torch.zeros(2))


def test_the_gradient_is_that_of_the_log_likelihood_where_negatives_are_exact():
    """E = x²/(2 v), data of variance 1: d(-log p)/dv of N(0, v), by exact negatives."""

    class Width(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.v = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return 0.5 * x.square().sum(-1) / self.v

    net, generator = Width(), torch.Generator().manual_seed(0)
    data = torch.randn(200_000, 1, generator=generator)
    negatives = math.sqrt(2.0) * torch.randn(200_000, 1, generator=generator)
    loss = contrastive_loss(net(data), net(negatives), 0.0)
    (gradient,) = torch.autograd.grad(loss, net.v)
    expected = 0.5 / 2.0 - 0.5 / 2.0**2  # of ½ log v + 1/(2 v)
    assert abs(float(gradient) - expected) < 0.005


def learner_of(**options):
    energy = MLPEnergy(2, hidden=(16,))
    energy.attach(eight(200))
    options = {"batch_size": 32, "guard_every": 1} | options
    return EnergyLearner(energy, ContrastiveConfig(**options))


def noise(n=32, seed=0):
    return 3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def test_lost_negatives_are_left_out_and_counted():
    learner, same = learner_of(replay_size=100, replay_fraction=0.5), learner_of()
    x = noise()
    x[:5] = torch.nan
    scalars = learner.update(x)
    assert int(scalars["train/lost_negatives"]) == 5
    assert int(scalars["train/ebm_skipped_updates"]) == 0
    energies = same.energy(noise()[5:]) / 2
    scalars_same = {"train/energy_data": scalars["train/energy_data"]}
    assert bool(torch.isfinite(scalars["train/ebm_loss"])) and scalars_same
    expected = same.update(torch.cat([noise()[5:], torch.full((5, 2), torch.inf)]))
    torch.testing.assert_close(scalars["train/ebm_loss"], expected["train/ebm_loss"])
    assert bool(torch.isfinite(energies).all())
    learner.update(noise(16))  # rows of the replay that are lost stay left out
    assert all(bool(torch.isfinite(p).all()) for p in learner.energy.parameters())


def test_a_step_without_any_negatives_is_skipped():
    learner = learner_of(guard_every=100)
    before = [p.clone() for p in learner.energy.parameters()]
    scalars = learner.update(torch.full((32, 2), torch.nan))
    assert int(scalars["train/ebm_skipped_updates"]) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, learner.energy.parameters(), strict=True))


def test_steps_with_too_long_gradients_are_skipped_and_end_in_a_rollback():
    learner = learner_of(max_gradient_norm=1e-9, guard_every=3)
    before = [p.clone() for p in learner.energy.parameters()]
    for _ in range(3):
        scalars = learner.update(noise())
    assert int(scalars["train/ebm_skipped_updates"]) == 3
    assert learner.counters.rollbacks == 1 and learner.lr == pytest.approx(5e-4)
    assert learner.take_restart() and not learner.take_restart()
    assert all(torch.equal(a, b) for a, b in zip(before, learner.energy.parameters(), strict=True))


def test_an_explosion_rolls_back_to_the_last_good_state_and_halves_the_rate():
    learner = learner_of(replay_size=64, replay_fraction=0.25, max_gap=20.0)
    for k in range(3):
        learner.update(noise(seed=k))
    good = {name: value.clone() for name, value in learner.energy.state_dict().items()}
    with torch.no_grad():
        for p in learner.energy.parameters():
            p.mul_(300.0)
    scalars = learner.update(noise())
    assert abs(float(scalars["train/energy_gap"])) > 20
    assert learner.counters.rollbacks == 1 and learner.take_restart()
    assert len(learner.replay) == 0
    assert [group["lr"] for group in learner.optimizer.param_groups] == [5e-4]
    for name, value in learner.energy.state_dict().items():
        torch.testing.assert_close(value, good[name], rtol=0, atol=0)
    learner.update(noise())
    assert learner.counters.rollbacks == 1


def test_a_collapse_empties_the_replay_and_asks_for_a_restart():
    learner = learner_of(replay_size=64, replay_fraction=0.5)
    learner.update(noise())
    assert len(learner.replay) == 32 and not learner.take_restart()
    learner.update(torch.ones(16, 2))  # beside 16 of the replay, which are apart
    assert learner.counters.collapses == 1 and learner.take_restart()
    assert len(learner.replay) == 0 and learner.counters.rollbacks == 0
    with torch.no_grad():
        learner.energy.network[-1].weight.zero_()
        learner.energy.network[-1].bias.fill_(0.3)
    learner.update(noise())  # apart, but all of one energy
    assert learner.counters.collapses == 2


def test_the_replay_gives_the_stated_share_and_keeps_the_latest():
    config = ContrastiveConfig(batch_size=40, replay_size=50, replay_fraction=0.25)
    assert config.fresh == 30
    learner = learner_of(batch_size=40, replay_size=50, replay_fraction=0.25)
    for k in range(3):
        learner.update(noise(30, seed=k))
    assert torch.equal(learner.replay, torch.cat([noise(30, seed=k) for k in range(3)])[-50:])
    # The first update had nothing to replay: 30 negatives; the others had 40.
    assert learner.counters.energy_evaluations == 3 * 40 + 30 + 2 * 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "learner.batch_size must be at least 2, got 1"),
        ({"gamma": -1.0}, "learner.gamma must be at least 0, got -1.0"),
        ({"replay_fraction": 1.0}, r"learner.replay_fraction must be in \[0, 1\), got 1.0"),
        ({"replay_fraction": 0.5}, "learner.replay_fraction needs a replay_size"),
        ({"max_gap": 0.0}, "learner.max_gap must be a positive number, got 0.0"),
    ],
)
def test_impossible_learners_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveConfig(**options)


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vgs",
        pytest.param("vgs-soft", marks=pytest.mark.slow),
        pytest.param("langevin", marks=pytest.mark.slow),
        pytest.param("persistent", marks=pytest.mark.slow),
    ],
)
def test_the_energy_tells_data_from_noise_whoever_samples(name):
    trainer = EBMTrainer(eight(), plane(SAMPLERS[name]))
    trainer.learn(BudgetConfig(updates=200), progress_bar=False)
    generator = torch.Generator().manual_seed(1)
    outside = 6 * torch.rand(2000, 2, generator=generator) - 3
    scores = trainer.score(torch.cat([eight(2000, seed=5), outside]))
    auroc = roc_auc_score(np.repeat([0, 1], 2000), scores.numpy())
    assert auroc > 0.85
    assert trainer.learner.counters.rollbacks == 0 and trainer.negatives.counters.restarts == 0


def settings_of(name):
    if name == "sb3":
        pytest.importorskip("stable_baselines3")
    return SAMPLERS[name]


@pytest.mark.parametrize("name", ["pis", "sb3"])
def test_any_agent_can_be_the_sampler(name):
    trainer = EBMTrainer(
        eight(), plane(settings_of(name), learner=ContrastiveConfig(batch_size=32))
    )
    before = trainer.score(eight(10))
    trainer.learn(BudgetConfig(updates=5), progress_bar=False)
    assert not torch.equal(trainer.score(eight(10)), before)
    assert trainer.negatives.draw(7).shape == (7, 2)


@pytest.mark.parametrize("name", ["vgs", "langevin", "sb3"])
def test_on_the_sphere_negatives_stay_there_and_the_energy_learns(name):
    config = EBMConfig(
        energy=AutoencoderEnergyConfig(hidden=(64,), latent=3),
        on_sphere=True,
        negatives=settings_of(name),
        learner=ContrastiveConfig(batch_size=128),
        pretrain_steps=100,
        pretrain_lr=3e-3,
    )
    trainer = EBMTrainer(caps(), config)
    trainer.learn(BudgetConfig(updates=40), progress_bar=False)
    x = trainer.negatives.draw(64)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(64))
    generator = torch.Generator().manual_seed(1)
    outside = trainer.mdp.geometry.project(torch.randn(1000, 6, generator=generator))
    scores = trainer.score(torch.cat([caps(1000, seed=5), outside]))
    assert roc_auc_score(np.repeat([0, 1], 1000), scores.numpy()) > 0.8


def test_evaluations_of_sampler_and_energy_are_counted_apart():
    learner = ContrastiveConfig(batch_size=20, replay_size=40, replay_fraction=0.5)
    config = plane(LangevinNegatives(steps=5, step_size=0.01), learner=learner)
    trainer = EBMTrainer(eight(), config)
    trainer.learn(BudgetConfig(updates=4), progress_bar=False)
    assert trainer.negatives.counters.energy_evaluations == 4 * 10 * 6
    assert trainer.learner.counters.energy_evaluations == 4 * 20 + 10 + 3 * 20
    assert trainer.counters.energy_evaluations == 240 + 150
    assert trainer.counters.env_steps == 4 * 10 * 5 and trainer.counters.updates == 4
    agent = ValueGradientConfig(drift="bellman", objective=SAMPLERS["vgs"].agent.objective)
    trainer = EBMTrainer(eight(), plane(AgentNegatives(agent=agent), learner=learner))
    trainer.learn(BudgetConfig(updates=1), progress_bar=False)
    # Rollout: 128 + 128 by the last drift; target: as far as last steps were drawn; draw: 10 + 10.
    assert trainer.negatives.counters.energy_evaluations == trainer.mdp.energy_evaluations > 276
    assert trainer.counters.env_steps == (128 + 10) * 10
    assert trainer.counters.energy_evaluations == trainer.mdp.energy_evaluations + 30


@pytest.mark.parametrize("name", ["vgs", "langevin", "persistent", "pis", "sb3"])
def test_resumed_training_is_bit_identical(name, tmp_path):
    learner = ContrastiveConfig(
        batch_size=16, replay_size=40, replay_fraction=0.25, guard_every=2, max_gap=0.01, gamma=0.1
    )  # a guard that acts, so that what it did is resumed too
    config = plane(settings_of(name), learner=learner, warmup=1, agent_updates=2)

    def states(trainer):
        return [*trainer.energy.state_dict().values(), trainer.negatives.draw(50)]

    straight = EBMTrainer(eight(), config, seed=3)
    straight.learn(BudgetConfig(updates=12), progress_bar=False)
    first = EBMTrainer(eight(), config, seed=3)
    first.learn(BudgetConfig(updates=7), progress_bar=False)
    save_checkpoint(tmp_path / "last.pt", first.state_dict())
    second = EBMTrainer(eight(), config, seed=3)
    second.load_state_dict(load_checkpoint(tmp_path / "last.pt"))
    second.learn(BudgetConfig(updates=12), progress_bar=False)
    assert straight.learner.counters == second.learner.counters
    assert straight.learner.counters.rollbacks > 0
    assert straight.negatives.counters == second.negatives.counters
    for a, b in zip(states(straight), states(second), strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_numbers_and_the_global_rng_is_untouched():
    before = torch.get_rng_state()
    scores = []
    for seed in (0, 0, 1):
        trainer = EBMTrainer(eight(), plane(AgentNegatives()), seed=seed)
        trainer.learn(BudgetConfig(updates=3), progress_bar=False)
        scores.append(trainer.score(eight(50)))
    assert torch.equal(scores[0], scores[1]) and not torch.equal(scores[0], scores[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_agent_and_energy_take_turns():
    trainer = EBMTrainer(
        eight(), plane(AgentNegatives(), warmup=4, agent_updates=3, energy_updates=5)
    )
    trainer.learn(BudgetConfig(updates=11), progress_bar=False)
    assert trainer.negatives.counters.updates == 4 + 3 * 3
    assert trainer.learner.counters.updates == 11


@pytest.mark.parametrize("name", ["vgs", "persistent"])
def test_a_collapse_restarts_the_sampler(name):
    learner = ContrastiveConfig(batch_size=16, guard_every=1, min_std=1e9)  # all is collapse
    trainer = EBMTrainer(eight(), plane(settings_of(name), learner=learner, agent_updates=1))
    old = getattr(trainer.negatives, "agent", None)
    scalars = trainer.update()
    assert int(scalars["train/collapses"]) == 1 and int(scalars["train/restarts"]) == 1
    if old is None:
        assert len(trainer.negatives.x) == 0
    else:
        assert trainer.negatives.agent is not old
    trainer.update()
    assert trainer.negatives.counters.restarts == 2


def test_persistent_chains_go_on_and_some_start_anew():
    config = LangevinNegatives(
        steps=1, step_size=1e-12, persistent=True, chains=400, restart_fraction=0.25
    )
    trainer = EBMTrainer(eight(), plane(config))
    negatives = trainer.negatives
    negatives.draw(1)
    before = negatives.x.clone()
    negatives.draw(400)
    stayed = int(((negatives.x - before).norm(dim=-1) < 1e-3).sum())
    assert 260 < stayed < 340


def test_a_run_folder_holds_records_and_a_checkpoint(tmp_path):
    trainer = EBMTrainer(eight(), plane(AgentNegatives()))
    folder = RunFolder(tmp_path / "run", "")
    trainer.learn(
        BudgetConfig(updates=4), folder=folder, log_every=2, save_every=2, progress_bar=False
    )
    folder.close()
    record = folder.records[-1]
    assert record["updates"] == 4 and record["env_steps"] == trainer.counters.env_steps
    for name in ("energy_gap", "ebm_loss", "ebm_rollbacks", "collapses", "negatives_std"):
        assert math.isfinite(record[f"train/{name}"])
    assert record["time/energy_evaluations_ebm"] == 4 * 512
    assert (tmp_path / "run/checkpoints/last.pt").is_file()
    stopped = trainer.learn(
        BudgetConfig(updates=9), progress_bar=False, callback=lambda t: t.counters.updates < 6
    )
    assert not stopped and trainer.counters.updates == 6


def test_a_checkpoint_of_another_configuration_is_refused():
    state = EBMTrainer(eight(), plane(AgentNegatives())).state_dict()
    other = EBMTrainer(eight(), plane(AgentNegatives(), energy=MLPEnergyConfig(hidden=(8,))))
    with pytest.raises(ValueError, match="the checkpoint does not fit this configuration"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint lacks learner, negatives"):
        other.load_state_dict({"counters": {}, "prepared": True, "mdp": {}})


def test_a_configuration_names_energy_and_sampler_by_class_path(tmp_path):
    file = tmp_path / "ebm.yaml"
    file.write_text(
        "energy: {class_path: ModuleEnergyConfig, init_args: {class_path: torch.nn.Linear, "
        "init_args: {in_features: 2, out_features: 1}}}\n"
        "negatives: {class_path: LangevinNegatives, init_args: {steps: 3, persistent: true}}\n"
        "learner: {batch_size: 8}\n"
    )
    parser = make_parser(EBMConfig)
    arguments = ["--config", str(file), "--agent_updates", "2", "--trust", "true"]
    options = parse(parser, given(parser, arguments))
    config = EBMConfig(**{name: options[name] for name in EBMConfig.__dataclass_fields__})
    trainer = EBMTrainer(eight(), config)
    trainer.learn(BudgetConfig(updates=2), progress_bar=False)
    assert isinstance(trainer.energy.module, torch.nn.Linear)
    assert config.negatives.name == "langevin-persistent" and config.agent_updates == 2
    arguments = [
        "--negatives=AgentNegatives",
        "--negatives.agent=ValueGradientConfig",
        "--negatives.agent.objective=SoftBellman",
        "--energy=AutoencoderEnergyConfig",
        "--energy.latent=7",
    ]
    options = parse(parser, given(parser, arguments))
    assert options.energy.latent == 7 and isinstance(options.negatives.agent.objective, SoftBellman)
    with pytest.raises(ConfigError, match="latents"):
        given(parser, ["--energy=AutoencoderEnergyConfig", "--energy.latents=7"])


def test_what_cannot_follow_a_moving_energy_is_refused():
    with pytest.raises(ValueError, match="negatives.agent.objective must be TD0 or SoftBellman"):
        AgentNegatives(agent=ValueGradientConfig(objective=GradientMatching()))
    with pytest.raises(ValueError, match=r"data must have shape \(N, D\), got \(4,\)"):
        EBMTrainer(torch.ones(4))
    with pytest.raises(ValueError, match="ebm.agent_updates must be at least 0, got -1"):
        EBMConfig(agent_updates=-1)


def test_data_noise_is_fresh_and_stays_in_the_space():
    energy = AutoencoderEnergyConfig(hidden=(8,), latent=2).build(6, on_sphere=True, seed=0)
    energy.attach(caps())
    learner = EnergyLearner(energy, ContrastiveConfig(batch_size=64, data_noise=0.1))
    rows = caps(64)
    noised = learner._noised(rows)
    torch.testing.assert_close(noised.norm(dim=-1), torch.ones(64))
    assert 0.1 < float((noised - rows).norm(dim=-1).mean()) < 0.3
    assert not torch.equal(learner._noised(rows), noised)
    with pytest.raises(ValueError, match="learner.data_noise must be at least 0, got -1"):
        ContrastiveConfig(data_noise=-1)


# --- environments ---------------------------------------------------------------------------------

ID = "vgs_rl/EBMDigits-v0"


def test_the_single_environment_passes_gymnasiums_check():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of infinite observation bounds, which are meant
        check_env(gymnasium.make(ID).unwrapped, skip_render_check=True)
    assert isinstance(gymnasium.make(ID).unwrapped, EBMEnv)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_the_vector_environment_passes_our_check(mode):
    envs = gymnasium.make_vec(ID, num_envs=3, autoreset_mode=mode.name)
    assert isinstance(envs.unwrapped, EBMVectorEnv)
    assert "metrics of the sampling MDP" in check_vector_env(envs).passed


def step_through(envs, seed=0, episodes=1):
    envs.action_space.seed(seed)
    observation, _ = envs.reset(seed=seed)
    for _ in range(envs.unwrapped.mdp.num_steps * episodes):
        observation, *_, infos = envs.step(0.1 * envs.action_space.sample())
    return observation, infos


def test_states_start_at_digits_and_stay_on_the_sphere():
    envs = gymnasium.make_vec(ID, num_envs=20, num_steps=2, autoreset_mode="SAME_STEP")
    observation, _ = envs.reset(seed=0)
    x = torch.from_numpy(observation[:, :-1])
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20))
    nearest = (x @ envs.unwrapped.energy.data.T).max(-1).values
    assert float(nearest.min()) > 0.9
    final = step_through(envs)[1]["final_obs"][:, :-1]
    torch.testing.assert_close(torch.from_numpy(final).norm(dim=-1), torch.ones(20))


def test_the_energy_may_change_amid_an_episode():
    envs = EBMVectorEnv(ID, num_envs=4, autoreset_mode="SAME_STEP")
    other = digits_energy(seed=1)
    envs.reset(seed=0)
    for t in range(10):
        if t == 5:
            envs.update_energy(other.state_dict())
        infos = envs.step(np.zeros((4, 64), np.float32))[-1]
    x = torch.from_numpy(infos["final_obs"][:, :-1])
    np.testing.assert_allclose(infos["energy"], other(x).detach().numpy(), rtol=1e-5)
    before = copy.deepcopy(envs.energy.state_dict())
    smaller = digits_energy(latent=8, seed=2).state_dict()
    for wrong in ({}, smaller):
        with pytest.raises(ValueError, match="parameters do not fit AutoencoderEnergy: .* got"):
            envs.update_energy(wrong)
    after = envs.energy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(TypeError, match="target must be a LearnedEnergy, got Gaussian"):
        EBMVectorEnv(Gaussian(), num_envs=2)


def test_an_environment_on_the_trainers_mdp_sees_its_energy_learn():
    trainer = EBMTrainer(eight(), plane(AgentNegatives()))
    envs = SamplingVectorEnv(trainer.mdp, num_envs=4, autoreset_mode="SAME_STEP")
    for _ in range(2):
        infos = step_through(envs)[1]
        x = torch.from_numpy(infos["final_obs"][:, :-1])
        np.testing.assert_allclose(infos["energy"], trainer.score(x).numpy(), rtol=1e-5)
        trainer.update()


@pytest.mark.parametrize("num_envs", [1, 24])
def test_an_environment_with_a_learner_trains_its_energy_on_terminal_states(num_envs):
    learner = ContrastiveConfig(batch_size=16)
    envs = EBMVectorEnv(
        digits_energy(),
        num_envs=num_envs,
        learner=learner,
        mdp=two_steps(),
        autoreset_mode="SAME_STEP",
    )
    before = envs.energy.scale.clone()
    episodes = 32 // num_envs + 1
    step_through(envs, episodes=episodes)
    assert envs.learner.learner.counters.updates == episodes * num_envs // 16
    assert not torch.equal(envs.energy.scale, before)
    assert "train/energy_gap" in envs.learner.scalars


def two_steps():
    schedule = ScheduleConfig(kind="constant", first=1e-3)
    return MDPConfig(chain="ve", num_steps=2, schedule=schedule, start=StartConfig(kind="data"))


def test_a_single_environment_learns_too():
    env = EBMEnv(digits_energy(), learner=ContrastiveConfig(batch_size=4), mdp=two_steps())
    for seed in range(9):
        env.reset(seed=seed)
        for _ in range(2):
            env.step(np.zeros(64, np.float32))
    assert env.learner.learner.counters.updates == 2


def test_a_learning_environments_state_is_resumed_bit_for_bit():
    learner = ContrastiveConfig(batch_size=16)

    def make():
        return EBMVectorEnv(digits_energy(), num_envs=6, learner=learner, mdp=two_steps())

    def play(envs, steps):
        rng = np.random.default_rng(1)
        for _ in range(steps):
            step = envs.step(rng.standard_normal((6, 64)).astype(np.float32))
        return step

    first, second = make(), make()
    first.reset(seed=0)
    play(first, 7)
    second.reset(seed=9)
    second.load_state_dict(first.state_dict())
    a, b = play(first, 9), play(second, 9)
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    assert first.learner.learner.counters == second.learner.learner.counters


def test_a_learning_environments_state_of_another_learner_is_refused_and_changes_nothing():
    def make(latent, batch_size=16, learns=True):
        learner = ContrastiveConfig(batch_size=batch_size) if learns else None
        energy = digits_energy(latent=latent)
        envs = EBMVectorEnv(energy, num_envs=6, learner=learner, mdp=two_steps())
        envs.reset(seed=0)
        return envs

    envs = make(latent=16)
    before = copy.deepcopy(envs.state_dict())
    for other in (make(latent=8), make(latent=16, learns=False)):
        with pytest.raises(ValueError, match=r"state\['energy'\] is not of this learner"):
            envs.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="state must hold 'energy'"):
        envs.load_state_dict({})
    after = envs.state_dict()
    for name, value in before["energy"]["learner"]["energy"].items():
        assert torch.equal(value, after["energy"]["learner"]["energy"][name])
    assert torch.equal(before["x"], after["x"])


def test_a_library_model_trains_the_energy_through_the_environment():
    sb3 = pytest.importorskip("stable_baselines3")
    from vgs_rl.agents.rl.sb3_env import SB3VecEnv

    learner = ContrastiveConfig(batch_size=32)
    envs = gymnasium.make_vec(ID, num_envs=16, learner=learner)
    model = sb3.PPO("MlpPolicy", SB3VecEnv(envs), n_steps=10, batch_size=80, n_epochs=1, gamma=1.0)
    model.learn(16 * 10 * 4)
    assert envs.unwrapped.learner.learner.counters.updates == 2


def test_mdp_with_learned_energy_and_no_data_is_refused_for_a_data_start():
    with pytest.raises(ValueError, match="start.kind 'data' needs an energy with data"):
        SamplingMDP(MLPEnergy(2, hidden=(4,)), two_steps())

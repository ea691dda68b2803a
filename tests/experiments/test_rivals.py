"""Other libraries on targets of torch: they see the energy as it is, and know a Gaussian."""

import itertools
import math

import numpy as np
import pytest
import torch

from vgs_rl.energy import Energy
from vgs_rl.envs import Funnel10, Gaussian
from vgs_rl.experiments.benchmarks import rivals
from vgs_rl.experiments.benchmarks.rivals import (
    NOWHERE,
    callback_density,
    finite_density,
    require_rivals,
    run_rival,
)
from vgs_rl.experiments.benchmarks.untuned_targets import Counted, Truth
from vgs_rl.exploration import GaussianReference


class Half(Energy):
    """A half-line's exponential: E is infinite below 0."""

    dim = 1
    thread_safe = True

    def energy(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > 0, x[:, 0], torch.inf)


def states(n: int, dim: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_density_is_minus_the_energy_for_any_leading_shape() -> None:
    x = states(6, 10)
    energy, gradient = Funnel10().with_gradient(x)
    value, slope = finite_density(Funnel10())(x.reshape(2, 3, 10).numpy())
    assert value.shape == (2, 3) and slope.shape == (2, 3, 10)
    np.testing.assert_array_equal(value.ravel(), -energy)
    np.testing.assert_array_equal(slope.reshape(6, 10), -gradient)
    with pytest.raises(TypeError, match="states must be float64, got float32"):
        finite_density(Funnel10())(x.float().numpy())


def test_where_the_energy_is_not_finite_the_density_is_a_number() -> None:
    value, slope = finite_density(Half())(np.array([[-1.0], [2.0], [math.nan]]))
    np.testing.assert_array_equal(value, [-NOWHERE, -2.0, -NOWHERE])
    np.testing.assert_array_equal(slope.ravel(), [0.0, -1.0, 0.0])


def test_the_callback_gives_torchs_values_and_gradients_in_one_call_for_all_chains() -> None:
    jax = pytest.importorskip("jax", reason="needs the extra rivals")
    x = states(7, 10)
    energy, gradient = Funnel10().with_gradient(x)
    counted = Counted(Funnel10())
    calls: list[int] = []
    add = counted._count.add
    counted._count.add = lambda n: (calls.append(n), add(n))[1]
    wide = jax.config.read("jax_enable_x64")
    with rivals.double_jax():
        both = jax.jit(jax.vmap(jax.value_and_grad(callback_density(counted))))
        value, slope = both(jax.numpy.asarray(x.numpy()))
        np.testing.assert_allclose(value, -energy, rtol=1e-12)
        np.testing.assert_allclose(slope, -gradient, rtol=1e-12)
    assert calls == [7]
    assert jax.config.read("jax_enable_x64") == wide


GAUSSIAN = Gaussian((1.0, -2.0), ((2.0, 0.6), (0.6, 0.5)))
WIDE = GaussianReference(torch.zeros(2).double(), torch.full((2,), 4.0).double())
ENDLESS = 1e6  # seconds


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the look for a start."""
    monkeypatch.setattr(rivals, "wide_start", lambda energy, generator: WIDE)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_smc_knows_log_z_of_a_gaussian(wide: None) -> None:
    pytest.importorskip("blackjax", reason="needs the extra rivals")
    with rivals.double_jax():
        found = rivals.tempered(GAUSSIAN, WIDE, 1_000, rivals.Clock(ENDLESS), generator())
    assert found.log_z == pytest.approx(GAUSSIAN.log_z, abs=0.2)
    assert max(Truth.of(GAUSSIAN).errors(found.x, found.log_weight)) < 0.15
    ended = run_rival("smc", GAUSSIAN, 1e-9, 0)
    assert ended.note == "the time ended before the last temperature"
    assert len(ended.x) == 0 and ended.log_z is not None and math.isnan(ended.log_z)


def test_dynesty_knows_log_z_of_a_gaussian(wide: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dynesty", reason="needs the extra rivals")
    monkeypatch.setattr(rivals, "LIVE", 100)
    found = run_rival("dynesty", GAUSSIAN, ENDLESS, 0)
    assert found.note == "" and found.log_z is not None
    assert found.log_z == pytest.approx(GAUSSIAN.log_z, abs=0.6)  # √(H / live points) = 0.16
    assert max(Truth.of(GAUSSIAN).errors(found.x, found.log_weight)) < 0.4
    ended = run_rival("dynesty", GAUSSIAN, 1e-9, 0)
    assert ended.note == "the time ended before the last likelihood"


@pytest.mark.slow
def test_nuts_knows_the_moments_of_a_gaussian(wide: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpyro", reason="needs the extra rivals")
    monkeypatch.setattr(rivals, "WARM_UP", 50)
    with rivals.double_jax():
        first = WIDE.sample(rivals.CHAINS, generator())
        blocks = [*itertools.islice(rivals.nuts_blocks(GAUSSIAN, first, 0), 40)]
    assert blocks[0].shape == (rivals.BLOCK, rivals.CHAINS, 2)
    chains = np.concatenate(blocks[5:])
    assert max(Truth.of(GAUSSIAN).errors(torch.from_numpy(chains.reshape(-1, 2)))) < 0.2


def test_nuts_drops_its_warm_up_and_gives_no_log_z(
    wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numpyro", reason="needs the extra rivals")
    noise = np.random.default_rng(0)
    blocks = [np.full((10, 8, 2), 99.0)] * 2 + [noise.normal(size=(10, 8, 2)) for _ in range(30)]
    monkeypatch.setattr(rivals, "WARM_UP", 20)
    monkeypatch.setattr(rivals, "nuts_blocks", lambda *_: iter(blocks))
    found = run_rival("nuts", GAUSSIAN, ENDLESS, 0)
    assert found.log_z is None and found.x.shape == (30 * 10 * 8, 2)
    assert float(found.x.max()) < 10 and found.r_hat < 1.05
    ended = run_rival("nuts", GAUSSIAN, 1e-9, 0)
    assert ended.note == "the time ended in warm-up" and len(ended.x) == 0


def test_the_start_is_wider_than_the_target() -> None:
    found = rivals.wide_start(GAUSSIAN, generator())
    assert bool((found.std > 1.5).all())


@pytest.mark.parametrize("name", ["nuts", "smc", "dynesty"])
def test_a_missing_library_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = rivals.RIVALS[name][1]
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match=rf"{library}.*vgs-rl\[rivals\]"):
        require_rivals((name,))

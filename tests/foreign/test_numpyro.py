"""A model of NumPyro, eight schools, is the energy that one would write in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal

from vgs_rl import Energy

pytest.importorskip("numpyro", reason="needs the extra clients")

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def eight_schools() -> None:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        likelihood = dist.Normal(mu + tau * z, jnp.array(ERRORS))
        numpyro.sample("y", likelihood, obs=jnp.array(EFFECTS))


def in_torch(x: Tensor) -> Tensor:
    """The same with x = (mu, log tau, z), the order of the names."""
    mu, log_tau, z = x[:, 0], x[:, 1], x[:, 2:]
    tau = log_tau.exp()
    prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(tau) + log_tau
    likelihood = Normal((mu + tau * z.T).T, torch.tensor(ERRORS).to(x))
    observed = likelihood.log_prob(torch.tensor(EFFECTS).to(x)).sum(-1)
    return -(prior + Normal(0.0, 1.0).log_prob(z).sum(-1) + observed)


@pytest.fixture(scope="module")
def posterior() -> Energy:
    import jax
    from jax.flatten_util import ravel_pytree
    from numpyro.infer.util import initialize_model

    model = initialize_model(jax.random.PRNGKey(0), eight_schools)
    start, unravel = ravel_pytree(model.param_info.z)

    def energy(x: Any) -> Any:
        return model.potential_fn(unravel(x))

    return Energy.from_function(energy, len(start), framework="jax", batched=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_potential_and_its_gradient_are_those_of_torch(
    posterior: Energy, dtype: torch.dtype
) -> None:
    x = torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)
    leaf = x.clone().requires_grad_(True)
    right = in_torch(leaf)
    (slope,) = torch.autograd.grad(right.sum(), leaf)
    value, gradient = posterior.with_gradient(x)
    digits = {"rtol": 1e-5, "atol": 1e-4}
    torch.testing.assert_close(value, right.detach(), **digits)
    torch.testing.assert_close(gradient, slope, **digits)

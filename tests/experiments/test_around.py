"""An exploration around what was learned begins with a normalised density."""

import pytest
import torch

from vgs_rl.agents.automatic.design import choose_design
from vgs_rl.envs import GMM9, StudentT
from vgs_rl.experiments.automatic.around import DesignReference
from vgs_rl.exploration import GaussianReference, JoinedReference, MappedReference


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("target", [GMM9(), StudentT(2)], ids=["mixture", "tails"])
def test_its_density_is_that_of_its_draws(target: GMM9 | StudentT) -> None:
    x = target.sample(4_000, source()).double()
    design, _ = choose_design(x, source(), tails=True)
    wide = MappedReference(
        GaussianReference(torch.zeros(2), torch.full((2,), 20.0)), design.coordinates
    )
    reference = JoinedReference(DesignReference(design.mixture), wide, 0.8)
    z = reference.sample(100_000, source())
    # ∫ q²/(q + r) + ∫ qr/(q + r) = 1, with a normal density r: both are means over draws.
    normal = torch.distributions.Normal(z.median(0).values, z.std(0))
    noise = torch.randn(100_000, 2, generator=source(), dtype=torch.float64)
    other = normal.loc + normal.scale * noise
    ours = torch.sigmoid(-reference.level(z)[0] - normal.log_prob(z).sum(-1)).mean()
    theirs = torch.sigmoid(-reference.level(other)[0] - normal.log_prob(other).sum(-1)).mean()
    assert float(ours + theirs) == pytest.approx(1.0, abs=0.01)
    some = z[:20].clone().requires_grad_(True)
    step = 1e-5 * torch.eye(2).double()
    level, slope = reference.level(some)
    for i in (0, 1):
        rise = reference.level(some + step[i])[0] - reference.level(some - step[i])[0]
        torch.testing.assert_close(slope[:, i], rise / 2e-5, atol=1e-4, rtol=1e-4)
    assert len(level) == 20 and reference.labels(z).max() < 64

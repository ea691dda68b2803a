"""Whether a target is heavy-tailed, and in which coordinates it is not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap
from vgs_rl.exploration.coordinates.base import Composed, Coordinates
from vgs_rl.exploration.coordinates.components import Components
from vgs_rl.exploration.coordinates.tails import Tails
from vgs_rl.starts.em import Kind, Mixture, choose_mixture, fit_mixture
from vgs_rl.starts.student import NUS, StudentComponents, fit_students
from vgs_rl.weights import systematic_resample

STEPS = 10  # of the fit of location and scale, which begins at that of the lighter tail
WORTH = 3.0  # nats by which a coordinate's likelihood must favour a tail
CLEAR = 4.0  # standard errors
LEAST_GAIN = 1e-3  # nats per state
LEAST_STATES = 200
MOST_STATES = 4096
MOST_NUMBERS = 2**19  # in these states, of which there are at least a quarter of MOST_STATES
COMPONENTS = (2, 4, 8, 16)
LIKELIER = 0.1  # nats a state, by which Student-t components must be, than Gaussian ones
MOST_DIMENSIONS = 256  # above, a fit takes longer than it is worth
PROBED = 5.0  # degrees of freedom with which tails are tried
INNER = 0.02  # of the states, beyond which a coordinate does not say where components are
FEWER = (1, 2, 4, 8, 16, 32)  # components than Gaussians
PATIENCE = 2  # of these numbers without a gain
MOST_MODES = 64
MOST_PARTS = 4096  # coordinates of all components, up to which products of t are fitted
MOST_FULL_COMPONENTS = 8  # dimensions up to which components have full covariances

Fit = Callable[[Tensor, Tensor], Coordinates]


@dataclass(frozen=True, kw_only=True)
class TailFit:
    """What :func:`fit_tails` found.

    Attributes:
        kind: `none`; `radial`, a t that depends on one norm; or `coordinates`, a t in each.
        nu: degrees of freedom, one number or of shape (D,); infinity for `none`.
        coordinates: from z of unit size: whitening, then the tails, then location and scale.
        gain: mean log-likelihood of states that were held out, over that of a Gaussian, in nats per
            state, where far states count as if they were nearer; 0 for `none`.
        error: its standard error.
    """

    kind: Literal["none", "radial", "coordinates"]
    nu: Tensor
    coordinates: Coordinates
    gain: float
    error: float


def fit_tails(x: Tensor, log_weight: Tensor | None = None) -> TailFit:
    """Coordinates in which states are nearly Gaussian, with heavy tails only where these are clear.

    Candidates are a multivariate t (`radial`) and a product of t, each coordinate with its own
    degrees of freedom (`coordinates`). Each is fitted to one half of the states and scored by its
    log-likelihood of the other half, and the other way round. The better one must beat a Gaussian
    by more than 4 standard errors, without the credit of a few far states. It must also be no worse
    than mixtures of up to 16 Gaussians, so that distant modes do not pass for a tail. In many
    dimensions a rare mode, or a concentric one, still may. The map is exact in any case.

    Location and scale are those of the t: Kent, Tyler and Vardi, Commun. Stat. Simul. 23 (1994).

    Args:
        x: states, shape (n, D); at most 4096 of them are looked at.
        log_weight: their log-weights up to a constant, shape (n,); equal if None.

    Raises:
        ValueError: if the shapes do not fit or a state is not finite.
    """
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"x must have shape (n, D) with n at least 2, got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError(f"x must be finite, got {int((~x.isfinite()).sum())} numbers that are not")
    if log_weight is not None and log_weight.shape != x.shape[:1]:
        expected = f"({len(x)},)"
        raise ValueError(f"log_weight must have shape {expected}, got {tuple(log_weight.shape)}")
    x = x.double()
    weight = x.new_full((len(x),), 1 / len(x))
    if log_weight is not None:
        weight = log_weight.double().softmax(-1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    most = max(MOST_STATES // 4, min(MOST_STATES, MOST_NUMBERS // x.shape[-1]))
    order = order[weight[order] > 0][:most]
    trial = _Trial(x[order], weight[order] / weight[order].sum())
    none = TailFit(
        kind="none",
        nu=x.new_tensor(math.inf),
        coordinates=AffineMap.whitening(x, weight),
        gain=0.0,
        error=0.0,
    )
    if trial.size < LEAST_STATES:
        return none
    base = trial.scores(AffineMap.whitening)
    fits: dict[Literal["radial", "coordinates"], Fit] = {"coordinates": _coordinate_fit}
    if x.shape[-1] > 1:
        fits["radial"] = _radial_fit
    scored = {kind: trial.scores(fit) for kind, fit in fits.items()}
    kind = max(scored, key=lambda each: trial.mean(scored[each]))
    gain, error = trial.gain(scored[kind], base)
    if not gain > max(CLEAR * error, LEAST_GAIN):
        return none
    if trial.mean(scored[kind]) < trial.best_mixture(AffineMap.whitening):
        return none
    coordinates = fits[kind](x, weight)
    assert isinstance(coordinates, Composed) and isinstance(coordinates.inner, Composed)
    tails = coordinates.inner.outer
    assert isinstance(tails, Tails)
    return TailFit(kind=kind, nu=tails.nu, coordinates=coordinates, gain=gain, error=error)


def fit_components(
    x: Tensor,
    generator: torch.Generator,
    log_weight: Tensor | None = None,
    modes: Tensor | None = None,
    *,
    light: Mixture | None = None,
) -> Components | None:
    """Coordinates in which a mixture of Student-t is one normal, or None where it is no likelier.

    Components are multivariate t, or products of t. They begin at the mixture of Gaussians that is
    likeliest, and at the known modes. Held-out states choose among all of these. Above 256
    dimensions there are none.

    Args:
        x: states, shape (n, D).
        generator: source of randomness.
        log_weight: of the states, shape (n,); equal if None.
        modes: where components may be, shape (M, D).
        light: the mixture of Gaussians, if it is known.
    """
    if x.shape[1] > MOST_DIMENSIONS:
        return None
    x = x.double()
    log_weight = torch.zeros_like(x[:, 0]) if log_weight is None else log_weight.double()
    half = len(x) // 2
    fitted, own, held = x[:half], log_weight[:half], x[half:]
    inner = torch.maximum(
        torch.minimum(fitted, fitted.quantile(1 - INNER, 0)), fitted.quantile(INNER, 0)
    )
    share = torch.softmax(log_weight[half:], 0)
    if light is None:
        light = choose_mixture(fitted, generator, log_weight=own, modes=modes)

    def level(mixture: Mixture | StudentComponents) -> float:
        return float(share @ mixture.log_prob(held))

    def begin(means: Tensor | int, kind: Kind) -> Mixture:
        count, at = (means, None) if isinstance(means, int) else (len(means), means)
        return fit_mixture(
            inner, count, generator, kind=kind, log_weight=own, begin=at, iterations=5
        )

    gaussian, most = level(light), len(light.weights)
    begins: list[Tensor | int] = [k for k in FEWER if k < most]
    if modes is not None and 1 < len(modes) <= MOST_MODES:
        begins.insert(0, modes)
    best: tuple[float, StudentComponents] | None = None
    for radial in (False, True):
        kind = light.kind if radial else "diagonal"
        if not radial and most * x.shape[1] > MOST_PARTS:
            continue
        nu = x.new_tensor(PROBED) if radial else x.new_full(x.shape[1:], PROBED)
        options: dict[str, Any] = {"radial": radial, "log_weight": own}
        trial = fit_students(fitted, begin(light.means, kind), nu=nu, **options)
        if level(trial) < gaussian:  # with tails it is worse
            continue
        idle = 0
        for means in (*begins, light.means):  # Gaussians need more of them than there are
            trial = fit_students(fitted, begin(means, kind), **options)
            here, idle = level(trial), idle + 1
            if here > (gaussian + LIKELIER if best is None else best[0]):
                best, idle = (here, trial), 0
            if best is not None and idle == PATIENCE:
                break
    if best is None:
        return None
    found = best[1]
    return Components(
        fit_students(x, found.scales, radial=found.radial, log_weight=log_weight, nu=found.nu)
    )


class _Trial:
    """Scores of coordinates on states that they were not fitted to, by two halves of weighted x."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self.x, self.weight = x, weight
        self.size = 1.0 / float(weight.square().sum())

    def mean(self, scores: Tensor) -> float:
        return float(self.weight @ scores)

    def gain(self, scores: Tensor, base: Tensor) -> tuple[float, float]:
        """Mean difference and its standard error."""
        difference = scores - base
        # A Gaussian's score of one far state may outweigh all others: no state counts for much.
        difference = difference.clamp_max(10.0 * float(difference.abs().median()))
        mean = self.weight @ difference
        error = (self.weight * (difference - mean)).square().sum().sqrt()
        return float(mean), float(error)

    def halves(self) -> Iterator[tuple[slice, slice]]:
        """What is fitted to, and what is held out."""
        middle = len(self.x) // 2
        first, second = slice(0, middle), slice(middle, None)
        yield second, first
        yield first, second

    def scores(self, fit: Fit) -> Tensor:
        """Log-density of each state under a standard normal z, but for a constant; shape (n,)."""
        found = []
        for fitted, held in self.halves():
            coordinates = fit(self.x[fitted], self.weight[fitted])
            z = coordinates.to_z(self.x[held])
            found.append(-0.5 * z.square().sum(-1) - coordinates.with_log_det(z)[1])
        return torch.cat(found)

    def best_mixture(self, fit: Fit) -> float:
        """The mean score where the best Gaussian mixture of z is in the Gaussian's place."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        dim = self.x.shape[-1]
        constant = 0.5 * dim * math.log(2 * math.pi)
        found: list[list[Tensor]] = [[] for _ in COMPONENTS]
        for fitted, held in self.halves():
            coordinates = fit(self.x[fitted], self.weight[fitted])
            generator = torch.Generator(self.x.device).manual_seed(0)
            weight = self.weight[fitted]
            chosen = systematic_resample(weight.log(), len(weight), generator)
            rows = coordinates.to_z(self.x[fitted][chosen]).cpu().numpy()
            z = coordinates.to_z(self.x[held])
            log_det = coordinates.with_log_det(z)[1]
            for components, scores in zip(COMPONENTS, found, strict=True):
                mixture = GaussianMixture(
                    components,
                    covariance_type="full" if dim <= MOST_FULL_COMPONENTS else "diag",
                    max_iter=50,
                    random_state=0,
                )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    mixture.fit(rows)
                score = torch.from_numpy(mixture.score_samples(z.cpu().numpy())).to(log_det)
                scores.append(score + constant - log_det)
        return max(self.mean(torch.cat(scores)) for scores in found)


def _radial_fit(x: Tensor, weight: Tensor) -> Coordinates:
    """The best multivariate t, by its likelihood of the states that it is fitted to."""
    dim = x.shape[-1]
    location = AffineMap.whitening(x, weight)
    best: tuple[float, AffineMap, float] | None = None
    for nu in NUS:
        for _ in range(STEPS):
            r2 = location.to_z(x).square().sum(-1)
            location = AffineMap.whitening(x, weight / (nu + r2))
        r2 = location.to_z(x).square().sum(-1)
        score = float(weight @ _log_student(r2, nu, dim) / weight.sum()) - location.log_det
        if best is not None and score < best[0]:
            break
        best = score, location, nu
    assert best is not None
    return _with_tails(best[1], Tails(dim, x.new_tensor(best[2])), x, weight)


def _coordinate_fit(x: Tensor, weight: Tensor) -> Coordinates:
    """The best product of t, by its likelihood of the states that it is fitted to."""
    weight = weight / weight.sum()
    centre = weight @ x
    width = (weight @ (x - centre).square()).sqrt()
    least = 1e-6 * centre.abs().clamp_min(1e-6)  # of a coordinate that all states share
    width = width.clamp_min(least)
    normal = -0.5 * (weight @ ((x - centre) / width).square()) - width.log()
    rows = [(normal, centre, width)]
    for nu in NUS:
        for _ in range(STEPS):
            share = weight.unsqueeze(-1) / (nu + ((x - centre) / width).square())
            share = share / share.sum(0)
            centre = (share * x).sum(0)
            width = (share * (x - centre).square()).sum(0).sqrt().clamp_min(least)
        r2 = ((x - centre) / width).square()
        rows.append((weight @ _log_student(r2, nu, 1) - width.log(), centre, width))
        if len(rows) > 2 and bool((rows[-1][0] < rows[-2][0]).all()):
            break
    scores, centres, widths = (torch.stack(part) for part in zip(*rows, strict=True))
    scores[0] += WORTH * weight.square().sum()
    chosen = scores.argmax(0)
    nu_of = x.new_tensor([math.inf, *NUS])[chosen]
    index = chosen.unsqueeze(0)
    location = AffineMap(centres.gather(0, index)[0], widths.gather(0, index)[0])
    return _with_tails(location, Tails(x.shape[-1], nu_of), x, weight)


def _log_student(r2: Tensor, nu: float, dim: int) -> Tensor:
    """Log-density of a standard t of norm² r2 in `dim` dimensions, over a normal's constant."""
    constant = (
        math.lgamma(0.5 * (nu + dim)) - math.lgamma(0.5 * nu) - 0.5 * dim * math.log(0.5 * nu)
    )
    return constant - 0.5 * (nu + dim) * (r2 / nu).log1p()


def _with_tails(location: AffineMap, tails: Tails, x: Tensor, weight: Tensor) -> Coordinates:
    """Location and scale, the tails, and whitening of what they leave."""
    whitening = AffineMap.whitening(tails.to_z(location.to_z(x)), weight)
    return Composed(location, Composed(tails, whitening))

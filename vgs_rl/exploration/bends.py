"""Funnels and bananas undone as far as states show them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.exploration.coordinates.affine import AffineMap, Rotation
from vgs_rl.exploration.coordinates.base import Composed, Coordinates
from vgs_rl.exploration.coordinates.location_scale import MOST_LOG, ROOT, LocationScale
from vgs_rl.exploration.tail_fit import fit_tails
from vgs_rl.starts.em import choose_mixture
from vgs_rl.weights import systematic_resample, temper

MOST = 128  # dimensions up to which pairs are looked at
MOST_ORDERED = 64  # and up to which each may depend on all that come before it
STATES = 4096
LEAST = 5  # different states for each dimension
FEWEST = 200  # and altogether
WIDTHS = 1e-100, 1e100  # whose squares are numbers
SWEEPS = 25  # of a fit, fewer where pairs are compared
COMPARED = 6
SIGNIFICANT = 4.0  # standard errors of a coefficient
HINT = 0.02  # squared correlation from which on a pair is fitted
WORTH = 0.05  # nats a state by which one coordinate must depend on another
CLEARLY = 0.1  # nats a state by which other coordinates must be better, and a mixture fit there
MODES = 64  # Gaussians of a mixture: with too few, modes pass for a bend


def fit_location_scale(
    x: Tensor, generator: torch.Generator, log_weight: Tensor | None = None
) -> Composed | None:
    """Coordinates in which states depend less on each other than in any affine ones, or None.

    Each coordinate may have one parent. What that is worth beyond a linear mean of one scale is
    measured on held-out states. Candidates are the coordinates themselves; whitened ones whose
    first is the direction of E[z log |z|²], where a funnel has its axis however it was turned and
    stretched; and each coordinate without what is linear in those before it, the first of which
    may be a scale of all others. In the best of them a mixture of Gaussians must be clearly
    likelier than in the coordinates themselves, and than without their heavy tails
    (:func:`~vgs_rl.exploration.tail_fit.fit_tails`): neither modes nor tails pass for a bend.

    Args:
        x: states, shape (n, D).
        generator: source of randomness.
        log_weight: of the states, shape (n,); equal if None.

    Returns:
        An affine map after a :class:`LocationScale`, or None: where it is not clearly better, there
        are fewer than 200 or 5 D different states or more than 128 dimensions, or a width is
        0 or not finite.
    """
    n, dim = x.shape
    if dim < 2 or dim > MOST:
        return None
    weights = torch.zeros_like(x[:, 0]) if log_weight is None else log_weight
    weights = temper(weights.double(), 1 / 3).log()
    rows = systematic_resample(weights, min(n, STATES), generator)
    x = x[rows[torch.randperm(len(rows), generator=generator, device=x.device)]].double()
    centre, width = x.mean(0), x.std(0)
    usable = (width > WIDTHS[0]) & (width < WIDTHS[1])
    if not bool(usable.all()) or len(x.unique(dim=0)) < max(FEWEST, LEAST * dim):
        return None
    frames: list[Coordinates] = [AffineMap(centre, width), _along_the_funnel(x)]
    behind = _in_order(frames[0].to_z(x)) if dim <= MOST_ORDERED else None
    if behind is not None:
        frames.append(Composed(frames[0], behind))
    best: tuple[float, Composed] | None = None
    for frame in frames:  # the plainest first: what is fitted for nothing is wrong far out
        trees = _trees(frame.to_z(x))
        if trees is not None:
            found = Composed(frame, trees)
            entropy = _entropy(found, x)
            if best is None or entropy < best[0] - CLEARLY:
                best = entropy, found
    if best is None:
        return None
    others = [frames[0], fit_tails(x).coordinates]
    return best[1] if _simpler(best[1], others, x, generator) else None


def _entropy(coordinates: Coordinates, x: Tensor) -> float:
    """That of x if it were Gaussian in these coordinates, up to a constant."""
    z = coordinates.to_z(x)
    return float(0.5 * torch.logdet(torch.cov(z.T)) + coordinates.with_log_det(z)[1].mean())


def _simpler(
    new: Coordinates, others: list[Coordinates], x: Tensor, generator: torch.Generator
) -> bool:
    """Whether held-out states are likelier under a mixture there: modes and tails are no bend."""
    half, levels = len(x) // 2, []
    for coordinates in (new, *others):
        z = coordinates.to_z(x)
        mixture = choose_mixture(z[:half], generator, most=MODES, kinds=("diagonal", "tied"))
        log_det = coordinates.with_log_det(z[half:])[1]
        levels.append(float((mixture.log_prob(z[half:]) - log_det).clamp_min(-1e3).mean()))
    return levels[0] > max(levels[1:]) + CLEARLY


def _along_the_funnel(x: Tensor) -> Coordinates:
    """Whitened coordinates, the first along E[z log |z|²]."""
    whitened = AffineMap.whitening(x)
    z = whitened.to_z(x)
    axis = (z * z.square().sum(-1, keepdim=True).log()).mean(0)
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    basis[:, 0] = axis
    q, r = torch.linalg.qr(basis)
    return Composed(whitened, Rotation(torch.where(r.diagonal() < 0, -q, q)))


def _in_order(z: Tensor) -> Coordinates | None:
    """Each coordinate of unit size without what is linear in those before it, weighted by a first.

    The first is the one that says most about how far others are from where all of them would
    predict them: as a scale of a hierarchical model does, in whose neck coordinates are nearly
    equal. None where no coordinate says anything of it.
    """
    n, dim = z.shape
    one = torch.eye(dim, dtype=z.dtype, device=z.device)
    precision = torch.linalg.inv(torch.cov(z.T).reshape(dim, dim) + 1e-9 * one)
    logs = (z @ precision).square().clamp_min(1e-300).log()
    logs = logs - logs.mean(0)
    said = ((z.T @ logs) / n / logs.std(0).clamp_min(1e-300)).square()
    said.fill_diagonal_(0.0)
    if not bool((said > HINT).any()):
        return None
    first = int(said.sum(1).argmax())
    order = [first, *(j for j in range(dim) if j != first)]
    z = z[:, order]
    before = torch.zeros_like(one)
    for j in range(1, dim):
        columns = torch.cat([torch.ones_like(z[:, :1]), z[:, :j]], -1)
        found, log_scale = _fit(z[:, 0], z[:, j : j + 1], columns, sweeps=COMPARED)
        narrow = columns * (-_scale_terms(z[:, 0]) @ log_scale.T).exp()
        error = torch.linalg.inv(narrow.T @ narrow + 1e-9 * len(z) * torch.eye(j + 1).to(z))
        clear = found[0].abs() > SIGNIFICANT * error.diagonal().sqrt()
        before[j, :j] = torch.where(clear, found[0], 0.0)[1:]
    factor = torch.linalg.solve_triangular(one - before, one, upper=False)
    turn = Rotation(one[:, order])
    return Composed(turn, AffineMap(torch.zeros_like(z[0]), factor))


def _trees(z: Tensor) -> LocationScale | None:
    """The trees that are worth most on held-out states of unit size, if any is worth it."""
    dim, half = z.shape[1], len(z) // 2
    worth = torch.full((dim, dim), -math.inf, dtype=z.dtype, device=z.device)
    for i in range(dim):
        v, held = z[:half, i], z[half:, i]
        j = [each for each in _hinted(v, z[:half]) if each != i]
        if j:
            bent = _fit(v, z[:half, j], _powers(v, 2), sweeps=COMPARED)
            flat = _fit(v, z[:half, j], _powers(v, 1), bends=0)
            gain = _score(bent, held, z[half:, j]) - _score(flat, held, z[half:, j])
            worth[i, j] = gain.mean(0)
    parents = [ROOT] * dim
    for k in worth.flatten().argsort(descending=True).tolist():
        i, j = divmod(k, dim)
        if not float(worth[i, j]) > WORTH:
            break
        at = i
        while at not in (ROOT, j):
            at = parents[at]
        if parents[j] == ROOT and at != j:
            parents[j] = i
    if not any(i != ROOT for i in parents):
        return None
    location = torch.zeros(dim, 3, dtype=z.dtype, device=z.device)
    log_scale = torch.zeros_like(location)
    for i in sorted(set(parents) - {ROOT}):
        children = [j for j, parent in enumerate(parents) if parent == i]
        location[children], log_scale[children] = _simplest(z[:, i], z[:, children])
    return LocationScale(torch.tensor(parents, device=z.device), location, log_scale)


def _hinted(v: Tensor, y: Tensor) -> list[int]:
    """Columns of y (n, C) whose residuals or their logs go with v² or v, by their correlation."""
    rest = y - torch.outer(v, y.T @ v / v.square().sum())
    logs = rest.square().clamp_min(1e-300).log()
    square = v.square() - v.square().mean()
    hints = [
        (each @ of).square() / (each.square().sum() * of.square().sum(0)).clamp_min(1e-300)
        for each, of in ((square, rest - rest.mean(0)), (v - v.mean(), logs - logs.mean(0)))
    ]
    return (torch.maximum(*hints) > HINT).nonzero().flatten().tolist()


def _powers(v: Tensor, degree: int) -> Tensor:
    return torch.stack([v**power for power in range(degree + 1)], -1)


def _simplest(v: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The terms of m and s that the Bayesian information criterion keeps: far out each one counts.

    Returns:
        Coefficients of m and of s, both of shape (C, 3), for the columns of y (n, C).
    """
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for degree in range(3):
        for bends in range(3):
            location, log_scale = _fit(v, y, _powers(v, degree), bends)
            location = torch.nn.functional.pad(location, (0, 2 - degree))
            terms = degree + bends
            level = _score((location, log_scale), v, y).sum(0) - 0.5 * terms * math.log(len(v))
            if best is None:
                best = level, location, log_scale
                continue
            better = (level > best[0]).unsqueeze(-1)
            new = (level.unsqueeze(-1), location, log_scale)
            old = (best[0].unsqueeze(-1), *best[1:])
            level, location, log_scale = (
                torch.where(better, a, b) for a, b in zip(new, old, strict=True)
            )
            best = level.squeeze(-1), location, log_scale
    assert best is not None
    return best[1:]


def _fit(
    v: Tensor, y: Tensor, columns: Tensor, bends: int = 1, sweeps: int = SWEEPS
) -> tuple[Tensor, Tensor]:
    """Maximum likelihood of N(m, exp(2 s)), m linear in columns (n, P), for each y (n, C).

    Args:
        v: what s depends on, shape (n,).
        y: shape (n, C).
        columns: shape (n, P).
        bends: terms of s besides its constant, at most 2.
        sweeps: of the fit, where there are such terms.

    Returns:
        Coefficients of m, shape (C, P), and of s, shape (C, 3).
    """
    one = torch.eye(columns.shape[1], dtype=y.dtype, device=y.device)
    terms = _scale_terms(v)[:, : bends + 1]
    back = torch.linalg.pinv(terms)  # Fisher scoring: the information of 2s is half of terms' gram
    s, log_scale = torch.zeros_like(y), torch.zeros_like(terms[0].expand(y.shape[1], -1))
    for sweep in range(sweeps if bends else 1):
        weight = (-2 * s).clamp(-30, 30).exp()
        rows = (weight.unsqueeze(-1) * columns.unsqueeze(1)).flatten(1)
        gram = (rows.T @ columns).unflatten(0, (y.shape[1], -1))
        ridge = 1e-9 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        location = torch.linalg.solve(gram + ridge * one, (weight * y).T @ columns)
        r2 = (y - columns @ location.T).square().clamp_min(1e-300)
        if sweep == 0:
            logs = r2.log()
            log_scale = 0.5 * (back @ (logs - logs.mean(0) + r2.mean(0).log())).T
        else:
            excess = (r2 * (-2 * s).exp() - 1).clamp(-10, 10)
            log_scale = log_scale + 0.5 * (back @ excess).T
        s = (terms @ log_scale.T).clamp(-MOST_LOG, MOST_LOG)
    return location, torch.nn.functional.pad(log_scale, (0, 2 - bends))


def _scale_terms(v: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(v), v, torch.nn.functional.softplus(v)], -1)


def _score(fitted: tuple[Tensor, Tensor], v: Tensor, y: Tensor) -> Tensor:
    """Log-likelihood of y (n, C), shape (n, C), without far states' credit."""
    location, log_scale = fitted
    s = (_scale_terms(v) @ log_scale.T).clamp(-MOST_LOG, MOST_LOG)
    r = (y - _powers(v, location.shape[1] - 1) @ location.T) * (-s).exp()
    return (-s - 0.5 * r.square()).clamp_min(-50.0)

"""Checks of a target against all that it declares; messages name what was wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.checks import seed_of
from vgs_rl.energy import Energy, Particles
from vgs_rl.envs.checks.calls import check_states_left_alone, check_threads
from vgs_rl.envs.checks.report import CheckReport, expect
from vgs_rl.probe import check_declared


def check_energy(
    energy: Energy,
    *,
    samples: Tensor | None = None,
    devices: Sequence[torch.device | str] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    seed: int = 0,
) -> CheckReport:
    """Checks a target against everything it declares.

    Shapes, types, finiteness, gradients (automatic and by finite differences), independence of
    rows, calls from two threads at once, whether states are left as they were, the global RNG,
    symmetry, the exact sampler, the identities E[x·∇E] = D and E[∇E] = 0 of its samples, mode
    weights, and exact values.

    Two threads at once must agree only where the energy says that it is `thread_safe`; of others
    the report says whether they did.

    Args:
        energy: the target, at tau = 1; it is copied where it can be, not moved.
        samples: samples of exp(-E)/Z, shape (n, D); by default from the exact sampler, else the
            shipped reference, else none: the checks that need them are then skipped.
        devices: where to check; by default the CPU, and CUDA if there is one.
        dtypes: floating types to check.
        seed: of every random choice.

    Returns:
        What was checked.

    Raises:
        CheckError: at the first check that fails.

    Example:
        >>> from vgs_rl.envs import GMM9, check_energy
        >>> "virial identity" in check_energy(GMM9()).passed
        True
    """
    report = CheckReport(subject=type(energy).__name__)
    generator = torch.Generator().manual_seed(seed_of(seed))
    if devices is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with report.check("declared attributes"):
        check_declared(energy)
    target = _copied(energy).to("cpu")
    with report.check("global RNG untouched"):
        before = torch.get_rng_state()
        if target.can_sample:
            _check_sampler(target, report)
        samples = _samples_of(target, samples, generator)
        normal = torch.randn(64, target.dim, generator=generator, dtype=torch.float64)
        x = target.geometry.project(normal if samples is None else samples[:64].double())
        for device in devices:
            for dtype in dtypes:
                _check_types(target, x.to(device, dtype), report)
        _check_rows(target, x, generator, report)
        check_states_left_alone(target, x, report)
        check_threads(target, x[:8], report)
        _check_gradient(target, x, generator, report)
        if target.symmetry is not None:
            _check_symmetry(target, target.symmetry, x, generator, report)
        else:
            report.skipped["symmetry"] = "none is declared"
        if samples is None:
            report.skipped["virial identity"] = "no samples: pass samples=, or write sample()"
        else:
            _check_moments(target, samples.double(), report)
        if target.has_value and target.geometry.linear:
            _check_values(target, x, samples, generator, report)
        else:
            report.skipped["exact values"] = "value() is not defined"
        expect(
            bool((torch.get_rng_state() == before).all()),
            "expected the state of torch's global RNG to stay as it was; draw from a "
            "torch.Generator of your own",
        )
    return report


def _samples_of(
    energy: Energy, samples: Tensor | None, generator: torch.Generator, n: int = 20_000
) -> Tensor | None:
    if samples is not None:
        shape = tuple(samples.shape)
        expect(
            samples.ndim == 2 and shape[1] == energy.dim,
            f"expected samples of shape (n, {energy.dim}), got {shape}",
        )
        return samples.cpu()
    if energy.can_sample:
        return energy.sample(n, generator)
    try:
        return energy.reference()
    except NotImplementedError:
        return None


def _check_types(energy: Energy, x: Tensor, report: CheckReport) -> None:
    moved = energy if x.device.type == "cpu" else copy.deepcopy(energy).to(x.device)
    with report.check(f"types on {x.device.type}, {x.dtype}"):
        for name, got in (("energy", moved(x)), ("gradient", moved.with_gradient(x)[1])):
            wrong = int((~torch.isfinite(got)).sum())
            expect(wrong == 0, f"expected a finite {name}, {wrong} entries are not")


def _check_rows(energy: Energy, x: Tensor, generator: torch.Generator, report: CheckReport) -> None:
    with report.check("rows are independent"):
        values, close = energy(x), _looser(energy)
        order = torch.randperm(len(x), generator=generator)
        _expect_close(energy(x[order]), values[order], close * 1e-8, "energies of shuffled rows")
        for i in (0, len(x) // 2, len(x) - 1):
            alone = energy(x[i : i + 1])
            _expect_close(alone, values[i : i + 1], close * 1e-8, f"energy of row {i} alone")
        _expect_close(energy(x), values, close * 1e-12, "energies of a second call")


def _looser(energy: Energy) -> float:
    """Factor on tolerances that are meant for float64: above 1 where E computes in less."""
    digits = torch.finfo(energy.dtype or torch.float64).eps
    return float((digits / torch.finfo(torch.float64).eps) ** (1 / 3))


def _copied(energy: Energy) -> Energy:
    try:
        return copy.deepcopy(energy)
    except Exception:  # it may hold what cannot be copied, such as a connection
        return energy


def _check_gradient(
    energy: Energy, x: Tensor, generator: torch.Generator, report: CheckReport
) -> None:
    values, gradient = energy.with_gradient(x)
    close, moving = _looser(energy), energy.geometry.moving  # parameters have no gradient
    name = "gradient agrees with autograd"
    with report.check("energy_and_gradient agrees with energy"):
        _expect_close(values, energy(x), close * 1e-8, "energy_and_gradient's energies")
    if energy.differentiable(x):
        with report.check(name):
            leaf = x.detach().requires_grad_(True)
            (expected,) = torch.autograd.grad(energy(leaf).sum(), leaf)
            found, expected = gradient[:, :moving], expected[:, :moving]
            _expect_close(found, expected, close * 1e-6, "energy_and_gradient's gradients")
    else:
        report.skipped[name] = "energy() hides its gradient from autograd"
    with report.check("gradient agrees with finite differences"):
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        v[:, moving:] = 0.0
        v = v / v.norm(dim=-1, keepdim=True)
        h = close * 1e-5 * x.abs().mean().clamp_min(1e-2)
        with torch.no_grad():
            slope = (energy(x + h * v) - energy(x - h * v)) / (2 * h)
        expected = (gradient * v).sum(-1)
        rounding = 1e-14 * close**3 * values.abs() / h
        wrong = (slope - expected).abs() > close * 1e-4 * (gradient.norm(dim=-1) + 1.0) + rounding
        worst = int((slope - expected).abs().argmax())
        # A kink may spoil a few states; a wrong formula spoils nearly all.
        expect(
            int(wrong.sum()) <= len(x) // 20,
            f"expected slopes to agree in float64, they differ in {int(wrong.sum())} of {len(x)} "
            f"states; worst: {float(slope[worst]):.6g} by differences, "
            f"{float(expected[worst]):.6g} by gradient (is something computed in float32?)",
        )


def _check_symmetry(
    energy: Energy,
    symmetry: Particles,
    x: Tensor,
    generator: torch.Generator,
    report: CheckReport,
) -> None:
    n, d = symmetry
    with report.check("symmetry has the shape of a state"):
        expect(n * d == energy.dim, f"expected n_particles x n_dims = {energy.dim}, got {n} x {d}")
    particles = x.unflatten(-1, (n, d))
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=x.dtype)).Q
    rotation[:, 0] *= torch.linalg.det(rotation).sign()
    mirror = torch.ones(d, dtype=x.dtype)
    mirror[0] = -1.0
    images = {
        "translation": particles + torch.randn(d, generator=generator, dtype=x.dtype),
        "rotation": particles @ rotation,
        "reflection": particles * mirror,
        "permutation": particles[:, torch.randperm(n, generator=generator)],
    }
    values, close = energy(x), _looser(energy)
    for name, image in images.items():
        with report.check(f"invariant under {name}"):
            moved = energy(image.flatten(-2))
            _expect_close(moved, values, close * 1e-6, f"energies after {name}")


def _check_sampler(energy: Energy, report: CheckReport) -> None:
    def draw(seed: int) -> Tensor:
        return energy.sample(32, torch.Generator().manual_seed(seed_of(seed)))

    with report.check("exact sampler"):
        x = draw(0)
        expect(
            x.shape == (32, energy.dim) and x.is_floating_point(),
            f"expected floating samples of shape (32, {energy.dim}), "
            f"got {x.dtype} of shape {tuple(x.shape)}",
        )
        expect(bool(torch.isfinite(x).all()), "expected finite samples")
        expect(torch.equal(x, draw(0)), "expected equal samples from equal seeds")
        expect(not torch.equal(x, draw(1)), "expected other samples from another seed")
        _expect_close(energy.geometry.project(x), x, 1e-4, "samples projected onto the geometry")


def _check_moments(energy: Energy, samples: Tensor, report: CheckReport) -> None:
    space = energy.geometry
    x = space.project(samples)
    gradient = torch.cat([energy.with_gradient(c)[1] for c in x.split(4096)])
    gradient = space.tangent(gradient, x)
    if space.linear:
        with report.check("virial identity") as notes:
            notes.append(
                _expect_mean((x * gradient).sum(-1), float(space.effective_dim), "E[x·∇E] = D")
            )
        with report.check("mean gradient is zero"):
            for i in range(energy.dim):
                _expect_mean(gradient[:, i], 0.0, f"E[∂E/∂x_{i}] = 0")
    else:
        # Green's identity for the coordinate x_i, an eigenfunction of the sphere's Laplacian.
        with report.check("Green's identity on the sphere"):
            for i in range(energy.dim):
                green = gradient[:, i] + space.effective_dim * x[:, i]
                _expect_mean(green, 0.0, f"E[(∇E)_{i} + (D - 1) x_{i}] = 0")
    if energy.mode_probabilities is None:
        report.skipped["mode weights"] = "mode_probabilities is None"
        return
    with report.check("mode weights"):
        indicators = energy.mode_indicators(samples)
        expected = energy.mode_probabilities
        shape = (len(samples), len(expected))
        expect(
            tuple(indicators.shape) == shape,
            f"expected mode_indicators of shape {shape}, got {tuple(indicators.shape)}",
        )
        for k in range(len(expected)):
            p = float(expected[k])
            # A rare mode may be missing from the samples altogether: binomial spread at least.
            least = math.sqrt(max(p * (1 - p), 0.0))
            _expect_mean(indicators[:, k].double(), p, f"weight of mode {k}", least_std=least)


def _check_values(
    energy: Energy,
    x: Tensor,
    samples: Tensor | None,
    generator: torch.Generator,
    report: CheckReport,
) -> None:
    spread = max(float(x.square().mean()), 1e-3)
    chains = (
        Chain.build(ScheduleConfig(), "vp", 4),
        Chain.build(ScheduleConfig(total_noise=spread), "ve", 4),
    )
    space = energy.geometry
    for chain in chains:
        with report.check(f"exact values, {chain.kind} chain"):
            last = energy.value(x, chain.num_steps, chain)
            _expect_close(last, energy(x), 1e-6, "V_T, which is E,")
            for t in (0, 2, chain.num_steps):
                z = space.project(torch.randn(x.shape, generator=generator, dtype=x.dtype))
                y = x / chain.A[t] + chain.S[t].sqrt() * z
                gradient = energy.value_gradient(y, t, chain)
                expected = Energy.value_gradient(energy, y, t, chain)
                _expect_close(gradient, expected, 1e-5, f"∇V_{t} against autograd")
        if samples is None:
            continue
        with report.check(f"virial identity of V_0, {chain.kind} chain") as notes:
            x_0 = space.project(samples[:4096].double()) / chain.A[0]
            z = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
            x_0 = x_0 + chain.S[0].sqrt() * space.project(z)
            gradient = space.project(energy.value_gradient(x_0, 0, chain))
            virial = (x_0 * gradient).sum(-1)
            notes.append(_expect_mean(virial, float(space.effective_dim), "E[x·∇V_0] = D"))


def _expect_close(got: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Equality up to `tolerance`, relative to the larger of 1 and the row's own size."""
    got, expected = got.detach().double(), expected.detach().double()
    expect(
        got.shape == expected.shape,
        f"expected {name} of shape {tuple(expected.shape)}, got {tuple(got.shape)}",
    )
    size = expected.abs() if expected.ndim == 1 else expected.norm(dim=-1, keepdim=True)
    error = (got - expected).abs() / size.clamp_min(1.0)
    worst = float(error.max())
    expect(
        worst <= tolerance,
        f"expected {name} to agree to {tolerance:g} (relative), worst error is {worst:.3g}",
    )


def _expect_mean(values: Tensor, expected: float, name: str, *, least_std: float = 0.0) -> str:
    """The mean within five standard errors; returns what was measured."""
    mean = float(values.mean())
    spread = max(float(values.std()), least_std)
    error = spread / math.sqrt(len(values)) + 1e-12
    z = (mean - expected) / error
    measured = f"{mean:.4g} ± {error:.2g} from {len(values)} samples, expected {expected:.4g}"
    expect(
        abs(z) < 5.0,
        f"{name} does not hold: got {measured}, {z:+.1f} standard errors away; "
        "energy and samples are not of the same density",
    )
    return measured

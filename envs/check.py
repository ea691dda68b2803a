"""Checks of a target against all that it declares; messages name what was wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vgs_rl.chain import Chain, ScheduleConfig
from vgs_rl.energy import Energy, Particles


class CheckError(AssertionError):
    """A check failed; the message says which, what was expected and what came."""


@dataclass(kw_only=True)
class CheckReport:
    """What was checked.

    Attributes:
        subject: name of the energy or environment.
        passed: names of the checks that passed, with what they measured.
        skipped: checks that did not apply, and why.
    """

    subject: str
    passed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.passed)} checks passed"]
        lines += [f"  ok       {name}  {note}".rstrip() for name, note in self.passed.items()]
        lines += [f"  skipped  {name}  ({why})" for name, why in self.skipped.items()]
        return "\n".join(lines)

    @contextmanager
    def check(self, name: str) -> Iterator[list[str]]:
        """One named check: any exception inside becomes a `CheckError` that names it."""
        notes: list[str] = []
        try:
            yield notes
        except CheckError:
            raise
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise CheckError(f"{self.subject}: {name}: {kind}{error}") from error
        self.passed[name] = "; ".join(notes)


def expect(condition: bool, message: str) -> None:
    """Raises an AssertionError with `message` unless the condition holds."""
    if not condition:
        raise AssertionError(message)


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
    rows, the global RNG, symmetry, the exact sampler, the identities E[x·∇E] = D and E[∇E] = 0 of
    its samples, mode weights, and exact values.

    Args:
        energy: the target, at tau = 1; it is copied, not moved.
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
    generator = torch.Generator().manual_seed(seed)
    if devices is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with report.check("dim"):
        dim = getattr(energy, "dim", None)
        expect(
            isinstance(energy, Energy) and isinstance(dim, int) and dim >= 1,
            f"expected a vgs_rl.Energy with a positive integer dim, got dim {dim!r}",
        )
    target = copy.deepcopy(energy).to("cpu")
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
    moved = copy.deepcopy(energy).to(x.device)
    with report.check(f"types on {x.device.type}, {x.dtype}"):
        values = moved.energy(x)
        expect(isinstance(values, Tensor), f"expected a tensor, got {type(values).__name__}")
        gradient = moved.energy_and_gradient(x)[1]
        for name, got, shape in (
            ("energy", values, x.shape[:1]),
            ("gradient", gradient, x.shape),
        ):
            expect(
                got.shape == shape,
                f"expected {name} of shape {tuple(shape)}, got {tuple(got.shape)}",
            )
            expect(
                got.dtype == x.dtype and got.device == x.device,
                f"expected {name} in {x.dtype} on {x.device}, got {got.dtype} on {got.device}; "
                "keep constants as buffers and cast them with .to(x)",
            )
            wrong = int((~torch.isfinite(got)).sum())
            expect(wrong == 0, f"expected a finite {name}, {wrong} entries are not")


def _check_rows(energy: Energy, x: Tensor, generator: torch.Generator, report: CheckReport) -> None:
    with report.check("rows are independent"):
        values = energy.energy(x)
        order = torch.randperm(len(x), generator=generator)
        _expect_close(energy.energy(x[order]), values[order], 1e-8, "energies of shuffled rows")
        _expect_close(energy.energy(x[:1]), values[:1], 1e-8, "energy of the first row alone")
        _expect_close(energy.energy(x), values, 1e-12, "energies of a second call")


def _check_gradient(
    energy: Energy, x: Tensor, generator: torch.Generator, report: CheckReport
) -> None:
    values, gradient = energy.energy_and_gradient(x)
    with report.check("gradient agrees with autograd"):
        expected_values, expected = Energy.energy_and_gradient(energy, x)
        _expect_close(values, expected_values, 1e-8, "energy_and_gradient's energies")
        _expect_close(gradient, expected, 1e-6, "energy_and_gradient's gradients")
        expect(not gradient.requires_grad, "expected detached gradients, got requires_grad")
    with report.check("gradient agrees with finite differences"):
        v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        v = v / v.norm(dim=-1, keepdim=True)
        h = 1e-5 * x.abs().mean().clamp_min(1e-2)
        with torch.no_grad():
            slope = (energy.energy(x + h * v) - energy.energy(x - h * v)) / (2 * h)
        expected = (gradient * v).sum(-1)
        rounding = 1e-14 * values.abs() / h
        wrong = (slope - expected).abs() > 1e-4 * (gradient.norm(dim=-1) + 1.0) + rounding
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
    values = energy.energy(x)
    for name, image in images.items():
        with report.check(f"invariant under {name}"):
            _expect_close(energy.energy(image.flatten(-2)), values, 1e-6, f"energies after {name}")


def _check_sampler(energy: Energy, report: CheckReport) -> None:
    def draw(seed: int) -> Tensor:
        return energy.sample(32, torch.Generator().manual_seed(seed))

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
    gradient = torch.cat([energy.energy_and_gradient(c)[1] for c in x.split(4096)])
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
            _expect_close(last, energy.energy(x), 1e-6, "V_T, which is E,")
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

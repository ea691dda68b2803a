"""One network call: a normalising flow from a fitted mixture to the target, by zuko.

    x_0 ~ pi_0, a mixture;  x = b(f(x_0));  log q(x) = log pi_0(x_0) - log |det (b f)'(x_0)|
    log w = -E(x)/tau - log q(x),  E[w] = Z

f is a stack of coupling layers. Each moves half of the coordinates, given the others, by a
monotonic rational-quadratic spline (Durkan et al., *Neural Spline Flows*, arXiv:1906.04032) and an
affine map. Both directions take one pass through each layer. f is the identity until it is trained,
so a student begins as its mixture. b undoes what funnels and bananas do, where the states show it
(:class:`~vgs_rl.exploration.coordinates.location_scale.LocationScale`), and is the identity
elsewhere.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vgs_rl.agents.distilled.densities import Choice
from vgs_rl.exploration import LocationScale
from vgs_rl.exploration.bends import MOST
from vgs_rl.exploration.coordinates.location_scale import ROOT
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.base import Sampler, Samples


def require_zuko() -> Any:
    """The library of normalising flows.

    Raises:
        ModuleNotFoundError: if it is not installed, with the extra that has it.
    """
    try:
        return importlib.import_module("zuko")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a student of one step needs zuko: pip install 'vgs-rl[flows]'"
        ) from error


SHAPES = ((), (), (8,), (8,), (7,))  # of a coupling: shift, scale and the knots of eight bins


def univariate(shift: Tensor, scale: Tensor, *knots: Tensor) -> Any:
    """The map of one coordinate: a spline, then an affine map."""
    transforms = require_zuko().transforms
    spline = transforms.MonotonicRQSTransform(*knots)
    affine = transforms.MonotonicAffineTransform(shift, scale)
    return transforms.ComposedTransform(spline, affine)


class FlowStudent(nn.Module):
    """The map from x_0 to x, in coordinates of unit size.

    Args:
        mdp: of the student; its start is the density of x_0.
        width, depth, couplings, generator: of the layers, as :func:`coupling_layers` takes them.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
    """

    shift: Tensor
    scale: Tensor
    parents: Tensor
    location: Tensor
    log_scale: Tensor
    frame: Tensor
    centre: Tensor

    def __init__(
        self,
        mdp: SamplingMDP,
        *,
        width: int,
        depth: int,
        couplings: int | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(mdp.dim, dtype=mdp.dtype))
        self.register_buffer("scale", torch.ones(mdp.dim, dtype=mdp.dtype))
        dim = mdp.dim
        self.register_buffer("parents", torch.full((dim,), ROOT))
        framed = dim if dim <= MOST else 0  # of more, no bend is looked for
        for name, shape in (
            ("location", (dim, 3)),
            ("log_scale", (dim, 3)),
            ("frame", (framed, framed)),
            ("centre", (dim,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.layers = coupling_layers(dim, width, depth, couplings, generator)
        self.layers.to(mdp.device, mdp.dtype)
        self.to(mdp.device)

    def begin(self, x: Tensor, choice: Choice | None) -> None:
        """Takes coordinates in which states x (n, D) have mean 0 and unit variance."""
        assert choice is not None
        if choice.coordinates is not None:
            bend = choice.coordinates.inner
            for name in ("parents", "location", "log_scale"):
                getattr(self, name).copy_(getattr(bend, name))
            outer, one = choice.coordinates.outer, torch.eye(x.shape[1], dtype=torch.float64)
            self.centre.copy_(outer.to_x(torch.zeros_like(one[:1]).to(x.device))[0])
            self.frame.copy_((outer.to_x(one.to(x.device)) - self.centre).T)
            x = choice.coordinates.to_z(x)
        self.shift.copy_(x.mean(0))
        self.scale.copy_(x.std(0).clamp_min(1e-12))

    def _bent(self) -> LocationScale | None:
        """The bend without its frame, or None where there is none."""
        if not bool((self.parents != ROOT).any()):
            return None
        return LocationScale(self.parents, self.location, self.log_scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X, shape (B, D), of x_0, and log |det dx/dx_0|, shape (B,)."""
        z, log_det = (x - self.shift) / self.scale, x.new_zeros(len(x))
        for layer in self.layers:
            z, change = layer().call_and_ladj(z)
            log_det = log_det + change
        z, bent = self.shift + self.scale * z, self._bent()
        if bent is None:
            return z, log_det
        between, change = bent.with_log_det(z)
        found = (self.centre + between @ self.frame.T).to(x.dtype)
        return found, log_det + (change + torch.linalg.slogdet(self.frame)[1]).to(x.dtype)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_0, shape (B, D), of x, and log |det dx/dx_0|, shape (B,)."""
        log_det, bent = x.new_zeros(len(x)), self._bent()
        if bent is not None:
            between = torch.linalg.solve(self.frame, (x.double() - self.centre).T).T
            z = bent.to_z(between)
            change = bent.with_log_det(z)[1] + torch.linalg.slogdet(self.frame)[1]
            x, log_det = z.to(x.dtype), change.to(x.dtype)
        z = (x - self.shift) / self.scale
        for layer in reversed(self.layers):
            z, change = layer().inv.call_and_ladj(z)
            log_det = log_det - change
        return self.shift + self.scale * z, log_det

    def log_prob(self, mdp: SamplingMDP, x: Tensor) -> Tensor:
        """Log q at states x (B, D); shape (B,)."""
        start, log_det = self.inverse(x)
        return mdp.start.log_prob(start) - log_det

    def forward_loss(self, mdp: SamplingMDP, x: Tensor, generator: torch.Generator) -> Tensor:
        """-E[log q] over target states x (B, D): KL(p ‖ q) up to a constant."""
        return -self.log_prob(mdp, x).mean()

    def draw(self, mdp: SamplingMDP, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States x (n, D) and log w (n,), without gradients; counted."""
        start = mdp.start.sample(n, generator)
        x, log_det = self(start)
        log_density = mdp.start.log_prob(start) - log_det
        return x, -mdp.evaluate_energy(x) / mdp.temperature - log_density

    def log_density(self, mdp: SamplingMDP, drawn: Tensor) -> Tensor:
        """Log q of what :meth:`draw` returned, shape (n,), with its gradient."""
        return self.log_prob(mdp, drawn)

    def sampler(self, mdp: SamplingMDP) -> FlowSampler:
        """What draws."""
        return FlowSampler(mdp, self)


def coupling_masks(dim: int, count: int | None = None) -> list[Tensor]:
    """Which coordinates each layer keeps: those of one value of bit b of their number, in turn.

    Any two coordinates differ in a bit, so with two layers a bit each is moved in the sight of
    every other one.

    Args:
        dim: D.
        count: layers; by default two for each bit, at least 4 and at most 8.
    """
    number, bits = torch.arange(dim), max(1, math.ceil(math.log2(max(dim, 2))))
    count = min(max(2 * bits, 4), 8) if count is None else count
    return [(number >> (layer // 2 % bits)) & 1 == layer % 2 for layer in range(count)]


def coupling_layers(
    dim: int, width: int, depth: int, couplings: int | None, generator: torch.Generator
) -> nn.ModuleList:
    """The layers of a flow in D dimensions, which is the identity until it is trained.

    Args:
        dim: D.
        width: units of a hidden layer.
        depth: hidden layers of each coupling.
        couplings: layers; by default as many as :func:`coupling_masks` says.
        generator: initialises the weights.

    Raises:
        ModuleNotFoundError: if zuko is not installed.
    """
    coupling = require_zuko().flows.GeneralCouplingTransform
    options = {
        "univariate": univariate,
        "shapes": SHAPES,
        "hidden_features": [width] * depth,
        "activation": nn.SiLU,
    }
    with torch.random.fork_rng(devices=[]):  # zuko draws from the global generator
        layers = [coupling(dim, mask=mask, **options) for mask in coupling_masks(dim, couplings)]
    for layer in layers:
        initialise(layer, generator)
    return nn.ModuleList(layers)


@torch.no_grad()
def initialise(layer: nn.Module, generator: torch.Generator) -> None:
    """Random weights of a layer's networks; the last ones are 0, which is the identity."""
    linear = [each for each in layer.modules() if isinstance(each, nn.Linear)]
    for each in linear:
        bound = 1 / math.sqrt(each.in_features)
        for parameter in each.parameters():
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((2 * drawn - 1) * bound)
    if linear:
        nn.init.zeros_(linear[-1].weight)
        nn.init.zeros_(linear[-1].bias)
    else:  # one coordinate: the layer has parameters of its own
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


class OneCall(Protocol):
    """A student that draws states with one call, and knows the density of any state."""

    def draw(self, mdp: SamplingMDP, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States x (n, D) and log w (n,)."""

    def log_prob(self, mdp: SamplingMDP, x: Tensor) -> Tensor:
        """Log q at states x (B, D); shape (B,)."""


class FlowSampler(Sampler):
    """Draws from a flow: one call a sample, with the exact density.

    Args:
        mdp: target and density of x_0.
        student: the flow.
    """

    has_reverse_weights = True
    keeps_chunks = True

    def __init__(self, mdp: SamplingMDP, student: OneCall) -> None:
        self.mdp, self.student = mdp, student
        self.device, self.temperature = mdp.device, mdp.temperature
        self.chunk_size = max(256, 65_536 // mdp.dim) if mdp.device.type == "cpu" else 65_536

    def _draw(self, n: int, generator: torch.Generator) -> Samples:
        with self.mdp.uncounted() as used:
            x, log_weight = self.student.draw(self.mdp, n, generator)
            return Samples(x=x, log_weight=log_weight, energy_evaluations=used())

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log q, the density of its samples, at states x (B, D); shape (B,)."""
        parts = x.to(self.mdp.dtype).split(self.chunk_size)
        return torch.cat([self.student.log_prob(self.mdp, part) for part in parts])

    @torch.no_grad()
    def reverse_log_weight(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """See :meth:`Sampler.reverse_log_weight`: log w = -E(x)/tau - log q(x), without noise."""
        x = x.to(self.mdp.dtype)
        with self.mdp.uncounted():
            return -self.mdp.evaluate_energy(x) / self.temperature - self.log_prob(x)

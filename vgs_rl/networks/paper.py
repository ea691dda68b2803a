"""The value networks of the paper's experiments, for comparisons."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain
from vgs_rl.energy import Particles

PublishedFeatures = Literal["state", "distances", "reciprocals"]
PublishedForm = Literal["embedded", "joined", "multiplied"]


class PublishedMLP(nn.Module):
    """V(x, t) as in arXiv:2502.13280: ReLU layers of the state and of sinusoids of t.

    With h = `width` units, f(x) the state's features and e(t) the sinusoids, the forms are

    - `embedded` (mixtures, DW-4): MLP[linear(f), MLP[e]], each MLP with two hidden layers;
    - `joined` (funnel): an MLP of three hidden layers on [f, e];
    - `multiplied` (LJ-13, MVTec-AD): with g = linear(e) of h units,
      linear( linear(relu(linear(relu([linear(f), linear(g)])))) · linear(g) ), where the layer on
      the concatenation keeps its 2 h units.

    There is no prior term, so it starts as PyTorch's default initialisation, drawn here from
    `generator`. On particles (the paper's later, equivariant version) f are the pair distances r,
    largest first: √(r² + 1), or 1/√(r² + 1).

    Args:
        chain: supplies T, device and dtype.
        dim: D.
        width: units per layer.
        sinusoids: length of e(t); `width` by default.
        scale: factor on the output (the paper learns V/D on some targets, then scale = D).
        particles: symmetry of the target, for `features` other than `state`.
        features: `state` is x itself; `distances` and `reciprocals` as above.
        form: how state and time meet, see above.
        generator: initialises the weights.

    Raises:
        ValueError: if `sinusoids` is odd or below 4, or the target has no particles.
    """

    embedding: Tensor
    first: Tensor
    second: Tensor

    def __init__(
        self,
        chain: Chain,
        dim: int,
        *,
        width: int,
        sinusoids: int | None = None,
        scale: float = 1.0,
        particles: Particles | None = None,
        features: PublishedFeatures = "state",
        form: PublishedForm = "embedded",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        count = width if sinusoids is None else sinusoids
        if count < 4 or count % 2:
            name = "width" if sinusoids is None else "sinusoids"
            raise ValueError(f"{name} must be even and at least 4, got {count}")
        if features != "state":
            if particles is None:
                raise ValueError(f"features {features!r} needs a target of particles")
            rows = torch.triu_indices(particles.n_particles, particles.n_particles, 1)
            self.register_buffer("first", rows[0], False)
            self.register_buffer("second", rows[1], False)
            dim = rows.shape[1]
        self.scale, self.particles, self.features, self.form = scale, particles, features, form
        frequency = torch.exp(-math.log(10_000) / (count // 2 - 1) * torch.arange(count // 2))
        angle = torch.arange(chain.num_steps).unsqueeze(-1) * frequency
        self.register_buffer("embedding", torch.cat([angle.sin(), angle.cos()], -1), False)

        def linear(fan_in: int, fan_out: int) -> nn.Linear:
            # PyTorch's own initialisation would draw from the global generator.
            layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
            for parameter in (layer.weight, layer.bias):
                uniform = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.data = uniform / math.sqrt(fan_in)
            return layer

        def layers(*units: int) -> nn.Sequential:
            parts: list[nn.Module] = [linear(units[0], units[1])]
            for fan_in, fan_out in itertools.pairwise(units[1:]):
                parts += [nn.ReLU(), linear(fan_in, fan_out)]
            return nn.Sequential(*parts)

        if form == "joined":
            self.head = layers(dim + count, width, width, width, 1)
        elif form == "embedded":
            self.state = linear(dim, width)
            self.time: nn.Module = layers(count, width, width, width)
            self.head = layers(2 * width, width, width, 1)
        else:
            self.state = linear(dim, width)
            self.time = linear(count, width)
            self.added, self.factor = linear(width, width), linear(width, width)
            self.body = layers(2 * width, 2 * width, width)
            self.head = layers(width, 1)
        self.to(chain.S.device, chain.S.dtype)

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); 0 ≤ t < T, one step or one per row."""
        features = self._inputs(x)
        if self.form == "joined":
            joint = torch.cat([features, self.embedding[t].expand(x.shape[0], -1)], dim=-1)
        elif self.form == "embedded":
            time = self._of_time(self.time, t).expand(x.shape[0], -1)
            joint = torch.cat([self.state(features), time], dim=-1)
        else:
            added, factor = (
                self._of_time(nn.Sequential(self.time, layer), t).expand(x.shape[0], -1)
                for layer in (self.added, self.factor)
            )
            inner = torch.cat([self.state(features), added], dim=-1).relu()
            joint = self.body(inner) * factor
        value: Tensor = self.scale * self.head(joint).squeeze(-1)
        return value

    def _of_time(self, layer: nn.Module, t: int | Tensor) -> Tensor:
        """A layer of the sinusoids of one step, or of one step per row."""
        # The T embeddings are worth computing once: a batch has many more rows.
        time: Tensor = layer(self.embedding[t]) if isinstance(t, int) else layer(self.embedding)[t]
        return time

    def _inputs(self, x: Tensor) -> Tensor:
        if self.features == "state" or self.particles is None:
            return x
        positions: Tensor = x.unflatten(-1, self.particles)
        squares = (positions[:, self.first] - positions[:, self.second]).square().sum(-1)
        lengths = (squares + 1).sqrt().sort(dim=-1, descending=True).values
        return lengths.reciprocal() if self.features == "reciprocals" else lengths

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(x, t).sum(), x)
        return gradient

"""The value networks of the paper's experiments, for comparisons."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain
from vgs_rl.energy import Particles

PublishedFeatures = Literal["state", "distances", "reciprocals"]


class PublishedMLP(nn.Module):
    """V(x, t) as in arXiv:2502.13280: ReLU layers on [linear(x), mlp(sinusoids(t))].

    A linear map of x and a two-hidden-layer MLP of a sinusoidal embedding of t, both of `width`
    units, feed another two-hidden-layer MLP. There is no prior term, so it starts as PyTorch's
    default initialisation, drawn here from `generator`.

    On particles (the paper's later, equivariant version) the input is not x but its sorted pair
    distances r: √(r² + 1), or 1/√(r² + 1). On LJ-13 the time features multiply those of the state
    instead of standing beside them.

    Args:
        chain: supplies T, device and dtype.
        dim: D.
        width: units per layer, and sinusoids of the embedding.
        scale: factor on the output (the paper learns V/D on some targets, then scale = D).
        particles: symmetry of the target, for `features` other than `state`.
        features: `state` is x itself; `distances` and `reciprocals` as above.
        multiply_time: see above.
        generator: initialises the weights.
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
        scale: float = 1.0,
        particles: Particles | None = None,
        features: PublishedFeatures = "state",
        multiply_time: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"width must be even and at least 4, got {width}")
        if features != "state":
            if particles is None:
                raise ValueError(f"features {features!r} needs a target of particles")
            rows = torch.triu_indices(particles.n_particles, particles.n_particles, 1)
            self.register_buffer("first", rows[0], False)
            self.register_buffer("second", rows[1], False)
            dim = rows.shape[1]
        self.scale, self.particles, self.features = scale, particles, features
        self.multiply_time = multiply_time
        half = width // 2
        frequency = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        angle = torch.arange(chain.num_steps).unsqueeze(-1) * frequency
        self.register_buffer("embedding", torch.cat([angle.sin(), angle.cos()], -1), False)

        def linear(fan_in: int, fan_out: int) -> nn.Linear:
            # PyTorch's own initialisation would draw from the global generator.
            layer: nn.Linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
            for parameter in (layer.weight, layer.bias):
                uniform = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.data = uniform / math.sqrt(fan_in)
            return layer

        self.state = linear(dim, width)
        self.time = nn.Sequential(
            linear(width, width), nn.ReLU(), linear(width, width), nn.ReLU(), linear(width, width)
        )
        self.head = nn.Sequential(
            linear(width if multiply_time else 2 * width, width),
            nn.ReLU(),
            linear(width, width),
            nn.ReLU(),
            linear(width, 1),
        )
        self.to(chain.S.device, chain.S.dtype)

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); 0 ≤ t < T, one step or one per row."""
        # The T embeddings are worth computing once: a batch has many more rows.
        time = self.time(self.embedding[t]) if isinstance(t, int) else self.time(self.embedding)[t]
        state, time = self.state(self._inputs(x)), time.expand(len(x), -1)
        joint = state * time if self.multiply_time else torch.cat([state, time], dim=-1)
        value: Tensor = self.scale * self.head(joint).squeeze(-1)
        return value

    def _inputs(self, x: Tensor) -> Tensor:
        if self.features == "state" or self.particles is None:
            return x
        positions: Tensor = x.unflatten(-1, self.particles)
        squares = (positions[:, self.first] - positions[:, self.second]).square().sum(-1)
        lengths = (squares + 1).sqrt().sort(dim=-1).values
        return lengths.reciprocal() if self.features == "reciprocals" else lengths

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(x, t).sum(), x)
        return gradient

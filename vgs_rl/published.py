"""The value network of the paper's GMM and funnel experiments, for comparisons."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vgs_rl.chain import Chain


class PublishedMLP(nn.Module):
    """V(x, t) as in arXiv:2502.13280: ReLU layers on [linear(x), mlp(sinusoids(t))].

    A linear map of x and a two-hidden-layer MLP of a sinusoidal embedding of t, both of `width`
    units, feed another two-hidden-layer MLP. There is no prior term, so it starts as PyTorch's
    default initialisation, drawn here from `generator`.

    Args:
        chain: supplies T, device and dtype.
        dim: D.
        width: units per layer, and sinusoids of the embedding.
        scale: factor on the output (the paper learns V/D on some targets, then scale = D).
        generator: initialises the weights.
    """

    embedding: Tensor

    def __init__(
        self,
        chain: Chain,
        dim: int,
        *,
        width: int,
        scale: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"width must be even and at least 4, got {width}")
        self.scale = scale
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
            linear(2 * width, width), nn.ReLU(), linear(width, width), nn.ReLU(), linear(width, 1)
        )
        self.to(chain.S.device, chain.S.dtype)

    def value(self, x: Tensor, t: int | Tensor) -> Tensor:
        """V_t(x), shape (B,); 0 ≤ t < T, one step or one per row."""
        # The T embeddings are worth computing once: a batch has many more rows.
        time = self.time(self.embedding[t]) if isinstance(t, int) else self.time(self.embedding)[t]
        features = torch.cat([self.state(x), time.expand(len(x), -1)], dim=-1)
        value: Tensor = self.scale * self.head(features).squeeze(-1)
        return value

    def gradient(self, x: Tensor, t: int | Tensor) -> Tensor:
        """∇V_t(x), shape (B, D), detached."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(x, t).sum(), x)
        return gradient

"""Few network calls: a chain whose steps are mixtures of Gaussians.

The reversed noising kernel of a large step is no Gaussian. Of a target Σ_k w_k N(m_k, C_k) it is a
mixture, known in closed form: with V_k = C_k/A_{t+1}² + S_{t+1} and m_k' = m_k/A_{t+1},

    v = (x_{t+1} - a_t x_t)/σ_t  ~  Σ_k r_k N((m_k' - a_t x_t) σ_t/(σ_t² + V_k), V_k/(σ_t² + V_k))
    r_k ∝ w_k N(a_t x_t; m_k', V_k + σ_t²)

A student begins with this kernel of the mixture that was fitted to its teacher's states. A network
of x_t for each step moves the weights, means and widths. The policy is the kernel, so log-weights
are exact (:class:`~vgs_rl.transitions.KernelPolicy`).
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vgs_rl.agents.distilled.densities import Choice
from vgs_rl.mdp import SamplingMDP
from vgs_rl.samplers.base import ChainSampler
from vgs_rl.starts import Mixture, ProductMixture
from vgs_rl.transitions import KernelPolicy

MOST_CHANGE = 3.0  # of a log standard deviation


class Kernel(Protocol):
    """The distribution of v at a batch of states."""

    def log_density(self, v: Tensor) -> Tensor:
        """Log density at v (B, D); shape (B,)."""

    def centre(self) -> Tensor:
        """The mean, shape (B, D)."""

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw a row, shape (B, D)."""


class Components(NamedTuple):
    """A mixture for each row: log-weights (B, K) or (B, K, D); means and log stds (B, K, D)."""

    log_weight: Tensor
    mean: Tensor
    log_std: Tensor

    @property
    def factorised(self) -> bool:
        """Whether each coordinate chooses its own component."""
        return self.log_weight.ndim == 3

    def log_density(self, v: Tensor) -> Tensor:
        """Log density at v (B, D); shape (B,)."""
        z = (v.unsqueeze(1) - self.mean) * torch.exp(-self.log_std)
        parts = -0.5 * (z.square() + math.log(2 * math.pi)) - self.log_std
        if self.factorised:
            return torch.logsumexp(self.log_weight + parts, dim=1).sum(-1)
        return torch.logsumexp(self.log_weight + parts.sum(-1), dim=1)

    def centre(self) -> Tensor:
        """The mean, shape (B, D)."""
        share = self.log_weight.exp()
        return ((share if self.factorised else share.unsqueeze(-1)) * self.mean).sum(1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw a row, shape (B, D)."""
        k = choose_component(self.log_weight, generator)
        if not self.factorised:
            k = k.unsqueeze(-1).expand(-1, -1, self.mean.shape[-1])
        mean, log_std = self.mean.gather(1, k).squeeze(1), self.log_std.gather(1, k).squeeze(1)
        z = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_std.exp() * z


def choose_component(log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """A component a row, by log-weights (B, K, …); shape (B, 1, …)."""
    waits = torch.empty_like(log_weight).exponential_(generator=generator)
    return (log_weight - waits.log()).argmax(1, keepdim=True)  # the first of K clocks


class ChainStudent(nn.Module):
    """A chain of few steps, each with a kernel that a network shapes."""

    @abstractmethod
    def begin(self, x: Tensor, choice: Choice | None) -> None:
        """Takes over what was fitted to target states x (n, D)."""

    @abstractmethod
    def components(self, x: Tensor, t: int) -> Kernel:
        """The distribution of v at states x (B, D) and step t."""

    def forward_loss(self, mdp: SamplingMDP, x: Tensor, generator: torch.Generator) -> Tensor:
        """-E[Σ_t log pi(v_t | x_t)] on bridges of target states x (B, D): EUBO up to a constant.

        Each step gets its own share of the states, so no chain is simulated.
        """
        loss = x.new_zeros(())
        for t, rows in enumerate(x.tensor_split(mdp.num_steps)):
            x_next = mdp.noised(rows, t + 1, generator)
            z = mdp.noise(len(rows), generator)
            x_t = x_next / mdp.chain.a[t] + mdp.chain.s[t] * z
            loss = loss - self.components(x_t, t).log_density(-z).mean()  # v is -z
        return loss

    def draw(self, mdp: SamplingMDP, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """States x_0 … x_T (T + 1, n, D) and log w (n,), without gradients; counted."""
        rollout = mdp.rollout(StudentKernel(self), n, generator, keep_states=True)
        assert rollout.states is not None
        return rollout.states, rollout.log_weight

    def log_density(self, mdp: SamplingMDP, drawn: Tensor) -> Tensor:
        """Σ_t log pi(v_t | x_t) of what :meth:`draw` returned, shape (n,), with its gradient."""
        chain, total = mdp.chain, drawn.new_zeros(drawn.shape[1])
        for t, (x, x_next) in enumerate(itertools.pairwise(drawn)):
            v = (x_next - chain.a[t] * x) / chain.sigma[t]
            total = total + self.components(x, t).log_density(v)
        return total

    def sampler(self, mdp: SamplingMDP) -> ChainSampler:
        """What draws."""
        return ChainSampler(mdp, StudentKernel(self))


class KernelStudent(ChainStudent):
    """Mixtures of Gaussians in every step, on R^D.

    Args:
        mdp: of the student; its chain has the steps.
        width: units of a hidden layer.
        depth: hidden layers of each step's network.
        components: K.
        factorised: whether each coordinate is a mixture by itself, independent of the others given
            x_t; else one mixture of K for all coordinates.
        generator: initialises the weights.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(
        self,
        mdp: SamplingMDP,
        *,
        width: int,
        depth: int,
        components: int,
        factorised: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        dim, self.factorised = mdp.dim, factorised
        shape = (components, dim)
        uniform = torch.full(shape if factorised else shape[:1], -math.log(components))
        self.register_buffer("log_weights", uniform)
        self.register_buffer("means", torch.zeros(shape))
        self.register_buffer("variances", torch.ones(shape))
        self.chain, self.shape = mdp.chain, shape
        outputs = 2 * components * dim + uniform.numel()
        sizes = [dim] + [width] * depth + [outputs]
        self.steps = nn.ModuleList(network_of(sizes, generator) for _ in range(mdp.num_steps))
        self.to(mdp.device, mdp.dtype)

    def begin(self, x: Tensor, choice: Choice | None) -> None:
        """Takes over a diagonal mixture, or product of mixtures, of target states x."""
        assert choice is not None
        mixture = choice.mixture
        if isinstance(mixture, ProductMixture):
            weights, means, variances = mixture.weights.T, mixture.means.T, mixture.variances.T
        else:
            assert isinstance(mixture, Mixture)
            weights, means, variances = mixture.weights, mixture.means, mixture.covariances
        self.log_weights.copy_(weights.clamp_min(1e-12).log())
        self.means.copy_(means)
        self.variances.copy_(variances)

    def components(self, x: Tensor, t: int) -> Components:
        """The mixture of v at states x (B, D) and step t."""
        chain, (count, dim) = self.chain, self.shape
        a, sigma, scale, noise = chain.a[t], chain.sigma[t], chain.A[t + 1], chain.S[t + 1]
        variance = self.variances / scale.square() + noise  # V_k
        total = variance + sigma.square()
        gap = self.means / scale - (a * x).unsqueeze(1)  # (B, K, D)
        evidence = -0.5 * (gap.square() / total + total.log())
        logits = self.log_weights + (evidence if self.factorised else evidence.sum(-1))
        std = (variance / total).sqrt()
        change = self.steps[t](self._standard(x, t))
        moved, spread, weight = change.split(
            [count * dim, count * dim, self.log_weights.numel()], 1
        )
        mean = gap * (sigma / total) + std * moved.unflatten(1, (count, dim))
        widening = MOST_CHANGE * torch.tanh(spread.unflatten(1, (count, dim)) / MOST_CHANGE)
        logits = logits + weight.unflatten(1, self.log_weights.shape)
        return Components(torch.log_softmax(logits, 1), mean, std.log() + widening)

    def _standard(self, x: Tensor, t: int) -> Tensor:
        """States in coordinates of unit size: those of the fitted mixture, noised to step t."""
        share = self.log_weights.exp()
        share = share if self.factorised else share.unsqueeze(-1)
        mean = (share * self.means).sum(0)
        spread = (share * (self.variances + (self.means - mean).square())).sum(0)
        scale, noise = self.chain.A[t], self.chain.S[t]
        return (x - mean / scale) / (spread / scale.square() + noise).sqrt()


def network_of(sizes: list[int], generator: torch.Generator, last: float = 0.0) -> nn.Sequential:
    """An MLP.

    Args:
        sizes: of inputs, hidden layers and outputs.
        generator: initialises the weights.
        last: factor on the usual size of the last layer's; 0 returns 0 until it is trained.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(fan_in)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        layers += [layer, nn.SiLU()]
    network = nn.Sequential(*layers[:-1])
    for parameter in layers[-2].parameters():
        parameter.data.mul_(last)
    return network


class StudentKernel(KernelPolicy):
    """The policy that draws v_t from a student's kernels.

    Args:
        student: the chain.
    """

    thread_safe = True
    tangent = True

    def __init__(self, student: ChainStudent) -> None:
        self.student = student

    def __call__(self, x: Tensor, t: int) -> Tensor:
        """See :class:`KernelPolicy`."""
        return self.student.components(x, t).centre()

    def draw(self, x: Tensor, t: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See :meth:`KernelPolicy.draw`."""
        kernel = self.student.components(x, t)
        v = kernel.sample(generator)
        return v, kernel.log_density(v)

    def log_density(self, v: Tensor, x: Tensor, t: int) -> Tensor:
        """See :meth:`KernelPolicy.log_density`."""
        return self.student.components(x, t).log_density(v)

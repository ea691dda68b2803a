"""From a configuration to a start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vgs_rl.chain import Chain
from vgs_rl.energy import Energy
from vgs_rl.geometry import Geometry
from vgs_rl.starts.base import GaussianStart, Start, StartConfig, UniformStart
from vgs_rl.starts.data import DataStart
from vgs_rl.starts.mixtures import MixtureStart
from vgs_rl.starts.noised import NoisedMixtureStart
from vgs_rl.starts.product import NoisedProductStart, ProductStart

NoisedStart = NoisedMixtureStart | NoisedProductStart  # whose values are known at every step


def make_start(
    config: StartConfig,
    geometry: Geometry,
    noise: float = 0.0,
    *,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Start:
    """The start distribution that `config` describes.

    Args:
        config: its kind and its numbers.
        geometry: the space.
        noise: the chain's S_0.
        scale: s_0 where `config` gives none.
        dtype: floating type of its parameters; torch's default if None.

    Raises:
        ValueError: if the kind does not fit the geometry, or needs a chain.
    """
    if config.kind == "data":
        raise ValueError("start.kind 'data' is made from data and chain: see DataStart")
    if config.kind in ("noised", "noised_product"):
        raise ValueError(f"start.kind {config.kind!r} is made from a chain: see start_of")
    if config.kind == "uniform":
        return UniformStart(geometry)
    scale = config.scale or scale
    if config.kind == "mixture":
        return MixtureStart(geometry, config.components, scale, noise, dtype=dtype)
    if config.kind == "product":
        return ProductStart(geometry, config.components, scale, dtype=dtype)
    return GaussianStart(geometry, scale, dtype=dtype)


def start_of(
    config: StartConfig,
    energy: Energy,
    chain: Chain,
    *,
    prior_std: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Start:
    """The start of a chain for an energy.

    Args:
        config: its kind and its numbers.
        energy: supplies the space, and the data of kind `data`.
        chain: supplies the noise; without a scale in `config` the start is as wide as
            N(0, prior_std² I) noised by the whole chain.
        prior_std: see there.
        dtype: floating type of its parameters.

    Raises:
        ValueError: if the kind does not fit the geometry, or `data` finds none.
    """
    if config.kind == "noised":
        geometry, full = energy.geometry, config.covariance == "full"
        return NoisedMixtureStart(
            geometry, chain, config.components, prior_std, full=full, dtype=dtype
        )
    if config.kind == "noised_product":
        components = config.components
        return NoisedProductStart(energy.geometry, chain, components, prior_std, dtype=dtype)
    if config.kind != "data":
        noise, A = float(chain.S[0]), float(chain.A[0])
        scale = math.sqrt(noise + prior_std**2 / A**2)
        return make_start(config, energy.geometry, noise, scale=scale, dtype=dtype)
    data, name = energy.data, type(energy).__name__
    if data is None:
        raise ValueError(f"start.kind 'data' needs an energy with data, {name} has none")
    if not isinstance(data, Tensor):
        raise ValueError(f"{name}.data must be a tensor, got {type(data).__name__}")
    return DataStart(energy.geometry, data, chain)

"""Start distributions pi_0."""

from vgs_rl.starts.base import GaussianStart, Start, StartConfig, UniformStart, widened
from vgs_rl.starts.data import DataStart
from vgs_rl.starts.em import Mixture, choose_mixture, fit_mixture
from vgs_rl.starts.make import make_start, start_of
from vgs_rl.starts.mixtures import MixtureStart
from vgs_rl.starts.noised import NoisedMixtureStart
from vgs_rl.starts.product import NoisedProductStart, ProductMixture, ProductStart, fit_product
from vgs_rl.starts.student import StudentComponents, fit_students

__all__ = [
    "DataStart",
    "GaussianStart",
    "Mixture",
    "MixtureStart",
    "NoisedMixtureStart",
    "NoisedProductStart",
    "ProductMixture",
    "ProductStart",
    "Start",
    "StartConfig",
    "StudentComponents",
    "UniformStart",
    "choose_mixture",
    "fit_mixture",
    "fit_product",
    "fit_students",
    "make_start",
    "start_of",
    "widened",
]

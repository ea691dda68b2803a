"""Samples of an energy that nobody tuned for, and what to believe of them."""

from vgs_rl.experiments.automatic.call import sample
from vgs_rl.experiments.automatic.result import LogZ, Result

__all__ = ["LogZ", "Result", "sample"]

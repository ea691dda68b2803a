"""vgs-rl benchmark: see :mod:`vgs_rl.experiments.commands.benchmark`."""

from face import show

if __name__ == "__main__":
    show("benchmark")

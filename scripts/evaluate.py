"""vgs-rl evaluate: see :mod:`vgs_rl.experiments.commands.evaluate`."""

from face import show

if __name__ == "__main__":
    show("evaluate")

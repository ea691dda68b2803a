"""vgs-rl train: see :mod:`vgs_rl.experiments.commands.train`."""

from face import show

if __name__ == "__main__":
    show("train")

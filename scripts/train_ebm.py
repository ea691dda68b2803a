"""vgs-rl train-ebm: see :mod:`vgs_rl.experiments.commands.train_ebm`."""

from face import show

if __name__ == "__main__":
    show("train-ebm")

"""vgs-rl detect: see :mod:`vgs_rl.experiments.commands.detect`."""

from face import show

if __name__ == "__main__":
    show("detect")

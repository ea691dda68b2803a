"""vgs-rl make-reference: see :mod:`vgs_rl.experiments.commands.make_reference`."""

from face import show

if __name__ == "__main__":
    show("make-reference")

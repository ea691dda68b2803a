"""vgs-rl compare: see :mod:`vgs_rl.experiments.commands.compare`."""

from face import show

if __name__ == "__main__":
    show("compare")

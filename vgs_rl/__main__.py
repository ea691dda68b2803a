"""`python -m vgs_rl COMMAND`, which is `vgs-rl COMMAND`."""

import sys

if __name__ == "__main__":
    from vgs_rl_main import main

    sys.exit(main())

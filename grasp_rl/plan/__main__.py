"""`python -m grasp_rl.plan`: the far side of `grasp-rl plan`."""

import sys

from grasp_rl.plan.cli import main

if __name__ == "__main__":
    sys.exit(main())

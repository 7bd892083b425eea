"""`python -m grasp_rl.demo`."""

import sys

from grasp_rl.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())

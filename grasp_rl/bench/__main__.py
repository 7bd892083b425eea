"""`python -m grasp_rl.bench`."""

import sys

from grasp_rl.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())

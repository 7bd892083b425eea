"""`python -m grasp_rl.rehearsal`."""

import sys

from grasp_rl.rehearsal.cli import main

if __name__ == "__main__":
    sys.exit(main())

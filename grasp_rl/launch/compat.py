"""What Hydra 1.3 keeps in private modules and the launcher calls: in one place, for the day they move.

The public ``hydra.main`` runs one function in this process; the launcher composes, checks and then starts a process.
"""

from __future__ import annotations

from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser

__all__ = ["BasicSweeper", "Callbacks", "Hydra", "get_args_parser"]

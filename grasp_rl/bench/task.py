"""The work of one measured step, and the pipe between the process that measures and the one that asks for it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from grasp_rl.planning.step_model import messages
from grasp_rl.types import Image
from grasp_rl.utils.keyed_rng import keyed_generator

BETA = 0.04
"""Weight of the KL term; TRL's own example value, and what GRPO (arXiv:2402.03300) trains with."""
LEARNING_RATE = 1e-6
LORA_ALPHA = 32


@dataclass(frozen=True, kw_only=True)
class Task:
    """One optimizer step: G completions of the same question about each of Q images."""

    model: str
    """Folder of the saved model that both sides load."""
    groups: int
    """G, completions of the question."""
    length: int
    """C, tokens of every completion; nothing ends one earlier."""
    side: int
    """Height and width of the image in pixels, a multiple of 28."""
    mode: str
    """lora: adapters on the language model, frozen vision encoder; full: everything is trained."""
    steps: int
    """Steps to run, the warm-up included."""
    questions: int = 1
    """Q, images asked about in a step."""
    device: str = "cpu"
    attention: str = "two_calls"
    """two_calls | mask, for our packed rows; see grasp_rl.policies.attention."""
    peer_batch: int = 0
    """Sequences in one batch of TRL's, a divisor of all; 0 for a whole group."""
    seed: int = 0

    @property
    def images(self) -> int:
        """Image tokens of the image."""
        return (self.side // 28) ** 2

    def image(self, number: int = 0) -> Image:
        """[side, side, 3] of noise, another for every number."""
        shape = (self.side, self.side, 3)
        return np.asarray(keyed_generator("bench", self.seed, number).integers(0, 256, shape), dtype=np.uint8)

    def messages(self) -> list[dict[str, Any]]:
        """The chat messages that ask the question, the image's place in them."""
        return messages(self.side)

    def rewards(self) -> list[float]:
        """G drawn rewards: whatever is written, both sides earn the same, and siblings differ."""
        drawn: list[float] = keyed_generator("bench reward", self.seed).random(self.groups).tolist()
        return drawn

    def limit_threads(self) -> None:
        """One thread where CPU-seconds are counted; on a GPU as many as there are."""
        if self.device == "cpu":
            torch.set_num_threads(1)

    def dumps(self) -> str:
        """For the command line of the measured process."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Task:
        """What :meth:`dumps` wrote."""
        return cls(**json.loads(text))


class Pipe:
    """The measured process's end: one JSON line out for every line in.

    Args:
        out: the file descriptor to write to; stdout belongs to whatever the libraries have to say.
    """

    def __init__(self, out: int) -> None:
        self._out = os.fdopen(out, "w", encoding="utf-8")

    def send(self, record: dict[str, Any]) -> None:
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()

    def wait(self) -> None:
        """Return when the next step is asked for; end the process when nobody asks any more."""
        if not sys.stdin.readline():
            raise SystemExit(0)

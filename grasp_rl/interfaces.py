"""The verbs' signatures: what a room must offer so that the others need not know which member was picked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from grasp_rl.config.schema import RolloutConfig
from grasp_rl.types import (
    Answer,
    BoolMask,
    Completion,
    Image,
    MaskPrediction,
    RewardBreakdown,
    Sample,
    SpatialPrompt,
)


@dataclass(frozen=True, kw_only=True)
class CoordinateFrame:
    """The frame a policy speaks for one picture, and how to leave it."""

    width: float
    """Extent of x in the spoken frame: the resized width, or 1000."""
    height: float
    image_width: int
    """Width of the original picture in pixels."""
    image_height: int

    @property
    def scale(self) -> tuple[float, float]:
        """Multiply spoken (x, y) by this to get original-image pixels."""
        return self.image_width / self.width, self.image_height / self.height


class Dataset(Protocol):
    """A split of samples, addressed by index; the same index always gives the same sample."""

    name: str
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class DataSource(Protocol):
    """What conf/data instantiates: a family of splits."""

    def split(self, name: str) -> Dataset:
        """The split called ``name``.

        Raises:
            grasp_rl.config.schema.ConfigError: there is no such split, or it is empty.
        """
        ...


@runtime_checkable
class Segmenter(Protocol):
    """A frozen promptable segmenter: encode a picture once, decode many prompts."""

    def encode(self, image: Image) -> Any:
        """Whatever decoding needs of ``image`` [H, W, 3] uint8 RGB; computed once per picture."""
        ...

    def decode(self, embedding: Any, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        """Masks [N, H, W] at original resolution for N prompts in original-image pixels; N = 0 gives [0, H, W]."""
        ...


@dataclass(frozen=True, kw_only=True)
class CueReference:
    """What a mask-free reward may see: no field here can hold a mask."""

    cues: tuple[SpatialPrompt, ...]
    image_size: tuple[int, int]
    """(height, width)"""


@dataclass(frozen=True, kw_only=True)
class MaskReference:
    """What a mask reward may see."""

    target_mask: BoolMask
    """[H, W] bool; all False for a no-target question."""


class Reward(Protocol):
    """A reward variant. ``supervision`` decides which reference it is handed, and whether masks are predicted."""

    supervision: Literal["cues", "mask"]

    def __call__(
        self, answer: Answer, reference: CueReference | MaskReference, prediction: MaskPrediction | None
    ) -> RewardBreakdown: ...


class Generator(Protocol):
    """Where the completions of an optimizer step come from."""

    mismatch_cap: float | None
    """Upper bound of the importance weights exp(scored - sampled log-probability) that correct for a generator whose
    numbers are not the trained policy's (truncated importance sampling); None where there is nothing to correct."""

    def generate(
        self,
        policy: Any,
        samples: Sequence[Sample],
        prompts: Sequence[Any],
        *,
        group_size: int,
        config: RolloutConfig,
        seed: int,
        step: int,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """G completions of each sample: (its place, the completions), each as soon as it is there, in any order.

        Args:
            policy: the trained policy.
            samples: N questions with their pictures.
            prompts: N, encoded by the policy.
            group_size: G.
            config: the distribution, the length and the time limit. A sample whose group is not there by then, or
                could not be had, is left out.
            seed: the run's.
            step: the optimizer step, part of every draw's key.
        """
        ...

    def weights_changed(self, policy: Any, step: int) -> None:
        """``step`` optimizer steps are done: what is generated next has to come from the policy as it is now."""
        ...

    def counters(self) -> Mapping[str, float]:
        """What went wrong so far, by name, for the metrics."""
        ...

    def close(self) -> None: ...


class Tracker(Protocol):
    """A mirror of metrics.jsonl. It must never stop or slow training."""

    def start(self, run_dir: Path, config: Mapping[str, Any], resume: bool) -> None: ...

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def images(self, name: str, paths: Sequence[Path], step: int) -> None: ...

    def finish(self, exit_code: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Components:
    """What the worker builds from the config and hands to a verb: the parts that are swapped, not tuned."""

    policy: Any
    """The vision-language policy, built last, so that cheap mistakes fail before a model loads."""
    segmenter: Segmenter
    reward: Reward
    data: DataSource
    tracker: Tracker
    generator: Generator


class StateDict(Protocol):
    """Anything with torch's state-dict verbs."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


Batches = Iterator[Sequence[Sample]]

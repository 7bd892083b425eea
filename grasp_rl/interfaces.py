"""The interfaces between packages: what a member must offer so that the others need not know which one was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from grasp_rl.config.schema import PromptConfig, RolloutConfig
from grasp_rl.types import (
    Answer,
    BoolMask,
    Completion,
    Image,
    MaskPrediction,
    Point,
    Relation,
    RewardBreakdown,
    Sample,
    SpatialPrompt,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class CoordinateFrame:
    """The frame a policy speaks for one image, and how to leave it."""

    width: float
    """Extent of x in the spoken frame: the resized width, or 1000."""
    height: float
    image_width: int
    """Width in original-image pixels of what was shown: of the whole image, or of a window of it."""
    image_height: int
    left: int = 0
    """Left edge of that window in original-image pixels."""
    top: int = 0

    @property
    def scale(self) -> tuple[float, float]:
        """Multiply spoken (x, y) by this to get original-image pixels from the window's corner on."""
        return self.image_width / self.width, self.image_height / self.height


class Policy(Protocol):
    """A vision-language policy: encodes a prompt, generates G completions, scores them, and is saved.

    The training loop, evaluation and the generators know no more of it. An encoded prompt has ``input_ids`` [P] and the
    ``frame`` that its coordinates are spoken in; an embedded one has been through the vision encoder.
    """

    tokenizer: Any
    training: bool

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device) -> Self: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def encode(
        self,
        image: Image,
        query: str,
        prompt: PromptConfig,
        more_images: Sequence[Image] = (),
        candidates: Sequence[Point] = (),
    ) -> Any:
        """The encoded prompt for ``image`` [H, W, 3] uint8 RGB, further images and ``query`` under a prompt scheme.

        ``candidates`` are points in original-image pixels that the question lists, in the policy's own coordinates.
        """
        ...

    def encode_next_turn(
        self, before: Any, said: Completion, image: Image, query: str, prompt: PromptConfig, feedback: str = ""
    ) -> Any:
        """The prompt of the turn after ``said``, the answer to the prompt ``before``, which shows ``image``."""
        ...

    @property
    def context(self) -> int:
        """How many tokens the model can hold."""
        ...

    def prompt_text(self, query: str, prompt: PromptConfig) -> str:
        """The chat text that asks ``query``, one token in the image's place, as the tokenizer reads it."""
        ...

    def embed(self, prompts: Sequence[Any]) -> list[Any]:
        """Embedded prompts, after one pass of the vision encoder over images that need it."""
        ...

    def encode_images(self, prompts: Sequence[Any]) -> list[Any]:
        """Features of every prompt's image."""
        ...

    def generate(self, prompts: Sequence[Any], uniforms: torch.Tensor | None, **kwargs: Any) -> list[list[Completion]]:
        """G completions of each embedded prompt; greedy where ``uniforms`` is None."""
        ...

    def stream(
        self, prompts: Sequence[Any], uniforms: torch.Tensor | None, **kwargs: Any
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(index of the prompt, its G completions), each group as it ends."""
        ...

    def forward(self, prompts: Sequence[Any], completions: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """(log-probabilities, entropies, valid, ...) [N, G, C] of given completions: what an engine trains."""
        ...

    def make_reference(self) -> Any:
        """A frozen copy for the KL term, or None where disabling an adapter gives the reference."""
        ...

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Within the block the policy is its base model."""
        ...

    def save(self, folder: Path) -> None:
        """Write what transformers, or PEFT for an adapter, reads."""
        ...

    def load_weights(self, folder: Path) -> None:
        """Take the weights that :meth:`save` wrote.

        Raises:
            grasp_rl.config.errors.ConfigError: they do not fit.
        """
        ...


class Dataset(Protocol):
    """A split of samples, addressed by index; the same index always gives the same sample."""

    name: str
    split: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class DataSource(Protocol):
    """What conf/data instantiates: a family of splits.

    Where it has ``conversions``, images by what was done to their stored values, these come into environment.json.
    """

    def split(self, name: str) -> Dataset:
        """The split called ``name``.

        Raises:
            grasp_rl.config.schema.ConfigError: there is no such split, or it is empty.
        """
        ...


@runtime_checkable
class Segmenter(Protocol):
    """A frozen promptable segmenter: encode an image once, decode many prompts."""

    def encode(self, image: Image) -> Any:
        """Whatever decoding needs of ``image`` [H, W, 3] uint8 RGB; computed once per image."""
        ...

    def decode(self, embedding: Any, prompts: Sequence[SpatialPrompt]) -> MaskPrediction:
        """Masks [N, H, W] at original resolution for N prompts in original-image pixels; N = 0 gives [0, H, W]."""
        ...


@dataclass(frozen=True, kw_only=True)
class WeakLabels:
    """Boxes and points of the reference instances: all that a mask-free rubric may see. No field can hold a mask."""

    instances: tuple[SpatialPrompt, ...]
    """One box and interior points per instance, original-image pixels; () for a question without a target."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    image: Image | None = None
    """[H, W, 3] uint8 RGB, for a term that looks at it; None where none does."""
    query: str = ""
    """The question."""
    point_labels: tuple[int, ...] = ()
    """Labels of the question's candidate points, 1 on the target; () where it has none."""
    choice: str | None = None
    """Which of several images is the right one; None where the question does not ask for that."""
    relations: tuple[Relation, ...] = ()
    """What holds between the instances; () where the dataset does not say."""

    @property
    def has_target(self) -> bool:
        """Whether the question has a target."""
        return bool(self.instances)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a rubric with a mask term may see."""

    target_mask: BoolMask
    """[H, W] bool; all False for a question without a target."""
    instances: tuple[SpatialPrompt, ...] | None = None
    """As in :class:`WeakLabels`; None where the dataset has none."""
    ignore_mask: BoolMask | None = None
    """[H, W] bool, True where a pixel does not count; None where all do."""
    image: Image | None = None
    query: str = ""
    point_labels: tuple[int, ...] = ()
    choice: str | None = None
    relations: tuple[Relation, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.target_mask.shape[0], self.target_mask.shape[1]

    @property
    def has_target(self) -> bool:
        """Whether the question has a target."""
        return bool(self.target_mask.any())


@runtime_checkable
class Verifier(Protocol):
    """Says whether an image satisfies a question: what a reward without labels asks."""

    def verify(self, image: Image, query: str) -> float:
        """How sure it is, in [0, 1], that ``image`` [H, W, 3] uint8 RGB shows what ``query`` asks for."""
        ...


class RewardTerm(Protocol):
    """A named, weighted part of a reward; see grasp_rl.rewards.terms for the two kinds of it."""

    weight: float
    needs: ClassVar[frozenset[str]]
    """What of the labels it compares with: of boxes, points, mask."""


class Rubric(Protocol):
    """A reward. Without ``mask`` in ``needs`` it is handed :class:`WeakLabels`, and no mask is predicted for it."""

    needs: frozenset[str]
    """Union of what its terms need."""

    def score_group(
        self,
        answers: Sequence[Answer],
        labels: WeakLabels | Labels,
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        """The rewards of the answers to one question, in optimizer step ``step`` (None: after the last)."""
        ...


class Advantage(Protocol):
    """How the siblings of a group are compared: what ``algorithm.own_advantage`` instantiates."""

    def __call__(self, rewards: torch.Tensor) -> torch.Tensor:
        """[N, G] advantages from ``rewards`` [N, G] float64, finite, a row for each group.

        Groups whose rewards differ by no more than ``algorithm.min_reward_range`` have none, whatever it gives.
        """
        ...


class Surrogate(Protocol):
    """The policy term of the loss, token by token: what ``algorithm.own_surrogate`` instantiates.

    Aggregation over tokens (``algorithm.loss``), the KL term and the mask of what is no token stay the loss's own.
    """

    def __call__(self, logp: torch.Tensor, ratio: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
        """[N, G, C] of what is minimised.

        Args:
            logp: [N, G, C] log-probabilities under the policy that is trained, with a gradient.
            ratio: [N, G, C] of its probabilities to those of the policy that opened the step (of the whole completion
                with ``importance=sequence``), with a gradient; 1 in the first pass.
            advantage: [N, G, 1].
        """
        ...


class EvaluationProtocol(Protocol):
    """What counts as what in an evaluation: one published set of rules, scored from one record per sample."""

    @property
    def name(self) -> str:
        """Printed with every number."""
        ...

    @property
    def headline(self) -> str:
        """The metric that a table leads with."""
        ...

    def iou(self, score: Any) -> float | None:
        """IoU of one :class:`~grasp_rl.evaluation.metrics.SampleScore`, None without a true mask."""
        ...

    def summarise(self, scores: Sequence[Any], *, bootstrap_samples: int = 2000, seed: int = 0) -> dict[str, float]:
        """All numbers over the samples' scores, by flat name.

        ``reward``, where the scores have one, chooses the best checkpoint in training.
        """
        ...


class Generator(Protocol):
    """Where the completions of an optimizer step come from."""

    mismatch_cap: float | None
    """Upper bound of the importance weights exp(scored - sampled log-probability) that correct for a generator whose
    numbers are not the trained policy's (truncated importance sampling); None where there is nothing to correct."""

    def generate(
        self,
        policy: Policy,
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
            samples: N questions with their images.
            prompts: N, encoded by the policy.
            group_size: G.
            config: the distribution, the length and the time limit. A sample whose group is not there by then, or
                could not be had, is left out.
            seed: the run's.
            step: the optimizer step, part of every draw's key.
        """
        ...

    def weights_changed(self, policy: Policy, step: int) -> None:
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

    def artifact(self, kind: str, files: Sequence[Path], about: Mapping[str, Any]) -> None: ...

    def finish(self, exit_code: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Components:
    """What the worker builds from the config and hands to a command: the parts that are swapped, not tuned."""

    policy: Policy
    """The vision-language policy, built last, so that cheap mistakes fail before a model loads."""
    segmenter: Segmenter
    reward: Rubric
    data: DataSource
    tracker: Tracker
    generator: Generator
    protocol: EvaluationProtocol
    advantage: Advantage | None = None
    """None for the one that ``algorithm.baseline`` names."""
    surrogate: Surrogate | None = None
    """None for the one that ``algorithm.surrogate`` names."""


class StateDict(Protocol):
    """Anything with torch's state-dict methods."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


Batches = Iterator[Sequence[Sample]]

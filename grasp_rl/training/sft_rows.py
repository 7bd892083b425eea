"""Rows of supervised fine-tuning: an image, several questions about it, and the answers that are demonstrated."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig, SftConfig, SftPhase
from grasp_rl.distributed.process_group import ALONE, ProcessGroup
from grasp_rl.interfaces import CoordinateFrame, Dataset, Segmenter
from grasp_rl.policies.types import EncodedImage, EncodedPrompt
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.prompts.render import format_answer, wrapped
from grasp_rl.training.clicks import ClickSimulator
from grasp_rl.training.demonstrations import distort, thought_of
from grasp_rl.types import Sample, SpatialPrompt
from grasp_rl.utils.keyed_rng import keyed_generator, sample_order


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """An encoded prompt in NumPy: a tensor would cross the worker's pipe as a file descriptor, one by one."""

    input_ids: NDArray[np.int64]
    images: tuple[Mapping[str, NDArray[Any]], ...]
    frame: CoordinateFrame

    def encoded(self) -> EncodedPrompt:
        """The same prompt in tensors, which share the arrays' memory."""
        images = ({name: torch.from_numpy(array) for name, array in image.items()} for image in self.images)
        return EncodedPrompt(
            input_ids=torch.from_numpy(self.input_ids),
            images=tuple(EncodedImage(inputs=inputs) for inputs in images),
            frame=self.frame,
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image with several questions and answers."""

    prompt: Pixels
    """The encoded prompt up to the end of the image."""
    completions: tuple[tuple[int, ...], ...]
    """Per question: the rest of its prompt, then the answer and the end of sequence."""
    unscored: tuple[int, ...]
    """Per question: how many of those tokens are prompt."""
    looks: tuple[tuple[int, int, NDArray[np.bool_]], ...]
    """(question, token of its completion, [T] bool image tokens that the token's prediction should attend to)."""


class RowStream(TorchDataset[list[Row]]):
    """The share of a rank in batches of packed rows; batch ``index`` is a function of (seed, phase, index)."""

    def __init__(
        self,
        policy: VlmPolicy,
        data: Dataset,
        schemes: dict[str, tuple[PromptConfig, float]],
        phase: SftPhase,
        *,
        seed: int,
        phase_number: int,
        process_group: ProcessGroup = ALONE,
        sft: SftConfig | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        self.policy, self.data, self.phase = policy, data, phase
        self.seed, self.number = seed, phase_number
        self.rank, self.world_size = process_group.rank, process_group.world_size
        if phase.batch_size < self.world_size:
            raise ConfigError(
                f"sft.phases[].batch_size={phase.batch_size}: must be >= {self.world_size}, the number of processes"
            )
        self.prompts = [prompt for prompt, _ in schemes.values()]
        self.sft = sft or SftConfig()
        self.clicks: dict[str, ClickSimulator] = {}
        """By the scheme's name, where clicks are simulated."""
        if segmenter is not None and self.sft.clicks.source == "simulated":
            stop = self.sft.clicks.stop_iou
            self.clicks = {p.scheme: ClickSimulator(segmenter, p.clicks, stop) for p in self.prompts if p.clicks}
        weights = torch.tensor([weight for _, weight in schemes.values()], dtype=torch.float64)
        self.weights = (weights / weights.sum()).numpy()

    def __len__(self) -> int:
        return self.phase.steps

    def batches(self, first: int) -> Iterator[list[Row]]:
        """Batches from number ``first`` on.

        Raises:
            ConfigError: of a loader's process, in its own words, without the traceback that torch puts in front.
        """
        try:
            yield from self.loader(first)
        except ConfigError as error:
            raise ConfigError(str(error).rstrip().rpartition("ConfigError: ")[2]) from error

    def loader(self, first: int) -> DataLoader[list[Row]]:
        """The batches from number ``first`` on, made ahead by forked processes.

        By this process where clicks need its GPU, and where the system does not fork: another process could take the
        rows along in a pickle only, and an engine's hooks in the policy do not go into one.
        """
        numbers: Any = range(first, len(self))
        if sys.platform != "linux" or any(simulator.on_gpu for simulator in self.clicks.values()):
            return DataLoader(self, batch_size=None, sampler=numbers, num_workers=0)
        cores = len(os.sched_getaffinity(0))
        workers = max(1, min(4, cores // (4 * self.world_size)))
        return DataLoader(
            self,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=4,
            multiprocessing_context="fork",
        )

    def __getitem__(self, index: int) -> list[Row]:
        if index >= len(self):
            raise IndexError(index)
        count = self.phase.batch_size
        chosen = sample_order(self.seed + 1000 * self.number, len(self.data), index * count, count)
        mine = list(enumerate(chosen))[self.rank :: self.world_size]
        return [self._row(number, f"{index}-{place}") for place, number in mine]

    def _row(self, number: int, key: str) -> Row:
        rng = keyed_generator("demonstration", self.seed, self.number, key)
        samples = self._same_image(number)
        chosen = [self.prompts[int(rng.choice(len(self.prompts), p=self.weights))] for _ in samples]
        questions = [(s.query, scheme) for s, scheme in zip(samples, chosen, strict=True)]
        encoded = self.policy.encode_questions(samples[0].image, questions, samples[0].more_images)
        split = self.policy.image_end(encoded[0])
        completions, unscored, looks = [], [], []
        for place, (sample, scheme, question) in enumerate(zip(samples, chosen, encoded, strict=True)):
            text, shown = self.answer(sample, scheme, question.frame, rng)
            asked, said = tuple(question.input_ids[split:].tolist()), self.policy.tokens_of(text)
            completions.append((*asked, *said))
            unscored.append(len(asked))
            if self.phase.attention_weight:
                covered = [self.policy.covered(weak_label.box, question) for weak_label in shown if weak_label.box]
                looks += [(place, len(asked) + t, covered[i]) for t, i in self.policy.coordinates_in(said)]
        first = encoded[0]
        return Row(
            prompt=Pixels(
                input_ids=first.input_ids[:split].numpy(),
                images=tuple({name: t.numpy() for name, t in image.inputs.items()} for image in first.images),
                frame=first.frame,
            ),
            completions=tuple(completions),
            unscored=tuple(unscored),
            looks=tuple(looks),
        )

    def answer(
        self, sample: Sample, scheme: PromptConfig, frame: CoordinateFrame, rng: np.random.Generator
    ) -> tuple[str, tuple[SpatialPrompt, ...]]:
        """The completion that is demonstrated for ``sample`` in ``scheme``, and the instances that it shows.

        Args:
            sample: the question.
            scheme: of the answer.
            frame: the policy's, for this image.
            rng: draws distortion and thought.

        Raises:
            ConfigError: the sample has nothing to demonstrate in this scheme.
        """
        shown = self._shown(sample, scheme)
        weak_labels = distort(
            shown,
            rng,
            sample.size,
            scale=self.phase.box_scale_bias,
            shift=self.phase.box_shift_bias,
            noise=self.phase.noise,
        )
        thought = thought_of(sample, self.sft.reasoning, rng, len(shown))
        try:
            if scheme.answer == "choice":
                return wrapped(_choice_of(sample), thought, scheme), shown
            return format_answer(weak_labels, thought, frame, scheme), shown
        except ValueError as error:  # a weak label without the points that the scheme asks for
            raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset}: {error}") from error

    def _shown(self, sample: Sample, scheme: PromptConfig) -> tuple[SpatialPrompt, ...]:
        """The instances that a demonstration in ``scheme`` shows."""
        if scheme.scheme in self.clicks:
            return self.clicks[scheme.scheme](sample)
        if sample.weak_labels is None and scheme.answer != "choice":
            raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset} has no boxes or points")
        return sample.weak_labels or ()

    def _same_image(self, number: int) -> list[Sample]:
        several = getattr(self.data, "same_image", None)
        if several is None:
            return [self.data[number]]
        return list(several(number, self.phase.questions_per_image))


def _choice_of(sample: Sample) -> str:
    if sample.choice is None:
        raise ConfigError(f"sft: sample {sample.sample_id} of {sample.dataset} says of no image that it answers")
    return sample.choice

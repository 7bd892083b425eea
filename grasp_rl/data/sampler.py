"""Which questions an optimizer step asks, and reading the next ones while the present ones are learned from."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from grasp_rl.config.schema import RunConfig
from grasp_rl.data.candidates import with_candidates
from grasp_rl.interfaces import Dataset
from grasp_rl.types import Sample
from grasp_rl.utils.keyed_rng import sample_order, token_uniforms


class PromptSampler:
    """The questions of every optimizer step: a function of (seed, step, round), without any state to lose.

    Args:
        dataset: the training split.
        config: the run's.
        masks: whether samples keep their masks; a mask-free reward must not be able to see them.
    """

    def __init__(self, dataset: Dataset, config: RunConfig, *, masks: bool) -> None:
        self.dataset, self.masks = dataset, masks
        self.seed, self.count = config.seed, config.algorithm.prompts_per_step
        self.rounds = config.algorithm.sampling_rounds
        self.tasks = config.rollout.tasks
        self._reader: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[list[Sample]]] | None = None

    def __call__(self, step: int, number: int = 0) -> list[Sample]:
        """The samples of round ``number`` of ``step``."""
        place = step * self.rounds + number
        ready = self._ahead is not None and self._ahead[0] == place
        samples = self._ahead[1].result() if ready and self._ahead else self._read(place)
        if self._reader is not None and number == 0:
            following = (step + 1) * self.rounds
            self._ahead = following, self._reader.submit(self._read, following)
        return samples

    @contextmanager
    def read_ahead(self) -> Iterator[None]:
        """Within the block, images that are likely to be wanted next are read by a thread."""
        with ThreadPoolExecutor(1, "questions") as reader:
            self._reader = reader
            try:
                yield
            finally:
                self._reader = self._ahead = None

    def _read(self, place: int) -> list[Sample]:
        order = sample_order(self.seed, len(self.dataset), place * self.count, self.count)
        samples = [self.dataset[index] for index in order]
        if self.tasks:
            samples = [self._for_task(sample, place * self.count + number) for number, sample in enumerate(samples)]
        return samples if self.masks else [sample.without_mask() for sample in samples]

    def _for_task(self, sample: Sample, number: int) -> Sample:
        """``sample`` as the task drawn for the run's question ``number`` asks it.

        A question without a target stays with the first task: it has no box to take candidate points from.
        """
        drawn = float(token_uniforms(self.seed, number, "task", 0, 1)[0])
        for name, task in self.tasks.items():
            if drawn < task.share:
                if task.prompt.answer == "labels":
                    if sample.weak_labels == ():
                        return sample
                    sample = with_candidates(sample, alpha=task.alpha, most=task.most)
                return replace(sample, task=name)
            drawn -= task.share
        return sample

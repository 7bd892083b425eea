"""From completions to one mask: the options of conf/inference, in their order.

The answers are read; boxes refined; candidate points in them labelled by a second question; every answer segmented, by
routes and scale and clipped as asked; one made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from grasp_rl.config.schema import InferenceConfig
from grasp_rl.inference.candidates import NOTHING, Labelling, ask, with_points
from grasp_rl.inference.refine import Affine
from grasp_rl.inference.segmenting import view_of
from grasp_rl.inference.voting import Vote, vote_on_boxes, vote_on_masks
from grasp_rl.interfaces import Policy, Segmenter
from grasp_rl.policies.types import Sampling
from grasp_rl.segmenters.segment import segment, within
from grasp_rl.types import Answer, Completion, FinishReason, Image, MaskPrediction
from grasp_rl.utils.files import Record
from grasp_rl.utils.keyed_rng import keyed_generator


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What is done with the completions of one question."""

    options: InferenceConfig = field(default_factory=InferenceConfig)
    affine: Affine | None = None
    """What ``options.refine`` came to."""
    seed: int = 0

    @property
    def plain(self) -> bool:
        """Whether the greedy answer is segmented as it is."""
        return not self.options.changed

    def completions(
        self,
        policy: Policy,
        embedded: Sequence[Any],
        names: Sequence[str],
        *,
        max_new_tokens: int,
        rows: int,
        deadline: float | None = None,
    ) -> list[list[Completion]]:
        """The greedy completion of each embedded prompt, then ``samples.count`` drawn ones, which share a prefill.

        Args:
            policy: decodes.
            embedded: N prompts after the vision encoder.
            names: N, what the draws are keyed by beside the run's seed: the same name draws the same completions.
            max_new_tokens: length of a completion.
            rows: completions decoded together at most, or one prompt's; changes memory, never the draw.
            deadline: time of ``time.monotonic`` at which what is not finished ends; None for no limit.
        """
        limit = {} if deadline is None else {"deadline": deadline}
        groups = policy.generate(embedded, None, group_size=1, max_new_tokens=max_new_tokens, **limit)
        options = self.options.samples
        if not options.count:
            return groups
        sampling = Sampling(temperature=options.temperature, top_p=options.top_p)
        at_once, result = max(1, rows // options.count), []
        for first in range(0, len(embedded), at_once):
            some = slice(first, first + at_once)
            uniforms = [self._uniforms(name, max_new_tokens) for name in names[some]]
            drawn = policy.generate(
                embedded[some],
                torch.from_numpy(np.array(uniforms)),
                group_size=options.count,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                **limit,
            )
            result += [[*greedy, *more] for greedy, more in zip(groups[some], drawn, strict=True)]
        return result

    def _uniforms(self, name: str, length: int) -> list[Any]:
        count = self.options.samples.count
        return [keyed_generator("inference", self.seed, name, number).random(length) for number in range(count)]

    def label(
        self,
        policy: Policy,
        images: Sequence[Image],
        queries: Sequence[str],
        answers: Sequence[Answer],
        *,
        max_new_tokens: int,
    ) -> list[Labelling]:
        """What ``policy`` says of candidate points in the refined boxes of N answers; nothing where none is asked."""
        if not self.options.candidates.alpha:
            return [NOTHING] * len(answers)
        if self.affine is not None:
            sizes = [(image.shape[0], image.shape[1]) for image in images]
            answers = [self.affine.answer(answer, size) for answer, size in zip(answers, sizes, strict=True)]
        return ask(policy, images, queries, answers, self.options.candidates, max_new_tokens=max_new_tokens)

    def decide(
        self,
        segmenter: Segmenter,
        image: Image,
        answers: Sequence[Answer],
        *,
        name: str,
        labelling: Labelling = NOTHING,
    ) -> tuple[Vote, MaskPrediction]:
        """One answer out of ``answers``, the greedy one first, and its masks.

        Args:
            segmenter: as :func:`~grasp_rl.inference.segmenting.segmenter_of` gives it.
            image: [H, W, 3] uint8 RGB.
            answers: prompts in pixels of the image; a single one unless options.samples draws more.
            name: of the image or sample, for the log.
            labelling: of :meth:`label`.
        """
        size, options = (image.shape[0], image.shape[1]), self.options
        if self.affine is not None:
            answers = [self.affine.answer(answer, size) for answer in answers]
        answers = [with_points(answer, labelling, options.candidates.confidence) for answer in answers]
        if options.samples.count and options.samples.pick == "majority":
            vote = vote_on_boxes(answers, options.samples)
        elif options.samples.count:
            masks = segment(segmenter, image, answers, name=name)
            vote = vote_on_masks(answers, masks, options.samples)
        else:
            vote = Vote(answer=answers[0], chosen=0, masks=None, details={})
        if vote.masks is not None:
            return vote, vote.masks
        return vote, segment(segmenter, image, [vote.answer], name=name)[0]

    def record(self, vote: Vote, completions: Sequence[Completion], size: tuple[int, int]) -> Record:
        """What a record says of the options and of what they did, for an image of ``size`` (height, width)."""
        settings = {key: value for key, value in self.options.changed.items() if not key.startswith("refine.")}
        result: Record = {"name": self.options.name, "settings": settings}
        if self.affine is not None:
            result["refine"] = asdict(self.affine)
        if self.options.scale.mode != "native":
            views = [view_of(within(prompt, size), size, self.options.scale) for prompt in vote.answer.prompts]
            result["seen"] = [asdict(view) for view in views]
        if self.options.samples.count:
            result |= vote.details | {"chosen": vote.chosen, "answers": [_stored(c) for c in completions]}
        return result


def _stored(completion: Completion) -> Record:
    return {
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "truncated": completion.finish_reason is FinishReason.LENGTH,
    }


PLAIN = Inference()
"""The greedy answer, segmented as it is."""

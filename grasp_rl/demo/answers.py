"""Who answers on the page: policies and segmenters by name, loaded when first asked, and a person's own marks."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import instantiate
from grasp_rl.demo.images import PageImage
from grasp_rl.demo.marks import read_marks
from grasp_rl.interfaces import Policy, Rubric, Segmenter
from grasp_rl.prediction.config import read_config
from grasp_rl.prediction.predictor import Predictor, check_query, model_name
from grasp_rl.runs import checkpoints
from grasp_rl.segmenters.segment import segment
from grasp_rl.types import Answer, FinishReason, MaskPrediction, RewardBreakdown
from grasp_rl.utils.files import Record

TINY = "tiny"
"""Name of the policy that needs no run."""
OWN = "as the run says"
"""The choice that leaves segmenter, prompt scheme or inference options as they are."""
SEGMENTERS = ("synthetic_sam2_small", "synthetic_sam2_large", "synthetic_sam_base", "grabcut", "box_fill")
"""Those that need no download; the first is the one of :data:`TINY`."""
_OTHER_TASKS = ("choice",)
"""Prompt schemes for several images in a question."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Who answers, and how."""

    policy: str = TINY
    """As :func:`named_policy` says, or the name of a run."""
    segmenter: str = OWN
    prompt: str = OWN
    inference: str = OWN


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An answer about one image, its masks and, where the truth is known, what it is worth."""

    who: str
    """For a person."""
    model: str
    """Policy and segmenter in a few words, as map layers have it."""
    prompt: str
    """The prompt scheme."""
    query: str
    image: PageImage
    answer: Answer
    masks: MaskPrediction
    """Of each instance at the image's own size, in host memory."""
    text: str
    """What the policy wrote; empty for a person."""
    cut: str
    """Why the policy's text is not whole, in words; empty where it is."""
    inference: Record
    """What the inference options did."""
    estimates_quality: bool
    """Whether the segmenter estimates its masks' IoU."""
    policy_s: float
    segmenter_s: float
    reward: RewardBreakdown | None
    """None where the truth is not known or the reward cannot be had of it."""
    meanings: Mapping[str, str]
    """A line about each term of the reward."""
    iou: float | None
    """Of the union of the masks with the true one; None where that is not known."""
    remark: str
    """Why there is no reward although the truth is known; empty otherwise."""


class Answering:
    """Policies and segmenters by name. One question at a time is answered, whatever the number of threads that ask.

    Args:
        runs: run folders by the name that the page shows.
        overrides: of the command line, for all policies.
        segmenters: offered beside :data:`SEGMENTERS`.
        trusted: modules trusted on the command line.
        time_limit_s: after which a completion that is being decoded ends.

    Raises:
        ConfigError: a run or a segmenter cannot be read; the message names it.
    """

    def __init__(
        self,
        runs: Mapping[str, Path],
        overrides: Sequence[str] = (),
        segmenters: Sequence[str] = (),
        trusted: Sequence[str] = (),
        *,
        time_limit_s: float | None = None,
    ) -> None:
        self.runs, self.overrides, self.trusted, self.time_limit_s = dict(runs), tuple(overrides), trusted, time_limit_s
        self.policies = (named_policy(self.overrides), *self.runs)
        self.segmenters = (OWN, *dict.fromkeys([*segmenters, *SEGMENTERS]))
        self.prompts = (OWN, *(name for name in _options("prompt") if name not in _OTHER_TASKS))
        self.inferences = (OWN, *_options("inference"))
        self._lock = threading.Lock()
        self._policies: dict[str, Policy] = {}
        self._segmenters: dict[tuple[str, str], Segmenter] = {}
        self._predictors: dict[Chosen, Predictor] = {}
        for chosen in (*(Chosen(policy=p) for p in self.policies), *(Chosen(segmenter=s) for s in segmenters)):
            self._config(chosen)  # what cannot be read is refused before the page opens
        for folder in self.runs.values():
            checkpoints.find_policy(folder)

    def ask(self, image: PageImage, query: str, chosen: Chosen) -> Answered:
        """What a policy answers.

        Raises:
            ConfigError: the question cannot be asked, or the choice cannot be built; the message says why.
        """
        check_query(query)
        with self._lock:
            predictor = self._predictor(chosen)
            prediction = predictor.predict(image.sample.image, query)
            reasons = {
                FinishReason.TIMEOUT: f"stopped after {self.time_limit_s or 0:g} seconds, the page's limit",
                FinishReason.LENGTH: "stopped at the longest answer that is allowed",
            }
            return self._answered(
                image, query, predictor, prediction.answer, prediction.masks,
                who=chosen.policy, text=prediction.text, cut=reasons.get(prediction.finish_reason, ""),
                inference=prediction.inference, policy_s=prediction.policy_s, segmenter_s=prediction.segmenter_s,
            )  # fmt: skip

    def mark(self, image: PageImage, query: str, chosen: Chosen, text: str) -> Answered:
        """What the segmenter of ``chosen`` makes of a person's own boxes and points, under the same reward.

        Args:
            image: pointed at.
            query: the question that the person answers.
            chosen: whose segmenter and reward serve.
            text: see :mod:`grasp_rl.demo.marks`.

        Raises:
            ConfigError: as :meth:`ask`, or ``text`` cannot be read.
        """
        answer = read_marks(text, image.sample.size)
        with self._lock:
            predictor = self._predictor(chosen)
            began = time.perf_counter()
            (masks,) = segment(predictor.segmenter, image.sample.image, [answer], name="the image")
            if masks.error is not None:
                raise ConfigError(f"segmenter: could not segment your boxes and points ({masks.error})")
            return self._answered(
                image, query, predictor, answer, masks,
                who="you", text="", cut="", inference={}, policy_s=0.0, segmenter_s=time.perf_counter() - began,
            )  # fmt: skip

    def _answered(
        self,
        image: PageImage,
        query: str,
        predictor: Predictor,
        answer: Answer,
        masks: MaskPrediction,
        *,
        who: str,
        text: str,
        cut: str,
        inference: Record,
        policy_s: float,
        segmenter_s: float,
    ) -> Answered:
        if not hasattr(masks.masks, "tobytes"):
            masks = replace(masks, masks=masks.masks.cpu().numpy())
        reward, iou, remark, meanings = None, None, "", dict[str, str]()
        if image.knows(query) and image.sample.target_mask is not None:
            iou = masks.iou(image.sample.target_mask)
            if predictor.later:
                remark = "this run answers in several turns, and its reward is of all of them"
            else:
                rubric: Rubric = instantiate(predictor.config.reward, self.trusted, "reward")
                meanings = {name: _first_line(term) for name, term in getattr(rubric, "terms", {}).items()}
                try:
                    (reward,) = replace(predictor.first, reward=rubric).rewards(image.sample, [answer], [masks])
                except ConfigError as error:
                    remark = str(error)
        return Answered(
            who=who,
            model=_model(who, predictor),
            prompt=predictor.config.prompt.scheme if who != "you" else "boxes and points by hand",
            query=query,
            image=image,
            answer=answer,
            masks=masks,
            text=text,
            cut=cut,
            inference=inference,
            estimates_quality=predictor.estimates_quality,
            policy_s=policy_s,
            segmenter_s=segmenter_s,
            reward=reward,
            meanings=meanings,
            iou=iou,
            remark=remark,
        )

    def _predictor(self, chosen: Chosen) -> Predictor:
        """For ``chosen``; policies and segmenters that are loaded already serve again."""
        if chosen not in self._predictors:
            config = self._config(chosen)
            key = ("" if chosen.segmenter != OWN else chosen.policy, chosen.segmenter)
            predictor = Predictor(
                config,
                self.runs.get(chosen.policy) or (Path(config.init_from) if config.init_from else None),
                self.trusted,
                policy=self._policies.get(chosen.policy),
                segmenter=self._segmenters.get(key),
                time_limit_s=self.time_limit_s,
            )
            self._policies[chosen.policy] = predictor.policy
            self._segmenters[key] = predictor.plain_segmenter
            self._predictors[chosen] = predictor
        return self._predictors[chosen]

    def _config(self, chosen: Chosen) -> RunConfig:
        """The config of ``chosen``: the run's own, or the defaults, with what the page changes.

        Raises:
            ConfigError: a name is none of those that the page offers, or they do not go together.
        """
        for choice, offered in (
            (chosen.policy, self.policies),
            (chosen.segmenter, self.segmenters),
            (chosen.prompt, self.prompts),
            (chosen.inference, self.inferences),
        ):
            if choice not in offered:
                raise ConfigError(f"{choice[:80]!r}: must be one of {', '.join(offered)}")
        run = self.runs.get(chosen.policy)
        scheme = chosen.prompt if chosen.prompt != OWN else None
        segmenter = chosen.segmenter if chosen.segmenter != OWN else None
        if run is None and segmenter is None and not any(text.startswith("segmenter=") for text in self.overrides):
            segmenter = SEGMENTERS[0]
        inference = [f"inference={chosen.inference}"] if chosen.inference != OWN else []
        return read_config(run, scheme, segmenter, [*self.overrides, *inference])


def _model(who: str, predictor: Predictor) -> str:
    """Who answers, with which checkpoint, through which segmenter; without the folders of this machine."""
    checkpoint = f" ({predictor.weights.parent.name})" if predictor.weights is not None and who != "you" else ""
    segmenter = model_name(predictor).rpartition(" + ")[2]
    return f"{who}{checkpoint} + {Path(segmenter).name}"


def named_policy(overrides: Sequence[str]) -> str:
    """Name of the policy that needs no run: the one that ``overrides`` name, else :data:`TINY`."""
    return next((text.partition("=")[2] for text in overrides if text.startswith("policy=")), TINY)


@cache
def _options(group: str) -> tuple[str, ...]:
    """Names of the packaged options of a group."""
    folder = Path(str(files("grasp_rl.conf") / group))
    return tuple(sorted(path.stem for path in folder.glob("[!_]*.yaml")))


def _first_line(term: object) -> str:
    return (type(term).__doc__ or "").strip().partition("\n")[0]

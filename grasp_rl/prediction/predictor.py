"""A policy and a segmenter, ready to answer questions about images: what `grasp-rl predict` asks."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import check, instantiate
from grasp_rl.distributed.engine import pick_device
from grasp_rl.evaluation.calibration import stored_fit
from grasp_rl.evaluation.evaluate import Unrewarded, answer_in_turns
from grasp_rl.geometry import FloatArray
from grasp_rl.inference.pipeline import Inference
from grasp_rl.inference.refine import FILE as FIT
from grasp_rl.inference.segmenting import segmenter_of
from grasp_rl.interfaces import Policy, Segmenter
from grasp_rl.prompts.parse import parse
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.turns import turns_of
from grasp_rl.runs import checkpoints
from grasp_rl.types import Answer, BoolMask, FinishReason, Image, MaskPrediction, Sample
from grasp_rl.utils.files import Record
from grasp_rl.utils.text import control_token

MAX_QUERY = 2000
DEFAULT_SIDE = 840
"""Side of a window where the policy does not say how large it sees an image."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the pipeline made of one image and question."""

    text: str
    """What the policy wrote."""
    answer: Answer
    masks: MaskPrediction
    """Of each instance, at the image's own size; of all together where ``masks.whole``."""
    share: FloatArray | None = None
    """[H, W] share of several answers whose mask has each pixel; None where a single one was drawn or boxes voted."""
    inference: Record
    """What the inference options did; empty where they are the defaults."""
    policy_s: float
    segmenter_s: float
    finish_reason: FinishReason = FinishReason.STOP
    """Why ``text`` ended."""

    @property
    def mask(self) -> BoolMask:
        """[H, W] all instances together, at the image's own size."""
        return self.masks.union


class Predictor:
    """A policy and a segmenter, ready to answer.

    Args:
        config: a resolved run.
        source: a run, checkpoint or policy folder to take the weights from; None keeps those the config names.
        trusted: modules trusted on the command line.
        policy: one that is loaded already, of ``config`` and ``source``; None to load it.
        segmenter: one that is loaded already, of ``config``; None to load it.
        time_limit_s: seconds after which a completion that is being decoded ends; None for no limit. Answers to a
            second question and of later turns are bounded by their length alone.

    Raises:
        ConfigError: a part cannot be built, or there are no weights in ``source``.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Path | None = None,
        trusted: Sequence[str] = (),
        *,
        policy: Policy | None = None,
        segmenter: Segmenter | None = None,
        time_limit_s: float | None = None,
    ) -> None:
        for name, node in (("segmenter", config.segmenter), ("policy", config.policy)):
            check(node, trusted, name)
        torch.set_num_threads(config.engine.threads)
        device = pick_device(config.engine)
        self.config, self.time_limit_s = config, time_limit_s
        fit = source if source is not None and (source / FIT).is_file() else None
        self.inference = Inference(options=config.inference, affine=stored_fit(config, fit), seed=config.seed)
        self.plain_segmenter: Segmenter = segmenter or instantiate(config.segmenter, trusted, "segmenter")
        """The segmenter without what the inference options put around it."""
        self.estimates_quality = hasattr(self.plain_segmenter, "multimask")
        """Whether the segmenter estimates its masks' IoU; one without a model says 1 of every mask."""
        self.segmenter = segmenter_of(config.inference, self.plain_segmenter)
        unrewarded = RewardPipeline(
            segmenter=self.segmenter,
            reward=Unrewarded(),
            prompt=config.prompt,
            parsing=config.parsing,
            always_segment=True,
        )
        self.first, self.later = turns_of(config, unrewarded)
        if self.later and not self.inference.plain:
            raise ConfigError(f"inference={config.inference.name}: goes with one turn; take inference=default")
        self.weights = checkpoints.find_policy(source) if source is not None else None
        if policy is None:
            policy = instantiate(config.policy, trusted, "policy").to(device).eval()
            if self.weights is not None:
                policy.load_weights(self.weights)
        assert policy is not None
        self.policy: Policy = policy

    def predict(self, image: Image, query: str) -> Prediction:
        """Answer ``query`` about ``image`` [H, W, 3] uint8 RGB: greedily, unless the config's inference samples.

        Raises:
            ConfigError: the query is empty, too long, or holds text that is reserved for the policy's own tokens; or
                the answer could not be segmented.
        """
        (prediction,) = self.predict_all([image], query)
        if prediction.masks.error is not None:
            raise ConfigError(f"segmenter: could not segment the answer ({prediction.masks.error})")
        return prediction

    def predict_all(self, images: Sequence[Image], query: str) -> list[Prediction]:
        """Answer ``query`` about each of N images [H, W, 3] uint8 RGB, decoded together.

        An answer that could not be segmented says so in ``masks.error``. Seconds are those of all, divided by N.

        Raises:
            ConfigError: as for :meth:`predict`, but for the segmenter.
        """
        check_query(query, self.policy.tokenizer.all_special_tokens)
        if self.later:
            return self._in_turns(images, query)
        began = time.perf_counter()
        with torch.no_grad():
            prompts = [self.policy.encode(image, query, self.config.prompt) for image in images]
            embedded, length = self.policy.embed(prompts), self.config.evaluation.max_new_tokens
            names = [f"{zlib.crc32(image.tobytes())} {query}" for image in images]
            rows = self.config.evaluation.batch_size
            deadline = None if self.time_limit_s is None else time.monotonic() + self.time_limit_s
            said = self.inference.completions(
                self.policy, embedded, names, max_new_tokens=length, rows=rows, deadline=deadline
            )
        seconds = (time.perf_counter() - began) / len(images)
        read = [
            [
                replace(
                    parse(c.text, self.config.prompt, prompt.frame, self.config.parsing),
                    text=c.text,
                    tokens=len(c.token_ids),
                )
                for c in completions
            ]
            for prompt, completions in zip(prompts, said, strict=True)
        ]
        with torch.no_grad():
            labellings = self.inference.label(
                self.policy, images, [query] * len(images), [answers[0] for answers in read], max_new_tokens=length
            )
        result = []
        for image, completions, answers, labelling in zip(images, said, read, labellings, strict=True):
            began = time.perf_counter()
            vote, masks = self.inference.decide(self.segmenter, image, answers, name="the image", labelling=labelling)
            size = (image.shape[0], image.shape[1])
            record = {} if self.inference.plain else self.inference.record(vote, completions, size)
            result.append(
                Prediction(
                    text=completions[vote.chosen].text,
                    finish_reason=completions[vote.chosen].finish_reason,
                    answer=vote.answer,
                    masks=masks,
                    share=vote.share,
                    inference=record,
                    policy_s=seconds,
                    segmenter_s=time.perf_counter() - began,
                )
            )
        return result

    def _in_turns(self, images: Sequence[Image], query: str) -> list[Prediction]:
        """:meth:`predict_all` for a run of several turns; all but the last are counted as the policy's time."""
        samples = [
            Sample(
                sample_id="the image", image=image, query=query, target_mask=None, weak_labels=(), dataset="", split=""
            )
            for image in images
        ]
        began = time.perf_counter()
        with torch.no_grad():
            length = self.config.evaluation.max_new_tokens
            done = list(answer_in_turns(self.policy, self.first, self.later, samples, length))
        seconds, result = (time.perf_counter() - began) / len(images), []
        for _, _, rollout in done:
            if rollout.masks is None:
                raise ConfigError("segmenter: could not segment the answer (None)")
            result.append(
                Prediction(
                    text=rollout.completion.text,
                    finish_reason=rollout.completion.finish_reason,
                    answer=rollout.answer,
                    masks=rollout.masks,
                    inference={},
                    policy_s=seconds,
                    segmenter_s=0.0,
                )
            )
        return result


def window_side(predictor: Predictor) -> int:
    """How many pixels of a square image the policy sees along its side."""
    size = getattr(getattr(predictor.policy, "backbone", None), "size", None)
    most = getattr(size, "max_pixels", None)
    return math.isqrt(most) if most else DEFAULT_SIDE


def model_name(predictor: Predictor) -> str:
    """Policy and segmenter in a few words."""
    policy, config = predictor.policy, predictor.config
    name = str(getattr(policy, "base_name", type(policy).__name__))
    weights = f" ({predictor.weights})" if predictor.weights is not None else ""
    segmenter = str(config.segmenter.get("path") or str(config.segmenter.get("_target_")).rpartition(".")[2])
    return f"{name}{weights} + {segmenter}"


def check_query(query: str, reserved: Sequence[str] = ()) -> None:
    """Demand a question that can be asked.

    Raises:
        ConfigError: it is empty, too long, no text, or holds a control token of a chat template or a ``reserved`` one.
    """
    if not query.strip():
        raise ConfigError("--query: is empty; say what to look for, such as --query 'where could a boat land'")
    if len(query) > MAX_QUERY:
        raise ConfigError(f"--query: has {len(query)} characters, must have at most {MAX_QUERY}")
    if any("\ud800" <= letter <= "\udfff" for letter in query):
        raise ConfigError("--query: holds bytes or half characters that are no text in UTF-8; write it anew")
    token = control_token(query, reserved)
    if token is not None:
        raise ConfigError(f"--query: holds {token!r}, which is reserved for the control tokens of chat templates")

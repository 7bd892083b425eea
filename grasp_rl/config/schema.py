"""The tunables: one dataclass tree. Hydra composes against it; the worker reads it back without Hydra.

Components (policy, segmenter, reward, data, tracker, generator) are YAML with ``_target_``; their constructor is their
schema. Not frozen: OmegaConf would make a frozen dataclass read-only and refuse every override.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from grasp_rl.config.errors import one_of, require

MOST_DRAWS = 100_000
"""Resamplings of a bootstrap."""
CONFIG_VERSION = 2
"""Raised when a resolved config.yaml of an older version can no longer be read as it stands."""


@dataclass
class PromptConfig:
    """The prompt scheme: which fields each instance of the answer has, and the words that ask for them."""

    scheme: str = "box_2points"
    """Name of the scheme, for tables."""
    box: bool = True
    """Whether each instance has a box."""
    positive_points: int = 2
    """Foreground points per instance."""
    negative_points: int = 0
    """Background points per instance."""
    template: str = "think2seg"
    """A packaged template's name or a path to a text file; see grasp_rl.prompts.render."""
    box_key: str = "bbox_2d"
    positive_key: str = "positive_points"
    negative_key: str = "negative_points"
    clicks: int = 0
    """At most so many clicks [x, y, label] an instance, in one field and in the order in which they are made: label 1
    on the instance, 0 beside it, the first one 1. 0: no such field; else the scheme has no other points."""
    clicks_key: str = "clicks"
    flat_points: bool = False
    """Each point a field of its own, [x, y]: KEY where there is one, else KEY_1, KEY_2, ... (Seg-Zero)."""
    flat_separator: str = "_"
    """Between KEY and number of a point's field; Geo-R1 has none (keypoint1)."""
    single_object: bool = False
    """The answer is one object, not a list of them; null says that there is none (Seg-Zero)."""
    category_key: str = ""
    """Field with the name of the instance's class; empty where instances have none."""
    answer: str = "instances"
    """What the answer is: instances; boxes, bare lists of four numbers (RemoteReasoner); labels, 0 or 1 for each
    candidate point in the question (ReSaP); choice, the letter of one of the images in the question (Geo-R1)."""
    flat_single: bool = False
    """With answer=boxes: a single box is a list of four numbers, not a list with such a list in it."""
    none: str = ""
    """The word that says that there is nothing; empty where an empty list, or null, says so."""
    center_point: bool = False
    """Hand the segmenter each box's centre as a foreground point, too (RemoteReasoner)."""
    fence: bool = True
    """Whether the demonstrated answer stands in a ```json fence."""
    thinking: bool = True
    """Whether a thought comes before the answer."""
    coordinates: str = "policy"
    """policy: the frame that the policy was trained to speak; thousand: 0..1000 on both axes."""

    def __post_init__(self) -> None:
        one_of("prompt.answer", self.answer, ("instances", "boxes", "labels", "choice"))
        one_of("prompt.coordinates", self.coordinates, ("policy", "thousand"))
        bare = self.answer != "instances"
        if bare:
            require(not self.single_object, "prompt.single_object", self.single_object, "false with this prompt.answer")
            require(not self.category_key, "prompt.category_key", self.category_key, "empty with this prompt.answer")
        if self.center_point:
            require(self.box and not self.positive_points, "prompt.center_point", True, "false where points are said")
        require(0 <= self.clicks <= 16, "prompt.clicks", self.clicks, "in 0..16")
        if self.clicks:
            others = self.positive_points + self.negative_points
            require(not bare and not others, "prompt.clicks", self.clicks, "0 with other points or another answer")
        boxes_alone = self.box and self.positive_points + self.negative_points == 0
        if self.answer == "boxes":
            require(boxes_alone, "prompt.answer", self.answer, "instances, where a scheme has points or no box")
        require(0 <= self.positive_points <= 8, "prompt.positive_points", self.positive_points, "in 0..8")
        require(0 <= self.negative_points <= 8, "prompt.negative_points", self.negative_points, "in 0..8")
        spatial = self.answer in ("labels", "choice") or self.box or self.positive_points + self.clicks > 0
        require(spatial, "prompt.box", self.box, "true, or prompt.positive_points > 0")
        keys = (self.box_key, self.positive_key, self.negative_key, self.clicks_key)
        require(len(set(keys)) == 4 and all(keys), "prompt.*_key", keys, "four different non-empty names")
        names = self.fields
        require(len(set(names)) == len(names), "prompt.*_key", names, "different names for every field")

    @property
    def fields(self) -> list[str]:
        """Names of the fields of one instance, in order."""
        category = [self.category_key] if self.category_key else []
        clicks = [self.clicks_key] if self.clicks else []
        return ([self.box_key] if self.box else []) + self.positive_fields + self.negative_fields + clicks + category

    @property
    def positive_fields(self) -> list[str]:
        """Fields that hold the foreground points."""
        return self._point_fields(self.positive_key, self.positive_points)

    @property
    def negative_fields(self) -> list[str]:
        """Fields that hold the background points."""
        return self._point_fields(self.negative_key, self.negative_points)

    def _point_fields(self, key: str, count: int) -> list[str]:
        if not self.flat_points or count == 1:
            return [key] if count else []
        return [f"{key}{self.flat_separator}{i + 1}" for i in range(count)]


READERS = (
    *("scheme", "think2seg", "visionreasoner", "seg_zero", "vlm_r1_rec", "vlm_r1_od", "vlm_r1_detection"),
    *("geo_r1_gres", "choice", "rs_eot", "rs_hyre", "rs_hyre_detection", "socio_turn1", "socio_turn2"),
    *("resap", "resap_points", "r1_sgg", "remote_reasoner", "rsthinker"),
)


@dataclass
class ParsingConfig:
    """How a completion becomes an Answer."""

    reader: str = "scheme"
    """scheme: exactly what the prompt scheme asks for. Any other: as the released code of that system reads, where the
    scheme has its fields; see grasp_rl.prompts.released."""
    repair: bool = False
    """Accept JSON that json-repair can mend. Off in training: repaired JSON scores 0."""
    require_fence: bool = False
    """Demand a ```json fence inside the answer, as Think2Seg-RS does in training."""
    nms_iou: float = 0.5
    """Boxes overlapping a larger kept one by more than this IoU are duplicates; 1 keeps all (Think2Seg-RS: 0.5)."""
    max_chars: int = 16384
    max_depth: int = 8
    max_instances: int = 64
    max_abs_coordinate: float = 1e6

    def __post_init__(self) -> None:
        one_of("parsing.reader", self.reader, READERS)
        require(0 <= self.nms_iou <= 1, "parsing.nms_iou", self.nms_iou, "in [0, 1]")
        for key in ("max_chars", "max_depth", "max_instances"):
            require(getattr(self, key) >= 1, f"parsing.{key}", getattr(self, key), ">= 1")
        require(self.max_depth <= 64, "parsing.max_depth", self.max_depth, "<= 64")
        require(self.max_abs_coordinate > 0, "parsing.max_abs_coordinate", self.max_abs_coordinate, "> 0")


@dataclass
class AlgorithmConfig:
    """Group-relative policy optimisation; the options of conf/algorithm are the published settings."""

    name: str = "dr_grpo"
    steps: int = 200
    """Optimizer steps."""
    prompts_per_step: int = 12
    """Prompts per optimizer step, over all ranks."""
    group_size: int = 8
    """G, completions per question."""
    iterations: int = 1
    """mu, optimizer passes over one set of rollouts; each is one optimizer step on the same rollouts."""
    baseline: str = "mean"
    """mean of the group, or leave_one_out (RLOO)."""
    scale_advantages: bool = False
    """Divide the centred rewards by the group's sample standard deviation + scale_epsilon (GRPO)."""
    scale_epsilon: float = 1e-4
    min_reward_range: float = 0.0
    """A group whose rewards differ by no more than this has no advantage (ReSaP: 0.01)."""
    loss: str = "constant"
    """sequence_mean (GRPO), token_mean over the whole optimizer step (DAPO), constant divisor (Dr. GRPO). none makes no
    optimizer step whatever ``steps`` says: the policy is scored as it is, a zero-shot row of a grid."""
    importance: str = "token"
    """Level of the importance ratio: token, or sequence (GSPO)."""
    surrogate: str = "clipped"
    """clipped: the smaller of ratio and clipped ratio, times the advantage (PPO). cispo: the clipped ratio, detached,
    times advantage and log-probability, so that no token loses its gradient (MiniMax-M1, arXiv 2506.13585)."""
    own_advantage: dict[str, Any] = field(default_factory=dict)
    """An advantage of your own, with a _target_, in place of baseline and scale_advantages: see
    grasp_rl.interfaces.Advantage and docs/algorithms.md."""
    own_surrogate: dict[str, Any] = field(default_factory=dict)
    """A surrogate of your own, with a _target_, in place of ``surrogate``: see grasp_rl.interfaces.Surrogate."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]; with clip_low=1 it has no lower bound."""
    clip_high: float = 0.2
    beta: float = 0.0
    """Weight of the k3 KL estimate to the reference policy; 0 runs no reference."""
    micro_batch_groups: int = 4
    """Groups per forward and backward. Changes memory and speed, never the gradient."""
    skip_zero_advantage: bool = False
    """Leave groups without advantage out of the update (their KL term, with beta > 0, goes with them)."""
    sampling_rounds: int = 1
    """Rounds in which new questions replace those whose siblings all earned the same (DAPO's dynamic sampling), until
    prompts_per_step groups have an advantage; 1 takes the first questions as they come."""

    def __post_init__(self) -> None:
        one_of("algorithm.loss", self.loss, ("sequence_mean", "token_mean", "constant", "none"))
        if self.loss == "none":
            self.steps = 0
        counts = ["prompts_per_step", "iterations", "micro_batch_groups", "sampling_rounds"]
        for key in counts if self.loss == "none" else ["steps", *counts]:
            require(getattr(self, key) >= 1, f"algorithm.{key}", getattr(self, key), ">= 1")
        require(self.group_size >= 2, "algorithm.group_size", self.group_size, ">= 2 (a group needs siblings)")
        one_of("algorithm.baseline", self.baseline, ("mean", "leave_one_out"))
        one_of("algorithm.importance", self.importance, ("token", "sequence"))
        one_of("algorithm.surrogate", self.surrogate, ("clipped", "cispo"))
        if self.surrogate == "cispo":
            require(self.importance == "token", "algorithm.importance", self.importance, "token with surrogate=cispo")
        require(self.scale_epsilon >= 0, "algorithm.scale_epsilon", self.scale_epsilon, ">= 0")
        require(self.min_reward_range >= 0, "algorithm.min_reward_range", self.min_reward_range, ">= 0")
        require(0 <= self.clip_low <= 1, "algorithm.clip_low", self.clip_low, "in [0, 1]")
        require(self.clip_high >= 0, "algorithm.clip_high", self.clip_high, ">= 0")
        require(self.beta >= 0, "algorithm.beta", self.beta, ">= 0")


@dataclass
class OptimizerConfig:
    """AdamW and its schedule, by optimizer step."""

    lr: float = 1e-4
    """1e-4 suits policy=tiny; the papers fine-tune 3 to 8 B parameters with 1e-6."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    schedule: str = "constant"
    """constant | linear | cosine, after the warm-up, down to final_lr_ratio."""
    final_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "> 0")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, ">= 0")
        require(0 <= self.beta1 < 1, "optimizer.beta1", self.beta1, "in [0, 1)")
        require(0 <= self.beta2 < 1, "optimizer.beta2", self.beta2, "in [0, 1)")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "> 0")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, ">= 0")
        one_of("optimizer.schedule", self.schedule, ("constant", "linear", "cosine"))
        require(0 <= self.final_lr_ratio <= 1, "optimizer.final_lr_ratio", self.final_lr_ratio, "in [0, 1]")


@dataclass
class TurnConfig:
    """A turn after the first: the policy is shown what came of its answer, and answers again."""

    prompt: PromptConfig = field(default_factory=PromptConfig)
    """The turn's scheme; the question is the same."""
    parsing: ParsingConfig | None = None
    """How its answer is read; null for the run's."""
    feedback: str = "overlay"
    """What is shown: overlay, the image with the boxes outlined in blue and the mask in red; crop, the image around the
    boxes; zoom, the same as large as the image. The answer's coordinates are about what is shown."""
    margin: float = 0.25
    """crop and zoom: what is shown around the boxes on every side, as a fraction of their common longer side."""

    def __post_init__(self) -> None:
        one_of("rollout.turns.*.feedback", self.feedback, ("overlay", "crop", "zoom"))
        require(0 <= self.margin <= 10, "rollout.turns.*.margin", self.margin, "in [0, 10]")


@dataclass
class TaskConfig:
    """A task beside the run's first one, asked of a share of the questions."""

    share: float = 0.2
    """Of the questions; whether a question is one of them is drawn by its place in the run."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Its scheme. answer=labels asks about candidate points in the true boxes; see grasp_rl.data.candidates."""
    parsing: ParsingConfig | None = None
    """How its answer is read; null for the run's."""
    alpha: float = 16.0
    """Rows of candidate points in a box as high as the image."""
    most: int = 6
    """Rows, and columns, of candidate points in a box at most."""

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "rollout.tasks.*.share", self.share, "in (0, 1)")
        require(self.alpha > 0, "rollout.tasks.*.alpha", self.alpha, "> 0")
        require(self.most >= 1, "rollout.tasks.*.most", self.most, ">= 1")


@dataclass
class RolloutConfig:
    """Sampling, and how what was sampled is scored."""

    temperature: float = 1.0
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together reach this probability; 1 from all."""
    scored: str = "sampled"
    """Log-probabilities of the update: sampled, of the distribution that was drawn from, cut by top_k and top_p; or
    full, of the whole vocabulary at the temperature, as TRL and verl score. The reference is always scored in full, so
    that with a cut only ``full`` gives a KL of 0 to an equal policy."""
    max_new_tokens: int = 96
    stop_at_answer: bool = False
    """End a completion where it closes its answer, not where it ends its turn."""
    time_limit_s: float | None = None
    """Seconds an optimizer step's generation may take; what is unfinished then is cut off. null for no limit."""
    max_failed_prompts: float = 0.5
    """Share of a step's prompts on which the segmenter may fail; beyond it the run stops and names the error."""
    batch_rows: int = 256
    """Completions decoded together at most; changes memory, never the draw."""
    turns: dict[str, TurnConfig] = field(default_factory=dict)
    """Turns after the first, by name, in their order; each is a group of its own for the advantage. A reward with
    stages has one for ``first`` and one for each name."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Tasks beside the first, by name; what their shares leave is the first one's. A reward with stages has one for
    ``first`` and one for each name."""
    reward_worker: str = "auto"
    """Where answers are segmented and rewarded while the next ones are generated: process (of its own), thread (with a
    stream of its own on a GPU), inline (no overlap); auto takes a thread for a segmenter on a GPU or a reward with a
    model of its own, else a process."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "rollout.temperature", self.temperature, "> 0 (evaluation is greedy by itself)")
        require(self.top_k >= 0, "rollout.top_k", self.top_k, ">= 0 (0 keeps every token)")
        require(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "in (0, 1]")
        require(self.max_new_tokens >= 1, "rollout.max_new_tokens", self.max_new_tokens, ">= 1")
        limit = self.time_limit_s
        require(limit is None or limit > 0, "rollout.time_limit_s", limit, "> 0 or null")
        require(self.batch_rows >= 1, "rollout.batch_rows", self.batch_rows, ">= 1")
        share = self.max_failed_prompts
        require(0 <= share <= 1, "rollout.max_failed_prompts", share, "in [0, 1]")
        one_of("rollout.scored", self.scored, ("sampled", "full"))
        one_of("rollout.reward_worker", self.reward_worker, ("auto", "process", "thread", "inline"))
        require("first" not in self.turns, "rollout.turns", list(self.turns), "names other than first")
        require("first" not in self.tasks, "rollout.tasks", list(self.tasks), "names other than first")
        require(not (self.turns and self.tasks), "rollout.tasks", list(self.tasks), "empty with rollout.turns")
        shares = sum(task.share for task in self.tasks.values())
        require(shares < 1, "rollout.tasks.*.share", shares, "less than 1 in all")


@dataclass
class EvaluationConfig:
    """What is scored, when, and how."""

    every: int = 50
    """Validate after every so many optimizer steps; 0 never."""
    val_limit: int | None = 64
    """Validation samples scored each time, None for all."""
    test_split: str = "test"
    """Split scored before and after training and by `grasp-rl evaluate`."""
    test_limit: int | None = None
    batch_size: int = 32
    max_new_tokens: int = 96
    protocol: Any = field(default_factory=lambda: {"_target_": "grasp_rl.evaluation.protocols.masks.MaskProtocol"})
    """What counts as what: an option of conf/evaluation/protocol."""
    max_failed_prompts: float = 0.5
    """Share of the prompts on which the segmenter may fail; beyond it the evaluation stops and names the error."""
    bootstrap_samples: int = 2000
    overlays: int = 8
    """Images with ground truth, prompts and mask drawn, per evaluation."""

    def __post_init__(self) -> None:
        require(isinstance(self.protocol, dict), "evaluation.protocol", self.protocol, "an option of its group")
        require(self.every >= 0, "evaluation.every", self.every, ">= 0")
        for key in ("val_limit", "test_limit"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"evaluation.{key}", value, ">= 1 or null")
        for key in ("batch_size", "max_new_tokens", "bootstrap_samples"):
            require(getattr(self, key) >= 1, f"evaluation.{key}", getattr(self, key), ">= 1")
        require(self.overlays >= 0, "evaluation.overlays", self.overlays, ">= 0")
        share = self.max_failed_prompts
        require(0 <= share <= 1, "evaluation.max_failed_prompts", share, "in [0, 1]")


@dataclass
class RefineConfig:
    """An affine map of predicted boxes that takes out a systematic error; see grasp_rl.inference.refine."""

    fit_split: str | None = None
    """evaluate: the split whose greedy answers it is fitted on, before the evaluation; null fits nothing."""
    limit: int | None = 256
    """Samples of that split at most, None for all."""
    path: str | None = None
    """A run directory with a fit, or the inference.json in one, to use again."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "inference.refine.limit", self.limit, ">= 1 or null")


@dataclass
class RoutesConfig:
    """Two prompts an instance, its points alone and its box, and how their masks are merged."""

    merge: str = "none"
    """none: one prompt. and, or. agreement: what both masks have where their IoU is at least min_iou, else the one of
    the higher predicted IoU, the box's where that is equal."""
    box_route: str = "box"
    """box, or box_points: the second route has the points, too."""
    min_iou: float = 0.5

    def __post_init__(self) -> None:
        one_of("inference.routes.merge", self.merge, ("none", "and", "or", "agreement"))
        one_of("inference.routes.box_route", self.box_route, ("box", "box_points"))
        require(0 <= self.min_iou <= 1, "inference.routes.min_iou", self.min_iou, "in [0, 1]")


@dataclass
class ScaleConfig:
    """What the segmenter sees of an image."""

    mode: str = "native"
    """native: the image as it is. side: resized, its longer side to ``side``. crop: around each box alone."""
    side: int = 1024
    """Pixels of the longer side."""
    margin: float = 0.5
    """Of a crop on every side, as a fraction of the box's width or height."""

    def __post_init__(self) -> None:
        one_of("inference.scale.mode", self.mode, ("native", "side", "crop"))
        require(16 <= self.side <= 16384, "inference.scale.side", self.side, "in 16..16384")
        require(0 <= self.margin <= 10, "inference.scale.margin", self.margin, "in [0, 10]")


@dataclass
class SamplesConfig:
    """Answers drawn beside the greedy one, and how one comes of all of them; see grasp_rl.inference.voting."""

    count: int = 0
    """K sampled answers; 0 leaves the greedy one alone."""
    temperature: float = 1.0
    top_p: float = 1.0
    pick: str = "agreement"
    """agreement of masks pixel by pixel, majority of boxes, or best_of_n: one of the answers as it is."""
    threshold: float = 0.5
    """Share of the answers that a pixel or a box needs."""
    score: str = "agreement"
    """What is best with best_of_n: agreement (mean mask IoU with the others), predicted_iou (the segmenter's)."""
    box_iou: float = 0.5
    """Boxes of different answers that overlap by at least this IoU are votes for one instance (majority)."""

    def __post_init__(self) -> None:
        require(0 <= self.count <= 256, "inference.samples.count", self.count, "in 0..256")
        require(self.temperature > 0, "inference.samples.temperature", self.temperature, "> 0")
        require(0 < self.top_p <= 1, "inference.samples.top_p", self.top_p, "in (0, 1]")
        one_of("inference.samples.pick", self.pick, ("agreement", "majority", "best_of_n"))
        require(0 < self.threshold <= 1, "inference.samples.threshold", self.threshold, "in (0, 1]")
        one_of("inference.samples.score", self.score, ("agreement", "predicted_iou"))
        require(0 < self.box_iou <= 1, "inference.samples.box_iou", self.box_iou, "in (0, 1]")


@dataclass
class CandidatesConfig:
    """A second question about points on a grid in the boxes; see grasp_rl.inference.candidates."""

    alpha: float = 0.0
    """Rows of points in a box as high as the image (ReSaP: 16); 0 asks no second question."""
    most: int = 6
    """Rows, and columns, in a box at most."""
    confidence: float = 0.9
    """Probability of its label from which on a point counts."""
    prompt: PromptConfig | None = None
    """The scheme of the second question, with answer=labels."""

    def __post_init__(self) -> None:
        require(self.alpha >= 0, "inference.candidates.alpha", self.alpha, ">= 0 (0 asks no second question)")
        require(self.most >= 1, "inference.candidates.most", self.most, ">= 1")
        require(0 <= self.confidence <= 1, "inference.candidates.confidence", self.confidence, "in [0, 1]")
        labels = self.prompt is not None and self.prompt.answer == "labels"
        valid = "a scheme with answer=labels, as inference=resap has"
        require(not self.alpha or labels, "inference.candidates.prompt", self.prompt, valid)


@dataclass
class InferenceConfig:
    """What is done with an answer beyond one prompt an instance; evaluate, rescore, diagnose and predict honour it.

    Training never does: a reward is of the plain answer.
    """

    name: str = "default"
    """Name of the option, for tables."""
    refine: RefineConfig = field(default_factory=RefineConfig)
    routes: RoutesConfig = field(default_factory=RoutesConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    candidates: CandidatesConfig = field(default_factory=CandidatesConfig)
    clip_to_box: bool = False
    """Cut each mask to its own box (Geo-R1)."""
    multimask: bool = False
    """The best of the segmenter's three masks by predicted IoU (Seg-Zero, ReSaP); for the SAM family."""

    def __post_init__(self) -> None:
        drawn = self.samples.count if self.candidates.alpha else 0
        require(not drawn, "inference.samples.count", drawn, "0 with inference.candidates")

    @property
    def changed(self) -> dict[str, Any]:
        """Settings that are not the defaults, by flat key; the name is none of them."""
        return {key: value for key, value in _changed(self, InferenceConfig()).items() if key != "name"}

    @property
    def label(self) -> str:
        """The name; of the defaults with other settings, these too."""
        return label_of(self.name, self.changed)


def label_of(name: str, changed: dict[str, Any]) -> str:
    """What a table calls inference options of that name that differ so from the defaults."""
    settings = ", ".join(f"{key}={value}" for key, value in changed.items())
    return f"{name} with {settings}" if settings and name == InferenceConfig.name else name


def _changed(ours: Any, usual: Any) -> dict[str, Any]:
    """Fields of one dataclass that differ from another's, by flat key."""
    result: dict[str, Any] = {}
    for part in fields(ours):
        value, other = getattr(ours, part.name), getattr(usual, part.name)
        if is_dataclass(value):
            usual_value = other if is_dataclass(other) else type(value)()  # type: ignore[misc]
            result |= {f"{part.name}.{key}": inner for key, inner in _changed(value, usual_value).items()}
        elif value != other:
            result[part.name] = value
    return result


@dataclass
class CheckpointConfig:
    """What is kept, and when."""

    every: int = 50
    """Save the complete training state after every so many optimizer steps; 0 only at the end."""
    keep_last: int = 1
    """Checkpoints kept beside the best one."""
    keep: str = "all"
    """What stays once a run is done. all: what ``keep_last`` kept, from which it can go on; best or last: that
    checkpoint's policy alone (best is last where no validation marked one); none: no weights, for wide sweeps."""
    every_minutes: float | None = None
    """Save after every so many minutes, too."""
    on_error: str = "stop"
    """What a checkpoint that cannot be written does to the run: stop, or continue (it is said, and tried again)."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, ">= 0")
        minutes = self.every_minutes
        require(minutes is None or minutes > 0, "checkpoint.every_minutes", minutes, "> 0 or null")
        one_of("checkpoint.on_error", self.on_error, ("stop", "continue"))
        one_of("checkpoint.keep", self.keep, ("all", "best", "last", "none"))
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, ">= 1")


@dataclass
class SftPhase:
    """One phase of supervised fine-tuning."""

    steps: int = 1000
    batch_size: int = 32
    """Images per optimizer step."""
    lr: float = 1e-3
    final_lr_ratio: float = 0.05
    warmup_steps: int = 50
    box_scale_bias: float = 0.0
    """Demonstrated boxes grow by this fraction of their side on every side."""
    box_shift_bias: float = 0.0
    """Demonstrated boxes and points move right and down by this fraction of the box's side."""
    noise: float = 0.0
    """Standard deviation of independent noise on each edge and point, as a fraction of the box's side."""
    attention_weight: float = 0.0
    """Weight of teaching two heads to look at the instance whose coordinate is said; see grasp_rl.training.sft."""
    attention_layers: list[int] = field(default_factory=lambda: [1, 2])
    """Decoder layers whose first two heads are taught."""
    questions_per_image: int = 1
    """Questions about one image packed behind it in one row, where the dataset can give several."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size"):
            require(getattr(self, key) >= 1, f"sft.phases[].{key}", getattr(self, key), ">= 1")
        require(self.lr > 0, "sft.phases[].lr", self.lr, "> 0")
        require(self.noise >= 0, "sft.phases[].noise", self.noise, ">= 0")
        require(self.box_scale_bias > -0.5, "sft.phases[].box_scale_bias", self.box_scale_bias, "> -0.5")
        require(self.questions_per_image >= 1, "sft.phases[].questions_per_image", self.questions_per_image, ">= 1")


@dataclass
class ClicksConfig:
    """Where the clicks of a scheme with ``prompt.clicks`` come from in supervised fine-tuning."""

    source: str = "simulated"
    """simulated: through the run's segmenter, see grasp_rl.training.clicks. weak_labels: points of the true instances,
    foreground first."""
    stop_iou: float = 0.95
    """No click follows a mask that has this IoU with its instance."""

    def __post_init__(self) -> None:
        one_of("sft.clicks.source", self.source, ("simulated", "weak_labels"))
        require(0 < self.stop_iou <= 1, "sft.clicks.stop_iou", self.stop_iou, "in (0, 1]")


@dataclass
class SftConfig:
    """Supervised fine-tuning on demonstrations derived from the dataset's weak labels: the papers' SFT baseline."""

    phases: list[SftPhase] = field(default_factory=lambda: [SftPhase()])
    scheme_weights: dict[str, float] = field(default_factory=dict)
    """Draw each example's scheme from conf/prompt with these weights; empty for the configured scheme alone."""
    reasoning: str = "given"
    """The demonstrated thought: given by the dataset (empty where it has none), none (always empty), or template, a
    sentence about the question and the number of instances."""
    clicks: ClicksConfig = field(default_factory=ClicksConfig)
    bf16: bool = False
    """Autocast to bfloat16; weights and optimizer stay in float32."""
    log_every: int = 50
    save_every: int = 500
    """Save the policy after every so many steps, so that a broken run can go on with init_from."""

    def __post_init__(self) -> None:
        one_of("sft.reasoning", self.reasoning, ("given", "none", "template"))
        require(bool(self.phases), "sft.phases", self.phases, "one phase or more")
        for key in ("log_every", "save_every"):
            require(getattr(self, key) >= 1, f"sft.{key}", getattr(self, key), ">= 1")


@dataclass
class MiningConfig:
    """Questions whose answers are neither all right nor all wrong; see grasp_rl.training.mining."""

    before: bool = False
    """Answer the training questions before GRPO begins, and train on those that are kept."""
    reuse: str | None = None
    """A run directory with a mined.jsonl, or such a file, whose questions are trained on without a pass before."""
    limit: int | None = None
    """Questions asked at most, None for all of the training split."""
    min_range: float = 0.01
    """A question is kept where the rewards of its answers differ by more than this, in points of the reward."""
    min_mean: float | None = None
    """And where their mean is at least this; null for no bound."""
    max_mean: float | None = None
    """And where their mean is at most this; null for no bound."""

    def __post_init__(self) -> None:
        require(self.limit is None or self.limit >= 1, "regime.mining.limit", self.limit, ">= 1 or null")
        require(self.min_range >= 0, "regime.mining.min_range", self.min_range, ">= 0")
        low, high = self.min_mean, self.max_mean
        require(low is None or high is None or low <= high, "regime.mining.min_mean", low, "<= regime.mining.max_mean")


@dataclass
class RegimeConfig:
    """What `grasp-rl train` does before GRPO, on which questions, and how often; see grasp_rl.training.regimes."""

    name: str = "grpo"
    """Name of the option, for tables."""
    sft: bool = False
    """Supervised fine-tuning through ``sft.phases`` first, in <run_dir>/sft; what follows goes on from its weights."""
    shots: int | None = None
    """So many samples of each category of the training split, drawn by the run's seed; null for all."""
    mining: MiningConfig = field(default_factory=MiningConfig)
    rounds: int = 1
    """Runs of GRPO, each from the weights of the one before, which also verifies its answers (RemoteZero); all but
    the last in <run_dir>/round_1, round_2, ..."""

    def __post_init__(self) -> None:
        require(self.shots is None or self.shots >= 1, "regime.shots", self.shots, ">= 1, or null for all")
        require(1 <= self.rounds <= 100, "regime.rounds", self.rounds, "in 1..100")

    @property
    def mines(self) -> bool:
        """Whether the training questions are answered before GRPO."""
        return self.mining.before and self.mining.reuse is None

    @property
    def plain(self) -> bool:
        """Whether it is one run of GRPO and nothing before it."""
        return not self.sft and not self.mines and self.rounds == 1


PROMPT_KINDS = (
    *("tight", "loose", "shifted", "shrunk"),
    *("box_points", "box_negatives", "points", "point_negatives"),
)
"""Kinds of prompts that fit-segmenter draws; see grasp_rl.training.prompt_mix."""


@dataclass
class FitConfig:
    """Training of a promptable segmenter on masks, with prompts drawn from them; see grasp_rl.training.fit_segmenter.

    ``optimizer``, ``checkpoint.every`` and ``evaluation`` (every, val_limit, test_split, test_limit) hold here, too.
    """

    parts: str = "all"
    """What is trained: all, mask_decoder, or lora (adapters in the vision encoder, and the mask decoder)."""
    lora_rank: int = 4
    """Rank of the adapters where ``parts`` is lora; SAMed's (arXiv:2304.13785)."""
    steps: int = 1000
    """Optimizer steps."""
    blind_steps: int = 0
    """Steps of the beginning in which image features are zero: the decoder alone learns what prompts mean, which from
    random weights is slower with an image in sight; 0 for trained weights."""
    images: int = 4
    """Images per optimizer step."""
    prompts: int = 8
    """Prompts an image in each of a step's two decoder calls; all of a call have a box or none, and as many points."""
    mix: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(PROMPT_KINDS[:4], 1.0) | dict.fromkeys(PROMPT_KINDS[4:], 2.0)
    )
    """How often each kind of prompt is drawn, as weights; 0 never."""
    multimask_every: int = 4
    """Every so many steps the best of the three masks is trained, too; 0 never."""
    ema_decay: float = 0.99
    """Of the running average of the weights, which is what is scored and saved."""
    colour_jitter: bool = False
    """Draw another light and other colours for each image."""
    log_every: int = 20

    def __post_init__(self) -> None:
        one_of("fit.parts", self.parts, ("all", "mask_decoder", "lora"))
        for key in ("steps", "images", "prompts", "log_every", "lora_rank"):
            require(getattr(self, key) >= 1, f"fit.{key}", getattr(self, key), ">= 1")
        for key in ("blind_steps", "multimask_every"):
            require(getattr(self, key) >= 0, f"fit.{key}", getattr(self, key), ">= 0")
        require(0 <= self.ema_decay < 1, "fit.ema_decay", self.ema_decay, "in [0, 1)")
        for kind, weight in self.mix.items():
            one_of("fit.mix", kind, PROMPT_KINDS)
            require(weight >= 0, f"fit.mix.{kind}", weight, ">= 0")
        require(sum(self.mix.values()) > 0, "fit.mix", self.mix, "weights of which one is > 0")


ENGINES = ("local", "zero1", "zero2", "zero3", "zero3_offload")


@dataclass
class EngineConfig:
    """Where the step runs, and how its state is divided among processes."""

    name: str = "local"
    """local: one process. zero1, zero2, zero3, zero3_offload: DeepSpeed's stages of ZeRO."""
    nproc: int = 1
    """Processes on each node; more than 1 starts torchrun."""
    nnodes: int = 1
    """Nodes; on each of them the same command is started."""
    node_rank: int | None = None
    """This node's number, from 0; needed with more than one, unless a hostfile says it."""
    rendezvous: str | None = None
    """HOST:PORT of the first node, where nodes meet; needed with more than one, unless a hostfile says it."""
    hostfile: str | None = None
    """A file with a line for each node, its name first, as DeepSpeed and MPI take it: says the three keys above."""
    device: str = "auto"
    """auto | cpu | cuda"""
    threads: int = 1
    """Intra-op CPU threads of each process."""
    gather: str = "whole"
    """zero3 during the rollout: whole fetches all parameters once; layer fetches one layer at a time, for models that
    do not fit a device, and every rank then decodes all groups, to keep in step."""
    timeout_s: float = 1800.0
    """Seconds a rank waits for another before it gives up."""
    deepspeed_config: str | None = None
    """Your own DeepSpeed JSON, merged in; what contradicts the run's config is an error."""

    @property
    def zero_stage(self) -> int:
        """Stage of ZeRO, 0 for one process without DeepSpeed."""
        return {"local": 0, "zero1": 1, "zero2": 2}.get(self.name, 3)

    @property
    def gathers_by_layer(self) -> bool:
        """Whether the rollout fetches parameters layer by layer."""
        return self.zero_stage == 3 and self.gather == "layer"

    @property
    def ranks_forward_together(self) -> bool:
        """Whether every rank has to make the same forwards in the rollout, since each fetches layers from all."""
        return self.gathers_by_layer and self.nproc * self.nnodes > 1

    def __post_init__(self) -> None:
        for key in ("nproc", "nnodes", "threads"):
            require(getattr(self, key) >= 1, f"engine.{key}", getattr(self, key), ">= 1")
        one_of("engine.device", self.device, ("auto", "cpu", "cuda"))
        one_of("engine.name", self.name, ENGINES)
        one_of("engine.gather", self.gather, ("whole", "layer"))
        require(self.timeout_s > 0, "engine.timeout_s", self.timeout_s, "> 0")
        if self.name == "local":
            require(self.nproc == 1, "engine.nproc", self.nproc, "1 with engine=local; zero2 or zero3 take more")
            require(self.nnodes == 1, "engine.nnodes", self.nnodes, "1 with engine=local; zero2 or zero3 take more")
        if self.nnodes > 1:
            address = self.rendezvous or ""
            port = address.rpartition(":")[2]
            require(
                ":" in address and port.isdigit(), "engine.rendezvous", self.rendezvous, "HOST:PORT with nnodes > 1"
            )
            require(self.node_rank is not None, "engine.node_rank", self.node_rank, "given with engine.nnodes > 1")
        if self.node_rank is not None:
            require(0 <= self.node_rank < self.nnodes, "engine.node_rank", self.node_rank, "in [0, engine.nnodes)")


@dataclass
class SearchConfig:
    """A search for hyper-parameters by Optuna, of `hydra/sweeper=optuna`; see conf/hparams_search."""

    trials: int = 20
    """Trials that end with an objective or are pruned."""
    metric: str = "reward"
    """Of the validation split; the objective is its highest value in the run."""
    sampler: str = "tpe"
    """tpe (Bergstra et al. 2011) or random."""
    pruner: str = "median"
    """median ends a run whose best value is below the median of the earlier trials at the same step; none."""
    startup_trials: int = 5
    """Trials before the first is pruned."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        for key in ("trials", "startup_trials"):
            require(getattr(self, key) >= 1, f"sweep.search.{key}", getattr(self, key), ">= 1")
        one_of("sweep.search.sampler", self.sampler, ("tpe", "random"))
        one_of("sweep.search.pruner", self.pruner, ("median", "none"))


@dataclass
class SweepConfig:
    """What a sweep does about its jobs."""

    on_error: str = "continue"
    """After a job has failed: continue with the others, or stop before the next one."""
    zip: dict[str, list[Any]] = field(default_factory=dict)
    """Keys whose values move together, each with its value in the first job, the second, and so on: {policy: [a, b],
    algorithm.group_size: [16, 12]}. Multiplied with whatever else is swept."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Where `hydra/sweeper=optuna` proposes the jobs, by what earlier ones reached."""
    trial: int | None = None
    """The number of this run in the study of a search, set by it."""

    def __post_init__(self) -> None:
        one_of("sweep.on_error", self.on_error, ("continue", "stop"))


MOST = {
    **{"engine.nproc": 1024, "engine.nnodes": 65536, "engine.threads": 1024, "engine.timeout_s": 1e7},
    **{"algorithm.steps": 10**9, "algorithm.prompts_per_step": 10**6, "algorithm.group_size": 4096},
    **{"algorithm.iterations": 1000, "algorithm.micro_batch_groups": 10**6, "algorithm.sampling_rounds": 1000},
    **{"rollout.max_new_tokens": 10**6, "rollout.batch_rows": 10**6},
    **{"evaluation.batch_size": 10**5, "evaluation.max_new_tokens": 10**6, "evaluation.overlays": 10**5},
    **{"evaluation.bootstrap_samples": MOST_DRAWS, "evaluation.val_limit": 10**9, "evaluation.test_limit": 10**9},
    **{"parsing.max_chars": 10**7, "parsing.max_instances": 10**5, "parsing.max_abs_coordinate": 1e12},
    **{"optimizer.lr": 1e6, "optimizer.warmup_steps": 10**9, "optimizer.max_grad_norm": 1e12},
    **{"checkpoint.keep_last": 10**6, "fit.steps": 10**9, "fit.images": 10**5, "fit.prompts": 10**5},
    "fit.lora_rank": 10**5,
}
"""Numbers above which a config asks for memory, processes or time that no machine has."""


@dataclass
class RunConfig:
    """One run, resolved. config.yaml in the run folder is exactly this."""

    version: int = CONFIG_VERSION
    command: str = "train"
    name: str = "run"
    seed: int = 0
    """Seeds data order, scenes drawn for training and every sampled token."""
    run_dir: str = "outputs/run"
    resume: str | None = None
    """A run folder to go on with (`train resume=<run>`); `train run_dir=<run> resume=auto` begins there or goes on."""
    init_from: str | None = None
    """A run folder or checkpoint folder whose policy weights are used by evaluate, predict and train."""
    predictions: str | None = None
    """A file or folder of another system's answers for `score`; a run directory for `rescore` and `diagnose`."""
    trusted_modules: list[str] = field(default_factory=list)
    """Outside modules whose classes `_target_` may name; only taken from the command line."""
    trust_checkpoint: bool = False
    """Read the state of an optimizer that DeepSpeed wrote as the pickle that it is, where it holds more than tensors
    and plain values and was not written by a run of one's own; only taken from the command line."""
    policy: Any = None
    segmenter: Any = None
    reward: Any = None
    data: Any = None
    tracker: Any = None
    generator: Any = None
    prompt: PromptConfig = field(default_factory=PromptConfig)
    parsing: ParsingConfig = field(default_factory=ParsingConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    regime: RegimeConfig = field(default_factory=RegimeConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def __post_init__(self) -> None:
        for key, most in MOST.items():
            part, _, name = key.partition(".")
            value = getattr(getattr(self, part), name)
            require(value is None or value <= most, key, value, f"<= {most:g}")
        require(self.version == CONFIG_VERSION, "version", self.version, f"{CONFIG_VERSION}; compose the run anew")
        stored = {"score": "a file or folder of answers", "rescore": "a run directory", "diagnose": "a run directory"}
        one_of("command", self.command, ("train", "evaluate", "sft", "fit-segmenter", *stored))
        expected = self.command in stored
        valid = stored.get(self.command, f"null for {self.command}")
        require(expected == (self.predictions is not None), "predictions", self.predictions, valid)
        if self.inference.changed and self.command not in ("evaluate", "rescore", "diagnose"):
            valid = f"default with {self.command}; evaluate, rescore, diagnose and predict have other options"
            require(False, "inference", self.inference.name, valid)
        if self.command != "train":
            valid = f"grpo with {self.command}; train has the others"
            require(self.regime.plain, "regime", self.regime.name, valid)
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2^31)")
        asked = {"prompt.answer": self.prompt}
        asked |= {f"rollout.turns.{name}.prompt.answer": turn.prompt for name, turn in self.rollout.turns.items()}
        for key, prompt in asked.items():  # only a task's questions list candidate points
            valid = "another than labels; ask for labels in a task beside the first, as rollout=resap does"
            require(prompt.answer != "labels", key, prompt.answer, valid)
        if self.rollout.turns:
            rounds, layers = self.algorithm.sampling_rounds, self.engine.ranks_forward_together
            require(rounds == 1, "algorithm.sampling_rounds", rounds, "1 with rollout.turns")
            require(not layers, "engine.gather", self.engine.gather, "whole with rollout.turns on several ranks")

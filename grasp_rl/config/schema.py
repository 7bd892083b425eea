"""The tunables: one dataclass tree. Hydra composes against it; the worker reads it back without Hydra.

Components (policy, segmenter, reward, data, tracker, generator) are YAML with ``_target_``; their constructor is their
schema. Not frozen: OmegaConf would make a frozen dataclass read-only and refuse every override.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from grasp_rl.config.errors import one_of, require

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
    flat_points: bool = False
    """Each point a field of its own, [x, y]: KEY where there is one, else KEY_1, KEY_2, ... (Seg-Zero)."""
    single_object: bool = False
    """The answer is one object, not a list of them; null says that there is none (Seg-Zero)."""

    def __post_init__(self) -> None:
        require(0 <= self.positive_points <= 8, "prompt.positive_points", self.positive_points, "in 0..8")
        require(0 <= self.negative_points <= 8, "prompt.negative_points", self.negative_points, "in 0..8")
        require(self.box or self.positive_points > 0, "prompt.box", self.box, "true, or prompt.positive_points > 0")
        keys = (self.box_key, self.positive_key, self.negative_key)
        require(len(set(keys)) == 3 and all(keys), "prompt.*_key", keys, "three different non-empty names")
        names = self.fields
        require(len(set(names)) == len(names), "prompt.*_key", names, "different names for every field")

    @property
    def fields(self) -> list[str]:
        """Names of the fields of one instance, in order."""
        return ([self.box_key] if self.box else []) + self.positive_fields + self.negative_fields

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
        return [f"{key}_{i + 1}" for i in range(count)]


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
    """Divide the centred rewards by the group's sample standard deviation + 1e-4 (GRPO)."""
    loss: str = "constant"
    """sequence_mean (GRPO), token_mean over the whole optimizer step (DAPO), constant divisor (Dr. GRPO)."""
    importance: str = "token"
    """Level of the importance ratio: token, or sequence (GSPO)."""
    clip_low: float = 0.2
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
        for key in ("steps", "prompts_per_step", "iterations", "micro_batch_groups", "sampling_rounds"):
            require(getattr(self, key) >= 1, f"algorithm.{key}", getattr(self, key), ">= 1")
        require(self.group_size >= 2, "algorithm.group_size", self.group_size, ">= 2 (a group needs siblings)")
        one_of("algorithm.baseline", self.baseline, ("mean", "leave_one_out"))
        one_of("algorithm.loss", self.loss, ("sequence_mean", "token_mean", "constant"))
        one_of("algorithm.importance", self.importance, ("token", "sequence"))
        require(0 <= self.clip_low < 1, "algorithm.clip_low", self.clip_low, "in [0, 1)")
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
class RolloutConfig:
    """Sampling. The scored distribution is the sampled one: temperature, top_k and top_p apply to both."""

    temperature: float = 1.0
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 from all."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together reach this probability; 1 from all."""
    max_new_tokens: int = 96
    stop_at_answer: bool = False
    """End a completion where it closes its answer, not where it ends its turn."""
    time_limit_s: float | None = None
    """Seconds an optimizer step's generation may take; what is unfinished then is cut off. null for no limit."""
    max_failed_prompts: float = 0.5
    """Share of a step's prompts on which the segmenter may fail; beyond it the run stops and names the error."""
    batch_rows: int = 256
    """Completions decoded together at most; changes memory, never the draw."""
    reward_worker: str = "auto"
    """Where answers are segmented and rewarded while the next ones are generated: process (of its own), thread (with a
    stream of its own on a GPU), inline (no overlap); auto takes a thread for a segmenter on a GPU, else a process."""

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
        one_of("rollout.reward_worker", self.reward_worker, ("auto", "process", "thread", "inline"))


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
class CheckpointConfig:
    """What is kept, and when."""

    every: int = 50
    """Save the complete training state after every so many optimizer steps; 0 only at the end."""
    keep_last: int = 1
    """Checkpoints kept beside the best one."""
    every_minutes: float | None = None
    """Save after every so many minutes, too."""
    on_error: str = "stop"
    """What a checkpoint that cannot be written does to the run: stop, or continue (it is said, and tried again)."""

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, ">= 0")
        minutes = self.every_minutes
        require(minutes is None or minutes > 0, "checkpoint.every_minutes", minutes, "> 0 or null")
        one_of("checkpoint.on_error", self.on_error, ("stop", "continue"))
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
class SftConfig:
    """Supervised fine-tuning on demonstrations derived from the dataset's weak labels: the papers' SFT baseline."""

    phases: list[SftPhase] = field(default_factory=lambda: [SftPhase()])
    scheme_weights: dict[str, float] = field(default_factory=dict)
    """Draw each example's scheme from conf/prompt with these weights; empty for the configured scheme alone."""
    bf16: bool = False
    """Autocast to bfloat16; weights and optimizer stay in float32."""
    log_every: int = 50
    save_every: int = 500
    """Save the policy after every so many steps, so that a broken run can go on with init_from."""


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
class SweepConfig:
    """What a sweep does about its jobs."""

    on_error: str = "continue"
    """After a job has failed: continue with the others, or stop before the next one."""

    def __post_init__(self) -> None:
        one_of("sweep.on_error", self.on_error, ("continue", "stop"))


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
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)

    def __post_init__(self) -> None:
        require(self.version == CONFIG_VERSION, "version", self.version, f"{CONFIG_VERSION}; compose the run anew")
        stored = {"score": "a file or folder of answers", "rescore": "a run directory", "diagnose": "a run directory"}
        one_of("command", self.command, ("train", "evaluate", "sft", *stored))
        wanted = self.command in stored
        told = stored.get(self.command, f"null for {self.command}")
        require(wanted == (self.predictions is not None), "predictions", self.predictions, told)
        require(0 <= self.seed < 2**31, "seed", self.seed, "in [0, 2^31)")

"""Our side of `grasp-rl bench step`: the training loop of grasp_rl.training.trainer itself, each step measured.

python -m grasp_rl.bench.ours TASK DESCRIPTOR
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from grasp_rl.bench.measure import Meter
from grasp_rl.bench.task import BETA, LEARNING_RATE, LORA_ALPHA, Pipe, Task
from grasp_rl.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    OptimizerConfig,
    RolloutConfig,
    RunConfig,
)
from grasp_rl.distributed.engine import StepReport
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.evaluation.protocols.masks import MaskProtocol
from grasp_rl.interfaces import Components, Labels, WeakLabels
from grasp_rl.planning.step_model import LORA_RANK, PROMPT, QUESTION
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.types import EmbeddedPrompt, EncodedPrompt, Scores
from grasp_rl.rollouts.generators.in_process import InProcess
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.reward_worker import RewardWorker
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.tracking.null import NullTracker
from grasp_rl.training.hooks import Evaluator, RunLog
from grasp_rl.training.train import make_trainer
from grasp_rl.training.trainer import Trainer
from grasp_rl.types import Answer, Completion, MaskPrediction, RewardBreakdown, Sample, SegmentedRollout


class MeasuredPolicy(HfVlmPolicy):
    """The policy with its phases timed; no completion ends before its last token."""

    meter: Meter

    def encode(self, *args: Any, **kwargs: Any) -> EncodedPrompt:
        with self.meter.phase("encode"):
            return super().encode(*args, **kwargs)

    def embed(self, *args: Any, **kwargs: Any) -> list[EmbeddedPrompt]:
        with self.meter.phase("vision_encoder"):
            return super().embed(*args, **kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[tuple[int, list[Completion]]]:
        groups = super().stream(*args, **kwargs)
        while True:
            with self.meter.phase("decode"):
                group = next(groups, None)
            if group is None:
                return
            if self.meter.replays:
                self.meter.counts["decode_tokens"] += sum(len(c.token_ids) - 1 for c in group[1])
            yield group

    def logprobs(self, *args: Any, **kwargs: Any) -> Scores:
        with self.meter.phase("policy" if torch.is_grad_enabled() else "reference"):
            return super().logprobs(*args, **kwargs)


class MeasuredEngine(LocalEngine):
    """The engine with its phases timed."""

    def __init__(self, meter: Meter, *args: Any) -> None:
        self.meter = meter
        super().__init__(*args)

    def backward(self, loss: Tensor) -> None:
        with self.meter.phase("backward"):
            super().backward(loss)

    def step(self) -> StepReport:
        with self.meter.phase("optimizer"):
            return super().step()


class MeasuredPipeline(RewardPipeline):
    """The pipeline with its time counted as the reward's."""

    def __init__(self, meter: Meter, pipeline: RewardPipeline) -> None:
        object.__setattr__(self, "meter", meter)  # a pipeline is frozen
        super().__init__(**{part.name: getattr(pipeline, part.name) for part in fields(pipeline)})

    def run(self, *args: Any, **kwargs: Any) -> list[SegmentedRollout]:
        meter: Meter = self.meter  # type: ignore[attr-defined]
        with meter.phase("reward"):
            return super().run(*args, **kwargs)


class MeasuredLog(RunLog):
    """A step ends with its log line; nothing is written."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.is_main = meter, False

    def step(self, step: int, row: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        self.meter.end(loss=row["loss"], grad_norm=row["grad_norm"])


class MeasuredSteps(Evaluator):
    """Nothing is scored or saved; where that would be, the next step begins when the pipe asks for it."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def due(self, step: int, last: int) -> bool:
        if 0 < step < last:  # the first step began with the test before it
            self.meter.begin()
        return False

    def test(self, when: str, step: int, *, keep: bool = False) -> dict[str, float]:
        if when == "before":
            self.meter.begin()
        return {}


def measured(trainer: Trainer, meter: Meter, config: RunConfig) -> Trainer:
    """The real loop of ``trainer``, its parts measured and nothing saved."""
    trainer.log, trainer.evaluator = MeasuredLog(meter), MeasuredSteps(meter)
    trainer.checkpointer.settings = CheckpointConfig(every=0)
    trainer.checkpointer.last = -1
    trainer.reward_worker = RewardWorker(MeasuredPipeline(meter, trainer.reward_worker.pipeline), "inline")
    trainer.update.engine = MeasuredEngine(meter, trainer.policy, config.optimizer, config.algorithm.steps)
    return trainer


class DrawnReward:
    """The task's rewards in turn; cheap, and different between siblings."""

    needs: frozenset[str] = frozenset({"boxes"})

    def __init__(self, task: Task) -> None:
        self.values, self.asked = task.rewards(), 0

    def score_group(
        self,
        answers: Sequence[Answer],
        labels: WeakLabels | Labels,
        predictions: Sequence[MaskPrediction | None],
        step: int | None = None,
    ) -> list[RewardBreakdown]:
        first, self.asked = self.asked, self.asked + len(answers)
        chosen = [self.values[number % len(self.values)] for number in range(first, self.asked)]
        return [RewardBreakdown(reward=value, terms={}) for value in chosen]


class Images:
    """A dataset of the task's images."""

    def __init__(self, task: Task) -> None:
        self.samples = [
            Sample(
                sample_id=f"bench {number}", image=task.image(number), query=QUESTION, target_mask=None, weak_labels=(),
                dataset="bench", split="train",
            )
            for number in range(task.questions)
        ]  # fmt: skip

    def split(self, name: str) -> Any:
        """The same ones for every name."""
        return self.samples


def make_policy(task: Task, kind: type[HfVlmPolicy] = HfVlmPolicy) -> HfVlmPolicy:
    """The task's model as our policy."""
    return kind(
        task.model,
        ImageSize(max_pixels=task.side**2, resize="square"),
        dtype="float32" if task.device == "cpu" else "bfloat16",
        train_vision_encoder=task.mode == "full",
        lora_rank=LORA_RANK if task.mode == "lora" else 0,
        lora_alpha=LORA_ALPHA,
        packed_attention=task.attention,
    )


def make_config(task: Task, folder: str) -> RunConfig:
    """GRPO with a reference, one group a micro-batch."""
    algorithm = AlgorithmConfig(
        steps=task.steps, prompts_per_step=task.questions, group_size=task.groups, loss="sequence_mean",
        scale_advantages=True, beta=BETA, micro_batch_groups=1,
    )  # fmt: skip
    return RunConfig(
        run_dir=folder,
        seed=task.seed,
        prompt=PROMPT,
        algorithm=algorithm,
        optimizer=OptimizerConfig(lr=LEARNING_RATE),
        rollout=RolloutConfig(max_new_tokens=task.length, reward_worker="inline"),
        evaluation=EvaluationConfig(every=0),
        engine=EngineConfig(device=task.device),
    )


def run(task: Task, pipe: Pipe) -> None:
    """Run the steps of ``task``, each when ``pipe`` asks for it."""
    meter = Meter(pipe, task.device)
    policy: Any = make_policy(task, MeasuredPolicy)
    policy.meter, policy.ends = meter, []
    meter.replays = task.device == "cuda"
    meter.watch(policy.core)
    components = Components(
        policy=policy,
        segmenter=BoxFillSegmenter(),
        reward=DrawnReward(task),
        data=Images(task),
        tracker=NullTracker(),
        generator=InProcess(),
        protocol=MaskProtocol(),
    )
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(task, folder)
        trainer = measured(make_trainer(config, components), meter, config)
        meter.ready(**sizes(policy.model))
        trainer.run()


def main(argv: Sequence[str]) -> int:
    """Run the steps of the task in ``argv``, each when asked for."""
    task = Task.loads(argv[0])
    task.limit_threads()
    run(task, Pipe(int(argv[1])))
    return 0


def sizes(model: Any) -> dict[str, int]:
    """Numbers of parameters."""
    counted = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return {"parameters": sum(n for n, _ in counted), "trainable": sum(n for n, trained in counted if trained)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""TRL's side of `grasp-rl bench step`: its GRPOTrainer on the same task, each step measured.

    python -m grasp_rl.bench.peer TASK DESCRIPTOR

It gets the best settings that it offers without another inference engine: its own ``generate`` with a key-value cache,
all groups generated together and each learned from in one batch (in smaller ones where it says so), one iteration, no
gradient checkpointing, no logging.
The processor reads images only: the stock one wants a video processor, and that torchvision.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import Qwen2_5_VLProcessor, TrainerCallback
from transformers.processing_utils import ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from grasp_rl.bench.measure import Meter
from grasp_rl.bench.ours import sizes
from grasp_rl.bench.task import BETA, LEARNING_RATE, LORA_ALPHA, Pipe, Task
from grasp_rl.planning.step_model import LORA_RANK
from grasp_rl.policies.backbones.qwen2_5_vl import Qwen25VL
from grasp_rl.policies.hub import Source, load_tokenizer
from grasp_rl.policies.lora import TARGETS

PADS = ("<|image_pad|>", "<|video_pad|>")
LORA_PATTERN = r".*language_model\..*\.(" + "|".join(TARGETS) + ")"


class ImageOnlyProcessor(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """Qwen2.5-VL's processor without videos; transformers reads its parts off this signature."""

    meter: Meter | None = None

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **_: Any
    ) -> None:
        for kind in ("image", "video"):
            setattr(self, f"{kind}_token", f"<|{kind}_pad|>")
            setattr(self, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"))
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens and patches."""
        with self.meter.phase("encode") if self.meter else contextlib.nullcontext():
            return super().__call__(*args, **kwargs)


class MeasuredTrainer(GRPOTrainer):  # type: ignore[misc]
    """The trainer with its phases timed; what it computes is untouched."""

    meter: Meter

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.meter.phase("decode"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.meter.phase("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with self.meter.phase("policy"):
            loss = super().compute_loss(*args, **kwargs)
        self.meter.enter("backward")
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        done = super().training_step(*args, **kwargs)
        self.meter.leave()
        return done


class MeasuredSteps(TrainerCallback):  # type: ignore[misc]
    """A step begins when the pipe asks for it: before the completions are generated, after the batch was read."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.meter.begin()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.meter.enter("optimizer")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.meter.leave()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.end()


def make_trainer(task: Task, folder: str, kind: type[Any] = GRPOTrainer, callbacks: Sequence[Any] = ()) -> Any:
    """A GRPOTrainer for ``task`` that writes into ``folder``."""
    tokenizer = load_tokenizer(Source(path=task.model))
    processor = ImageOnlyProcessor(
        image_processor=Qwen25VL.load_processor(task.model), tokenizer=tokenizer, chat_template=tokenizer.chat_template
    )
    unwanted = [tokenizer.eos_token_id, *(processor.tokenizer.convert_tokens_to_ids(t) for t in PADS)]
    # the name from transformers 5.24 on, and the one before
    recompute = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(GRPOConfig, n))
    arguments = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=task.peer_batch or task.groups,
        gradient_accumulation_steps=task.questions * task.groups // (task.peer_batch or task.groups),
        num_generations=task.groups,
        max_completion_length=task.length,
        max_steps=task.steps,
        num_iterations=1,
        loss_type="grpo",
        scale_rewards="group",
        beta=BETA,
        use_bias_correction_kl=False,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        temperature=1.0,
        **{recompute: False},
        generation_kwargs={"suppress_tokens": unwanted},
        model_init_kwargs={
            "dtype": "float32" if task.device == "cpu" else "bfloat16",
            "attn_implementation": "sdpa",
        },
        use_cpu=task.device == "cpu",
        bf16=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=task.seed,
    )
    asked = [
        {"prompt": task.messages(), "image": Image.fromarray(task.image(number))} for number in range(task.questions)
    ]
    drawn = task.rewards()
    lora = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=LORA_PATTERN, lora_dropout=0.0)
    return kind(
        model=task.model,
        reward_funcs=lambda completions, **_: [drawn[i % len(drawn)] for i in range(len(completions))],
        args=arguments,
        train_dataset=Dataset.from_list(asked * task.steps),
        processing_class=processor,
        peft_config=lora if task.mode == "lora" else None,
        callbacks=list(callbacks),
    )


def main(argv: Sequence[str]) -> int:
    """Run the steps of the task in ``argv``, each when asked for."""
    task, pipe = Task.loads(argv[0]), Pipe(int(argv[1]))
    task.limit_threads()
    meter = Meter(pipe, task.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(task, folder, MeasuredTrainer, [MeasuredSteps(meter)])
        trainer.meter = ImageOnlyProcessor.meter = meter
        for model in (trainer.model, trainer.ref_model):
            if model is not None:
                stock = model.get_base_model() if hasattr(model, "get_base_model") else model
                meter.watch(stock.model)
        meter.ready(**sizes(trainer.model))
        trainer.train()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

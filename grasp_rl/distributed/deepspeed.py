"""DeepSpeed's ZeRO (arXiv 1910.02054): optimizer, gradients and parameters divided among ranks.

The loop above is the same as on one device. Every rank has whole groups of its own and makes the same number of
forwards; gradients are of the whole step's loss; parameters are gathered once an optimizer step, for the rollout.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import math
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import EngineConfig, OptimizerConfig
from grasp_rl.distributed.engine import Batch, StepReport, learning_rate
from grasp_rl.distributed.process_group import destroy, init
from grasp_rl.utils.files import Record, Unreadable, parse_json, read_text

log = logging.getLogger(__name__)

_TAG = "state"


def settings(engine: EngineConfig, optimizer: OptimizerConfig, dtype: torch.dtype) -> Record:
    """DeepSpeed's JSON for our config, the user's own merged in.

    Raises:
        ConfigError: the user's file cannot be read, or sets what our config sets to something else.
    """
    stage = engine.zero_stage
    zero: Record = {"stage": stage, "contiguous_gradients": True, "overlap_comm": False}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    if engine.name == "zero3_offload":
        zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    ours: Record = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
    }
    if engine.deepspeed_config is None:
        return ours
    try:
        theirs = parse_json(read_text(Path(engine.deepspeed_config)))
    except (OSError, Unreadable) as error:
        raise ConfigError(f"engine.deepspeed_config={engine.deepspeed_config!r}: no JSON there ({error})") from error
    if not isinstance(theirs, dict):
        raise ConfigError(f"engine.deepspeed_config={engine.deepspeed_config!r}: must hold a JSON object")
    return _merged(ours, theirs, "")


_FREE = ("overlap_comm", "contiguous_gradients", "stage3_param_persistence_threshold", "steps_per_print")
"""What we set only because DeepSpeed's own default is worse here; a user's value wins."""


def _merged(ours: Record, theirs: Record, path: str) -> Record:
    merged = dict(ours)
    for key, value in theirs.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            merged[key] = _merged(ours[key], value, f"{where}.")
        elif key in ours and value not in (ours[key], "auto") and key not in _FREE:
            raise ConfigError(
                f"engine.deepspeed_config: {where}={value!r}, but the run's config says {ours[key]!r}; leave it out, "
                "or change the run's config"
            )
        elif value != "auto":
            merged[key] = value
    return merged


@contextlib.contextmanager
def partitioned_loading(engine: EngineConfig, optimizer: OptimizerConfig, dtype: torch.dtype) -> Iterator[None]:
    """Within the block ``from_pretrained`` gives every rank its part of the parameters only, under ZeRO-3."""
    if engine.zero_stage < 3:
        yield
        return
    _quiet_import()
    init(engine.timeout_s)
    _init_deepspeed()
    from transformers.integrations import HfDeepSpeedConfig

    kept = HfDeepSpeedConfig(settings(engine, optimizer, dtype))  # transformers asks for it as long as it lives
    try:
        yield
    finally:
        del kept


class ZeroEngine:
    """Owns the DeepSpeed engine of ``module``.

    Args:
        module: the policy; its ``forward`` is what is trained.
        optimizer: AdamW's settings and schedule.
        total_steps: length of the schedule.
        engine: which stage, how the rollout gathers.

    Raises:
        ConfigError: DeepSpeed is not installed, or the user's own JSON contradicts the run's config.
    """

    def __init__(self, module: nn.Module, optimizer: OptimizerConfig, total_steps: int, engine: EngineConfig) -> None:
        deepspeed = _quiet_import()
        self.config, self.total_steps, self.steps_done = optimizer, total_steps, 0
        self.engine_config, self.stage, self.module = engine, engine.zero_stage, module
        self.process_group = init(engine.timeout_s)
        _init_deepspeed()
        trained = [p for p in module.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(
            trained, lr=optimizer.lr, betas=(optimizer.beta1, optimizer.beta2), weight_decay=optimizer.weight_decay
        )
        dtype = next(module.parameters()).dtype
        self.ds, self.optimizer, _, _ = deepspeed.initialize(
            model=module,
            optimizer=adam,
            model_parameters=trained,
            config=settings(engine, optimizer, dtype),
            dist_init_required=False,
        )
        self.optimizer.check_grad_overflow = True  # in float32, too: the loop counts on skipped steps
        self._deepspeed = deepspeed
        self._others: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The policy's own forward, parameters fetched layer by layer under ZeRO-3."""
        return self.ds(*args, **kwargs)

    def wrap_frozen(self, module: Any) -> Any:
        """The module itself, and under ZeRO-3 an engine of its own that divides its parameters."""
        if module is None or self.stage < 3:
            return module
        options = settings(self.engine_config, self.config, next(module.parameters()).dtype)
        engine, *_ = self._deepspeed.initialize(model=module, config=options, dist_init_required=False)
        self._others.append(engine)
        return engine

    @contextlib.contextmanager
    def full_parameters(self, *, whole: bool = False, write: bool = False) -> Iterator[None]:
        """Whole parameters on this rank, all fetched once; with ``engine.gather=layer`` they come layer by layer."""
        if self.stage < 3 or (self.engine_config.gathers_by_layer and not whole):
            yield
            return
        held = self.optimizer.parameter_offload
        for parameter in held.module.parameters():
            parameter.ds_active_sub_modules.clear()
        for hooks in (held.forward_hooks, held.backward_hooks):
            for hook in hooks:
                hook.remove()
            hooks.clear()
        with self._deepspeed.zero.GatheredParameters(
            list(self.module.parameters()), modifier_rank=0 if write else None
        ):
            yield
        held._register_deepspeed_module(held.module)

    def synchronized_batches(
        self, batches: Iterable[Batch], dummy: Callable[[], Batch]
    ) -> Iterator[tuple[Batch, bool]]:
        """Every batch of this rank, and fillers while another rank still has one; ranks keep in step."""
        waiting = iter(batches)
        coming = next(waiting, None)
        going = self.process_group.any_rank(coming is not None)
        while going:
            batch, counts = (dummy(), False) if coming is None else (coming, True)
            coming = None if coming is None else next(waiting, None)
            going = self.process_group.any_rank(coming is not None)
            self.ds.set_gradient_accumulation_boundary(not going)
            yield batch, counts

    def backward(self, loss: Tensor) -> None:
        """Add a gradient; DeepSpeed averages over ranks, the loss's divisors are those of the whole step."""
        self.ds.backward(loss * self.process_group.world_size, scale_wrt_gas=False)

    def step(self) -> StepReport:
        """Clip, update, clear on all ranks alike."""
        rate = learning_rate(self.config, self.steps_done, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.ds.step()
        norm = self.ds.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        applied = bool(self.ds.was_step_applied()) and math.isfinite(norm) and norm >= 0
        self.steps_done += 1
        return StepReport(grad_norm=norm if applied else float("nan"), lr=rate, applied=applied)

    def skip_step(self) -> StepReport:
        """Count a step that had nothing to learn from."""
        rate = learning_rate(self.config, self.steps_done, self.total_steps)
        self.steps_done += 1
        return StepReport(grad_norm=0.0, lr=rate, applied=True)

    def zero_grad(self) -> None:
        """Throw the gradient so far away."""
        self.ds.zero_grad()

    def save(self, folder: Path) -> None:
        """Write this rank's shard, a pickle of tensors, plain values and three classes of DeepSpeed's."""
        self.ds.save_checkpoint(str(folder), tag=_TAG, client_state={"steps_done": self.steps_done})

    def load(self, folder: Path, *, ranks: int = 1, trusted: bool = False) -> None:
        """Read this rank's shard again; shards of another number of ranks through DeepSpeed's universal checkpoint.

        Nothing in a shard is run (``weights_only``). One that cannot be read so is unpickled only where it is trusted.

        Raises:
            ConfigError: the shards are another engine's, damaged, or hold what reading would run.
        """
        try:
            with _plain_values_only():
                self._load(folder, ranks)
        except pickle.UnpicklingError as error:
            said = str(error).partition("\n")[0]
            if not trusted:
                raise ConfigError(
                    f"{folder}: its shards hold more than tensors and plain values, or are damaged; they were not "
                    "written by a run of yours, and reading them would run code in them: trust_checkpoint=true allows "
                    "it, init_from= starts from the weights alone"
                ) from error
            log.warning("%s: read as a trusted pickle, which runs code in it (%s)", folder, said)
            self._load(folder, ranks)

    def _load(self, folder: Path, ranks: int) -> None:
        if ranks == self.process_group.world_size:
            path, state = self.ds.load_checkpoint(str(folder), tag=_TAG)
        else:
            log.warning(
                "written by %d ranks, read by %d: equal to rounding, not to the bit",
                ranks,
                self.process_group.world_size,
            )
            path, state = self._load_universal(folder)
        if path is None:
            raise ConfigError(f"engine={self.engine_config.name}: {folder} holds no state of such an engine")
        self.steps_done = state["steps_done"]

    def _load_universal(self, folder: Path) -> tuple[str | None, Record]:
        """The state that other ranks wrote, taken apart by parameter (arXiv 2406.18820)."""
        from deepspeed.checkpoint import ds_to_universal

        with tempfile.TemporaryDirectory() as scratch:
            place = Path(self.process_group.all_gather(scratch)[0])
            if self.process_group.is_main:
                arguments = argparse.Namespace(
                    input_folder=str(folder / _TAG),
                    output_folder=str(place / _TAG),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    inject_missing_state=True,
                )
                ds_to_universal.main(arguments)
            self.process_group.barrier()
            self.ds._config.load_universal_checkpoint = True
            path, state = self.ds.load_checkpoint(str(place), tag=_TAG)
            self.ds._config.load_universal_checkpoint = False
            self.process_group.barrier()
        return path, state

    def close(self) -> None:
        """End DeepSpeed in the order that does not abort at exit."""
        for engine in (*self._others, self.ds):
            engine.destroy()
        self._others.clear()
        del self.ds, self.optimizer
        gc.collect()
        destroy()


@contextlib.contextmanager
def _plain_values_only() -> Iterator[None]:
    """Within the block ``torch.load`` takes tensors, plain values and the classes of DeepSpeed's own state, no other.

    DeepSpeed asks for ``weights_only=False``; torch's switch for the whole process has the last word.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = "1"
    try:
        with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


_SWITCH = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def _quiet_import() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            "engine: DeepSpeed is not installed; pip install 'grasp-rl[train]', or engine=local"
        ) from error
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)  # DeepSpeed's calls
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    return deepspeed


def _init_deepspeed() -> None:
    """Let DeepSpeed find the process group; on a CPU without its compiled shared-memory operator."""
    import deepspeed

    if not torch.cuda.is_available():
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(dist_init_required=False)

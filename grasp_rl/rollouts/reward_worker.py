"""Rewards in a process or thread of their own, while the next completions are generated and the first are learned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cv2
import torch

from grasp_rl.config import modules
from grasp_rl.config.schema import TurnConfig
from grasp_rl.rewards.stages import FIRST
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.rollouts.turns import Shown, shown_of
from grasp_rl.types import Answer, Completion, Rollout, Sample
from grasp_rl.utils.out_of_memory import is_out_of_memory


@dataclass(frozen=True, kw_only=True)
class RewardTask:
    """Completions of one question, to be rewarded."""

    sample: Sample
    frames: Any
    """The completions' coordinate frame, or the frame of each."""
    completions: Sequence[Completion]
    step: int | None = None
    """Optimizer step that the reward's schedules are at; None for their end."""
    stage: str = FIRST
    """Turn or task."""
    previous: Sequence[Answer] | None = None
    """Each completion's answer of the turn before."""
    show: TurnConfig | None = None
    """The turn that is to show what came of the answers; None for the last one."""


Rewarded = tuple[list[Rollout], list[Shown]]
"""The rollouts of a task without their masks, and what the next turn shows of each; [] for the last turn."""


class RewardWorker:
    """A pipeline with a process or a thread of its own.

    Args:
        pipeline: what it does.
        where: ``process``, ``thread``, ``inline`` or ``auto``; see ``rollout.reward_worker``.
        stages: the pipelines of a run with several turns or tasks, by name; None for ``pipeline`` alone.
    """

    def __init__(
        self, pipeline: RewardPipeline, where: str = "inline", stages: Mapping[str, RewardPipeline] | None = None
    ) -> None:
        self.pipeline = pipeline
        self.stages = stages or {FIRST: pipeline}
        device = getattr(pipeline.segmenter, "device", None)
        on_gpu = device is not None and torch.device(device).type == "cuda"
        here = on_gpu or any(getattr(stage.reward, "holds_model", False) for stage in self.stages.values())
        self.where = ("thread" if here else "process") if where == "auto" else where
        self._stream: Any = torch.cuda.Stream(device) if on_gpu and self.where == "thread" else None  # type: ignore[no-untyped-call]
        self._executor: Executor | None = None
        if self.where == "process":
            context = multiprocessing.get_context("spawn")
            sent = bytes(ForkingPickler.dumps(self.stages))  # read once the modules in it can be found
            self._executor = ProcessPoolExecutor(1, context, _start, (modules.admitted(), sent, os.getpid()))
            self._executor.submit(os.getpid)  # the process starts now, not when the first answer waits for it
        elif self.where == "thread":
            self._executor = ThreadPoolExecutor(1, "reward_worker")

    def submit(self, task: RewardTask) -> Future[Rewarded]:
        """The rollouts of a task, when they are rewarded; their masks stay behind.

        What the pipeline raises is raised by the future's ``result``.
        """
        if self.where == "process" and self._executor is not None:
            try:
                return self._executor.submit(_run, task)
            except BrokenProcessPool as error:
                raise _worker_died(error) from error
        if self._executor is not None:
            return self._executor.submit(self._run, task)
        done: Future[Rewarded] = Future()
        done.set_result(self._run(task))
        return done

    def _run(self, task: RewardTask) -> Rewarded:
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            return rewarded(self.stages, task)

    def close(self) -> None:
        """End the process or thread; what it has not begun is forgotten."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def result_of(future: Future[Rewarded]) -> Rewarded:
    """What ``future`` gives.

    Raises:
        RuntimeError: the pipeline's process died, or ran out of memory, which is no reason for whoever waits to do
            less at once: the message does not read as if memory had run out there.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _worker_died(error) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RuntimeError(
            "memory did not suffice to segment and reward the answers to one question; take a smaller segmenter or "
            "verifier, or another device for it"
        ) from error


def _worker_died(error: BrokenProcessPool) -> RuntimeError:
    return RuntimeError(
        f"the process that segments and rewards died ({error}), perhaps for want of memory, or because "
        'it starts a script again that calls the trainer outside `if __name__ == "__main__":`; with '
        "rollout.reward_worker=inline the training process does its work"
    )


def rewarded(stages: Mapping[str, RewardPipeline], task: RewardTask) -> Rewarded:
    """The rollouts of ``task``, without their masks, which stay in the worker."""
    rollouts = stages[task.stage].run(task.sample, task.frames, task.completions, task.step, task.previous)
    images = [] if task.show is None else shown_of(rollouts, task.sample.image, task.show)
    return [rollout.without_masks() for rollout in rollouts], images


_stages: dict[str, RewardPipeline] = {}


def _start(admitted: Mapping[str, str], stages: bytes, parent: int) -> None:
    """Begin the pipeline's process: one thread, deaf to signals meant for the run, gone when ``parent`` is.

    The run may have ended before this process could ask who began it.
    """
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    for name, folder in admitted.items():
        modules.admit([name], folder)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _stages.update(ForkingPickler.loads(stages))


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _run(task: RewardTask) -> Rewarded:
    return rewarded(_stages, task)

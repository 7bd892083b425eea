"""Rewards in a process or thread of their own, while the next completions are generated and the first are learned."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cv2
import torch

from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.types import Completion, Rollout, Sample


class RewardWorker:
    """A pipeline with a process or a thread of its own.

    Args:
        pipeline: what it does.
        where: ``process``, ``thread``, ``inline`` or ``auto``; see ``rollout.reward_worker``.
    """

    def __init__(self, pipeline: RewardPipeline, where: str = "inline") -> None:
        self.pipeline = pipeline
        device = getattr(pipeline.segmenter, "device", None)
        on_gpu = device is not None and torch.device(device).type == "cuda"
        self.where = ("thread" if on_gpu else "process") if where == "auto" else where
        self._stream: Any = torch.cuda.Stream(device) if on_gpu and self.where == "thread" else None  # type: ignore[no-untyped-call]
        self._executor: Executor | None = None
        if self.where == "process":
            self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (pipeline,))
            self._executor.submit(os.getpid)  # the process starts now, not when the first answer waits for it
        elif self.where == "thread":
            self._executor = ThreadPoolExecutor(1, "reward_worker")

    def submit(
        self, sample: Sample, frame: Any, completions: Sequence[Completion], step: int | None = None
    ) -> Future[list[Rollout]]:
        """The rollouts of ``completions``, when they are rewarded as in optimizer step ``step``; masks stay behind.

        What the pipeline raises is raised by the future's ``result``.
        """
        if self.where == "process" and self._executor is not None:
            try:
                return self._executor.submit(_run, sample, frame, completions, step)
            except BrokenProcessPool as error:
                raise _worker_died(error) from error
        if self._executor is not None:
            return self._executor.submit(self._run, sample, frame, completions, step)
        done: Future[list[Rollout]] = Future()
        done.set_result(self._run(sample, frame, completions, step))
        return done

    def _run(
        self, sample: Sample, frame: Any, completions: Sequence[Completion], step: int | None = None
    ) -> list[Rollout]:
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            return run_without_masks(self.pipeline, sample, frame, completions, step)

    def close(self) -> None:
        """End the process or thread; what it has not begun is forgotten."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def result_of(future: Future[list[Rollout]]) -> list[Rollout]:
    """The rollouts of ``future``.

    Raises:
        RuntimeError: the pipeline's process died.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _worker_died(error) from error


def _worker_died(error: BrokenProcessPool) -> RuntimeError:
    return RuntimeError(
        f"the process that segments and rewards died ({error}), perhaps for want of memory; with "
        "rollout.reward_worker=inline the training process does its work"
    )


def run_without_masks(
    pipeline: RewardPipeline, sample: Sample, frame: Any, completions: Sequence[Completion], step: int | None = None
) -> list[Rollout]:
    """The rollouts of ``completions`` without their masks, which stay in the worker."""
    return [rollout.without_masks() for rollout in pipeline.run(sample, frame, completions, step)]


_pipelines: list[RewardPipeline] = []


def _start(pipeline: RewardPipeline) -> None:
    """Begin the pipeline's process: one thread, deaf to signals meant for the run, gone when the run is."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _pipelines.append(pipeline)
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _run(sample: Sample, frame: Any, completions: Sequence[Completion], step: int | None) -> list[Rollout]:
    return run_without_masks(_pipelines[0], sample, frame, completions, step)


@contextlib.contextmanager
def running_worker(pipeline: RewardPipeline, where: str = "inline") -> Iterator[RewardWorker]:
    """A reward worker for the length of a block."""
    reward_worker = RewardWorker(pipeline, where)
    try:
        yield reward_worker
    finally:
        reward_worker.close()

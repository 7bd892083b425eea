"""Judging beside the main work: rewards are made while the next completions are generated and the first are learned."""

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
from dataclasses import replace
from typing import Any

import cv2
import torch

from grasp_rl.rollouts.reward_pipeline import Judge, no_masks
from grasp_rl.types import Completion, Rollout, Sample


class Jury:
    """A judge with a process or a thread of its own.

    Args:
        judge: what it does.
        where: ``process``, ``thread``, ``inline`` or ``auto``; see ``rollout.judge``.
    """

    def __init__(self, judge: Judge, where: str = "inline") -> None:
        self.judge = judge
        device = getattr(judge.segmenter, "device", None)
        on_gpu = device is not None and torch.device(device).type == "cuda"
        self.where = ("thread" if on_gpu else "process") if where == "auto" else where
        self._stream: Any = torch.cuda.Stream(device) if on_gpu and self.where == "thread" else None  # type: ignore[no-untyped-call]
        self._executor: Executor | None = None
        if self.where == "process":
            self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _sit, (judge,))
            self._executor.submit(os.getpid)  # the process starts now, not when the first answer waits for it
        elif self.where == "thread":
            self._executor = ThreadPoolExecutor(1, "jury")

    def submit(self, sample: Sample, frame: Any, completions: Sequence[Completion]) -> Future[list[Rollout]]:
        """The rollouts of ``completions``, when they are judged; their masks stay behind.

        What the judge raises is raised by the future's ``result``.
        """
        if self.where == "process" and self._executor is not None:
            try:
                return self._executor.submit(_follow, sample, frame, completions)
            except BrokenProcessPool as error:
                raise _lost(error) from error
        if self._executor is not None:
            return self._executor.submit(self._follow, sample, frame, completions)
        done: Future[list[Rollout]] = Future()
        done.set_result(self._follow(sample, frame, completions))
        return done

    def _follow(self, sample: Sample, frame: Any, completions: Sequence[Completion]) -> list[Rollout]:
        with torch.cuda.stream(self._stream) if self._stream else contextlib.nullcontext():
            return follow(self.judge, sample, frame, completions)

    def close(self) -> None:
        """End the process or thread; what it has not begun is forgotten."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def verdict(future: Future[list[Rollout]]) -> list[Rollout]:
    """The rollouts of ``future``.

    Raises:
        RuntimeError: the judge's process died.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _lost(error) from error


def _lost(error: BrokenProcessPool) -> RuntimeError:
    return RuntimeError(
        f"the process that segments and rewards died ({error}), perhaps for want of memory; with rollout.judge=inline "
        "the training process does its work"
    )


def follow(judge: Judge, sample: Sample, frame: Any, completions: Sequence[Completion]) -> list[Rollout]:
    """What ``judge`` makes of the completions, without the masks: nobody downstream looks at them."""
    return [
        r if r.masks is None else replace(r, masks=no_masks(sample.size, r.masks.error))
        for r in judge.follow(sample, frame, completions)
    ]


_seated: list[Judge] = []


def _sit(judge: Judge) -> None:
    """Begin the judge's process: one thread, deaf to signals meant for the run, gone when the run is."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _seated.append(judge)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _follow(sample: Sample, frame: Any, completions: Sequence[Completion]) -> list[Rollout]:
    return follow(_seated[0], sample, frame, completions)


@contextlib.contextmanager
def seated(judge: Judge, where: str = "inline") -> Iterator[Jury]:
    """A jury for the length of a block."""
    jury = Jury(judge, where)
    try:
        yield jury
    finally:
        jury.close()

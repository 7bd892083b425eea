"""A scene asked window by window: what is found in each, kept in a journal, and put together at the end.

Who answers is a function from images and a question to what they show, so that nothing here knows a policy.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from grasp_rl.config.errors import ConfigError
from grasp_rl.geo.grid import Grid
from grasp_rl.geo.journal import Journal
from grasp_rl.geo.merge import Feature, Instance, merged
from grasp_rl.geo.polygons import mask_of, multi, polygons_of
from grasp_rl.geo.scene import Scene
from grasp_rl.geo.windows import Window
from grasp_rl.types import BoolMask, Image
from grasp_rl.utils.files import Record

FULL = 250
"""What a share of 1 is kept as."""


@dataclass(frozen=True, kw_only=True)
class WindowAnswer:
    """What one window shows."""

    masks: Sequence[BoolMask]
    """[H, W] of each instance."""
    confidences: Sequence[float | None]
    """Of each instance, see :class:`~grasp_rl.geo.merge.Instance`."""
    share: NDArray[np.float64] | None = None
    """[H, W] share of several answers that have each pixel; None for a single answer."""
    status: str = "ok"
    """How the answer was read."""
    text: str = ""
    """What the policy wrote."""
    thinking: str | None = None
    error: str | None = None
    """Why it could not be segmented; the window is asked again next time."""


class Ask(Protocol):
    """Who answers."""

    def __call__(self, images: Sequence[Image], query: str) -> Sequence[WindowAnswer]:
        """What N images [H, W, 3] uint8 RGB show of ``query``: N answers."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked of one scene."""

    key: str
    """Tells it from other scenes of the journal, and from itself before it was changed."""
    grid: Grid
    """The resolution that windows are shown at."""
    windows: Sequence[Window]
    queries: Sequence[str]
    region: Any = None
    """A shapely geometry in pixels of :attr:`grid`: what is reported is cut to it. None for all."""
    batch: int = 1
    """Windows that are asked together."""

    def name(self, query: str, window: Window) -> str:
        """What the journal calls the answer."""
        return f"{self.prefix(query)}{window.text}"

    def prefix(self, query: str) -> str:
        """What the names of all answers to ``query`` begin with."""
        return f"{self.key}/{hashlib.sha256(query.encode()).hexdigest()[:16]}/"


@dataclass(kw_only=True)
class Counts:
    """How far a scan is."""

    total: int = 0
    """Windows times questions."""
    before: int = 0
    """Answered by an earlier process."""
    asked: int = 0
    empty: int = 0
    """Not asked: no data in them."""
    failed: int = 0
    """Could not be segmented."""
    instances: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.before + self.asked + self.empty


def scan(scene: Scene, plan: Plan, ask: Ask, journal: Journal, counts: Counts, tell: Callable[[Counts], None]) -> None:
    """Ask every question of ``plan`` about every window that has data and is not in ``journal`` yet.

    Args:
        scene: is read a batch of windows at a time.
        plan: what is asked.
        ask: answers.
        journal: gets every answer.
        counts: are moved on.
        tell: hears of them after each batch.

    Raises:
        ImageError: the scene is damaged.
    """
    for some in _batches(plan.windows, plan.batch):
        left = {q: [w for w in some if plan.name(q, w) not in journal] for q in plan.queries}
        counts.before += sum(len(some) - len(those) for those in left.values())
        images = _with_data(scene, plan, [w for w in some if any(w in those for those in left.values())])
        for query, windows in left.items():
            shown = [window for window in windows if window in images]
            for window in windows:
                if window not in images:
                    journal.write(plan.name(query, window), {"empty": True})
                    counts.empty += 1
            answers = ask([images[window][0] for window in shown], query) if shown else []
            for window, one in zip(shown, answers, strict=True):
                counts.asked += 1
                if one.error is not None:
                    counts.failed += 1
                    counts.errors.append(one.error)
                    continue
                record = _record(one, window, images[window][1])
                counts.instances += len(record["instances"])
                journal.write(plan.name(query, window), record)
        tell(counts)


def _batches(windows: Sequence[Window], size: int) -> Iterator[Sequence[Window]]:
    for first in range(0, len(windows), size):
        yield windows[first : first + size]


def _with_data(scene: Scene, plan: Plan, windows: Sequence[Window]) -> dict[Window, tuple[Image, BoolMask]]:
    """Image and valid pixels of each window that has data within the region."""
    result: dict[Window, tuple[Image, BoolMask]] = {}
    for window in windows:
        image, valid = scene.read(plan.grid, window)
        inside = valid
        if plan.region is not None and valid.any():
            inside = valid & mask_of([plan.region], (window.height, window.width), window.left, window.top)
        if inside.any():
            result[window] = image, valid
    return result


def _record(answer: WindowAnswer, window: Window, valid: BoolMask) -> Record:
    """As the journal keeps it, instances cut to the pixels [H, W] that are ``valid``."""
    instances = []
    for whole, confidence in zip(answer.masks, answer.confidences, strict=True):
        mask = whole & valid
        if mask.any():
            score = None if answer.share is None else float(answer.share[mask].mean())
            polygons = polygons_of(mask, window.left, window.top)
            instances.append({"wkb": polygons.wkb_hex, "score": score, "confidence": confidence})
    record: Record = {"status": answer.status, "text": answer.text, "thinking": answer.thinking, "instances": instances}
    if answer.share is not None and answer.share.any():
        levels = np.rint(answer.share * FULL).astype(np.uint8)
        record["share"] = base64.b64encode(zlib.compress(levels.tobytes(), 6)).decode()
    return record


def features_of(plan: Plan, query: str, journal: Journal) -> list[Feature]:
    """What the journal says that there is of ``query``, whole across seams and cut to the plan's region."""
    import shapely

    instances = []
    for key, record in journal.items(plan.prefix(query)):
        window = _window(key)
        instances += [
            Instance(
                window=window,
                geometry=multi(shapely.get_parts([shapely.from_wkb(one["wkb"])]).tolist()),
                score=one["score"],
                confidence=one["confidence"],
                thinking=record["thinking"],
            )
            for one in record.get("instances", ())
        ]
    features = merged(sorted(instances, key=lambda instance: (instance.window.top, instance.window.left)))
    if plan.region is None:
        return features
    cut = [shapely.intersection(feature.geometry, plan.region) for feature in features]
    parts = [multi(shapely.get_parts([geometry]).tolist()) for geometry in cut]
    return [replace(f, geometry=part) for f, part in zip(features, parts, strict=True) if not part.is_empty]


def share_of(plan: Plan, query: str, journal: Journal, window: Window) -> NDArray[np.uint8]:
    """Shares [H, W] of the answers about ``window`` that have each pixel, in steps of 1 / :data:`FULL`."""
    stored, shape = journal[plan.name(query, window)].get("share"), (window.height, window.width)
    if stored is None:
        return np.zeros(shape, dtype=np.uint8)
    return np.frombuffer(zlib.decompress(base64.b64decode(stored)), dtype=np.uint8).reshape(shape)


def statuses_of(plan: Plan, query: str, journal: Journal) -> dict[str, int]:
    """How many windows were answered how: ``ok``, ``no_answer``, ... and ``empty`` for those without data."""
    result: dict[str, int] = {}
    for _, record in journal.items(plan.prefix(query)):
        status = "empty" if record.get("empty") else str(record["status"])
        result[status] = result.get(status, 0) + 1
    return result


def looked_at(plan: Plan, query: str, journal: Journal) -> list[Window]:
    """The windows whose answer could be read."""
    return [
        _window(key)
        for key, record in journal.items(plan.prefix(query))
        if not record.get("empty") and record["status"] in ("ok", "repaired")
    ]


def demand_answers(counts: Counts, most: float) -> None:
    """Demand that the segmenter worked.

    Raises:
        ConfigError: it failed on more than a share ``most`` of the windows.
    """
    if counts.failed > most * max(1, counts.asked):
        raise ConfigError(
            f"segmenter: could not segment the answers about {counts.failed} of {counts.asked} windows "
            f"({counts.errors[0]})"
        )


def _window(key: str) -> Window:
    left, top, width, height = map(int, key.rsplit("/", 1)[1].split(","))
    return Window(left, top, width, height)

"""Questions about hard scenes: category, function, position, relation, count, exclusion, union and absence.

A question is asked only where its answer is plain: extremes and distances must differ by a margin, and two measures of
each (centre and border, mean and least distance) must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from grasp_rl.data.synthetic import words_hard as words
from grasp_rl.data.synthetic.questions import Question
from grasp_rl.data.synthetic.scenes import Scene, SceneObject
from grasp_rl.data.synthetic.shapes import Rng
from grasp_rl.data.synthetic.themes import PART_OF
from grasp_rl.geometry import mask_to_box

INSTANCE_KINDS = {
    "category": 0.16, "function": 0.17, "position": 0.12, "relation": 0.17, "count": 0.12, "exclusion": 0.1,
    "union": 0.04, "absence": 0.12,
}  # fmt: skip
"""Shares of the kinds of questions; where a scene cannot be asked one, it is asked for a category."""
SEMANTIC_KINDS = {"category": 0.36, "function": 0.36, "union": 0.14, "absence": 0.14}
"""The same where the target is all of a concept: none of them chooses between objects of a category."""
MARGIN = 3.5
"""By how much places and distances must differ, in units (a hundred-and-twelfth of the image's side)."""
AREA_RATIO = 1.3
"""By how much areas must differ."""
_TRIES = 6

Objects = list[SceneObject]
Key = Callable[[SceneObject], float]


def ask_hard(rng: Rng, scene: Scene, ood: bool, semantic: bool = False) -> Question:
    """Draw one question about ``scene``.

    Args:
        rng: draws kind and words.
        scene: what is asked about.
        ood: in the words of the out-of-domain split.
        semantic: only for all objects of one category or of two.
    """
    kinds = SEMANTIC_KINDS if semantic else INSTANCE_KINDS
    asking = _Asking(rng, scene, ood, semantic)
    kind = str(rng.choice(list(kinds), p=list(kinds.values())))
    return asking.of_kind(kind) or asking.of_kind("category") or asking.absent_category()


def chosen_by(members: Sequence[SceneObject], keys: Sequence[Key], gaps: Sequence[float], count: int) -> Objects | None:
    """The ``count`` objects of ``members`` that come first by each of ``keys``; None where that is not plain.

    It is plain where all keys choose the same ones, and by each key the next object comes at least its gap later.
    """
    agreed: set[int] | None = None
    for key, gap in zip(keys, gaps, strict=True):
        values = np.array([key(item) for item in members])
        order = np.argsort(values, kind="stable")
        first = {int(index) for index in order[:count]}
        if values[order[count]] - values[order[count - 1]] < gap or (agreed is not None and first != agreed):
            return None
        agreed = first
    return [item for index, item in enumerate(members) if index in (agreed or ())]


def _side(index: int, sign: float) -> Key:
    """The side of the tight box: 0 left, 1 top, 2 right, 3 bottom."""

    def key(item: SceneObject) -> float:
        box = mask_to_box(item.mask)
        assert box is not None
        return sign * box[index]

    return key


# Of each extreme: the measures that must agree, first that of the centre or of the area.
_KEYS: Mapping[str, tuple[Key, ...]] = {
    "leftmost": (lambda item: item.centre[0], _side(0, 1)),
    "rightmost": (lambda item: -item.centre[0], _side(2, -1)),
    "top": (lambda item: item.centre[1], _side(1, 1)),
    "bottom": (lambda item: -item.centre[1], _side(3, -1)),
    "largest": (lambda item: -float(np.log(item.area)),),
    "smallest": (lambda item: float(np.log(item.area)),),
}


@dataclass
class _Asking:
    """One draw of a question."""

    rng: Rng
    scene: Scene
    ood: bool
    semantic: bool

    def __post_init__(self) -> None:
        self.size = self.scene.image.shape[0]
        self.present: dict[str, Objects] = {}
        for item in self.scene.objects:
            self.present.setdefault(item.category, []).append(item)

    def of_kind(self, kind: str) -> Question | None:
        """A question of ``kind``; None where none of a few draws has a plain answer."""
        draw: Callable[[], Question | None] = getattr(self, f"_{kind}")
        return next((question for _ in range(_TRIES) if (question := draw()) is not None), None)

    def absent_category(self) -> Question:
        """For a category that the scene has none of; a scene never has all of them."""
        category = self._pick(sorted(set(words.NOUNS) - set(self.present)))
        text = self._every(category) if self.rng.random() < 0.5 else self._function_text(category)
        return self._question("absence", category, (), text, f"no {words.NOUNS[category][0]}")

    # ------------------------------------------------------------------------------------------------------- helpers
    def _pick(self, values: Sequence[str]) -> str:
        return values[int(self.rng.integers(len(values)))]

    def _question(
        self, kind: str, category: str, answers: Sequence[SceneObject], query: str, reasoning: str, relation: str = ""
    ) -> Question:
        attributes = {"kind": kind, "category": category} | ({"relation": relation} if relation else {})
        return Question(query=query, answers=tuple(answers), reasoning=reasoning, attributes=attributes)

    def _every(self, category: str) -> str:
        one, many = words.NOUNS[category]
        return self._pick(words.OOD_EVERY if self.ood else words.EVERY).format(one=one, many=many)

    def _function_text(self, category: str) -> str:
        return self._pick((words.OOD_FUNCTIONS if self.ood else words.FUNCTIONS)[category])

    def _fill(self, texts: tuple[str, str], category: str, relation: str = "", **more: str) -> str:
        one, many = words.NOUNS[category]
        extreme = (words.OOD_EXTREMES if self.ood else words.EXTREMES).get(relation, "")
        return texts[self.ood].format(one=one, many=many, extreme=extreme, **more)

    def _herd(self, least: int) -> tuple[str, Objects] | None:
        """A category with at least ``least`` objects."""
        names = sorted(name for name, members in self.present.items() if len(members) >= least)
        if not names:
            return None
        category = self._pick(names)
        return category, self.present[category]

    def _extremes(self, members: Objects, relation: str, count: int) -> Objects | None:
        gap = float(np.log(AREA_RATIO)) if relation in ("largest", "smallest") else MARGIN * self.size / 112
        keys = _KEYS[relation]
        return chosen_by(members, keys, [gap, 0.0][: len(keys)], count)

    # ---------------------------------------------------------------------------------------------- kinds of questions
    def _category(self) -> Question | None:
        herd = self._herd(1)
        return herd and self._question(
            "category", *herd, self._every(herd[0]), f"{len(herd[1])} {words.NOUNS[herd[0]][0]}"
        )

    def _function(self) -> Question | None:
        herd = self._herd(1)
        return herd and self._question(
            "function", *herd, self._function_text(herd[0]), f"{len(herd[1])} {words.NOUNS[herd[0]][0]}"
        )

    def _union(self) -> Question | None:
        if len(self.present) < 2:
            return None
        first, second = (str(name) for name in self.rng.choice(sorted(self.present), 2, replace=False))
        if PART_OF.get(first) == second or PART_OF.get(second) == first:
            return None
        texts = (words.BOTH, words.OOD_BOTH)
        text = self._fill(texts, first, others=words.NOUNS[second][1])
        answers = self.present[first] + self.present[second]
        reasoning = " and ".join(f"{len(self.present[name])} {words.NOUNS[name][0]}" for name in (first, second))
        return self._question("union", "several", answers, text, reasoning)

    def _position(self) -> Question | None:
        herd = self._herd(2)
        if herd is None:
            return None
        relation = self._pick(sorted(_KEYS))
        answers = self._extremes(herd[1], relation, 1)
        text = self._fill(words.POSITION, herd[0], relation)
        reasoning = f"1 {relation} {words.NOUNS[herd[0]][0]}"
        return self._question("position", herd[0], answers, text, reasoning, relation) if answers else None

    def _relation(self) -> Question | None:
        return self._on_host() if self.rng.random() < 0.3 else self._by_distance()

    def _by_distance(self) -> Question | None:
        herd = self._herd(2)
        if herd is None:
            return None
        category, members = herd
        landmarks = sorted(
            name for name, items in self.present.items()
            if len(items) == 1 and name != category and PART_OF.get(category) != name
        )  # fmt: skip
        if not landmarks:
            return None
        landmark, nearest = self._pick(landmarks), self.rng.random() < 0.6
        away = cv2.distanceTransform((~self.present[landmark][0].mask).astype(np.uint8), cv2.DIST_L2, 5)
        sign, relation = (1.0, "nearest") if nearest else (-1.0, "farthest")
        keys: tuple[Key, ...] = (
            lambda item: sign * float(away[item.mask].min()),
            lambda item: sign * float(away[item.mask].mean()),
        )
        answers = chosen_by(members, keys, [MARGIN * self.size / 112] * 2, 1)
        noun = words.NOUNS[landmark][0]
        text = self._fill(words.NEAREST if nearest else words.FARTHEST, category, landmark=noun)
        reasoning = f"1 {words.NOUNS[category][0]} {relation} {noun}"
        return self._question("relation", category, answers, text, reasoning, relation) if answers else None

    def _guests(self) -> tuple[str, str, Objects, Objects] | None:
        """A category and what some of it may stand on; the objects on it, and the others."""
        pairs = [(guest, host) for guest, hosts in words.GUESTS.items() for host in hosts]
        pairs = [(guest, host) for guest, host in pairs if guest in self.present and host in self.present]
        if not pairs:
            return None
        guest, host = pairs[int(self.rng.integers(len(pairs)))]
        members = self.present[guest]
        if any(item.on == "shore" for item in members):
            return None
        return guest, host, [o for o in members if o.on == host], [o for o in members if o.on != host]

    def _on_host(self) -> Question | None:
        guests = self._guests()
        if guests is None or not guests[2]:
            return None
        category, host, answers, _ = guests
        text = self._fill(words.ON, category, host=words.HOSTS[host])
        reasoning = f"{len(answers)} {words.NOUNS[category][0]} on {words.NOUNS[host][0]}"
        return self._question("relation", category, answers, text, reasoning, "on")

    def _count(self) -> Question | None:
        if self.rng.random() < 0.5:
            return self._exactly()
        count = int(self.rng.integers(2, 4))
        herd = self._herd(count + 1)
        if herd is None:
            return None
        relation = self._pick(sorted(_KEYS))
        answers = self._extremes(herd[1], relation, count)
        text = self._fill(words.RANK, herd[0], relation, number=words.NUMBERS[count])
        reasoning = f"{count} {relation} {words.NOUNS[herd[0]][0]}"
        return self._question("count", herd[0], answers, text, reasoning, relation) if answers else None

    def _exactly(self) -> Question | None:
        herd = self._herd(2)
        if herd is None or len(herd[1]) > 6:
            return None
        category, members = herd
        wrong = self.rng.random() < 0.35
        number = len(members) + (int(self.rng.choice([-1, 1])) if wrong and len(members) > 2 else int(wrong))
        text = self._fill(words.EXACTLY, category, number=words.NUMBERS[number])
        reasoning = f"{len(members)} {words.NOUNS[category][0]}" + (f", not {number}" if wrong else "")
        return self._question("count", category, () if wrong else members, text, reasoning, "exactly")

    def _exclusion(self) -> Question | None:
        if self.rng.random() < 0.4:
            guests = self._guests()
            if guests is None or not guests[2] or not guests[3]:
                return None
            category, host, _, answers = guests
            text = self._fill(words.OFF, category, host=words.HOSTS[host])
            reasoning = f"{len(answers)} {words.NOUNS[category][0]} not on {words.NOUNS[host][0]}"
            return self._question("exclusion", category, answers, text, reasoning, "not on")
        herd = self._herd(2)
        if herd is None:
            return None
        relation = self._pick(sorted(_KEYS))
        out = self._extremes(herd[1], relation, 1)
        rest = [item for item in herd[1] if out and item is not out[0]]
        text = self._fill(words.ALL_BUT, herd[0], relation)
        reasoning = f"{len(rest)} {words.NOUNS[herd[0]][0]} but {relation}"
        return self._question("exclusion", herd[0], rest, text, reasoning, f"not {relation}") if rest else None

    def _absence(self) -> Question | None:
        """No object of the category; or, between objects, none near what is absent or on what is there."""
        draw = self.rng.random()
        if self.semantic or draw < 0.6:
            return self.absent_category()
        if draw < 0.8:
            guests = self._guests()
            if guests is None or guests[2]:
                return None
            category, host, _, _ = guests
            text = self._fill(words.ON, category, host=words.HOSTS[host])
            reasoning = f"no {words.NOUNS[category][0]} on {words.NOUNS[host][0]}"
            return self._question("absence", category, (), text, reasoning, "on")
        herd = self._herd(1)
        if herd is None:
            return None
        landmark = self._pick(sorted(set(words.NOUNS) - set(self.present) - {"marking"}))
        nearest = self.rng.random() < 0.6
        noun = words.NOUNS[landmark][0]
        text = self._fill(words.NEAREST if nearest else words.FARTHEST, herd[0], landmark=noun)
        return self._question("absence", herd[0], (), text, f"no {noun}", "nearest" if nearest else "farthest")

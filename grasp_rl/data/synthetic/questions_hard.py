"""Questions about hard scenes."""

from __future__ import annotations

from grasp_rl.data.synthetic.questions import NOUNS, OOD_PHRASES, TRAIN_PHRASES, Question
from grasp_rl.data.synthetic.scenes import Scene, SceneObject
from grasp_rl.data.synthetic.shapes import Rng

HARD_PHRASES: dict[str, tuple[str, ...]] = {
    **TRAIN_PHRASES,
    "path": ("the path", "the footpath", "where would a hiker walk", "what is too narrow for a car"),
    "fence": ("the fence", "the railing", "what keeps sheep from straying", "what would a burglar climb over"),
    "jetty": ("the jetty", "the pier", "where could a boat be moored", "what stands on piles in the water"),
    "runway": ("the runway", "the airstrip", "where do aeroplanes land", "where would a pilot touch down"),
    "marking": ("the runway marking", "the white paint", "what guides a pilot on the ground", "what is painted white"),
}
HARD_OOD_PHRASES: dict[str, tuple[str, ...]] = {
    **OOD_PHRASES,
    "path": ("any footpath across here", "walkers would take which way"),
    "fence": ("any fence line here", "sheep are kept in by what"),
    "jetty": ("any pier here", "boats could be tied up where"),
    "runway": ("any airstrip here", "aeroplanes touch down where"),
    "marking": ("any painted runway stripe", "pilots follow which paint"),
}
HARD_NOUNS = {
    **NOUNS, "path": "path", "fence": "fence", "jetty": "jetty", "runway": "runway", "marking": "marking",
}  # fmt: skip


def ask_hard(rng: Rng, scene: Scene, ood: bool) -> Question:
    """Draw one question about ``scene``: all objects of a category, present or, in one of seven, absent."""
    present: dict[str, list[SceneObject]] = {}
    for item in scene.objects:
        present.setdefault(item.category, []).append(item)
    absent = sorted(set(HARD_NOUNS) - set(present))
    category = str(rng.choice(absent if rng.random() < 0.14 or not present else sorted(present)))
    phrases = (HARD_OOD_PHRASES if ood else HARD_PHRASES)[category]
    answers = tuple(present.get(category, ()))
    return Question(
        query=phrases[int(rng.integers(len(phrases)))],
        answers=answers,
        reasoning=f"{len(answers) or 'no'} {HARD_NOUNS[category]}",
    )

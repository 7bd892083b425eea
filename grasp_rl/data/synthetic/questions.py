"""Questions about drawn scenes: direct, implicit, relational, two-step and no-target, in two phrasings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from grasp_rl.data.synthetic.scenes import Scene, SceneObject
from grasp_rl.types import Attribute

Rng = np.random.Generator

# For each category: what the training questions call it, and then how they hint at it.
TRAIN_PHRASES: dict[str, tuple[str, ...]] = {
    "roof": (
        "the roof", "the house", "where would people shelter from the rain", "which structure needs fire insurance",
        "where do families live",
    ),
    "water": (
        "the pond", "the water", "where could a boat float", "what could supply irrigation", "where do fish live",
    ),
    "tank": (
        "the storage tank", "the round tank", "where is fuel stored", "what could leak oil", "what holds liquid",
    ),
    "court": (
        "the court", "the sports court", "where could a match be played", "which surface has painted lines",
        "where do players train",
    ),
    "field": (
        "the field", "the cropland", "where is grain harvested", "what does a tractor plough", "where does food grow",
    ),
    "lot": (
        "the parking lot", "the paved lot", "where can cars be left", "what sheds the most runoff",
        "where do shoppers park",
    ),
    "vessel": (
        "the vessel", "the boat on land", "what belongs on the sea", "what carries a crew", "what has a bow",
    ),
    "vehicle": (
        "the vehicle", "the car", "what burns petrol", "what needs a driver", "what could block a lane",
    ),
    "road": (
        "the road", "the highway", "where does traffic pass", "how would an ambulance arrive", "what links two towns",
    ),
    "wood": (
        "the wood", "the trees", "where do birds nest", "what gives shade", "what could feed a wildfire",
    ),
}  # fmt: skip

OOD_PHRASES: dict[str, tuple[str, ...]] = {
    "roof": ("any house roof here", "what shelter could people reach when rain starts"),
    "water": ("any water surface", "fish could live where"),
    "tank": ("any round storage tank", "from where could fuel leak"),
    "court": ("any painted sports surface", "players need which place for a match"),
    "field": ("any cropland parcel", "food for harvest is grown where"),
    "lot": ("any paved place for parking", "shoppers leave cars where"),
    "vessel": ("any boat", "a sea crew could use what"),
    "vehicle": ("any car", "a driver could use what"),
    "road": ("any highway", "an ambulance would take which way"),
    "wood": ("any trees", "birds find shade where"),
}

# Two steps: the first category of the list that is in the image is the answer.
PREFERENCES: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("field", "court", "lot"),
        "where could a helicopter land after the flood", "after a flood a helicopter could land where",
    ),
    (("roof", "wood", "lot"), "where is the best cover from the sun", "the sun is strong, where is cover"),
    (("water", "tank"), "where would firefighters get water", "firefighters need water from where"),
    (("vessel", "vehicle"), "what could take people away", "people could leave in what"),
)  # fmt: skip

RELATIONS: dict[str, str] = {
    "leftmost": "the leftmost {noun}",
    "rightmost": "the rightmost {noun}",
    "top": "the {noun} nearest the top",
    "bottom": "the {noun} nearest the bottom",
    "largest": "the largest {noun}",
    "smallest": "the smallest {noun}",
}
OOD_RELATIONS: dict[str, str] = {
    "leftmost": "of each {noun} take the leftmost",
    "rightmost": "of each {noun} take the rightmost",
    "top": "nearest the top, which {noun}",
    "bottom": "nearest the bottom, which {noun}",
    "largest": "of each {noun} the largest",
    "smallest": "of each {noun} the smallest",
}
NOUNS = {
    "roof": "roof", "water": "pond", "tank": "tank", "court": "court", "field": "field", "lot": "lot",
    "vessel": "vessel", "vehicle": "vehicle", "road": "road", "wood": "wood",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, the objects that answer it and the thought that finds them."""

    query: str
    answers: tuple[SceneObject, ...]
    reasoning: str
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """What breakdowns of scores go by."""


def ask(rng: Rng, scene: Scene, ood: bool) -> Question:
    """Draw one question about ``scene``: 58 % by category, 16 % relational, 12 % two-step, 14 % without target."""
    present: dict[str, list[SceneObject]] = {}
    for item in scene.objects:
        present.setdefault(item.category, []).append(item)
    kind = rng.random()
    if kind < 0.16:
        herds = sorted(name for name, members in present.items() if len(members) > 1)
        if herds:
            return _relational(rng, present, str(rng.choice(herds)), ood)
    elif kind < 0.28:
        usable = [p for p in PREFERENCES if any(c in present for c in p[0])]
        if usable:
            order, train_text, ood_text = usable[int(rng.integers(len(usable)))]
            category = next(c for c in order if c in present)
            return _all_of(present, category, ood_text if ood else train_text)
    elif kind < 0.42:
        absent = sorted(set(TRAIN_PHRASES) - set(present))
        category = str(rng.choice(absent))
        return Question(query=_phrase(rng, category, ood), answers=(), reasoning=f"no {NOUNS[category]}")
    category = str(rng.choice(sorted(present)))
    return _all_of(present, category, _phrase(rng, category, ood))


def _phrase(rng: Rng, category: str, ood: bool) -> str:
    phrases = (OOD_PHRASES if ood else TRAIN_PHRASES)[category]
    return phrases[int(rng.integers(len(phrases)))]


def _all_of(present: dict[str, list[SceneObject]], category: str, query: str) -> Question:
    answers = tuple(present[category])
    return Question(query=query, answers=answers, reasoning=f"{len(answers)} {NOUNS[category]}")


def _relational(rng: Rng, present: dict[str, list[SceneObject]], category: str, ood: bool) -> Question:
    relation = str(rng.choice(sorted(RELATIONS)))
    ranked = {
        "leftmost": lambda o: o.centre[0],
        "rightmost": lambda o: -o.centre[0],
        "top": lambda o: o.centre[1],
        "bottom": lambda o: -o.centre[1],
        "largest": lambda o: -o.area,
        "smallest": lambda o: o.area,
    }
    answer = min(present[category], key=ranked[relation])
    text = (OOD_RELATIONS if ood else RELATIONS)[relation].format(noun=NOUNS[category])
    return Question(query=text, answers=(answer,), reasoning=f"1 {relation} {NOUNS[category]}")

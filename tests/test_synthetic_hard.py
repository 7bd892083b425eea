"""Hard drawn scenes: exact masks, questions with one right answer, and an easy level that stays as it was."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.rasterize import parts
from grasp_rl.data.synthetic import words_hard as words
from grasp_rl.data.synthetic.dataset import SPLITS, SyntheticSource
from grasp_rl.data.synthetic.questions_hard import INSTANCE_KINDS, SEMANTIC_KINDS, chosen_by
from grasp_rl.data.synthetic.scenes import Scene, SceneObject
from grasp_rl.data.synthetic.scenes_hard import OOD_HARD, TRAIN_HARD, draw_hard_scene
from grasp_rl.data.synthetic.themes import PART_OF, THEMES
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.types import Sample

# Of scenes 0, 1, 7, 31 and 100 with three questions each, as drawn before there were levels: (side, seed, split) to the
# start of the SHA-256 of the images, and of masks, sample ids, questions, thoughts and weak labels.
EASY = {
    (112, 0, "train"): ("1ecb68a09f6fb734", "6aa5547d1aeeeec1"),
    (112, 0, "val"): ("84ec8d2d27343aac", "02f4a675cf6c16fe"),
    (112, 0, "test"): ("25d031928a5fae24", "b7f19a37a5ada0ab"),
    (112, 0, "test_ood"): ("d1e851804bbe443a", "a3a92ba2853a3e9d"),
    (96, 3, "train"): ("98cd78f6e4a6c7d4", "e8a6bd464bd57cd7"),
    (96, 3, "val"): ("e66117e89f60f3d5", "2d3fcd7cde27e42d"),
    (96, 3, "test"): ("a8f740b2617aefc7", "dd73c598093c5a55"),
    (96, 3, "test_ood"): ("71d2ba8867ac6255", "ad9d930217556ea1"),
}
OPENCV = "5.0.0"
"""The version that drew the images: another one may round a blurred border differently."""


@pytest.mark.parametrize(("size", "seed", "split"), EASY)
def test_the_easy_level_is_as_it_was(size: int, seed: int, split: str) -> None:
    images, rest = hashlib.sha256(), hashlib.sha256()
    data = SyntheticSource(image_size=size, seed=seed, level="easy").split(split)
    for index in (0, 1, 7, 31, 100):
        for sample in data.same_image(index, 3):
            assert sample.target_mask is not None
            images.update(sample.image.tobytes())
            rest.update(sample.target_mask.tobytes())
            rest.update(f"{sample.sample_id}|{sample.query}|{sample.reasoning}|{sample.weak_labels!r}".encode())
    expected = EASY[size, seed, split]
    assert rest.hexdigest()[:16] == expected[1]
    if cv2.__version__.startswith(OPENCV):
        assert images.hexdigest()[:16] == expected[0]


@pytest.mark.parametrize("style", [TRAIN_HARD, OOD_HARD])
@pytest.mark.parametrize("size", [96, 128, 224])
def test_visible_masks_are_disjoint_but_for_parts(style: object, size: int) -> None:
    for seed in range(25):
        scene = draw_hard_scene(np.random.default_rng(seed), style, size)  # type: ignore[arg-type]
        assert scene.image.shape == (size, size, 3)
        wholes = [item for item in scene.objects if item.category not in PART_OF]
        assert np.sum([item.mask for item in wholes], axis=0).max() <= 1
        for item in scene.objects:
            assert item.area >= 4 * (size / 112) ** 2
            if item.category in PART_OF:
                whole = [o.mask for o in wholes if o.category == PART_OF[item.category]]
                assert not (item.mask & ~np.any(whole, axis=0)).any()


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_index_is_the_same_hard_sample(split: str) -> None:
    first, again = (SyntheticSource(level="hard").split(split)[5] for _ in range(2))
    assert first.query == again.query
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.target_mask, again.target_mask)


def test_no_such_level() -> None:
    with pytest.raises(ConfigError, match=r"data\.level='medium'.*easy"):
        SyntheticSource(level="medium")


# ----------------------------------------------------------------------------------- questions, answered once more
Answer = list[SceneObject]
_ONE = {one: name for name, (one, _) in words.NOUNS.items()}
_MANY = {many: name for name, (_, many) in words.NOUNS.items()}
_HOST = {text: name for name, text in words.HOSTS.items()}
_EXTREME = {text: name for table in (words.EXTREMES, words.OOD_EXTREMES) for name, text in table.items()}


def any_of(texts: Sequence[str]) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, texts), key=len, reverse=True)) + ")"


_FIELDS = {
    "one": any_of(list(_ONE)), "many": any_of(list(_MANY)), "others": any_of(list(_MANY)),
    "landmark": any_of(list(_ONE)), "host": any_of(list(_HOST)), "extreme": any_of(list(_EXTREME)),
    "number": any_of(list(words.NUMBERS)),
}  # fmt: skip


def read(query: str, *templates: str) -> dict[str, str] | None:
    """The fields of the first of ``templates`` that ``query`` is."""
    for template in templates:
        pattern = re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{_FIELDS[m[1]]})", re.escape(template))
        found = re.fullmatch(pattern, query)
        if found:
            return found.groupdict()
    return None


def far(first: SceneObject, second: SceneObject) -> float:
    """Least distance of two pixels, all against all."""
    a, b = np.argwhere(first.mask), np.argwhere(second.mask)
    return float(np.sqrt(min(((b - p) ** 2).sum(1).min() for p in a)))


def measure(item: SceneObject, extreme: str) -> float:
    """Larger for what is asked for, in pixels of the centre of the mask, or of the root of its area."""
    y, x = np.argwhere(item.mask).mean(0)
    root = float(np.sqrt(item.mask.sum()))
    return {"leftmost": -x, "rightmost": x, "top": -y, "bottom": y, "largest": root, "smallest": -root}[extreme]


def beneath(item: SceneObject, scene: Scene, host: str) -> float:
    """Share of ``item`` within the convex hull of a host: its own mask has a hole where something stands on it."""
    shares = []
    for area in by_category(scene, host):
        hull = cv2.convexHull(np.argwhere(area.mask)[:, ::-1].astype(np.int32))
        filled = cv2.fillConvexPoly(np.zeros(area.mask.shape, dtype=np.uint8), hull, 1).astype(bool)
        shares.append(float(filled[item.mask].mean()))
    return max(shares)


def ranked(members: Answer, extreme: str, count: int) -> Answer:
    ordered = sorted(members, key=lambda item: -measure(item, extreme))
    gap = measure(ordered[count - 1], extreme) - measure(ordered[count], extreme)
    assert gap > 0.5, "a tie"
    return ordered[:count]


def subject(found: dict[str, str]) -> str:
    return _ONE[found["one"]] if "one" in found else _MANY[found["many"]]


def by_category(scene: Scene, name: str) -> Answer:
    return [item for item in scene.objects if item.category == name]


def distant(scene: Scene, found: dict[str, str], nearest: bool) -> Answer:
    members, marks = by_category(scene, subject(found)), by_category(scene, _ONE[found["landmark"]])
    if not marks:
        return []
    assert len(marks) == 1
    ordered = sorted(members, key=lambda item: far(item, marks[0]) * (1 if nearest else -1))
    assert abs(far(ordered[0], marks[0]) - far(ordered[1], marks[0])) > 1.5
    return ordered[:1]


def on(scene: Scene, found: dict[str, str], inside: bool) -> Answer:
    host, members = _HOST[found["host"]], by_category(scene, _MANY[found["many"]])
    shares = [beneath(item, scene, host) for item in members]
    assert all(share < 0.6 or share > 0.7 for share in shares), shares
    return [item for item, share in zip(members, shares, strict=True) if (share > 0.7) == inside]


def answer(query: str, scene: Scene) -> Answer:
    """The objects that ``query`` asks for, found from its words and the masks alone."""
    for table in (words.FUNCTIONS, words.OOD_FUNCTIONS):
        for name, texts in table.items():
            if query in texts:
                return by_category(scene, name)
    readings: list[tuple[tuple[str, ...], Callable[[dict[str, str]], Answer]]] = [
        (words.EVERY + words.OOD_EVERY, lambda f: by_category(scene, subject(f))),
        ((words.BOTH, words.OOD_BOTH),
         lambda f: by_category(scene, _MANY[f["many"]]) + by_category(scene, _MANY[f["others"]])),
        (words.NEAREST, lambda f: distant(scene, f, True)),
        (words.FARTHEST, lambda f: distant(scene, f, False)),
        (words.ON, lambda f: on(scene, f, True)),
        (words.OFF, lambda f: on(scene, f, False)),
        (words.EXACTLY, lambda f: exactly(scene, f)),
        (words.ALL_BUT, lambda f: all_but(scene, f)),
        (words.RANK,
         lambda f: ranked(by_category(scene, _MANY[f["many"]]), _EXTREME[f["extreme"]], words.NUMBERS.index(f["number"]))),
        (words.POSITION, lambda f: ranked(by_category(scene, subject(f)),
                                          _EXTREME[f["extreme"]], 1)),
    ]  # fmt: skip
    for templates, solve in readings:
        found = read(query, *templates)
        if found is not None:
            return solve(found)
    raise AssertionError(f"no reading of {query!r}")


def exactly(scene: Scene, found: dict[str, str]) -> Answer:
    members = by_category(scene, _MANY[found["many"]])
    return members if len(members) == words.NUMBERS.index(found["number"]) else []


def all_but(scene: Scene, found: dict[str, str]) -> Answer:
    members = by_category(scene, subject(found))
    out = ranked(members, _EXTREME[found["extreme"]], 1)[0]
    return [item for item in members if item is not out]


def asked(split: str, target: str, size: int, scenes: int) -> Iterator[tuple[Sample, Scene]]:
    source = SyntheticSource(level="hard", target=target, image_size=size)
    for index in range(scenes):
        scene = source.scene(index, split)[1]
        for sample in source.split(split).same_image(index, 4):
            yield sample, scene


@pytest.mark.parametrize("split", ["train", "test_ood"])
@pytest.mark.parametrize(("target", "size"), [("instance", 112), ("instance", 224), ("semantic", 128)])
def test_every_answer_is_right_and_the_only_one(split: str, target: str, size: int) -> None:
    for sample, scene in asked(split, target, size, 80 if size < 200 else 25):
        expected = answer(sample.query, scene)
        union = np.any([item.mask for item in expected], axis=0) if expected else np.zeros((size, size), dtype=np.bool_)
        assert sample.target_mask is not None
        assert np.array_equal(sample.target_mask, union), sample.query
        assert sample.attributes["count"] == len(expected)
        assert sample.attributes["no_target"] == int(not expected)
        assert sample.weak_labels is not None
        if target == "instance":
            assert len(sample.weak_labels) == len(expected)
        else:
            assert len(sample.weak_labels) == len(list(parts(union)))


@pytest.mark.parametrize(("target", "kinds"), [("instance", INSTANCE_KINDS), ("semantic", SEMANTIC_KINDS)])
def test_all_kinds_are_asked_with_their_attributes(target: str, kinds: dict[str, float]) -> None:
    samples = [sample for sample, _ in asked("train", target, 96, 100)]
    counts = Counter(str(sample.attributes["kind"]) for sample in samples)
    assert set(counts) == set(kinds)
    assert min(counts.values()) > 0.015 * len(samples)
    assert 0.08 < np.mean([int(sample.attributes["no_target"]) for sample in samples]) < 0.22
    for sample in samples:
        expected = {"kind", "category", "count", "no_target"}
        expected |= {"position", "size"} if sample.attributes["count"] else set()
        assert expected <= set(sample.attributes) <= expected | {"relation"}
        if sample.attributes["kind"] in ("relation", "position", "count", "exclusion"):
            assert sample.attributes["relation"]
    assert {s.attributes["size"] for s in samples if "size" in s.attributes} == {"small", "medium", "large"}
    assert len({s.attributes["position"] for s in samples if "position" in s.attributes}) == 9
    if target == "semantic":
        assert not any("relation" in sample.attributes for sample in samples)


def test_touching_objects_are_one_region_of_a_semantic_target_and_two_instances() -> None:
    merged = 0
    for sample, scene in asked("train", "semantic", 112, 60):
        found = answer(sample.query, scene)
        merged += len(sample.weak_labels or ()) < len(found)
        assert sample.instance_masks is None
    assert merged > 5
    for sample, _ in asked("train", "instance", 112, 20):
        assert sample.instance_masks is not None
        masks, labels = sample.instance_masks(), sample.weak_labels or ()
        assert len(masks) == len(labels)
        for mask, label in zip(masks, labels, strict=True):
            assert all(mask[int(y), int(x)] for x, y in label.positive_points)


def test_the_masks_of_a_scene_follow_the_target() -> None:
    sources = (
        SyntheticSource(level="hard"),
        SyntheticSource(level="hard", target="semantic"),
        SyntheticSource(level="hard", texture_pieces=True),
    )
    merged = pieces = 0
    for index in range(25):
        (image, masks), (same, regions), (third, more) = (source.split("train").instances(index) for source in sources)
        assert np.array_equal(image, same)
        assert np.array_equal(image, third)
        merged += len(regions) < len(masks)
        assert all(np.array_equal(a, b) for a, b in zip(masks, more[: len(masks)], strict=True))
        for piece in more[len(masks) :]:
            pieces += 1
            within = [mask for mask in masks if not (piece & ~mask).any()]
            assert any(0.1 <= piece.sum() / mask.sum() <= 0.7 for mask in within)
    assert merged > 10
    assert pieces > 50


def test_a_close_call_is_no_question() -> None:
    def item(x: float) -> SceneObject:
        return SceneObject(category="tank", mask=np.ones((2, 2), dtype=np.bool_), centre=(x, 0.0))

    near, next_, last = item(1.0), item(3.0), item(20.0)
    assert chosen_by([last, near, next_], [lambda o: o.centre[0]], [4.0], 1) is None
    assert chosen_by([last, near, next_], [lambda o: o.centre[0]], [4.0], 2) == [near, next_]
    keys = [lambda o: o.centre[0], lambda o: -o.centre[0]]
    assert chosen_by([last, near], keys, [1.0, 1.0], 1) is None


def test_words_and_textures_of_the_other_domain_are_unseen() -> None:
    for name in words.NOUNS:
        assert not set(words.FUNCTIONS[name]) & set(words.OOD_FUNCTIONS[name])
    every = [text for texts in words.FUNCTIONS.values() for text in texts]
    assert len(every) == len(set(every)), "one text for two categories"
    shared = set(PART_OF) | {"path", "fence", "jetty"}
    for name, patterns in TRAIN_HARD.patterns.items():
        assert bool(set(patterns) & set(OOD_HARD.patterns[name])) == (name in shared)
    assert not set(TRAIN_HARD.grounds) & set(OOD_HARD.grounds)
    train = {sample.query for sample, _ in asked("train", "instance", 96, 60)}
    assert not train & {sample.query for sample, _ in asked("test_ood", "instance", 96, 60)}


def test_no_scene_has_every_category() -> None:
    for theme in THEMES.values():
        assert set(words.NOUNS) - set(theme) - set(PART_OF), "absence has nothing to ask for"
    assert {name for theme in THEMES.values() for name in theme} | set(PART_OF) == set(words.NOUNS)


def test_unknown_words_reach_the_tiny_policy_as_bytes() -> None:
    """No word of the hard level is lost: what its vocabulary lacks is spelled in bytes."""
    tokenizer = TinyPolicy(weights="random").tokenizer
    for sample, _ in asked("test_ood", "instance", 96, 20):
        ids = tokenizer(sample.query)["input_ids"]
        assert tokenizer.decode(ids) == sample.query


@pytest.mark.parametrize(("size", "limit"), [(128, 0.015), (224, 0.040)])
def test_a_scene_is_drawn_fast(size: int, limit: float) -> None:
    times = []
    for seed in range(20):
        start = time.process_time()
        draw_hard_scene(np.random.default_rng(seed), TRAIN_HARD, size)
        times.append(time.process_time() - start)
    assert np.median(times) < limit


def test_a_semantic_target_needs_the_hard_level() -> None:
    with pytest.raises(ConfigError, match=r"data\.target='semantic' with data\.level='easy': set data\.level=hard"):
        SyntheticSource(target="semantic")
    with pytest.raises(ConfigError, match=r"data\.texture_pieces=true with data\.level='easy': set data\.level=hard"):
        SyntheticSource(texture_pieces=True)
    with pytest.raises(ConfigError, match=r"data\.target='parts'.*instance"):
        SyntheticSource(level="hard", target="parts")

"""Drawn overhead scenes as a dataset: endless, exact, and there without a download."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from grasp_rl.config.errors import ConfigError, one_of
from grasp_rl.data.base import RecordDataset, Split
from grasp_rl.data.rasterize import parts
from grasp_rl.data.synthetic.questions import Question, ask
from grasp_rl.data.synthetic.questions_hard import ask_hard
from grasp_rl.data.synthetic.scenes import OOD_STYLE, TRAIN_STYLE, Scene, draw_scene
from grasp_rl.data.synthetic.scenes_hard import OOD_HARD, TRAIN_HARD, draw_hard_scene
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.geometry import mask_to_box
from grasp_rl.types import Attribute, BoolMask, Image, Sample

SPLITS = ("train", "val", "test", "test_ood")
LEVELS = ("easy", "hard")
PLACES = (("top-left", "top", "top-right"), ("left", "centre", "right"), ("bottom-left", "bottom", "bottom-right"))
"""Thirds of the image, by row and column: the attribute ``position`` is that of the target's centre."""
SMALL, LARGE = 0.01, 0.05
"""Shares of the image: the attribute ``size`` is ``small`` where the target's objects are on average below the first,
``large`` from the second on, and else ``medium``."""
TARGETS = ("instance", "semantic")


class SyntheticSource(RecordDataset):
    """What ``data=synthetic`` instantiates.

    A sample is a pure function of (``seed``, split, index). The ``test_ood`` split has another palette, ground, grain,
    range of scales and phrasing; no training sample has any of them.

    Args:
        train_size: samples of the train split; 100 000 scenes never repeat in a laptop-sized run.
        val_size: samples of ``val``.
        test_size: samples of ``test`` and of ``test_ood``.
        image_size: side of the square images in pixels.
        seed: selects another world of scenes with the same rules.
        level: ``easy``, or ``hard``: texture, thin and touching things, shadows and clutter, more kinds of questions,
            attributes for breakdowns.
        target: of level ``hard``. ``instance``: the truth is the objects that answer, one weak label each.
            ``semantic``: questions are for all of a category or two, the truth is one mask, and its weak labels are of
            its 8-connected parts, as of a dataset that knows no objects: things that touch are one.
        texture_pieces: of level ``hard``: fit-segmenter learns pieces of textures beside whole things (slopes of a
            roof, patches of a wood), as masks of everything in photographs have them; no question is about them.

    Raises:
        ConfigError: a size is out of range, there is no such level or target, or they do not go together.
    """

    def __init__(
        self,
        train_size: int = 100_000,
        val_size: int = 256,
        test_size: int = 512,
        image_size: int = 112,
        seed: int = 0,
        level: str = "easy",
        target: str = "instance",
        texture_pieces: bool = False,
    ) -> None:
        super().__init__(name="synthetic")
        one_of("data.level", level, LEVELS)
        one_of("data.target", target, TARGETS)
        if target == "semantic" and level == "easy":
            raise ConfigError(
                "data.target='semantic' with data.level='easy': set data.level=hard, or data.target=instance"
            )
        if texture_pieces and level == "easy":
            raise ConfigError("data.texture_pieces=true with data.level='easy': set data.level=hard, or false")
        for key, value in (("train_size", train_size), ("val_size", val_size), ("test_size", test_size)):
            if value < 1:
                raise ConfigError(f"data.{key}={value!r}: must be >= 1")
        if not 56 <= image_size <= 2048:
            raise ConfigError(f"data.image_size={image_size!r}: must be in 56..2048")
        self.sizes = {"train": train_size, "val": val_size, "test": test_size, "test_ood": test_size}
        self.image_size, self.seed, self.level, self.semantic = image_size, seed, level, target == "semantic"
        self.texture_pieces = texture_pieces

    def splits(self) -> Sequence[str]:
        return SPLITS

    def records(self, split: str) -> range:
        """The indices of the split's scenes."""
        if split not in self.sizes:
            raise ConfigError(f"data split {split!r}: synthetic has {', '.join(SPLITS)}")
        return range(self.sizes[split])

    def split(self, name: str) -> Split:
        """The split called ``name``; it can ask several questions about each scene."""
        return _ScenesSplit(self, name, self.records(name))

    def decode(self, record: int, split: str, image: Image | None = None) -> Sample:
        return self.draw(record, split, 1)[0]

    def image_of(self, record: int) -> Hashable:
        return record

    def place_of(self, record: int) -> str:
        return f"scene {record}"

    def scene(self, index: int, split: str) -> tuple[np.random.Generator, Scene]:
        """Scene ``index`` of ``split``, and the generator that goes on to draw its questions."""
        rng = np.random.default_rng([self.seed, zlib.crc32(split.encode()), index])
        ood = split == "test_ood"
        if self.level == "hard":
            return rng, draw_hard_scene(rng, OOD_HARD if ood else TRAIN_HARD, self.image_size, self.texture_pieces)
        return rng, draw_scene(rng, OOD_STYLE if ood else TRAIN_STYLE, self.image_size)

    def draw(self, index: int, split: str, count: int) -> list[Sample]:
        """``count`` samples about scene ``index`` of ``split`` with different draws of the question."""
        rng, scene = self.scene(index, split)
        ood = split == "test_ood"
        samples = []
        hard, semantic = self.level == "hard", self.semantic
        for number in range(count):
            question = ask_hard(rng, scene, ood, semantic) if hard else ask(rng, scene, ood)
            masks = [item.mask for item in question.answers]
            target = np.any(masks, axis=0) if masks else np.zeros(scene.image.shape[:2], dtype=np.bool_)
            if semantic:
                masks = list(parts(target))
            elif hard:
                masks.sort(key=lambda mask: mask_to_box(mask) or ())
            samples.append(
                Sample(
                    sample_id=f"{split}-{self.seed}-{index}" + (f"-{number}" if number else ""),
                    image=scene.image,
                    query=question.query,
                    target_mask=target,
                    weak_labels=weak_labels_from_masks(masks),
                    dataset=self.name,
                    split=split,
                    reasoning=question.reasoning,
                    attributes={**question.attributes, **_measures(question, target)} if hard else {},
                    instance_masks=partial(list, masks) if hard and not semantic else None,
                )
            )
        return samples


def _measures(question: Question, target: BoolMask) -> dict[str, Attribute]:
    """Of a target [H, W]: objects, whether there is none, where its centre is, and how large its objects are."""
    count = len(question.answers)
    measures: dict[str, Attribute] = {"count": count, "no_target": int(not count)}
    if count:
        rows, columns = np.nonzero(target)
        row, column = (int(3 * (places.mean() + 0.5) / target.shape[0]) for places in (rows, columns))
        share = float(np.mean([item.area for item in question.answers])) / target.size
        measures["position"] = PLACES[row][column]
        measures["size"] = "small" if share < SMALL else "medium" if share < LARGE else "large"
    return measures


class _ScenesSplit(Split):
    """Scenes, about each of which any number of questions can be asked."""

    dataset: SyntheticSource

    def same_image(self, index: int, count: int) -> list[Sample]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}/{self.split} has {len(self)} samples, asked for number {index}")
        return self.dataset.draw(index, self.split, count)

    def instances(self, index: int) -> tuple[Image, list[BoolMask]]:
        """Image ``index`` and the masks [H, W] of all that is on it, asked for or not.

        Of semantic targets these are the connected parts of every category; pieces of textures come last.
        """
        scene = self.dataset.scene(self.records[index], self.split)[1]
        masks = [item.mask for item in scene.objects]
        if self.dataset.semantic:
            categories = dict.fromkeys(item.category for item in scene.objects)
            unions = (np.any([o.mask for o in scene.objects if o.category == name], axis=0) for name in categories)
            masks = [part for union in unions for part in parts(union)]
        return scene.image, masks + list(scene.pieces)

"""Drawn overhead scenes as a dataset: endless, exact, and there without a download."""

from __future__ import annotations

import zlib

import numpy as np

from grasp_rl.config.errors import ConfigError
from grasp_rl.data.synthetic.questions import ask
from grasp_rl.data.synthetic.scenes import OOD_STYLE, TRAIN_STYLE, draw_scene
from grasp_rl.data.weak_labels import cues_from_masks
from grasp_rl.types import Image, Sample
from grasp_rl.utils.visualization import draw_sample

SPLITS = ("train", "val", "test", "test_ood")


class SyntheticSource:
    """What ``data=synthetic`` instantiates.

    A sample is a pure function of (``seed``, split, index). The ``test_ood`` split has another palette, ground, grain,
    range of scales and phrasing; no training sample has any of them.

    Args:
        train_size: samples of the train split; 100 000 scenes never repeat in a laptop-sized run.
        val_size: samples of ``val``.
        test_size: samples of ``test`` and of ``test_ood``.
        image_size: side of the square pictures in pixels.
        seed: selects another world of scenes with the same rules.

    Raises:
        ConfigError: a size is out of range.
    """

    def __init__(
        self, train_size: int = 100_000, val_size: int = 256, test_size: int = 512, image_size: int = 112, seed: int = 0
    ) -> None:
        for key, value in (("train_size", train_size), ("val_size", val_size), ("test_size", test_size)):
            if value < 1:
                raise ConfigError(f"data.{key}={value!r}: must be >= 1")
        if not 56 <= image_size <= 2048:
            raise ConfigError(f"data.image_size={image_size!r}: must be in 56..2048")
        self.sizes = {"train": train_size, "val": val_size, "test": test_size, "test_ood": test_size}
        self.image_size, self.seed = image_size, seed

    def split(self, name: str) -> SyntheticDataset:
        """The split called ``name``.

        Raises:
            ConfigError: there is no such split.
        """
        if name not in self.sizes:
            raise ConfigError(f"data split {name!r}: synthetic has {', '.join(SPLITS)}")
        return SyntheticDataset(split=name, size=self.sizes[name], image_size=self.image_size, seed=self.seed)


class SyntheticDataset:
    """One split; see :class:`SyntheticSource`."""

    name = "synthetic"

    def __init__(self, *, split: str, size: int, image_size: int, seed: int) -> None:
        self.split, self.size, self.image_size, self.seed = split, size, image_size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        return self.same_picture(index, 1)[0]

    def same_picture(self, index: int, count: int) -> list[Sample]:
        """``count`` samples with the picture of sample ``index`` and different draws of the question, itself first."""
        if not 0 <= index < self.size:
            raise IndexError(f"{self.name}/{self.split} has {self.size} samples, asked for number {index}")
        rng = np.random.default_rng([self.seed, zlib.crc32(self.split.encode()), index])
        ood = self.split == "test_ood"
        scene = draw_scene(rng, OOD_STYLE if ood else TRAIN_STYLE, self.image_size)
        samples = []
        for number in range(count):
            question = ask(rng, scene, ood)
            masks = [item.mask for item in question.answers]
            target = np.any(masks, axis=0) if masks else np.zeros(scene.image.shape[:2], dtype=np.bool_)
            samples.append(
                Sample(
                    sample_id=f"{self.split}-{self.seed}-{index}" + (f"-{number}" if number else ""),
                    image=scene.image,
                    query=question.query,
                    target_mask=target,
                    cues=cues_from_masks(masks),
                    dataset=self.name,
                    split=self.split,
                    reasoning=question.reasoning,
                )
            )
        return samples

    def plot(self, sample: Sample) -> Image:
        """The sample drawn with its question, mask and cues: [h, w, 3] uint8 RGB."""
        return draw_sample(sample)

"""Drawn scenes that ask for a choice: which of several images shows the place of the first one?"""

from __future__ import annotations

import string
import zlib
from collections.abc import Hashable, Sequence

import cv2
import numpy as np

from grasp_rl.config.errors import require
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.synthetic.dataset import SPLITS, SyntheticSource
from grasp_rl.types import Image, Sample

QUESTION = "Which image shows the place of the first one?"


class SyntheticCrossView(RecordDataset):
    """What ``data=synthetic_cross_view`` instantiates: the place from another view, and ``choices`` scenes.

    The first image is a part of one of the scenes, enlarged and turned by a quarter. A sample is a pure function of
    (``seed``, split, index).

    Args:
        choices: scenes to choose from.
        train_size: samples of ``train``.
        val_size: samples of ``val``.
        test_size: samples of ``test`` and of ``test_ood``.
        image_size: side of the square images in pixels.
        seed: selects another world of scenes with the same rules.

    Raises:
        ConfigError: a size is out of range.
    """

    def __init__(
        self,
        choices: int = 3,
        train_size: int = 10_000,
        val_size: int = 128,
        test_size: int = 256,
        image_size: int = 112,
        seed: int = 0,
    ) -> None:
        super().__init__(name="synthetic_cross_view")
        require(2 <= choices <= 8, "data.choices", choices, "in 2..8")
        self.choices, self.seed = choices, seed
        self.scenes = SyntheticSource(train_size, val_size, test_size, image_size, seed)

    def splits(self) -> Sequence[str]:
        return SPLITS

    def records(self, split: str) -> range:
        """The indices of the split's samples."""
        return self.scenes.records(split)

    def image_of(self, record: int) -> Hashable:
        return record

    def place_of(self, record: int) -> str:
        return f"scene {record}"

    def decode(self, record: int, split: str, image: Image | None = None) -> Sample:
        rng = np.random.default_rng([self.seed, zlib.crc32(split.encode()), record, 1])
        right = int(rng.integers(self.choices))
        numbers = [record * self.choices + number for number in range(self.choices)]
        images = [self.scenes.draw(number, split, 1)[0].image for number in numbers]
        side = images[0].shape[0]
        x, y = (int(value) for value in rng.integers(0, side // 2, 2))
        part = np.ascontiguousarray(np.rot90(images[right][y : y + side // 2, x : x + side // 2]))
        view = np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
        return Sample(
            sample_id=f"{split}-{self.seed}-{record}",
            image=view,
            query=QUESTION,
            target_mask=None,
            weak_labels=(),
            dataset=self.name,
            split=split,
            more_images=tuple(images),
            choice=string.ascii_uppercase[right],
        )

"""SAM 3's promptable part (arXiv:2511.16719): transformers' ``Sam3TrackerModel``, which takes boxes and points."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from grasp_rl.config.errors import ConfigError
from grasp_rl.segmenters.base import PromptableSegmenter


class Sam3TrackerSegmenter(PromptableSegmenter):
    """``Sam3TrackerModel``, by hub id or local folder; its original files are not read."""

    MODEL = "Sam3TrackerModel"
    MEAN = (0.5, 0.5, 0.5)
    DEVIATION = (0.5, 0.5, 0.5)

    @staticmethod
    def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise ConfigError("segmenter.path: original files of SAM 3 are not read; give a hub id or a folder of the port")

"""LoRA (arXiv:2106.09685) for fit-segmenter: adapters in the vision encoder's attention, as SAMed (arXiv:2304.13785)
has them; the mask decoder is trained whole beside them. SAMed adapts queries and values; the stock classes keep them in
one matrix with the keys, which therefore are adapted, too.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel

from grasp_rl.config.errors import ConfigError

_ATTENTION = r"vision_encoder\..*\.(qkv|q_proj|k_proj|v_proj)"


class Adapters:
    """Adapters put into the vision encoder of ``model``, which is changed in place.

    Args:
        model: of the SAM family.
        rank: of every adapter; the scale is 2, alpha being twice the rank.
        seed: of their random half; the other half is zero, so that the model computes what it did.

    Raises:
        ConfigError: the vision encoder has no attention layer that can be adapted.
    """

    def __init__(self, model: Any, rank: int, seed: int) -> None:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_ATTENTION)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._tuner = LoraModel(model, config, "default")
            except ValueError as error:
                raise ConfigError(
                    f"fit.parts='lora': the vision encoder of {type(model).__name__} has no attention layer that is "
                    "known here; take fit.parts=mask_decoder or all"
                ) from error

    def merge(self) -> None:
        """Add the adapters to the weights that they adapt and take them out: the model is of its stock class again."""
        self._tuner.merge_and_unload()

"""Texts as vectors by a model of the hub, for reward terms that compare thoughts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from grasp_rl.config.errors import one_of
from grasp_rl.geometry import FloatArray


class HubTextEncoder:
    """The mean of a model's last hidden states over a text's tokens, to unit length.

    RS-HyRe-R1 (arXiv 2604.17504) asks a server of Qwen3-Embedding-4B, which takes the last token instead
    (``pooling=last``). The model is loaded where it is first asked, so in the reward's own process.

    Args:
        path: hub id, or a folder.
        pooling: mean | last
        max_tokens: of a text; the rest is cut off.
        device: cpu | cuda | ...
    """

    def __init__(self, path: str, pooling: str = "mean", max_tokens: int = 512, device: str = "cpu") -> None:
        one_of("encoder.pooling", pooling, ("mean", "last"))
        self.path, self.pooling, self.max_tokens, self.device = path, pooling, max_tokens, device

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.path, padding_side="right", trust_remote_code=False)
        model = AutoModel.from_pretrained(self.path, trust_remote_code=False, use_safetensors=True)
        return tokenizer, model.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> FloatArray:
        """[N, D] vectors of unit length."""
        tokenizer, model = self._parts
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        batch = batch.to(self.device)
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state.float()
        held = batch["attention_mask"][..., None].float()
        if self.pooling == "last":
            last = batch["attention_mask"].sum(1) - 1
            vectors = hidden[torch.arange(len(hidden)), last]
        else:
            vectors = (hidden * held).sum(1) / held.sum(1).clamp(min=1)
        return np.asarray(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy(), dtype=np.float64)

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: each process loads its own."""
        return {name: value for name, value in vars(self).items() if name != "_parts"}

"""What a run asks of its policy, and how its state lies over devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Load:
    """Work of one rank in one optimizer step."""

    prompt: int
    """P, tokens of a prompt, its image's included."""
    completion: int
    """C, tokens of a completion."""
    group: int
    """G."""
    prompts: int
    """Prompts of an optimizer step on one rank."""
    micro_batch: int
    """Groups per forward."""
    generated: int
    """Prompts that the rank generates for; under ``engine.gather=layer`` those of all ranks."""
    rows: int
    """Completions decoded together."""
    recompute: str
    """none | selective | full"""
    kl: bool
    """Whether a reference scores, too."""
    iterations: int = 1
    rounds: int = 1
    """Rounds of rollouts; all that dynamic sampling may take."""
    varlen: bool = False
    """Attention by sequences of different lengths (a GPU in half precision); else two calls, the second masked."""
    elsewhere: bool = False
    """Whether an inference server with devices of its own decodes."""

    @property
    def row_tokens(self) -> int:
        """Tokens of a micro-batch of packed rows."""
        return self.micro_batch * (self.prompt + self.group * self.completion)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How parameters, gradients and moments lie over ranks."""

    engine: str = "local"
    ranks: int = 1
    gather: str = "whole"
    """What ZeRO-3 fetches for the rollout: whole | layer."""

    @property
    def stage(self) -> int:
        """ZeRO's stage (arXiv 1910.02054); 0 for none."""
        return {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}.get(self.engine, 0)

    @property
    def offloads(self) -> bool:
        """Whether parameters and optimizer live in host memory."""
        return self.engine.endswith("_offload")

"""What to predict with: a run's own config and checkpoint, or the defaults, and what a command line changes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.config.targets import COMPONENTS, to_config
from grasp_rl.launch import compose
from grasp_rl.runs import received


def read_config(run: Path | None, scheme: str | None, segmenter: str | None, overrides: Sequence[str]) -> RunConfig:
    """The config to predict with: a run's own, or the defaults, with what the command line changes.

    Raises:
        ConfigError: naming the key, what was found and what is valid.
    """
    groups = [f"{group}={name}" for group, name in (("prompt", scheme), ("segmenter", segmenter)) if name]
    ours = [override for override in overrides if _is_inference(override)]
    args = ["command=evaluate", *groups, *(ours if run else overrides)]
    with compose.hydra("predict") as engine:
        composed = to_config(compose.single(engine, args, compose.trusted_on(args)).config)
    if run is None:
        return composed
    overridden = [override.key_or_group for override in compose.parse_overrides(overrides)]
    overridden += [group for group, name in (("prompt", scheme), ("segmenter", segmenter)) if name]
    parts = ("policy", "segmenter", "prompt", "rollout", "inference")
    raw = received.read(run, overridden, f"--run {run}", parts)
    changed: Any = OmegaConf.create(raw | {"command": "evaluate", "predictions": None})
    for override in compose.parse_overrides(overrides):
        if override.key_or_group in (*COMPONENTS, "prompt"):
            raise ConfigError(f"{override.input_line}: goes without --run; with it, use --prompt and --segmenter")
        if override.key_or_group != "trusted_modules" and not _is_inference(str(override.input_line)):
            OmegaConf.update(changed, override.key_or_group, override.value(), force_add=override.is_add())
    config = to_config(OmegaConf.to_container(changed))  # type: ignore[arg-type]
    prompt = replace(composed.prompt, template=config.prompt.template) if scheme else config.prompt
    return replace(
        config,
        prompt=prompt,
        segmenter=composed.segmenter if segmenter else config.segmenter,
        inference=composed.inference if ours else config.inference,
    )


def _is_inference(override: str) -> bool:
    """Whether an override is of the inference options, which go with any run."""
    return re.match(r"[+~]*inference[.=]", override) is not None

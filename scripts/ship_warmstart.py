"""Turn a finished `grasp-rl sft experiment=tiny_warmstart` run into the weights that ship with the package.

python scripts/ship_warmstart.py outputs/sft/<time>
"""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path

import torch
from omegaconf import OmegaConf

from grasp_rl.policies.tiny.policy import TinyPolicy, name_of, warm_start
from grasp_rl.runs import checkpoints

CARD = """# Model card: the warm start of `policy={name}`

A `{cls}` of {parameters:,} parameters, {size} kB in bfloat16 safetensors, trained from random weights
on drawn overhead scenes (`data=synthetic`) by

```
grasp-rl sft experiment={name}_warmstart
```

on {device} in {minutes:.0f} minutes (torch {torch}, transformers {transformers}).

**What it is for.** Tests, the demonstration, and learning experiments on a laptop: it is small enough to be trained by GRPO in
minutes. **What it is not.** A model of aerial imagery. On photographs its answers are poor.

**It points badly on purpose.** The first phase learns to see and to point. The last {bias_steps} steps imitate demonstrations with a
systematic error (boxes {scale:+.0%} of their side on every side, boxes and points moved right and down by {shift:.0%} of the side)
and noise (standard deviation {noise:.0%} of the side on every edge and point). GeoSeg (arXiv 2603.03983) reports such systematic
shifts of the boxes that multimodal language models draw. Reinforcement learning has something to mend.

**Scores** on the first {count} scenes of the test split, greedy, segmenter `grabcut`, before the weights were rounded to bfloat16
(`result.json` of the run):

| prompt scheme | gIoU | 95 % interval | single instance | several | no-target accuracy | box IoU | parsed |
|---|---|---|---|---|---|---|---|
{rows}

**Licence.** Apache-2.0, like the code; no third-party data or weights were used.
"""


def number(metrics: dict[str, float], key: str) -> str:
    return f"{metrics[key]:.3f}" if key in metrics else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    config = OmegaConf.load(run / "config.yaml")
    size, family = config.policy.get("size", "base"), config.policy.get("family", "qwen3_vl")
    policy = TinyPolicy(weights=str(checkpoints.find_policy(run)), family=family)
    policy.model.to(torch.bfloat16)
    result = json.loads((run / "result.json").read_text())
    status = json.loads((run / "status.json").read_text())
    environment = json.loads((run / "environment.json").read_text())
    folder = warm_start(size, family)
    policy.save(folder)
    bias = config.sft.phases[-1]
    rows = []
    for scheme in config.sft.scheme_weights:
        m = result[scheme]
        interval = f"{number(m, 'giou_low')}–{number(m, 'giou_high')}"
        cells = [number(m, k) for k in ("giou/single", "giou/multi", "no_target_accuracy", "box_iou", "parsed")]
        rows.append(f"| {scheme} | {number(m, 'giou')} | {interval} | " + " | ".join(cells) + " |")
    began, ended = (datetime.fromisoformat(status[k]) for k in ("started", "ended"))
    (folder / "MODEL_CARD.md").write_text(
        CARD.format(
            name=name_of(size, family),
            cls=type(policy.model).__name__,
            device="a GPU" if config.engine.device == "cuda" else "a CPU",
            parameters=sum(p.numel() for p in policy.parameters()),
            size=(folder / "model.safetensors").stat().st_size // 1000,
            minutes=(ended - began).total_seconds() / 60,
            torch=environment["packages"]["torch"],
            transformers=environment["packages"]["transformers"],
            bias_steps=bias.steps,
            scale=bias.box_scale_bias,
            shift=bias.box_shift_bias,
            noise=bias.noise,
            count=config.evaluation.test_limit,
            rows="\n".join(rows),
        )
    )


if __name__ == "__main__":
    main()

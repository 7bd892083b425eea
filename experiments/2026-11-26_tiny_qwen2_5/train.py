"""How far a Qwen2.5-VL of the tiny policy's size learns to localise by the recipe of policy=tiny.

    python experiments/2026-11-26_tiny_qwen2_5/train.py OUT --steps 2300

The first phase of experiment=tiny_warmstart alone (true boxes, no bias), evaluated as it is. Its vision encoder has rotary positions alone, where
Qwen3-VL has learned absolute ones, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from grasp_rl.config.targets import to_config
from grasp_rl.launch import compose, worker
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.backbones.qwen2_5_vl import Qwen25VL
from grasp_rl.policies.tiny import policy as tiny
from grasp_rl.policies.vlm import VlmPolicy
from grasp_rl.training import sft


def build(tokenizer: object, size: tiny.Size, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL with the widths, depths and initialisation of ``policy=tiny``."""
    twin = tiny.build_model(tokenizer, seed, size).config
    text = {key: value for key, value in twin.text_config.to_dict().items() if key not in ("model_type", "head_dim")}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [6, 5, 5], "rope_theta": 10000.0}}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": size.vision_layers, "hidden_size": size.vision_hidden, "num_heads": 4, "patch_size": tiny.PATCH,
            "intermediate_size": 8 * size.vision_hidden // 3, "spatial_merge_size": 1, "temporal_patch_size": 1,
            "out_hidden_size": size.hidden, "in_channels": 3, "window_size": tiny.SIDE,
            "fullatt_block_indexes": list(range(size.vision_layers)),
        },
        image_token_id=twin.image_token_id, video_token_id=twin.video_token_id,
        vision_start_token_id=twin.vision_start_token_id, vision_end_token_id=twin.vision_end_token_id,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen2_5_VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("patch_embed" in name and parameter.ndim > 1) or "embed_tokens" in name:
                parameter.normal_(0, 0.05, generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(0, 0.7 / parameter.shape[1] ** 0.5, generator=generator)
        numbers = [tokenizer.convert_tokens_to_ids(str(n)) for n in range(tiny.SIDE + 1)]  # type: ignore[attr-defined]
        model.get_input_embeddings().weight[numbers] = tiny.number_embeddings(size.hidden, generator)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=2300)
    arguments = parser.parse_args(argv)
    with compose.hydra("sft") as engine:
        job = compose.single(
            engine, ["command=sft", "experiment=tiny_warmstart", f"run_dir={arguments.out}", "sft.log_every=25"], ()
        )
    config = job.config
    config["sft"]["phases"] = [config["sft"]["phases"][0] | {"steps": arguments.steps}]
    arguments.out.mkdir(parents=True, exist_ok=True)
    components = worker.build(to_config(config))
    tokenizer = tiny.build_tokenizer(tiny.build_corpus())
    model = build(tokenizer, tiny.SIZES["base"], 0)
    model.set_attn_implementation({"text_config": "eager", "vision_config": "eager"})
    size = ImageSize(max_pixels=tiny.SIDE**2, resize="square")
    policy = VlmPolicy(
        model, tokenizer, Qwen25VL(tiny.build_image_processor(), size, model.config), coordinates="absolute"
    )
    policy.prompt_template = "compact"
    torch.set_num_threads(1)
    result = sft.run(to_config(config), replace(components, policy=policy))
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""hf_vlm on tiny models of the real classes, built and saved here: packed rows, generation and frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from grasp_rl.config import ConfigError, ParsingConfig, PromptConfig
from grasp_rl.parsing import parse
from grasp_rl.policies.hf_vlm import HfVlmPolicy
from grasp_rl.policies.tiny import TinyPolicy
from grasp_rl.prompting import format_answer
from grasp_rl.types import SpatialPrompt


@pytest.fixture(scope="module")
def qwen2_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2.5-VL with its tokenizer and image processor, saved as a checkpoint is."""
    torch.manual_seed(0)
    tokenizer = TinyPolicy(weights="random").tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("im_end", "endoftext", "image_pad")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
            "bos_token_id": None, "eos_token_id": ids["im_end"], "pad_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 64,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen2_5")
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28
    ).save_pretrained(folder)
    return folder


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_packed_rows_and_generation_equal_the_stock_model(qwen2_5: Path) -> None:
    policy = HfVlmPolicy(str(qwen2_5), dtype="float32", train_tower=True)
    prompts = [
        policy.encode(picture(100, 140), "the roof", PromptConfig()),
        policy.encode(picture(90, 84), "a", PromptConfig()),
    ]
    ids = [[(45, 46, 47), (48, 49)], [(50,), (51, 52, 53, 54)]]
    logp = policy.logprobs(policy.embed(prompts), ids).logp
    with torch.no_grad():
        greedy = policy.generate(policy.embed(prompts), None, group_size=1, max_new_tokens=1)
    for b, prompt in enumerate(prompts):
        plain = {
            "pixel_values": prompt.pixel_values,
            "image_grid_thw": prompt.image_grid_thw,
        }
        for g, completion in enumerate(ids[b]):
            row = torch.cat([prompt.input_ids, torch.tensor(completion)])[None]
            types = (row == policy.stock.config.image_token_id).int()
            logits = policy.stock(
                input_ids=row, attention_mask=torch.ones_like(row), mm_token_type_ids=types, **plain
            ).logits
            expected = torch.log_softmax(logits[0, len(prompt.input_ids) - 1 : -1], -1)
            expected = expected.gather(-1, torch.tensor(completion)[:, None])[:, 0]
            assert (logp[b, g, : len(completion)] - expected).abs().max() < 1e-5
        row = prompt.input_ids[None]
        types = (row == policy.stock.config.image_token_id).int()
        plain_logits = policy.stock(
            input_ids=row, attention_mask=torch.ones_like(row), mm_token_type_ids=types, **plain
        ).logits
        assert greedy[b][0].token_ids == (int(plain_logits[0, -1].argmax()),)


@pytest.mark.parametrize("size", [(100, 140), (333, 97), (56, 56), (400, 1000)])
def test_absolute_frame_round_trip(qwen2_5: Path, size: tuple[int, int]) -> None:
    """A box said in pixels of the resized picture comes back within half a unit of that frame."""
    policy = HfVlmPolicy(str(qwen2_5), dtype="float32")
    frame = policy.encode(picture(*size), "a", PromptConfig()).frame
    assert (frame.image_height, frame.image_width) == size
    assert frame.width % 28 == 0
    assert frame.height % 28 == 0
    height, width = size
    box = (0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height)
    prompt = PromptConfig(positive_points=1)
    said = format_answer(
        [SpatialPrompt(box=box, point_coords=((0.5 * width, 0.5 * height),), point_labels=(1,))], "t", frame, prompt
    )
    read = parse(said, prompt, frame, ParsingConfig()).prompts[0]
    assert read.box is not None
    for found, true, unit in zip(read.box, box, (*frame.scale, *frame.scale), strict=True):
        assert abs(found - true) <= 0.5 * unit + 1e-6


def test_bad_paths_and_types_name_their_key(qwen2_5: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.path='/no/such/model'"):
        HfVlmPolicy("/no/such/model")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is a bert"):
        HfVlmPolicy(str(tmp_path))
    with pytest.raises(ConfigError, match=r"policy\.dtype='int8'"):
        HfVlmPolicy(str(qwen2_5), dtype="int8")

"""The SAM family on tiny models of the real classes: weights, prompts, cache and failures."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from rubrics import rubric
from safetensors.torch import load_file, save_file
from torch import Tensor

from grasp_rl.bench import segment
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.render import format_answer
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.masks import MaskIou
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters import sam2 as sam2_module
from grasp_rl.segmenters.base import PromptableSegmenter
from grasp_rl.segmenters.embedding_cache import DiskCache, RamCache
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.segmenters.postprocess import tidy
from grasp_rl.segmenters.sam import SamSegmenter
from grasp_rl.segmenters.sam2 import Sam2Segmenter
from grasp_rl.segmenters.sam3 import Sam3TrackerSegmenter
from grasp_rl.segmenters.weights import build
from grasp_rl.types import Completion, FinishReason, Image, MaskPrediction, Sample, SpatialPrompt

CONF = Path(__file__).parents[1] / "conf/segmenter"
TINY_SAM = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 64, "output_channels": 64,
        "image_size": 256, "global_attn_indexes": [1], "window_size": 7, "num_pos_feats": 32,
    },
    "prompt_encoder_config": {"hidden_size": 64, "image_size": 256, "mask_input_channels": 16},
    "mask_decoder_config": {
        "hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 64,
    },
}  # fmt: skip
TINY_SAM3 = {
    "vision_config": {
        "backbone_config": {
            "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 224, "patch_size": 14, "window_size": 4,
            "global_attn_indexes": [1], "pretrain_image_size": 56,
        },
        "fpn_hidden_size": 64, "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
    },
    "prompt_encoder_config": {"hidden_size": 64, "image_size": 224, "patch_size": 14, "mask_input_channels": 16},
    "mask_decoder_config": {
        "hidden_size": 64, "mlp_dim": 128, "num_attention_heads": 4, "iou_head_hidden_dim": 64,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_sam2: Path) -> dict[str, Path]:
    """A saved random model of each class."""
    found = {"sam2": tiny_sam2}
    for name, model_class, config in (("sam", "SamModel", TINY_SAM), ("sam3", "Sam3TrackerModel", TINY_SAM3)):
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        tiny_models.loud(build(model_class, config)).save_pretrained(found[name])
    return found


CLASSES: dict[str, type[PromptableSegmenter]] = {
    "sam": SamSegmenter, "sam2": Sam2Segmenter, "sam3": Sam3TrackerSegmenter,
}  # fmt: skip


@pytest.fixture(params=["sam", "sam2", "sam3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def segmenter(kind: str, folders: dict[str, Path]) -> PromptableSegmenter:
    return CLASSES[kind](str(folders[kind]), device="cpu")


PROMPTS = (
    SpatialPrompt(box=(10, 12, 60, 50)),
    SpatialPrompt(point_coords=((30.5, 30.5), (40.5, 31.5)), point_labels=(1, 1)),
    SpatialPrompt(box=(20, 20, 70, 90), point_coords=((40.5, 50.5), (25.5, 85.5)), point_labels=(1, 0)),
    SpatialPrompt(point_coords=((70.5, 20.5),), point_labels=(1,)),
    SpatialPrompt(box=(0, 0, 1, 1)),
)


def noise(height: int = 90, width: int = 112, seed: int = 2) -> Image:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def low_logits(segmenter: PromptableSegmenter, image: Image, prompts: tuple[SpatialPrompt, ...]) -> Tensor:
    return segmenter.decode_prompts(prompts, segmenter.encode(image))[0]


class Counter:
    """Counts passes of a model's encoder and mask decoder."""

    def __init__(self, segmenter: PromptableSegmenter) -> None:
        self.encoder = self.decoder = 0
        segmenter.model.vision_encoder.register_forward_hook(lambda *_: self._count("encoder"))
        segmenter.model.mask_decoder.register_forward_hook(lambda *_: self._count("decoder"))

    def _count(self, name: str) -> None:
        setattr(self, name, getattr(self, name) + 1)


def test_the_stock_forward_gives_the_same_logits(kind: str, segmenter: PromptableSegmenter) -> None:
    """Preprocessing and prompt scaling against the stock model fed by hand; a square image fills every encoder."""
    image = noise(segmenter.side, segmenter.side)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (segmenter.MEAN, segmenter.DEVIATION))
    pixels = (torch.from_numpy(image).permute(2, 0, 1).float() / 255 - mean) / deviation
    with torch.no_grad():
        stock = segmenter.model(
            pixel_values=pixels[None],
            input_boxes=torch.tensor([[[10.0, 12, 60, 50]]]),
            input_points=torch.tensor([[[[30.5, 30.5]]]]),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int),
            multimask_output=False,
        ).pred_masks[0, :, 0]
    prompt = SpatialPrompt(box=(10, 12, 60, 50), point_coords=((30.5, 30.5),), point_labels=(1,))
    assert (low_logits(segmenter, image, (prompt,)) - stock).abs().max() < 1e-4


def test_together_equals_alone(segmenter: PromptableSegmenter) -> None:
    """Prompts of one signature decoded together give the logits of single calls, and all of them their masks."""
    image = noise()
    bucket = tuple(
        SpatialPrompt(box=(i, 5, 50 + 3 * i, 60), point_coords=((20, 20),), point_labels=(1,)) for i in range(6)
    )
    together = low_logits(segmenter, image, bucket)
    alone = torch.cat([low_logits(segmenter, image, (p,)) for p in bucket])
    assert alone.abs().max() > 0.1
    assert (together - alone).abs().max() < 1e-4
    embedding = segmenter.encode(image)
    masks = segmenter.decode(embedding, PROMPTS).masks
    single = torch.cat([segmenter.decode(embedding, [p]).masks for p in PROMPTS])
    assert (masks == single).float().mean() > 0.999


def test_one_encoder_pass_and_one_decoder_call_a_signature(segmenter: PromptableSegmenter) -> None:
    counter = Counter(segmenter)
    embedding = segmenter.encode(noise())
    boxes = [SpatialPrompt(box=(i, 5, 50 + i, 60)) for i in range(48)]
    assert segmenter.decode(embedding, boxes).masks.shape == (48, 90, 112)
    assert (counter.encoder, counter.decoder) == (1, 1)
    assert segmenter.decode(embedding, PROMPTS * 12).masks.shape == (60, 90, 112)
    assert (counter.encoder, counter.decoder) == (1, 1 + 4)


def test_empty_negative_and_outside_prompts(segmenter: PromptableSegmenter) -> None:
    embedding = segmenter.encode(noise())
    assert segmenter.decode(embedding, ()).masks.shape == (0, 90, 112)
    only_negative = SpatialPrompt(point_coords=((5, 5),), point_labels=(0,))
    nothing = SpatialPrompt()
    both = segmenter.decode(embedding, [only_negative, nothing])
    assert not both.union.any()
    assert both.iou_predictions.tolist() == [0, 0]
    outside = SpatialPrompt(box=(-50, -50, 500, 500), point_coords=((-3, 999),), point_labels=(1,))
    clipped = SpatialPrompt(box=(0, 0, 112, 90), point_coords=((0, 90),), point_labels=(1,))
    assert np.array_equal(segmenter.decode(embedding, [outside]).union, segmenter.decode(embedding, [clipped]).union)


@pytest.mark.parametrize("size", [(1, 1), (8, 20_000), (20_000, 8), (333, 97)])
def test_images_of_any_size(segmenter: PromptableSegmenter, size: tuple[int, int]) -> None:
    prompt = SpatialPrompt(box=(0, 0, size[1], size[0]))
    result = segmenter.decode(segmenter.encode(noise(*size)), [prompt])
    assert result.masks.shape == (1, *size)


def test_sam_pads_the_shorter_side(folders: dict[str, Path]) -> None:
    """SAM scales both axes alike: a point's place in the encoder's square keeps the aspect ratio."""
    segmenter = SamSegmenter(str(folders["sam"]), device="cpu")
    assert segmenter.seen_size((100, 200)) == (128, 256)
    assert segmenter.seen_size((1, 20_000)) == (1, 256)
    logits = torch.zeros(1, 1, 64, 64)
    logits[..., :32, :] = 1  # the upper half of the square is the whole image
    assert segmenter.enlarge(logits, (100, 200)).mean() > 0.97


def test_multimask_takes_the_best(folders: dict[str, Path]) -> None:
    segmenter = Sam2Segmenter(str(folders["sam2"]), device="cpu", multimask=True)
    embedding = segmenter.encode(noise())
    inputs = {"input_boxes": torch.tensor([[[10.0, 12, 60, 50]]]) * torch.tensor([256 / 112, 256 / 90] * 2)}
    stock = segmenter.model(image_embeddings=list(embedding.features), multimask_output=True, **inputs)
    assert stock.pred_masks.shape[2] == 3
    best = stock.pred_masks[0, 0, stock.iou_scores[0, 0].argmax()]
    assert (segmenter.decode_prompts([PROMPTS[0]], embedding)[0][0] - best).abs().max() < 1e-4


def test_mask_threshold_and_dtype(folders: dict[str, Path]) -> None:
    image = noise()
    areas = []
    for threshold in (-5.0, 0.0, 5.0):
        segmenter = Sam2Segmenter(str(folders["sam2"]), device="cpu", mask_threshold=threshold)
        areas.append(int(segmenter.decode(segmenter.encode(image), PROMPTS).masks.sum()))
    assert areas[0] >= areas[1] >= areas[2]
    assert areas[0] > areas[2]
    half = Sam2Segmenter(str(folders["sam2"]), device="cpu", dtype="bfloat16")
    assert half.encode(image).features[0].dtype == torch.bfloat16
    assert half.decode(half.encode(image), PROMPTS).masks.shape == (5, 90, 112)


def test_holes_and_specks() -> None:
    mask = torch.zeros(2, 20, 20, dtype=torch.bool)
    mask[0, 2:12, 2:12] = True
    mask[0, 5:7, 5:7] = False  # a hole of 4
    mask[0, 0:1, 15:20] = True  # a speck of 5 at the border
    mask[1, 4, 4] = True  # the largest region of its mask
    tidied = tidy(mask, fill_holes=4, min_region=6)
    assert int(tidied[0].sum()) == 100
    assert int(tidied[1].sum()) == 1
    kept = tidy(mask, fill_holes=3, min_region=5)
    assert int(kept[0].sum()) == 96 + 5
    assert torch.equal(tidy(mask[:0], fill_holes=3, min_region=5), mask[:0])
    open_bay = torch.ones(1, 6, 6, dtype=torch.bool)
    open_bay[0, 0, 2] = False
    assert not tidy(open_bay, fill_holes=9, min_region=0)[0, 0, 2]


def spoken(sample: Sample, prompts: tuple[SpatialPrompt, ...], scheme: PromptConfig) -> tuple[Completion, Any]:
    height, width = sample.size
    frame = CoordinateFrame(width=width, height=height, image_width=width, image_height=height)
    text = format_answer(prompts, "t", frame, scheme)
    return Completion(token_ids=(1,), logprobs=(0.0,), text=text, finish_reason=FinishReason.STOP), frame


def rewards_with(segmenter: Any, samples: list[Sample]) -> list[float]:
    scheme = PromptConfig(positive_points=0)
    pipeline = RewardPipeline(segmenter=segmenter, reward=rubric("think2seg"), prompt=scheme, parsing=ParsingConfig())
    found = []
    for sample in samples:
        said, frame = [], None
        for shift in (0, 5, 9):
            boxes = tuple(SpatialPrompt(box=(10 + shift, 10, 40 + shift, 50 + i)) for i in range(2))
            completion, frame = spoken(sample, boxes, scheme)
            said.append(completion)
        found += [r.reward.reward for r in pipeline.run(sample, frame, said)]
    return found


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cached_rewards_are_equal_bit_for_bit(
    kind: str, folders: dict[str, Path], samples: list[Sample], tmp_path: Path, cache: str
) -> None:
    options = {"cache": cache, "cache_dir": str(tmp_path / "cache"), "device": "cpu"}
    plain = rewards_with(CLASSES[kind](str(folders[kind]), device="cpu"), samples[:3])
    cached = CLASSES[kind](str(folders[kind]), **options)
    counter = Counter(cached)
    assert rewards_with(cached, samples[:3]) == plain
    assert counter.encoder == 3
    assert rewards_with(cached, samples[:3]) == plain
    assert counter.encoder == 3
    again = CLASSES[kind](str(folders[kind]), **options)
    counter = Counter(again)
    assert rewards_with(again, samples[:3]) == plain
    assert counter.encoder == (0 if cache == "disk" else 3)


def test_the_ram_cache_forgets_the_least_recently_used() -> None:
    cache = RamCache(cap=3 * 400)
    entries = {name: (torch.full((100,), float(i)),) for i, name in enumerate("abcd")}
    for name in "abc":
        cache.put(name, entries[name])
    assert cache.get("a") is not None
    cache.put("d", entries["d"])
    assert cache.get("b") is None
    assert torch.equal(cache.get("a")[0], entries["a"][0])
    assert cache.used == 1200


def test_keys_tell_images_weights_and_dtypes_apart() -> None:
    cache = RamCache(cap=1)
    flat = np.zeros((4, 6, 3), dtype=np.uint8)
    keys = {
        cache.key_of(flat, "w", "float32"), cache.key_of(flat.reshape(6, 4, 3), "w", "float32"),
        cache.key_of(flat + 1, "w", "float32"), cache.key_of(flat, "v", "float32"), cache.key_of(flat, "w", "bfloat16"),
    }  # fmt: skip
    assert len(keys) == 5


def test_the_disk_cache_mends_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = DiskCache(10_000, tmp_path)
    entry = (torch.arange(100.0), torch.ones(3, dtype=torch.bfloat16))
    cache.put(f"{0:040x}", entry)
    assert all(torch.equal(x, y) for x, y in zip(cache.get(f"{0:040x}") or (), entry, strict=True))
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        assert cache.get(f"{0:040x}") is None
    assert "is damaged" in caplog.text
    cache.put(f"{0:040x}", entry)
    assert cache.get(f"{0:040x}") is not None
    for i in range(40):
        cache.put(f"{i:040x}", entry)
    assert sum(p.stat().st_size for p in tmp_path.glob("*")) <= 10_000
    assert not list(tmp_path.glob(".*"))
    assert DiskCache(10_000, tmp_path).get(f"{39:040x}") is not None


class Fragile(GrabCutSegmenter):
    """Fails on prompts whose box starts in the leftmost ten columns, and with them on the whole call."""

    def decode(self, embedding: Any, prompts: Any) -> MaskPrediction:
        if any(p.box is not None and p.box[0] < 10 for p in prompts):
            raise RuntimeError("a bad prompt")
        return super().decode(embedding, prompts)


def test_a_bad_prompt_costs_its_own_completion(samples: list[Sample]) -> None:
    scheme = PromptConfig(positive_points=0)
    good = [(SpatialPrompt(box=(20 + i, 15, 60, 70)),) for i in range(15)]
    bad = (SpatialPrompt(box=(30, 15, 60, 70)), SpatialPrompt(box=(2, 2, 30, 30)))
    sample = next(s for s in samples if s.weak_labels)
    completions, frame = [], None
    for prompts in [*good[:7], bad, *good[7:]]:
        completion, frame = spoken(sample, prompts, scheme)
        completions.append(completion)
    found = {}
    for name, segmenter in (("fragile", Fragile()), ("sound", GrabCutSegmenter())):
        pipeline = RewardPipeline(
            segmenter=segmenter, reward=rubric("think2seg"), prompt=scheme, parsing=ParsingConfig()
        )
        found[name] = pipeline.run(sample, frame, completions)
    assert found["fragile"][7].masks.error == "RuntimeError: a bad prompt"
    assert found["fragile"][7].reward.terms["mask_iou"] == 0
    for place in (*range(7), *range(8, 16)):
        assert np.array_equal(found["fragile"][place].masks.union, found["sound"][place].masks.union)
        assert found["fragile"][place].reward == found["sound"][place].reward


class Broken(GrabCutSegmenter):
    """Cannot encode."""

    def encode(self, image: Image) -> Any:
        raise ValueError("no such image")


def test_a_failing_encoder_is_data_and_a_bug_is_loud(samples: list[Sample]) -> None:
    scheme = PromptConfig(positive_points=0)
    completion, frame = spoken(samples[0], PROMPTS[:1], scheme)
    pipeline = RewardPipeline(segmenter=Broken(), reward=rubric("think2seg"), prompt=scheme, parsing=ParsingConfig())
    assert pipeline.run(samples[0], frame, [completion])[0].masks.error == "ValueError: no such image"
    pipeline = RewardPipeline(segmenter=None, reward=rubric("think2seg"), prompt=scheme, parsing=ParsingConfig())  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        pipeline.run(samples[0], frame, [completion])


def test_equal_prompts_are_decoded_once(samples: list[Sample]) -> None:
    asked: list[int] = []

    class Counting(GrabCutSegmenter):
        def decode(self, embedding: Any, prompts: Any) -> MaskPrediction:
            asked.append(len(prompts))
            return super().decode(embedding, prompts)

    scheme = PromptConfig(positive_points=0)
    completion, frame = spoken(samples[0], PROMPTS[:1], scheme)
    pipeline = RewardPipeline(segmenter=Counting(), reward=rubric("think2seg"), prompt=scheme, parsing=ParsingConfig())
    pipeline.run(samples[0], frame, [completion] * 8)
    assert asked == [1]


def test_out_of_memory_halves_the_chunk(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = Sam2Segmenter(str(folders["sam2"]), device="cpu")
    embedding = segmenter.encode(noise())
    prompts = [SpatialPrompt(box=(i, 5, 50 + i, 60)) for i in range(20)]
    expected = segmenter.decode(embedding, prompts).masks
    sizes: list[int] = []
    stock = segmenter.decode_prompts

    def limited(some: Any, embedding: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 6:
            raise torch.OutOfMemoryError("out of memory")
        return stock(some, embedding)

    monkeypatch.setattr(segmenter, "decode_prompts", limited)
    with caplog.at_level(logging.WARNING):
        found = segmenter.decode(embedding, prompts).masks
    assert sizes == [20, 10, 5, 5, 5, 5]
    assert (found == expected).float().mean() > 0.999
    assert "going on with segmenter.decode_chunk=5" in caplog.text


CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"


@pytest.mark.parametrize(
    ("error", "sizes", "message"),
    [
        (torch.OutOfMemoryError("none left"), [3, 1], r"one at a time of: prompts; .*segmenter\.device"),
        (RuntimeError(CPU_MEMORY), [3, 1], r"one at a time of: prompts; .*segmenter\.device"),
        (RuntimeError("the weights are gone"), [3], "the weights are gone"),
    ],
)
def test_memory_for_not_one_prompt_is_said(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception, sizes: list[int], message: str
) -> None:
    segmenter = Sam2Segmenter(str(folders["sam2"]), device="cpu")
    embedding = segmenter.encode(noise())
    tried: list[int] = []

    def broken(some: Any, _: Any) -> None:
        tried.append(len(some))
        raise error

    monkeypatch.setattr(segmenter, "decode_prompts", broken)
    with pytest.raises(RuntimeError, match=message):
        segmenter.decode(embedding, [SpatialPrompt(box=(i, 5, 50 + i, 60)) for i in range(3)])
    assert tried == sizes


# ---- weights


def original_of(state: Mapping[str, Tensor], rename: Any, names: list[str]) -> dict[str, Tensor]:
    """Original names for the port's tensors, by trying ``names`` through the key map."""
    found: dict[str, Tensor] = {}
    for name in names:
        renamed = rename({name: torch.zeros(1)})
        for target in renamed:
            if target in state:
                found[name] = state[target]
    return found


def sam_names(layers: int) -> list[str]:
    """The names of Meta's SAM checkpoints, as build_sam.py and its modules define them."""
    names = ["image_encoder.pos_embed"]
    names += [f"image_encoder.patch_embed.proj.{p}" for p in ("weight", "bias")]
    for i in range(layers):
        block = f"image_encoder.blocks.{i}"
        names += [f"{block}.attn.rel_pos_{axis}" for axis in "hw"]
        names += [f"{block}.{m}.{p}" for m in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
                  for p in ("weight", "bias")]  # fmt: skip
    names += ["image_encoder.neck.0.weight", "image_encoder.neck.2.weight"]
    names += [f"image_encoder.neck.{i}.{p}" for i in (1, 3) for p in ("weight", "bias")]
    names += ["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
    names += ["prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight"]
    names += [f"prompt_encoder.mask_downscaling.{i}.{p}" for i in (0, 1, 3, 4, 6) for p in ("weight", "bias")]
    return names + decoder_names("mask_decoder", heads=("iou_prediction_head",))


def decoder_names(decoder: str, heads: tuple[str, ...]) -> list[str]:
    both = ("weight", "bias")
    names = [f"{decoder}.iou_token.weight", f"{decoder}.mask_tokens.weight"]
    attention = [f"{a}.{q}_proj" for a in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
                 for q in ("q", "k", "v", "out")]  # fmt: skip
    for i in range(2):
        layer = f"{decoder}.transformer.layers.{i}"
        names += [f"{layer}.{m}.{p}" for m in (*attention, *(f"norm{n}" for n in range(1, 5))) for p in both]
        mlp = ("lin1", "lin2") if decoder == "mask_decoder" else ("layers.0", "layers.1")
        names += [f"{layer}.mlp.{m}.{p}" for m in mlp for p in both]
    last = f"{decoder}.transformer"
    names += [f"{last}.final_attn_token_to_image.{q}_proj.{p}" for q in ("q", "k", "v", "out") for p in both]
    names += [f"{last}.norm_final_attn.{p}" for p in both]
    names += [f"{decoder}.output_upscaling.{i}.{p}" for i in (0, 1, 3) for p in both]
    names += [
        f"{decoder}.output_hypernetworks_mlps.{i}.layers.{j}.{p}" for i in range(4) for j in range(3) for p in both
    ]
    return names + [f"{decoder}.{head}.layers.{j}.{p}" for head in heads for j in range(3) for p in both]


def sam2_names(stages: list[int]) -> list[str]:
    """The names of Meta's SAM 2.1 checkpoints, what only video needs apart."""
    both = ("weight", "bias")
    names = ["image_encoder.trunk.pos_embed", "image_encoder.trunk.pos_embed_window", "no_mem_embed"]
    names += [f"image_encoder.trunk.patch_embed.proj.{p}" for p in both]
    for i in range(sum(stages)):
        block = f"image_encoder.trunk.blocks.{i}"
        parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.layers.0", "mlp.layers.1")
        names += [f"{block}.{m}.{p}" for m in parts for p in both]
    for first in (sum(stages[:k]) for k in range(1, 4)):
        names += [f"image_encoder.trunk.blocks.{first}.proj.{p}" for p in both]
    names += [f"image_encoder.neck.convs.{i}.conv.{p}" for i in range(4) for p in both]
    names += ["sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"sam_prompt_encoder.point_embeddings.{i}.weight" for i in range(4)]
    names += ["sam_prompt_encoder.not_a_point_embed.weight", "sam_prompt_encoder.no_mask_embed.weight"]
    names += [f"sam_prompt_encoder.mask_downscaling.{i}.{p}" for i in (0, 1, 3, 4, 6) for p in both]
    names += [f"sam_mask_decoder.{m}.{p}" for m in ("conv_s0", "conv_s1") for p in both]
    names += ["sam_mask_decoder.obj_score_token.weight"]
    return names + decoder_names("sam_mask_decoder", heads=("iou_prediction_head", "pred_obj_score_head"))


SIZES = {  # parameters of the image part, in millions
    "sam_vit_b": 93.7, "sam_vit_l": 312.3, "sam_vit_h": 641.1, "sam2_hiera_tiny": 38.9 - 7.2,
    "sam2_hiera_small": 46.0 - 7.2, "sam2_hiera_base_plus": 80.8 - 7.2, "sam2_hiera_large": 224.4 - 7.2,
}  # fmt: skip


@pytest.mark.parametrize("option", sorted(p.stem for p in CONF.glob("sam*_*_*.yaml")))
def test_published_architectures_take_original_names(option: str) -> None:
    """Every size on the meta device: its parameters, and each of Meta's names has its place with its shape."""
    made = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    kind = CLASSES["sam" if option.startswith("sam_") else "sam2"]
    architecture = kind.ARCHITECTURES[made["architecture"]]
    with torch.device("meta"):
        model = build(kind.MODEL, architecture)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(SIZES[option.replace("sam2_1", "sam2")], rel=0.02)
    if kind is SamSegmenter:
        names = sam_names(architecture["vision_config"]["num_hidden_layers"])
    else:
        names = sam2_names(architecture["vision_config"]["backbone_config"]["blocks_per_stage"])
    places = set(kind.rename({n: torch.empty(1, 1) for n in names}))
    assert places == set(model.state_dict())


def original(kind: str, folder: Path) -> dict[str, Tensor]:
    """The tiny model's weights under Meta's names."""
    state = load_file(folder / "model.safetensors")
    if kind == "sam":
        named = original_of(state, SamSegmenter.rename, sam_names(2))
        return named
    named = original_of(state, Sam2Segmenter.rename, sam2_names([1, 1, 2, 1]))
    points = state["prompt_encoder.point_embed.weight"]
    named |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": points[i : i + 1] for i in range(4)}
    return named | {"memory_encoder.fuser.weight": torch.zeros(3)}


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_original_files_give_the_same_logits(
    kind: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.AutoConfig.from_pretrained(folders[kind]).to_dict()
    monkeypatch.setitem(CLASSES[kind].ARCHITECTURES, "tiny", config)  # type: ignore[arg-type]
    path = tmp_path / "tiny.pt"
    state = original(kind, folders[kind])
    torch.save({"model": state} if kind == "sam2" else state, path)
    ported = CLASSES[kind](str(folders[kind]), device="cpu")
    loaded = CLASSES[kind](str(path), architecture="tiny", allow_pickle_weights=True, device="cpu")
    found, expected = (low_logits(s, noise(), PROMPTS[:1]) for s in (loaded, ported))
    assert expected.abs().max() > 0.1
    assert (found - expected).abs().max() < 1e-5 * float(expected.abs().max())


def test_what_is_wrong_with_weights_is_said(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.AutoConfig.from_pretrained(folders["sam2"]).to_dict()
    monkeypatch.setitem(Sam2Segmenter.ARCHITECTURES, "small_one", config)  # type: ignore[arg-type]
    state = original("sam2", folders["sam2"])
    path = tmp_path / "w.pt"

    def load(content: Any, **more: Any) -> Sam2Segmenter:
        torch.save(content, path)
        return Sam2Segmenter(str(path), **{"architecture": "small_one", "allow_pickle_weights": True, **more})

    load({"model": state})
    with pytest.raises(ConfigError, match=r"is a pickle; trust it with segmenter\.allow_pickle_weights=true"):
        load(state, allow_pickle_weights=False)
    with pytest.raises(ConfigError, match=r"segmenter\.architecture=None: must be one of hiera_tiny, hiera_small"):
        load(state, architecture=None)
    fewer = {k: v for k, v in state.items() if "blocks.1" not in k} | {"surplus": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"missing: .*blocks\.1.* and \d+ more; unexpected: surplus"):
        load(fewer)
    name = "image_encoder.trunk.blocks.0.norm1.weight"
    with pytest.raises(
        ConfigError, match=r"of another shape: vision_encoder\.backbone\.blocks\.0\.layer_norm1\.weight"
    ):
        load(state | {name: torch.zeros(3)})
    with pytest.raises(ConfigError, match="is no checkpoint of weights"):
        load([1, 2])
    with pytest.raises(ConfigError, match="the weights do not fit"):
        load(state, architecture="hiera_tiny")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="is damaged, or holds more than tensors"):
        Sam2Segmenter(str(path), architecture="small_one", allow_pickle_weights=True)
    with pytest.raises(ConfigError, match="no such file"):
        Sam2Segmenter(str(tmp_path / "none.pt"), architecture="small_one", allow_pickle_weights=True)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _touch, (str(self.path),)


def _touch(path: str) -> None:
    Path(path).touch()


def test_a_crafted_pickle_runs_nothing(tmp_path: Path) -> None:
    torch.save({"model": Canary(tmp_path / "canary")}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="holds more than tensors"):
        Sam2Segmenter(str(tmp_path / "w.pt"), architecture="hiera_tiny", allow_pickle_weights=True)
    assert not (tmp_path / "canary").exists()


def test_folders_are_checked(folders: dict[str, Path], tmp_path: Path) -> None:
    for path, reason in (("/no/such/folder", "no Sam2Model in this hub id or folder"), ("someone/unknown", "hub id")):
        with pytest.raises(ConfigError, match=rf"segmenter\.path='{path}': .*{reason}"):
            Sam2Segmenter(path)
    with pytest.raises(ConfigError, match="holds a model of type 'sam', must hold 'sam2'"):
        Sam2Segmenter(str(folders["sam"]))
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.json").write_text((folders["sam2"] / "config.json").read_text())
    weights = load_file(folders["sam2"] / "model.safetensors")
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"holds a pickle \(pytorch_model\.bin\).*segmenter\.allow_pickle_weights=true"
    ):
        Sam2Segmenter(str(copy))
    assert Sam2Segmenter(str(copy), allow_pickle_weights=True).side == 256
    fewer = {k: v for k, v in weights.items() if "mask_decoder" not in k}
    save_file(fewer, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"do not fit the model; missing: mask_decoder\..* and \d+ more"):
        Sam2Segmenter(str(copy))
    (copy / "model.safetensors").write_bytes((folders["sam2"] / "model.safetensors").read_bytes()[:4000])
    with pytest.raises(ConfigError, match="a weights file is damaged"):
        Sam2Segmenter(str(copy))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"device": "tpu"}, r"segmenter\.device='tpu'"),
        ({"dtype": "int8"}, r"segmenter\.dtype='int8'"),
        ({"backend": "jax"}, r"segmenter\.backend='jax'"),
        ({"cache": "off"}, r"segmenter\.cache='off': must be one of none, ram, disk"),
        ({"decode_chunk": 0}, r"segmenter\.decode_chunk=0"),
        ({"cache_mb": 0}, r"segmenter\.cache_mb=0"),
        ({"fill_holes": -1}, r"segmenter\.fill_holes=-1"),
        ({"cache": "disk", "cache_dir": "/proc/no"}, r"segmenter\.cache_dir='/proc/no': cannot be made"),
    ],
)
def test_bad_options_name_their_key(folders: dict[str, Path], options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Sam2Segmenter(str(folders["sam2"]), **options)


def test_what_is_not_installed_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sam3TrackerSegmenter, "MODEL", "Sam9Model")
    with pytest.raises(ConfigError, match=r"transformers [\d.]+ has no Sam9Model; pip install --upgrade transformers"):
        Sam3TrackerSegmenter(str(folders["sam3"]))
    with pytest.raises(ConfigError, match="original files of SAM 3 are not read"):
        Sam3TrackerSegmenter.rename({})
    if not re.search("sam2", str(transformers.__file__)) and sam2_module:
        with pytest.raises(ConfigError, match=r"segmenter\.(backend='sam2'|path)"):
            Sam2Segmenter("none.pt", architecture="hiera_tiny", backend="sam2", allow_pickle_weights=True)


def test_the_benchmarks_two_loops_agree(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`grasp-rl bench segment` times the same rewards made in two ways, and counts what each costs."""
    monkeypatch.setattr(segment, "SIDE", 1024 // 2)
    segmenter = Sam2Segmenter(str(folders["sam2"]), device="cpu")
    pipeline = RewardPipeline(
        segmenter=segmenter, reward=Rubric({"mask": MaskIou()}), prompt=segment.SCHEME, parsing=ParsingConfig()
    )
    counter = segment.Counter(segmenter)
    sample, frame, completions = segment.task(4, 1)
    ours = [r.reward.reward for r in pipeline.run(sample, frame, completions)]
    assert counter.take() == {"encoder": 1, "decoder": 1}
    theirs = segment.per_completion(pipeline, sample, frame, completions)
    assert counter.take() == {"encoder": 4, "decoder": 4}
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_drawn_scenes_go_through(folders: dict[str, Path]) -> None:
    sample = SyntheticSource().split("test")[0]
    segmenter = Sam2Segmenter(str(folders["sam2"]), device="cpu")
    prediction = segmenter.decode(segmenter.encode(sample.image), sample.weak_labels or ())
    assert sample.target_mask is not None
    both = np.count_nonzero(prediction.union & sample.target_mask)
    either = np.count_nonzero(prediction.union | sample.target_mask)
    assert prediction.iou(sample.target_mask) == pytest.approx(both / either)
    with pytest.raises(ValueError, match="a target of"):
        prediction.iou(np.zeros((3, 3), dtype=bool))

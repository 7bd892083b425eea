"""Every model family on a tiny checkpoint of its real class: what goes in, what comes out, against the stock code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from transformers import AutoModelForImageTextToText
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.policies import backbones
from grasp_rl.policies.backbones import base
from grasp_rl.policies.backbones.base import Backbone, ImageSize, backbone_of
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.types import EncodedPrompt
from grasp_rl.prompts.parse import parse
from grasp_rl.prompts.render import build_messages, format_answer
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.types import Completion, FinishReason, ParseStatus, SpatialPrompt

SCHEMES = Path(__file__).parents[1] / "conf/prompt"
PROMPT = PromptConfig(positive_points=1)
SQUARES = {"qwen2_5_vl": 112, "qwen3_vl": 128, "internvl": 112, "llava": 100, "llava_onevision": 112}
"""A side that each tiny checkpoint can see."""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tiny_models.build(name, tmp_path_factory.mktemp(name)) for name in tiny_models.FAMILIES}


@pytest.fixture(params=tiny_models.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(family: str, checkpoints: dict[str, Path]) -> HfVlmPolicy:
    return HfVlmPolicy(str(checkpoints[family]), ImageSize(), dtype="float32", train_vision_encoder=True)


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)


def stock_inputs(policy: HfVlmPolicy, prompt: EncodedPrompt, completion: tuple[int, ...] = ()) -> dict[str, Any]:
    """The keywords that plain transformers takes for the prompt and a completion."""
    row = torch.cat([prompt.input_ids, torch.tensor(completion, dtype=torch.long)])[None]
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), **prompt.inputs}
    if "image_grid_thw" in prompt.inputs:
        inputs["mm_token_type_ids"] = (row == policy.image_token_id).int()
    return inputs


@pytest.mark.parametrize("name", [*(path.stem for path in sorted(SCHEMES.glob("*.yaml"))), "point_labels"])
def test_every_scheme_shows_an_example_that_it_reads(name: str, family: str, policy: HfVlmPolicy) -> None:
    """The example in the question, in the family's own frame, read back: within half a unit of what it is made of."""
    labels = {"scheme": name, "answer": "labels", "box": False, "positive_points": 0, "fence": False}
    option = labels if name == "point_labels" else yaml.safe_load((SCHEMES / f"{name}.yaml").read_text())
    scheme = PromptConfig(**option | {"template": "think2seg"})
    more = [image(84, 84)] * 2 if scheme.answer == "choice" else []
    points = [(50.0, 20.0), (3.0, 90.0)] if scheme.answer == "labels" else []
    prompt = policy.encode(image(100, 140), "the roofs", scheme, more, points)
    assert int((prompt.input_ids == policy.image_token_id).sum()) == len(policy.encode_images([prompt])[0].tokens)
    text = prompt.messages[-1]["content"][-1]["text"]
    answer = parse(text[text.rindex("<think>") :], scheme, prompt.frame, ParsingConfig(nms_iou=1.0))
    assert answer.status is ParseStatus.OK
    if scheme.answer == "labels":
        unit = prompt.frame.scale
        spoken = [[int(x / unit[0]), int(y / unit[1])] for x, y in points]
        assert json.dumps(spoken, separators=(",", ":")) in text
    if scheme.answer not in ("instances", "boxes"):
        return
    meant = [(14.0, 15.0, 49.0, 40.0), (77.0, 60.0, 119.0, 90.0)]  # in 140 x 100
    half = np.tile(np.array(prompt.frame.scale) / 2 + 1e-9, 2)
    assert len(answer.prompts) == (1 if scheme.single_object else 2)
    for item, box in zip(answer.prompts, meant, strict=False):
        assert item.box is None or np.all(np.abs(np.subtract(item.box, box)) <= half)
        assert all(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in item.positive_points)


def test_packed_rows_equal_the_stock_model(policy: HfVlmPolicy) -> None:
    """Log-probabilities and gradients of [prompt | c1 | c2], images of two sizes, against one row a completion."""
    prompts = [policy.encode(image(100, 140), "the roof", PROMPT), policy.encode(image(84, 84), "a", PROMPT)]
    ids = [[(45, 46, 47), (48, 49)], [(50,), (51, 52, 53, 54)]]
    logp = policy.logprobs(policy.embed(prompts), ids).logp
    logp.sum().backward()
    found = {name: p.grad.clone() for name, p in policy.stock.named_parameters() if p.grad is not None}
    policy.zero_grad()
    for b, prompt in enumerate(prompts):
        for g, completion in enumerate(ids[b]):
            logits = policy.stock(**stock_inputs(policy, prompt, completion)).logits
            scored = torch.log_softmax(logits[0, len(prompt.input_ids) - 1 : -1], -1)
            expected = scored.gather(-1, torch.tensor(completion)[:, None])[:, 0]
            expected.sum().backward()
            assert (logp[b, g, : len(completion)] - expected).abs().max() < 1e-5
    for name, parameter in policy.stock.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().clamp(min=1)
            assert (found[name] - parameter.grad).abs().max() < 1e-5 * scale, name


def test_greedy_answers_equal_generate(policy: HfVlmPolicy) -> None:
    prompts = [policy.encode(image(100, 140), "the roof", PROMPT), policy.encode(image(84, 84), "a", PROMPT)]
    ours = policy.generate(policy.embed(prompts), None, group_size=2, max_new_tokens=12)
    first, second = (group[0] for group in ours)
    assert abs(first.logprobs[0] - second.logprobs[0]) > 1e-4  # the image and question matter
    for prompt, group in zip(prompts, ours, strict=True):
        stock = policy.stock.generate(**stock_inputs(policy, prompt), max_new_tokens=12, do_sample=False)
        expected = tuple(stock[0, len(prompt.input_ids) :].tolist())
        assert all(c.token_ids == expected for c in group)


def test_two_images_equal_the_stock_model(policy: HfVlmPolicy) -> None:
    """A question with two images of two sizes: the stock log-probabilities, as many image tokens as features."""
    prompt = policy.encode(image(100, 140), "which", PROMPT, [image(84, 84)])
    features = policy.encode_images([prompt])[0]
    assert len(features.tokens) == int((prompt.input_ids == policy.image_token_id).sum())
    completion = (45, 46, 47)
    found = policy.logprobs(policy.embed([prompt]), [[completion]]).logp[0, 0]
    logits = policy.stock(**stock_inputs(policy, prompt, completion)).logits
    scored = torch.log_softmax(logits[0, len(prompt.input_ids) - 1 : -1], -1)
    assert (found - scored.gather(-1, torch.tensor(completion)[:, None])[:, 0]).abs().max() < 1e-5
    other = policy.encode(image(100, 140), "which", PROMPT, [image(85, 85)])
    assert (policy.logprobs(policy.embed([other]), [[completion]]).logp[0, 0] - found).abs().max() > 1e-4


def test_second_turns_behind_a_shared_first_one_equal_rows_of_their_own(policy: HfVlmPolicy) -> None:
    """[prompt | turn 1 and image 2 and completion | ...] against the stock model on each conversation alone."""
    first = policy.encode(image(100, 140), "the roof", PROMPT)
    ends = policy.tokenizer.eos_token_id
    said = [
        Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text="", finish_reason=FinishReason.STOP)
        for ids in ((45, 46, ends), (47, 48, 49, 50))
    ]
    later = [
        policy.encode_next_turn(first, s, image(size, 84), "look again", PROMPT)
        for s, size in zip(said, (84, 112), strict=True)
    ]
    for turn, before in zip(later, said, strict=True):
        start = turn.shared
        assert turn.input_ids[:start].tolist() == first.input_ids.tolist()
        own = [token for token in before.token_ids if token != ends]
        assert turn.input_ids[start : start + len(own)].tolist() == own
        assert int(turn.input_ids[start + len(own)]) == ends
        seen = int((turn.input_ids == policy.image_token_id).sum())
        assert seen == len(policy.encode_images([turn])[0].tokens)
        assert turn.images[0] is first.images[0]
    answers = [(45, 46, 47), (48, 49)]
    rows = [[(*t.input_ids[t.shared :].tolist(), *a) for t, a in zip(later, answers, strict=True)]]
    context = [[len(t.input_ids) - t.shared for t in later]]
    kwargs: dict[str, Any] = {"continuations": [later], "unscored": context}
    logp, _, valid, _ = policy([first], rows, **kwargs)
    assert logp is not None
    assert valid is not None
    assert valid.sum() == sum(map(len, answers))
    logp.sum().backward()
    found = {name: p.grad.clone() for name, p in policy.stock.named_parameters() if p.grad is not None}
    policy.zero_grad()
    for g, (turn, answer) in enumerate(zip(later, answers, strict=True)):
        logits = policy.stock(**stock_inputs(policy, turn, answer)).logits
        scored = torch.log_softmax(logits[0, len(turn.input_ids) - 1 : -1], -1)
        expected = scored.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        expected.sum().backward()
        begin = context[0][g]
        assert (logp[0, g, begin : begin + len(answer)] - expected).abs().max() < 1e-5
    for name, parameter in policy.stock.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().clamp(min=1)
            assert (found[name] - parameter.grad).abs().max() < 2e-5 * scale, name


def test_an_image_token_in_an_earlier_answer_is_no_image(policy: HfVlmPolicy) -> None:
    """A policy can draw the id that stands for the image: it is read as the word that it is, and moves no position."""
    first = policy.encode(image(100, 140), "the roof", PROMPT)
    token, later = policy.image_token_id, []
    for ids in ((45, token, 46), (45, 47, 46)):
        said = Completion(token_ids=ids, logprobs=(0.0,) * 3, text="", finish_reason=FinishReason.LENGTH)
        later.append(policy.encode_next_turn(first, said, image(84, 84), "look again", PROMPT))
    drawn, plain = policy.embed(later)
    place = len(first.input_ids) + 1
    assert torch.equal(drawn.embeddings[place], policy.core.get_input_embeddings()(torch.tensor(token)))
    assert torch.equal(drawn.visual, plain.visual)
    assert torch.equal(drawn.positions, plain.positions)


def image_only(family: str, policy: HfVlmPolicy) -> Any:
    """The family's own processor without its video part, the one piece that needs torchvision."""
    stock: dict[str, Any] = {
        "qwen2_5_vl": Qwen2_5_VLProcessor, "qwen3_vl": Qwen3VLProcessor, "internvl": InternVLProcessor,
        "llava": LlavaProcessor, "llava_onevision": LlavaOnevisionProcessor,
    }  # fmt: skip

    class ImageOnly(stock[family]):  # type: ignore[misc]
        def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    words, config = policy.tokenizer, policy.stock.config
    made = ImageOnly(policy.backbone.image_processor, words)
    token = words.convert_ids_to_tokens(policy.image_token_id)
    vision = config.vision_config
    made.image_token, made.image_token_id, made.video_token = token, policy.image_token_id, "<|video_pad|>"
    made.video_token_id = words.convert_tokens_to_ids("<|video_pad|>")
    if family == "internvl":
        import re

        made.start_image_token, made.end_image_token, made.image_seq_length = "<img>", "</img>", 4
        made.start_image_token_id, made.end_image_token_id = words.convert_tokens_to_ids(["<img>", "</img>"])
        made.multimodal_pattern = re.compile(f"(?P<image>{re.escape(token)})")
    if family.startswith("llava"):
        made.patch_size, made.num_additional_image_tokens = vision.patch_size, 1
        made.vision_feature_select_strategy = config.vision_feature_select_strategy
    if family == "llava_onevision":
        made.num_image_tokens, made.vision_aspect_ratio = 16, config.vision_aspect_ratio
    return made


def test_the_question_equals_the_stock_processors(family: str, policy: HfVlmPolicy) -> None:
    """Token ids and pixels, from a square image, which LLaVA's own processor does not crop."""
    square = image(120, 120)
    prompt = policy.encode(square, "the roof", PROMPT)
    words = policy.tokenizer.apply_chat_template(
        build_messages("the roof", prompt.frame, PROMPT), tokenize=False, add_generation_prompt=True
    )
    stock = image_only(family, policy)(images=[square], text=[words], return_tensors="pt")
    assert stock["input_ids"][0].tolist() == prompt.input_ids.tolist()
    pixels = stock["pixel_values"].reshape(prompt.inputs["pixel_values"].shape)
    # LLaVA resizes with our area average instead of the processor's bicubic filter
    assert (pixels - prompt.inputs["pixel_values"]).abs().mean() < (0.6 if family == "llava" else 1e-6)


@pytest.mark.parametrize("coordinates", [None, "absolute", "thousand"])
@pytest.mark.parametrize("resize", ["keep", "square"])
@pytest.mark.parametrize("size", [(100, 140), (333, 97), (56, 56)])
def test_frames_round_trip(
    family: str, checkpoints: dict[str, Path], resize: str, coordinates: str | None, size: tuple[int, int]
) -> None:
    """A box said in the policy's frame comes back within half a unit of it."""
    area = SQUARES[family] ** 2 if resize == "square" else None
    policy = HfVlmPolicy(
        str(checkpoints[family]), ImageSize(resize=resize, max_pixels=area), coordinates=coordinates, dtype="float32"
    )
    frame = policy.encode(image(*size), "a", PROMPT).frame
    height, width = size
    assert (frame.image_height, frame.image_width) == size
    spoken = coordinates or {"qwen2_5_vl": "absolute"}.get(family, "thousand")
    if spoken == "thousand":
        assert (frame.width, frame.height) == (1000, 1000)
    elif resize == "square":
        assert (frame.width, frame.height) == (SQUARES[family], SQUARES[family])
    box = (0.2 * width, 0.1 * height, 0.7 * width, 0.9 * height)
    said = format_answer(
        [SpatialPrompt(box=box, point_coords=((0.5 * width, 0.5 * height),), point_labels=(1,))], "t", frame, PROMPT
    )
    read = parse(said, PROMPT, frame, ParsingConfig()).prompts[0]
    assert read.box is not None
    for found, true, unit in zip(read.box, box, (*frame.scale, *frame.scale), strict=True):
        assert abs(found - true) <= 0.5 * unit + 1e-6


@pytest.mark.parametrize(("family", "area"), [("qwen2_5_vl", 56 * 56 * 2), ("qwen3_vl", 64 * 64 * 2),
                                              ("internvl", 56 * 56 * 2), ("llava_onevision", 56 * 112)])  # fmt: skip
def test_fewer_pixels_give_fewer_tokens(checkpoints: dict[str, Path], family: str, area: int) -> None:
    """``policy.image.max_pixels`` is the knob against running out of memory."""
    counts = []
    for bound in (None, area):
        policy = HfVlmPolicy(str(checkpoints[family]), ImageSize(max_pixels=bound), dtype="float32")
        prompt = policy.encode(image(200, 200), "a", PROMPT)
        counts.append(int((prompt.input_ids == policy.image_token_id).sum()))
        policy.embed([prompt])  # as many features as tokens, or masked_scatter would not fit
    assert counts[1] < 0.7 * counts[0]


def test_min_pixels_enlarges_a_small_image(checkpoints: dict[str, Path]) -> None:
    policy = HfVlmPolicy(str(checkpoints["qwen2_5_vl"]), ImageSize(min_pixels=40 * 28 * 28), dtype="float32")
    prompt = policy.encode(image(30, 30), "a", PROMPT)
    assert int((prompt.input_ids == policy.image_token_id).sum()) >= 40


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda _: ImageSize(resize="crop"), r"policy\.image\.resize='crop'"),
        (lambda _: ImageSize(min_pixels=0), r"policy\.image\.min_pixels=0"),
        (lambda _: ImageSize(min_pixels=9, max_pixels=4), r"policy\.image\.min_pixels=9.*max_pixels=4"),
        (lambda _: ImageSize(resize="square"), r"policy\.image\.max_pixels=null"),
        (lambda c: HfVlmPolicy(str(c["llava"]), ImageSize(max_pixels=99)), "sees one size only"),
        (lambda c: HfVlmPolicy(str(c["llava_onevision"]), ImageSize(max_pixels=99)), "no canvas of this checkpoint"),
        (lambda c: HfVlmPolicy(str(c["llava"]), ImageSize(), coordinates="unit"), r"policy\.coordinates='unit'"),
        (lambda c: HfVlmPolicy(str(c["llava"]), ImageSize(), lora_rank=2, lora_targets=["x_proj"]), "'x_proj' is no"),
    ],
)
def test_bad_settings_name_their_key(checkpoints: dict[str, Path], make: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        make(checkpoints)


def test_a_ribbon_keeps_its_aspect_only_up_to_a_point(checkpoints: dict[str, Path]) -> None:
    policy = HfVlmPolicy(str(checkpoints["qwen2_5_vl"]), ImageSize(), dtype="float32")
    with pytest.raises(ConfigError, match=r"policy\.image\.resize=keep: an image of 20000 x 8 pixels"):
        policy.encode(image(8, 20_000), "a", PROMPT)
    squared = HfVlmPolicy(str(checkpoints["qwen2_5_vl"]), ImageSize(resize="square", max_pixels=112**2))
    assert squared.encode(image(8, 20_000), "a", PROMPT).frame.image_width == 20_000
    assert squared.encode(image(1, 1), "a", PROMPT).frame.image_width == 1


def test_a_question_cannot_hold_an_image(policy: HfVlmPolicy) -> None:
    token = policy.tokenizer.convert_ids_to_tokens(policy.image_token_id)
    with pytest.raises(ConfigError, match="stands for the image; reword it"):
        policy.encode(image(60, 60), f"{token} what", PROMPT)


def test_a_prompt_longer_than_the_context_is_refused(checkpoints: dict[str, Path]) -> None:
    policy = HfVlmPolicy(str(checkpoints["qwen2_5_vl"]), ImageSize(), dtype="float32")
    count = len(policy.encode(image(60, 60), "a", PROMPT).input_ids)
    policy.core.language_model.config.max_position_embeddings = count
    with pytest.raises(
        ConfigError, match=rf"take {count} tokens, the model's context has {count}; lower policy\.image"
    ):
        policy.encode(image(60, 60), "a", PROMPT)


def test_one_file_and_one_option_for_each_family() -> None:
    """Common code names no family; each module of ``backbones`` is a family that transformers knows and a test builds."""
    folder = Path(next(iter(backbones.__path__)))
    files = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "base"))
    assert files == sorted(tiny_models.FAMILIES)
    for name in files:
        assert name in transformers.CONFIG_MAPPING
        assert issubclass(backbone_of(name), Backbone)
    common = [p for p in Path(base.__file__).parent.glob("*.py") if p.stem not in ("tiny",)]
    for path in common:
        code = [line for line in path.read_text().splitlines() if line.lstrip().startswith(("if ", "elif ", "match "))]
        assert not [line for line in code if any(word in line.lower() for word in ("qwen", "llava", "internvl"))]
    with pytest.raises(ConfigError, match="a model of type 'bert'; must be one of internvl, llava"):
        backbone_of("bert")


CONF = Path(__file__).parents[1] / "conf/policy"


@pytest.mark.parametrize(
    "option", sorted(p.stem for p in CONF.glob("*.yaml") if not p.stem.startswith(("tiny", "hf_vlm", "_")))
)
def test_published_shapes(option: str) -> None:
    """Each option's published architecture builds on the meta device with its published number of parameters."""
    from grasp_rl.policies.published import PUBLISHED

    published = PUBLISHED[option]
    assert yaml.safe_load((CONF / f"{option}.yaml").read_text())["path"] == published.hub_id
    config = transformers.AutoConfig.for_model(published.model_type, **published.config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(published.parameters, rel=0.01)
    family = backbone_of(published.model_type)
    for part in family.vision_encoder:
        assert hasattr(model.model, part)

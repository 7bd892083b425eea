"""fit-segmenter: the prompts drawn, the loss, going on to the bit, what is refused; and the weights that are shipped."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PROMPT_KINDS, CheckpointConfig, EvaluationConfig, FitConfig, RunConfig
from grasp_rl.config.targets import instantiate
from grasp_rl.data.image_io import write_image
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.interfaces import Components
from grasp_rl.launch.compose import option
from grasp_rl.runs import checkpoints
from grasp_rl.segmenters.grabcut import GrabCutSegmenter
from grasp_rl.segmenters.sam import SamSegmenter
from grasp_rl.segmenters.sam2 import Sam2Segmenter
from grasp_rl.segmenters.synthetic.build import ARCHITECTURES, packaged
from grasp_rl.training.fit_scores import prompts_of, score
from grasp_rl.training.fit_segmenter import draw_scenes, mask_losses, on_canvas, run
from grasp_rl.training.prompt_mix import Layout, distorted, draw_layout, draw_prompt
from grasp_rl.utils.keyed_rng import keyed_generator

FIT = FitConfig(steps=3, blind_steps=1, images=1, prompts=2, multimask_every=2, log_every=2)


def fit(
    run_dir: Path, segmenter: Any, data: Any, settings: FitConfig = FIT, *, resume: bool = False, cache: str = "none"
) -> dict[str, Any]:
    config = RunConfig(
        command="fit-segmenter",
        run_dir=str(run_dir),
        resume=str(run_dir) if resume else None,
        segmenter={"path": "random:sam2_tiny", "cache": cache},
        data={"_target_": "a test"},
        fit=settings,
        evaluation=EvaluationConfig(every=2, val_limit=1, test_limit=1),
        checkpoint=CheckpointConfig(every=2, keep_last=5),
    )
    parts: dict[str, Any] = dict.fromkeys(Components.__dataclass_fields__)
    return run(config, Components(**(parts | {"segmenter": segmenter, "data": data})))


def small(name: str = "sam2_tiny", **options: Any) -> Any:
    kind = Sam2Segmenter if name.startswith("sam2") else SamSegmenter
    return kind(path=f"random:{name}", device="cpu", **options)


# ---------------------------------------------------------------------------------------------------- what is shipped
@pytest.mark.parametrize("name", ["sam2_small", "sam2_tiny", "sam2_large", "sam_base", "sam_huge"])
def test_the_shipped_weights_segment_drawn_scenes(source: SyntheticSource, name: str) -> None:
    segmenter = instantiate(option(f"segmenter/synthetic_{name}"))
    found = score(segmenter, source.split("test"), 16)
    assert found["tight"] > 0.82
    assert found["box_2points"] > 0.82
    assert found["shifted"] > 0.7
    assert found["points"] > 0.7
    folder = packaged(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4e6
    assert f"fit-segmenter experiment=synthetic_{name}" in (folder / "MODEL_CARD.md").read_text()


# ------------------------------------------------------------------------------------------------------- the prompts
def drawn(kind: str, count: int = 200) -> list[Any]:
    """Prompts of one kind for an instance of rows 10..29 and columns 20..59 of an image of 64 x 80."""
    mask = np.zeros((64, 80), dtype=np.bool_)
    mask[10:30, 20:60] = True
    mix, rng = {kind: 1.0}, keyed_generator("test", kind)
    return [draw_prompt(rng, mask, draw_layout(rng, mix), mix) for _ in range(count)]


def test_boxes_by_kind() -> None:
    """Of a box of 40 x 20 at (20, 10): means over 200 draws, and what never happens."""
    edges = {kind: np.array([p.box for p in drawn(kind)]) - (20, 10, 60, 30) for kind in PROMPT_KINDS[:4]}
    assert np.abs(edges["tight"]).max() < 5 * 0.02 * 40
    outward = np.array([-1, -1, 1, 1])
    # loose: 0.1 of the side outward on average, shrunk: 0.075 inward
    np.testing.assert_allclose((edges["loose"] * outward).mean(0) / (40, 20, 40, 20), 0.1, atol=0.02)
    np.testing.assert_allclose((edges["shrunk"] * outward).mean(0) / (40, 20, 40, 20), -0.075, atol=0.02)
    moved = edges["shifted"]
    assert np.abs(moved[:, 0] - moved[:, 2]).max() < 7 * 0.02 * 40  # the width stays, but for the edges' own noise
    assert 0.15 * 40 < np.abs(moved[:, 0]).max() < 0.3 * 40
    rng = keyed_generator("a")
    assert not np.array_equal(distorted(rng, np.array([0.0, 0, 9, 9]), "tight"), np.array([0.0, 0, 9, 9]))


def test_points_by_kind() -> None:
    for kind in ("box_points", "points", "box_negatives", "point_negatives"):
        prompts = drawn(kind)
        assert {prompt.box is not None for prompt in prompts} == {kind.startswith("box")}
        counts = {(len(p.positive_points), len(p.negative_points)) for p in prompts}
        wanted = {"box_negatives": {(2, 2), (0, 1)}, "point_negatives": {(2, 2), (1, 1)}}
        assert counts == wanted.get(kind, {(1, 0), (2, 0), (4, 0)})
        for x, y in (point for p in prompts for point in p.negative_points):
            assert not (20 <= x < 60 and 10 <= y < 30)
            assert 20 - 12 <= x <= 60 + 12
            assert 10 - 6 <= y <= 30 + 6
        inside = [20 <= x <= 60 and 10 <= y <= 30 for p in prompts for x, y in p.positive_points]
        assert 0.85 < np.mean(inside) < 1  # three in ten prompts have their points off by 5 % of the side


def test_the_mix_is_drawn_by_its_weights() -> None:
    rng = keyed_generator("mix")
    layouts = [draw_layout(rng, {"tight": 3.0, "points": 1.0, "loose": 0.0}) for _ in range(400)]
    assert abs(sum(layout == Layout(box=True) for layout in layouts) / 400 - 0.75) < 0.07
    assert all(layout.positive for layout in layouts if not layout.box)
    first, again, other = (draw_layout(keyed_generator("fit", 0, n), FIT.mix) for n in (5, 5, 8))
    assert first == again != other


def test_held_out_prompts_by_hand() -> None:
    mask = np.zeros((50, 50), dtype=np.bool_)
    mask[10:30, 20:40] = True
    kinds = {kind: prompts[0] for kind, prompts in prompts_of([mask], 3).items()}
    boxes = {kind: prompt.box for kind, prompt in kinds.items()}
    assert boxes["tight"] == boxes["box_2points"] == (20, 10, 40, 30)
    assert boxes["loose"] == (16, 6, 44, 34)
    assert boxes["shrunk"] == (22, 12, 38, 28)
    assert boxes["shifted"] == (24, 14, 44, 34)
    assert boxes["points"] is None
    assert kinds["box_2pos_2neg"].point_labels == (1, 1, 0, 0)


# ---------------------------------------------------------------------------------------------------------- the loss
def test_the_best_of_three_is_trained() -> None:
    """Target all foreground; logits 0, 10 and -10: dice of the first is 1 - (2 * 8 + 1) / (8 + 16 + 1)."""
    logits = torch.tensor([0.0, 10.0, -10.0])[None, :, None, None].expand(1, 3, 4, 4).requires_grad_()
    logits.retain_grad()
    found = mask_losses(logits, torch.tensor([[0.5, 1.0, 0.0]]), torch.ones(1, 4, 4))
    assert found["iou"] == 1
    assert found["bce"].item() == pytest.approx(4.54e-5, rel=1e-2)
    assert found["iou_error"].item() == pytest.approx(0.25 / 3)
    found["loss"].backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum((0, 2, 3)) > 0).tolist() == [False, True, False]
    one = mask_losses(logits[:, :1], torch.zeros(1, 1), torch.ones(1, 4, 4))
    assert one["dice"].item() == pytest.approx(1 - 17 / 25)


def test_targets_lie_where_the_encoder_sees_the_image() -> None:
    """An image of 224 x 448 fills the upper half of SAM's canvas, and all of SAM 2's."""
    mask = np.zeros((224, 448), dtype=np.bool_)
    mask[:, 224:] = True
    below = on_canvas(small("sam_base"), [mask], (224, 448))[0]
    assert below[:56, 58:].min() == 1
    assert below[56:].max() == below[:, :54].max() == 0
    whole = on_canvas(small(), [mask], (224, 448))[0]
    assert whole[:, 58:].min() == 1
    assert whole[:, :54].max() == 0


# ---------------------------------------------------------------------------------------------------------- the run
def test_two_steps_and_one_more_are_three(tmp_path: Path, source: SyntheticSource) -> None:
    result = fit(tmp_path / "whole", small(), source)
    assert result["steps"] == 3
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(checkpoints.folder_of(tmp_path / "again", 3))
    shutil.rmtree(tmp_path / "again/segmenter")
    assert fit(tmp_path / "again", small(), source, resume=True)["test"] == result["test"]
    for name in ("metrics.jsonl", "segmenter/model.safetensors", "segmenter/config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 2, 3, 3]
    loaded = Sam2Segmenter(path=str(tmp_path / "whole/segmenter"), device="cpu")
    assert score(loaded, source.split("test"), 1)["tight"] == pytest.approx(result["test"]["tight"], abs=0.05)


@pytest.mark.parametrize("name", ["sam2_tiny", "sam_base"])
def test_only_the_mask_decoder(tmp_path: Path, source: SyntheticSource, name: str) -> None:
    segmenter = small(name)
    before = {key: value.clone() for key, value in segmenter.model.state_dict().items()}
    fit(tmp_path, segmenter, source, replace(FIT, steps=1, blind_steps=0, parts="mask_decoder"))
    moved = {key for key, value in segmenter.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(key.startswith("mask_decoder.") for key in moved)


@pytest.mark.parametrize("name", ["sam2_tiny", "sam_base"])
def test_adapters_are_trained_and_merged(tmp_path: Path, source: SyntheticSource, name: str) -> None:
    """The vision encoder moves by a product of rank 2 in its attention and nowhere else; nothing of PEFT is left."""
    segmenter = small(name)
    before = {key: value.clone() for key, value in segmenter.model.state_dict().items()}
    result = fit(tmp_path / "whole", segmenter, source, replace(FIT, steps=3, blind_steps=0, parts="lora", lora_rank=2))
    after = segmenter.model.state_dict()
    assert after.keys() == before.keys()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    encoder = {key for key in moved if not key.startswith("mask_decoder.")}
    assert encoder
    assert all(re.fullmatch(r"vision_encoder\..*\.qkv\.weight", key) for key in encoder)
    assert all(torch.linalg.matrix_rank(after[key] - before[key], rtol=1e-3) <= 2 for key in encoder)
    kind = type(segmenter)
    loaded = kind(path=str(tmp_path / "whole/segmenter"), device="cpu")
    assert score(loaded, source.split("test"), 1)["tight"] == pytest.approx(result["test"]["tight"], abs=0.05)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(checkpoints.folder_of(tmp_path / "again", 3))
    again = fit(
        tmp_path / "again", small(name), source, replace(FIT, steps=3, blind_steps=0, parts="lora", lora_rank=2),
        resume=True,
    )  # fmt: skip
    assert again["test"] == result["test"]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_decodes_at_half_the_side(name: str, source: SyntheticSource) -> None:
    segmenter = small(name)
    features = segmenter.embed(torch.zeros(2, 3, 112, 112))
    inputs = segmenter.inputs_of(prompts_of([np.ones((112, 112), dtype=np.bool_)], 0)["tight"], (112, 112))
    doubled = {key: torch.cat([value] * 2) for key, value in inputs.items()}
    output = segmenter.model(image_embeddings=segmenter.joined(features), multimask_output=False, **doubled)
    assert output.pred_masks.shape == (2, 1, 1, 56, 56)


# -------------------------------------------------------------------------------------------------------- bad input
def test_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"fit\.mix.*weights of which one is > 0"):
        FitConfig(mix={"tight": 0.0})
    with pytest.raises(ConfigError, match=r"fit\.mix='tigth'"):
        FitConfig(mix={"tigth": 1.0})
    with pytest.raises(ConfigError, match=r"fit\.mix\.loose=-1"):
        FitConfig(mix={"loose": -1.0, "tight": 2.0})
    with pytest.raises(ConfigError, match=r"random:sam2_huge.*sam2_tiny, sam2_small, sam2_large"):
        small("sam2_huge")
    with pytest.raises(ConfigError, match=r"random:sam_base.*sam2_small"):
        Sam2Segmenter(path="random:sam_base")
    with pytest.raises(ConfigError, match=r"packaged:sam9.*sam2_small, sam2_tiny, sam_base"):
        Sam2Segmenter(path="packaged:sam9")


def test_segmenters_that_cannot_be_trained(tmp_path: Path, source: SyntheticSource) -> None:
    with pytest.raises(ConfigError, match="GrabCutSegmenter has no weights to train"):
        fit(tmp_path, GrabCutSegmenter(), source)
    with pytest.raises(ConfigError, match=r"segmenter\.cache='ram'"):
        fit(tmp_path, small(), source, cache="ram")
    with pytest.raises(ConfigError, match=r"segmenter\.dtype"):
        fit(tmp_path, small(dtype="bfloat16"), source)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, source: SyntheticSource) -> None:
    segmenter = small()
    with torch.no_grad():
        segmenter.model.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"loss of step 1 is nan; lower optimizer\.lr"):
        fit(tmp_path, segmenter, source)


@pytest.mark.parametrize(("target", "told"), [("boxes", "has no mask"), ("polygons", "no foreground pixel")])
def test_masks_that_teach_nothing(tmp_path: Path, target: str, told: str) -> None:
    write_image(tmp_path / "a.png", np.zeros((30, 40, 3), dtype=np.uint8))
    row = {"id": "a", "split": "train", "image": "a.png", "query": "the pond"}
    row |= {target: [[1, 2, 9, 9]] if target == "boxes" else []}
    (tmp_path / "annotations.jsonl").write_text(json.dumps(row) + "\n")
    data = JsonlSource(root=str(tmp_path))
    with pytest.raises(ConfigError, match=told):
        draw_scenes(keyed_generator("a"), data.split("train"), FIT, seed=0, step=0)

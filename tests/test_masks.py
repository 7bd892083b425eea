"""Masks: which values mean the target, what is in doubt, and pixels that do not count."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from PIL import Image as Pillow
from rubrics import rubric
from test_rasters import write

from grasp_rl.cli import data as data_cli
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.data.annotations import AnnotationError
from grasp_rl.data.image_io import ImageError, write_image
from grasp_rl.data.masks import MaskReading, inspect_mask, read_mask
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.weak_labels import weak_labels_from_masks
from grasp_rl.evaluation.metrics import score_of
from grasp_rl.evaluation.predictions import decode_mask, record_of, remeasured
from grasp_rl.evaluation.protocols.masks import OURS
from grasp_rl.geometry import outside
from grasp_rl.interfaces import CoordinateFrame, Labels, WeakLabels
from grasp_rl.prompts.render import format_answer
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.types import Completion, FinishReason, MaskPrediction, Sample, SpatialPrompt

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIZE = (40, 60)
MEANT = np.zeros(SIZE, dtype=np.bool_)
MEANT[10:30, 15:45] = True
BORDER = np.zeros(SIZE, dtype=np.bool_)
BORDER[8:32, 13:47] = True
BORDER &= ~MEANT


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Pillow.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def coloured(target: tuple[int, ...], background: tuple[int, ...]) -> np.ndarray:
    return np.where(MEANT[..., None], np.array(target, np.uint8), np.array(background, np.uint8))


def indexed(path: Path, values: np.ndarray, *palette: int) -> Path:
    image = Pillow.fromarray(values.astype(np.uint8))
    image.putpalette([*palette, *[77] * (768 - len(palette))])
    image.save(path)
    return path


def classes(**also: int) -> np.ndarray:
    """1 in the target, 255 around it."""
    return np.where(MEANT, also.get("target", 1), np.where(BORDER, also.get("border", 255), 0)).astype(np.uint8)


def test_what_is_meant_is_read(tmp_path: Path) -> None:
    ones = MEANT.astype(np.uint8)
    holes = np.where(MEANT, 1.0, np.nan).astype(np.float32)
    no_data = np.where(MEANT, 1, 9).astype(np.uint8)
    paths = [
        save(tmp_path / "a.png", ones * 255),
        save(tmp_path / "b.png", ones),
        save(tmp_path / "c.png", ones * 255, "1"),
        save(tmp_path / "d.png", coloured((0, 0, 0, 255), (0, 0, 0, 0))),  # black, and opaque where it is meant
        save(tmp_path / "e.png", coloured((255, 255, 255, 255), (255, 255, 255, 0))),
        save(tmp_path / "f.png", np.dstack([ones * 0, ones * 255]), "LA"),
        save(tmp_path / "g.jpg", ones * 255, quality=95),
        save(tmp_path / "h.webp", ones, lossless=True),
        write(tmp_path / "i.tif", holes),
        write(tmp_path / "j.tif", no_data, nodata=9),
        write(tmp_path / "k.tif", ones, nbits=1),
        write(tmp_path / "l.tif", 1 - ones, nbits=1, photometric="MINISWHITE"),
        write(tmp_path / "m.tif", 255 - ones, photometric="MINISWHITE"),
        write(tmp_path / "n.tif", ones.astype(np.int8)),
        write(tmp_path / "o.tif", np.stack([ones * 0 + 1, ones * 255]), alpha="yes"),
        write(tmp_path / "p.tif", np.ones_like(ones), mask=MEANT),
        write(tmp_path / "q.tif", ones.astype(np.uint32)),
        write(tmp_path / "r.jp2", ones, driver="JP2OpenJPEG", reversible="yes", quality="100"),
        write(tmp_path / "s.tif", np.where(MEANT, 1, np.where(BORDER, 255, 0)).astype(np.uint8), nodata=255),
    ]
    for path in paths:
        wrong = np.count_nonzero(read_mask(path, SIZE) != MEANT)
        assert wrong <= (30 if path.suffix == ".jpg" else 0), path.name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda p: save(p / "m.png", coloured((255, 0, 0), (255, 255, 255))),
            r"without background: its values are 255, \[255, 0, 0\]",
        ),
        (lambda p: save(p / "m.png", coloured((48, 112, 32), (120, 72, 40))), r"without background: .*\[120, 72, 40\]"),
        (lambda p: save(p / "m.png", MEANT + np.uint8(1)), "without background: its values are 1, 2"),
        (lambda p: save(p / "m.png", np.full(SIZE, 255, np.uint8)), "without background: its values are 255"),
        (
            lambda p: indexed(p / "m.png", MEANT + 1, 0, 0, 0, 9, 9, 9, 8, 8, 8),
            "without background: its values are 1, 2",
        ),
        (lambda p: save(p / "m.png", classes()), "255 beside 0, 1, as if it were to be ignored"),
        (lambda p: indexed(p / "m.png", classes(), 0, 0, 0, 128, 0, 0), "255 beside 0, 1"),
        (lambda p: save(p / "m.png", np.repeat(classes()[..., None], 3, 2)), "255 beside 0, 1"),
        (lambda p: save(p / "m.png", classes(target=21)), "255 beside 0, 21"),
        (lambda p: write(p / "m.png", classes().astype(np.uint16) + np.uint16(65280) * BORDER), "65535 beside 0, 1"),
        (lambda p: write(p / "m.png", classes().astype(np.int16) - 256 * BORDER.astype(np.int16)), "-1 beside 0, 1"),
        (lambda p: write(p / "m.png", classes().astype(np.float32)), "255 beside 0, 1"),
        (lambda p: write(p / "m.png", np.where(MEANT, 0.37, 0).astype(np.float32)), "with fractions, such as 0.37"),
        (
            lambda p: save(p / "m.png", MEANT.astype(np.uint8), format="JPEG"),
            "a lossy mask whose largest value is [12], where the target begins at 128",
        ),
    ],
)
def test_what_is_in_doubt_is_named(tmp_path: Path, make: Any, said: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ImageError, match=rf"m\.png: .*{said}.*(data\.mask_foreground=|write it as|write what)"):
        read_mask(path, SIZE)
    write_dataset(tmp_path, mask="m.png")
    with pytest.raises(AnnotationError, match=rf"annotations\.jsonl:1: mask: .*{said}"):
        JsonlSource(str(tmp_path), on_doubt="raise").split("train")[0]


def test_what_is_not_in_doubt(tmp_path: Path) -> None:
    soft = np.clip(np.add.outer(np.arange(SIZE[0]), np.arange(SIZE[1])) * 4, 0, 255).astype(np.uint8)
    instances = np.where(MEANT, np.arange(SIZE[1])[None] // 16, 0).astype(np.uint8)
    for pixels in (
        soft,
        instances,
        np.zeros(SIZE, np.uint8),
        classes(border=0, target=5),
        classes(border=128, target=255),
    ):
        np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", pixels), SIZE), pixels > 0)


@pytest.mark.parametrize(
    ("make", "reading"),
    [
        (lambda p: save(p / "m.png", classes()), {"foreground": 1}),
        (lambda p: save(p / "m.png", classes()), {"foreground": [1, 7]}),
        (lambda p: save(p / "m.png", classes()), {"ignore": 255}),
        (lambda p: save(p / "m.png", classes(border=254)), {"ignore": [254, 255]}),
        (lambda p: save(p / "m.png", MEANT + np.uint8(1)), {"foreground": 2}),
        (lambda p: save(p / "m.png", coloured((255, 0, 0), (255, 255, 255))), {"foreground": [255, 0, 0]}),
        (
            lambda p: save(p / "m.png", coloured((48, 112, 32), (120, 72, 40))),
            {"foreground": [[48, 112, 32], [1, 2, 3]]},
        ),
        (lambda p: save(p / "m.png", coloured((9, 9, 9), (120, 72, 40))), {"foreground": [[9, 9, 9]]}),
        (lambda p: save(p / "m.png", np.repeat(classes()[..., None], 3, 2)), {"foreground": 1, "ignore": 255}),
        (lambda p: indexed(p / "m.png", MEANT + 1, 0, 0, 0, 9, 9, 9, 8, 7, 6), {"foreground": [[8, 7, 6]]}),
        (lambda p: indexed(p / "m.png", classes(), 0, 0, 0, 128, 0, 0), {"foreground": 1}),
        (lambda p: write(p / "m.png", classes().astype(np.int16) - 256 * BORDER.astype(np.int16)), {"ignore": -1}),
        (lambda p: write(p / "m.png", classes(), nodata=255), {"ignore": 255}),
        (lambda p: save(p / "m.png", np.full(SIZE, 255, np.uint8)), {"foreground": 255}),
        (
            lambda p: write(p / "m.png", np.where(MEANT, 2, np.where(BORDER, 0, np.nan)).astype(np.float32)),
            {"foreground": 2, "ignore": 0},
        ),
    ],
)
def test_the_config_says_what_is_meant(tmp_path: Path, make: Any, reading: dict[str, Any]) -> None:
    mask = inspect_mask(make(tmp_path), SIZE, reading=MaskReading(**reading))
    assert mask.doubt is None
    np.testing.assert_array_equal(mask.target, np.ones(SIZE, bool) if reading == {"foreground": 255} else MEANT)
    if "ignore" in reading:
        assert mask.ignored is not None
        np.testing.assert_array_equal(mask.ignored, BORDER)
    else:
        assert mask.ignored is None


def test_what_cannot_be_a_mask_or_a_value(tmp_path: Path) -> None:
    five = write(tmp_path / "five.tif", np.zeros((5, *SIZE), np.uint8), alpha="no", photometric="minisblack")
    with pytest.raises(ImageError, match="a mask of 5 bands; write one band"):
        read_mask(five, SIZE)
    graded = np.stack([MEANT * np.uint8(1), np.full(SIZE, 77, np.uint8)])
    with pytest.raises(ImageError, match="a mask of 2 bands, the last of which is graded"):
        read_mask(write(tmp_path / "two.tif", graded, alpha="yes"), SIZE)
    with pytest.raises(ImageError, match=r"lossy file, which does not keep values, for data\.mask_foreground"):
        read_mask(save(tmp_path / "m.jpg", classes()), SIZE, reading=MaskReading(foreground=1))
    with pytest.raises(ImageError, match="a mask in colours of float32"):
        read_mask(write(tmp_path / "f.tif", np.zeros((3, *SIZE), np.float32), photometric="RGB"), SIZE)
    for wrong in ("red", [], 1.5, True, [[1, 2]], [[1, 2, -3]]):
        with pytest.raises(
            ConfigError, match=r"data\.mask_foreground=.*must be a whole number, a list of such, a colour"
        ):
            MaskReading(foreground=wrong)
        with pytest.raises(ConfigError, match=r"data\.ignore_value="):
            MaskReading(ignore=wrong)


def test_a_turned_mask_is_turned_with_its_image(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    for name, pixels in (("a.tif", classes()), ("a.png", classes())):
        path = save(tmp_path / name, pixels, exif=exif)
        mask = inspect_mask(path, (SIZE[1], SIZE[0]), reading=MaskReading(ignore=255))
        np.testing.assert_array_equal(mask.target, np.rot90(MEANT, -1))
        np.testing.assert_array_equal(mask.ignored, np.rot90(BORDER, -1))


def write_dataset(folder: Path, count: int = 1, **changes: Any) -> Path:
    """A folder with one image of 8 bits and one of four bands of 16, asked about in turn."""
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    write_image(folder / "a.png", noise)
    deep = np.concatenate([noise, noise[..., :1]], axis=2).transpose(2, 0, 1).astype(np.uint16) * 8
    write(folder / "b.tif", deep, photometric="RGB", alpha="unspecified")
    rows = [
        {
            "id": f"r{n}",
            "image": "ab"[n % 2] + (".png", ".tif")[n % 2],
            "query": "where?",
            "split": "train",
            "mask": "m.png",
        }
        for n in range(count)
    ]
    (folder / "annotations.jsonl").write_text("".join(json.dumps(row | changes) + "\n" for row in rows))
    return folder


def test_a_doubt_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "m.png", classes())
    split = JsonlSource(str(write_dataset(tmp_path, 3))).split("train")
    with caplog.at_level(logging.WARNING):
        samples = [split[index] for index in range(3)]
    assert [int(sample.target_mask.sum()) for sample in samples] == [int((MEANT | BORDER).sum())] * 3
    assert caplog.text.count("255 beside 0, 1, as if it were to be ignored") == 1
    assert data_cli.main(["validate", str(tmp_path)]) == 1
    assert data_cli.main(["validate", str(tmp_path), "data.ignore_value=255"]) == 0
    assert data_cli.main(["validate", str(tmp_path), "data.mask_foreground=[1]"]) == 0


def test_conversions_are_said_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "m.png", classes(border=0))
    source = JsonlSource(str(write_dataset(tmp_path, 4)))
    split = source.split("train")
    with caplog.at_level(logging.INFO):
        for index in (0, 1, 2, 3, 1):
            split[index]
    told = "bands 1, 2, 3 of 4; uint16 stretched from its 2nd..98th percentile to 0..255"
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/b.tif: {told} (said of the first such image only)"
    ]
    assert source.conversions == {told: 1}
    assert data_cli.main(["validate", str(tmp_path)]) == 0
    assert f"1 image: {told}" in capsys.readouterr().out.splitlines()
    assert data_cli.main(["validate", str(tmp_path), "--json", "data.bands=[3,2,1]", "data.stretch=none"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["conversions"] == {"bands 3, 2, 1 of 3": 1, "bands 3, 2, 1 of 4; uint16 cut to its highest 8 bits": 1}


def test_options_of_the_command_line_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path)
    for word, said in (
        ("data.root=x", "with KEY one of bands"),
        ("data.bands", "must be data.KEY=VALUE"),
        ("data.bands=[", "not YAML"),
        ("data.bands=7", "three numbers of bands"),
    ):
        assert data_cli.main(["validate", str(tmp_path), word]) == 2
        assert said in capsys.readouterr().err
    assert data_cli.main(["show", "synthetic", "data.bands=[1,2,3]", "--out", str(tmp_path / "o")]) == 2


def sample(**changes: Any) -> Sample:
    labels = weak_labels_from_masks([MEANT], BORDER)
    base = Sample(
        sample_id="s",
        image=np.zeros((*SIZE, 3), np.uint8),
        query="q",
        target_mask=MEANT,
        ignore_mask=BORDER,
        weak_labels=labels,
        dataset="d",
        split="train",
    )
    return replace(base, **changes)


def test_weak_labels_leave_out_what_is_ignored() -> None:
    (label,) = weak_labels_from_masks([MEANT], BORDER)
    assert label.box == (15, 10, 45, 30)
    assert all(MEANT[int(y), int(x)] for x, y in label.positive_points)
    assert len(label.negative_points) == 2
    assert not any((BORDER | MEANT)[int(y), int(x)] for x, y in label.negative_points)
    corner = np.ones(SIZE, dtype=np.bool_)
    corner[:10, :15] = False
    (label,) = weak_labels_from_masks([MEANT], corner & ~MEANT)
    assert all(x < 15 and y < 10 for x, y in label.negative_points)


def test_ignored_pixels_earn_and_cost_nothing() -> None:
    exact, wider = (
        MaskPrediction(masks=mask[None], iou_predictions=np.ones(1, np.float32)) for mask in (MEANT, MEANT | BORDER)
    )
    labels = Labels(target_mask=MEANT, instances=(), ignore_mask=BORDER)
    term = rubric("think2seg").terms["mask_iou"]
    assert term(None, labels, exact) == term(None, labels, wider) == 1
    assert term(None, replace(labels, ignore_mask=None), wider) < 0.8
    assert wider.iou(MEANT, BORDER) == 1
    torch = pytest.importorskip("torch")
    assert replace(wider, masks=torch.as_tensor(wider.masks)).iou(MEANT, BORDER) == 1
    assert "ignore_mask" not in WeakLabels.__dataclass_fields__


def test_prompts_in_ignored_pixels_alone() -> None:
    inside = [SpatialPrompt(box=(13, 8, 47, 10)), SpatialPrompt(point_coords=((13.5, 9.5),), point_labels=(1,))]
    others = [
        SpatialPrompt(box=(13, 8, 47, 10.2)),
        SpatialPrompt(box=(-1, 8, 47, 10)),
        SpatialPrompt(point_coords=((20.5, 9.5), (1.5, 9.5)), point_labels=(1, 1)),
        SpatialPrompt(),
    ]
    assert outside([*inside, *others], BORDER) == tuple(others)
    assert outside(inside, None) == tuple(inside)


@pytest.mark.parametrize("reward", ["grasp", "think2seg"])
def test_an_answer_about_ignored_pixels_is_neither_rewarded_nor_punished(reward: str) -> None:
    scheme = PromptConfig(template="compact")
    pipeline = RewardPipeline(
        segmenter=BoxFillSegmenter(), reward=rubric(reward), prompt=scheme, parsing=ParsingConfig(), always_segment=True
    )
    frame = CoordinateFrame(width=SIZE[1], height=SIZE[0], image_width=SIZE[1], image_height=SIZE[0])
    asked, empty = sample(), sample(target_mask=np.zeros(SIZE, bool), weak_labels=())
    border = SpatialPrompt(box=(13, 8, 47, 10), point_coords=((20.5, 9.5), (30.5, 9.5)), point_labels=(1, 1))
    right = asked.weak_labels[0]

    def scored(about: Sample, *prompts: SpatialPrompt) -> tuple[float, Any]:
        text = format_answer(prompts, "so", frame, scheme)
        said = Completion(token_ids=(1,), logprobs=(0.0,), text=text, finish_reason=FinishReason.STOP)
        (rollout,) = pipeline.run(about, frame, [said])
        assert rollout.answer.ok
        return rollout.reward.reward, record_of(about, rollout, boxes=True, protocol=OURS)

    alone, record = scored(asked, right)
    both, with_border = scored(asked, right, border)
    assert alone == both
    assert record["iou"] == with_border["iou"] == 1
    assert record["box_iou"] == with_border["box_iou"] == 1
    assert scored(replace(asked, ignore_mask=None), right, border)[0] < alone
    assert remeasured(json.loads(json.dumps(with_border))) == score_of(with_border)
    nothing, none = scored(empty)
    ignored, only = scored(empty, border)
    assert nothing == ignored
    assert (none["iou"], only["iou"], only["union"]) == (1, 1, 0)
    assert scored(replace(empty, ignore_mask=None), border)[1]["iou"] == 0


def test_a_dataset_hands_on_what_it_ignores(tmp_path: Path) -> None:
    save(tmp_path / "m.png", classes())
    split = JsonlSource(str(write_dataset(tmp_path, 2)), ignore_value=255).split("train")
    np.testing.assert_array_equal(split[0].ignore_mask, BORDER)
    np.testing.assert_array_equal(split[0].target_mask, MEANT)
    assert split[0].weak_labels == weak_labels_from_masks([MEANT], BORDER)


def test_a_run_refuses_what_is_in_doubt_and_writes_down_what_it_did(tmp_path: Path) -> None:
    """Through the launcher: conf/data/jsonl.yaml raises, environment.json counts images."""
    save(tmp_path / "m.png", classes())
    write_dataset(tmp_path, 2, split="test")
    run = ["evaluate", "data=jsonl", f"data.root={tmp_path}"]
    run += ["policy.weights=random", "evaluation.max_new_tokens=4", "evaluation.bootstrap_samples=10"]
    refused = forked.grasp_rl(*run, f"run_dir={tmp_path}/r")
    assert refused.returncode == 2
    assert "255 beside 0, 1, as if it were to be ignored" in refused.stderr
    done = forked.grasp_rl(*run, f"run_dir={tmp_path}/s", "data.ignore_value=255", "data.bands=[1,2,3]")
    assert done.returncode == 0, done.stderr
    told = "bands 1, 2, 3 of 4; uint16 stretched from its 2nd..98th percentile to 0..255"
    about = json.loads((tmp_path / "s/environment.json").read_text())
    assert about["image_conversions"] == {told: 1}
    assert about["python"]
    assert (tmp_path / "s/log.txt").read_text().count(told) == 1
    record = json.loads((tmp_path / "s/eval/predictions.jsonl").read_text().splitlines()[0])
    np.testing.assert_array_equal(decode_mask(record["ignored"]), BORDER)

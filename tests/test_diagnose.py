"""The ladder of oracles: what each stage loses, by hand, and the sum that must come out."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.evaluation import diagnose
from grasp_rl.evaluation.diagnose import STAGES, by_attribute, in_scheme, ladder, sums
from grasp_rl.reporting.render import write_report
from grasp_rl.rewards.rubric import Rubric
from grasp_rl.rewards.terms.masks import MaskIou
from grasp_rl.rollouts.reward_pipeline import RewardPipeline
from grasp_rl.segmenters.box_fill import BoxFillSegmenter
from grasp_rl.types import Answer, Box, ParseStatus, Sample, SpatialPrompt

SCHEME = PromptConfig(positive_points=1)
PIPELINE = RewardPipeline(
    segmenter=BoxFillSegmenter(), reward=Rubric({"mask_iou": MaskIou()}), prompt=SCHEME, parsing=ParsingConfig()
)


def prompt(box: Box) -> SpatialPrompt:
    point = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return SpatialPrompt(box=box, point_coords=(point,), point_labels=(1,))


def sample(*boxes: Box, **attributes: str) -> Sample:
    mask = np.zeros((20, 20), dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return Sample(
        sample_id="s", image=np.zeros((20, 20, 3), np.uint8), query="q", target_mask=mask,
        weak_labels=tuple(map(prompt, boxes)), dataset="d", split="test", attributes=attributes,
    )  # fmt: skip


def lost(true: Sample, *said: Box, status: ParseStatus = ParseStatus.OK) -> dict[str, float]:
    answer = Answer(prompts=tuple(map(prompt, said)), status=status)
    row = diagnose._row(PIPELINE, true, answer)
    found: dict[str, float] = row["lost"]
    assert set(found) == set(STAGES)
    assert sum(found.values()) == pytest.approx(1 - row["iou"])
    return {stage: value for stage, value in found.items() if value}


A, B = (0.0, 0.0, 10.0, 10.0), (12.0, 12.0, 20.0, 20.0)


def test_every_stage_by_hand() -> None:
    assert lost(sample(A), A) == {}
    assert lost(sample(A), (0.0, 0.0, 10.0, 5.0)) == {"box": 0.5}
    assert lost(sample(A), (10.0, 10.0, 20.0, 20.0)) == {"object": 1.0}
    assert lost(sample(A, B), A) == {"count": pytest.approx(64 / 164)}
    assert lost(sample(A), A, B) == {"count": pytest.approx(64 / 164)}
    assert lost(sample(A), status=ParseStatus.BAD_JSON) == {"unread": 1.0}
    assert lost(sample(), A) == {"count": 1.0}
    assert lost(sample()) == {}
    assert lost(sample(), status=ParseStatus.NO_ANSWER) == {"unread": 1.0}
    assert lost(sample(A)) == {"count": 1.0}


def test_an_instance_in_ignored_pixels_costs_nothing() -> None:
    from dataclasses import replace

    ignored = np.zeros((20, 20), dtype=np.bool_)
    ignored[12:, 12:] = True
    assert lost(replace(sample(), ignore_mask=ignored), B) == {}
    assert lost(replace(sample(A), ignore_mask=ignored), A, B) == {}


def test_the_ceiling_is_what_true_prompts_miss() -> None:
    hollow = sample(A)
    assert hollow.target_mask is not None
    hollow.target_mask[2:4, 2:7] = False  # a box filled covers ten pixels too many
    assert lost(hollow, A) == {"ceiling": pytest.approx(0.1)}


def test_rungs_end_in_the_truth() -> None:
    truth = (prompt(A), prompt(B))
    rungs = ladder(Answer(prompts=(prompt((11.0, 11.0, 20.0, 20.0)),), status=ParseStatus.OK), truth)
    assert len(rungs) == 5
    assert set(rungs[-1]) == set(truth)
    assert [len(rung) for rung in rungs] == [1, 2, 2, 2, 2]
    assert rungs[3][0].box == B
    assert ladder(Answer(prompts=(), status=ParseStatus.BAD_JSON), truth) == [(), truth]


def test_a_true_instance_is_put_in_the_scheme() -> None:
    label = SpatialPrompt(box=A, point_coords=((1.0, 1.0), (2.0, 2.0), (15.0, 15.0)), point_labels=(1, 1, 0))
    assert in_scheme(label, SCHEME) == SpatialPrompt(box=A, point_coords=((1.0, 1.0),), point_labels=(1,))
    points = in_scheme(label, PromptConfig(box=False, positive_points=2, negative_points=1))
    assert (points.box, points.point_labels) == (None, (1, 1, 0))


def test_sums_by_attribute() -> None:
    rows = []
    for box, kind in ((A, "roof"), ((0.0, 0.0, 10.0, 5.0), "road")):
        rows.append(
            diagnose._row(PIPELINE, sample(A, kind=kind), Answer(prompts=(prompt(box),), status=ParseStatus.OK))
        )
    assert sums(rows)["box"] == 0.25
    found = by_attribute(rows)
    assert found["kind"]["road"]["lost"]["box"] == 0.5
    assert found["kind"]["roof"]["giou"] == 1
    assert found["instances"]["one"]["samples"] == 2


def test_a_sample_without_a_mask_is_named() -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="sample s of d has no mask"):
        diagnose._row(PIPELINE, replace(sample(A), target_mask=None), Answer(prompts=(), status=ParseStatus.OK))


def test_a_run_is_diagnosed_and_its_report_shows_it(tmp_path: Path) -> None:
    run, here = tmp_path / "run", forked.door(tmp_path)
    words = ["policy.weights=warm_start", "evaluation.test_limit=6", "evaluation.overlays=1", "segmenter=box_fill"]
    assert here("evaluate", "run_dir=run", *words).returncode == 0
    assert here("diagnose", run, "run_dir=out").returncode == 0
    found = json.loads((run / "diagnosis.json").read_text())
    numbers = json.loads((run / "eval/metrics.json").read_text())
    assert found["giou"] == pytest.approx(numbers["giou"])
    assert sum(found["lost"].values()) == pytest.approx(1 - found["giou"])
    assert here("diagnose", run, "run_dir=other", "segmenter=grabcut").returncode == 0
    assert json.loads((run / "diagnosis.json").read_text()) == found  # another segmenter's is not this run's
    assert here("diagnose", run, "run_dir=ranks", "engine=zero1", "engine.nproc=2").returncode == 0
    assert json.loads((tmp_path / "ranks/diagnosis.json").read_text()) == found
    write_report(tmp_path / "run", out=tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text()
    assert "Where the IoU is lost" in page
    assert "instances: none" in page
    assert "By attribute" in page
    table = (tmp_path / "report/breakdowns.csv").read_text().splitlines()
    assert table[0] == "run,attribute,value,samples,giou,low,high"
    assert "tabular" in (tmp_path / "report/breakdowns.tex").read_text()

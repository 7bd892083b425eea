"""What `grasp-rl bench step` counts, and what it tells; with TRL under the mark parity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grasp_rl.bench import ours, step
from grasp_rl.bench.cli import main
from grasp_rl.bench.measure import PHASES
from grasp_rl.bench.step import summary, table
from grasp_rl.bench.task import Pipe, Task
from grasp_rl.cli import main as command_line
from grasp_rl.planning.step_model import SMOKE, Shape, build, build_prompt_tokenizer, messages

GROUPS, LENGTH, SIDE = 3, 5, 112
ENCODER_PASSES = {"lora": 1, "full": 3}
"""Of the image in a step: a frozen vision encoder looks once, a trained one for rollout, reference and policy each."""
SIZES = ["--shape", "smoke", "--groups", "3", "--length", "5", "--side", "112", "--repeats", "1"]


class Recorder(Pipe):
    """A pipe into a list."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def send(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def wait(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bench"), SMOKE)


def prompt_tokens(side: int) -> int:
    """P by the tokenizer alone: the image's one token stands for (side / 28)^2."""
    ids = build_prompt_tokenizer().apply_chat_template(messages(side), tokenize=True, add_generation_prompt=True)[
        "input_ids"
    ]
    return len(ids) - 1 + (side // 28) ** 2


@pytest.mark.parametrize(("mode", "questions"), [("lora", 1), ("full", 1), ("lora", 2)])
def test_our_counts_are_exact(model: Path, mode: str, questions: int) -> None:
    pipe, prompt = Recorder(), prompt_tokens(SIDE)
    task = Task(model=str(model), groups=GROUPS, length=LENGTH, side=SIDE, mode=mode, steps=2, questions=questions)
    ours.run(task, pipe)
    loaded, *steps = pipe.records
    assert (loaded["trainable"] == loaded["parameters"]) == (mode == "full")
    assert len(steps) == 2
    for row in steps:
        assert row["counts"] == {
            "vision_encoder_images": questions * ENCODER_PASSES[mode],
            "prefill_tokens": questions * prompt,
            "decode_tokens": questions * GROUPS * (LENGTH - 1),
            "reference_tokens": questions * (prompt + GROUPS * LENGTH),
            "policy_tokens": questions * (prompt + GROUPS * LENGTH),
        }
        assert set(row["phases"]) == set(PHASES)
        assert sum(row["phases"].values()) == pytest.approx(row["cpu_s"], abs=1e-6)
        assert row["grad_norm"] > 0


def test_the_standard_shape_keeps_the_proportions_of_the_3b() -> None:
    published = Shape(
        hidden=2048, layers=36, heads=16, kv_heads=2, intermediate=11008, vision_hidden=1280, vision_layers=32,
        vision_heads=16, vision_intermediate=3420,
    )  # fmt: skip
    for shape in (Shape(), published):
        assert shape.heads // shape.kv_heads == 8
        assert 0.7 < shape.vision_flops(3600) / shape.language_flops(1200) < 0.8
        assert shape.vision_full_attention[-1] == shape.vision_layers - 1
        assert len(shape.vision_full_attention) * 8 == shape.vision_layers


def test_the_summary_is_the_median_and_refuses_counts_that_differ() -> None:
    steps = [{"cpu_s": s, "wall_s": 2 * s, "peak_mib": 1.0, "counts": {"policy_tokens": 7}, "phases": {"vision_encoder": s}}
             for s in (1.0, 4.0, 2.0)]  # fmt: skip
    found = summary(steps, tokens=8)
    assert found["cpu_s"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert found["tokens_per_s"]["median"] == 2.0
    steps[1]["counts"] = {"policy_tokens": 8}
    with pytest.raises(RuntimeError, match="the counts differ"):
        summary(steps, tokens=8)


def test_on_a_gpu_one_side_is_kept_before_the_other_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side has the card to itself, and a run that is cut short loses only the side it was cut in."""
    order: list[str] = []

    class Measured:
        """A worker whose steps take a second; TRL's second one is never done."""

        def __init__(self, module: str, task: Task) -> None:
            self.module, self.asked = module.rpartition(".")[2], 0
            self.loaded = {"baseline_mib": 1.0, "parameters": 1, "trainable": 1}

        def __enter__(self) -> Measured:
            order.append(f"{self.module} begins")
            return self

        def __exit__(self, *_: object) -> None:
            order.append(f"{self.module} ends")

        def measure(self) -> dict[str, Any]:
            self.asked += 1
            if self.module == "peer" and self.asked == 2:
                raise RuntimeError("cut short")
            return {"cpu_s": 1.0, "wall_s": 1.0, "peak_mib": 1.0, "counts": {}, "phases": {}}

    monkeypatch.setattr(step, "Worker", Measured)
    task = Task(model="m", groups=2, length=2, side=28, mode="lora", steps=2, device="cuda")
    plan = step.Plan(task=task, sides=("ours", "trl"), parity=False, growth=False, out=tmp_path)
    with pytest.raises(RuntimeError, match="cut short"):
        step.taking_turns(plan)
    assert order == ["ours begins", "ours ends", "peer begins", "peer ends"]
    assert json.loads((tmp_path / "ours.json").read_text())["steps"][0]["wall_s"] == 1
    assert not (tmp_path / "trl.json").exists()


def test_json_is_one_object_and_says_what_was_measured(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And --attention mask, which goes around the packed kernel, reaches the measured policy: another way, the same loss."""
    assert main(["step", *SIZES, "--only", "ours", "--attention", "mask", "--json", "--out", str(tmp_path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["command"].startswith("grasp-rl bench step --shape smoke")
    assert {"date", "device", "git", "versions", "model", "task", "sides"} <= set(told)
    assert told["task"]["prompt_tokens"] == prompt_tokens(SIDE)
    assert told["task"]["attention"] == "mask"
    side = told["sides"]["ours"]
    assert all(side[key]["median"] > 0 for key in ("cpu_s", "wall_s", "tokens_per_s"))
    assert set(side["phases_s"]) == set(PHASES)
    assert json.loads((tmp_path / "step.json").read_text()) == told
    assert (tmp_path / "step.md").read_text() == table(told, profile=False)
    pipe = Recorder()
    task = Task(model=str(model), groups=GROUPS, length=LENGTH, side=SIDE, mode="lora", steps=2)
    policies = [ours.make_policy(t) for t in (task, replace(task, attention="mask"))]
    assert [policy.packed_attention for policy in policies] == ["two_calls", "mask"]
    ours.run(task, pipe)
    assert side["steps"][0]["loss"] == pytest.approx(pipe.records[-1]["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "must be one of"),
        (["step", "--side", "100"], "must be a multiple of 28"),
        (["step", "--groups", "1"], "must be >= 2"),
        (["step", "--peer-batch", "3"], "--peer-batch 3: must divide the 8 sequences of a step"),
    ],
)
def test_a_bad_command_line_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


def test_the_verb_lists_its_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    assert "bench" in command_line.COMMANDS
    assert main(["--help"]) == 0
    assert "  step " in capsys.readouterr().out


@pytest.mark.parity
@pytest.mark.parametrize(("mode", "questions"), [("lora", 1), ("full", 1), ("lora", 2)])
def test_both_sides_do_the_same_work(mode: str, questions: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["step", *SIZES, "--mode", mode, "--questions", str(questions), "--json"]) == 0
    told, prompt = json.loads(capsys.readouterr().out), prompt_tokens(SIDE)
    here, there = told["sides"]["ours"], told["sides"]["trl"]
    rows = questions * GROUPS
    assert there["counts"] == {
        "vision_encoder_images": 3 * rows,
        "prefill_tokens": rows * prompt,
        "decode_tokens": rows * (LENGTH - 1),
        "reference_tokens": rows * (prompt + LENGTH),
        "policy_tokens": rows * (prompt + LENGTH),
    }
    assert here["trainable"] == there["trainable"]
    assert set(told["trl_over_ours"]) == {"cpu_s", "wall_s", "peak_mib"}
    assert abs(told["parity"]["ours"]) > 1e-3
    assert told["parity"]["loss_difference"] < 1e-5
    assert told["parity"]["logprob_difference"] < 1e-5

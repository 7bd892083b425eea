"""Predicting on an image of one's own: files, defaults, runs and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

from grasp_rl.cli import scene_options
from grasp_rl.cli.predict import main, reading_of
from grasp_rl.cli.predict_tasks import split_words, tasks_of
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import RunConfig
from grasp_rl.data.image_io import ImageReading, read_image, write_image
from grasp_rl.data.masks import read_mask
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prediction.config import read_config
from grasp_rl.prediction.predictor import MAX_QUERY, Predictor, check_query
from grasp_rl.prompts.render import format_answer
from grasp_rl.types import Completion, FinishReason

SCENE = next(s for s in map(SyntheticSource().split("test").__getitem__, range(20)) if s.weak_labels)
RANDOM = ["policy.weights=random", "evaluation.max_new_tokens=16"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_image(tmp_path / "scene.png", SCENE.image)
    return tmp_path / "scene.png"


def speak(monkeypatch: pytest.MonkeyPatch, text: str | None = None) -> None:
    """Let the policy say ``text``, or the scene's own answer in the policy's frame."""
    seen: list[Any] = []
    encode = TinyPolicy.encode

    def noting(self: TinyPolicy, image: Any, query: str, prompt: Any) -> Any:
        seen.append((encode(self, image, query, prompt), prompt))
        return seen[-1][0]

    def generate(self: TinyPolicy, prompts: Any, uniforms: None, *, group_size: int, max_new_tokens: int) -> Any:
        encoded, prompt = seen[-1]
        said = text if text is not None else format_answer(SCENE.weak_labels or (), "here", encoded.frame, prompt)
        return [[Completion(token_ids=(1,), logprobs=(0.0,), text=said, finish_reason=FinishReason.STOP)]]

    monkeypatch.setattr(TinyPolicy, "encode", noting)
    monkeypatch.setattr(TinyPolicy, "generate", generate)


def test_a_random_policy_writes_three_files(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(image), "--query", "the roof", *RANDOM]) == 0
    out = tmp_path / "outputs" / "predict"
    assert sorted(path.name for path in out.iterdir()) == ["scene.json", "scene_mask.png", "scene_overlay.png"]
    assert "could not be read (no_answer): outputs/predict/scene_overlay.png" in capsys.readouterr().out
    assert not read_mask(out / "scene_mask.png", SCENE.size).any()
    record = json.loads((out / "scene.json").read_text())
    assert record["status"] == "no_answer"
    assert record["policy"]["weights"] == "random"


@pytest.mark.parametrize("size", [(112, 112), (150, 260)])
def test_files_are_of_the_images_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    speak(monkeypatch)
    resized = Pillow.fromarray(SCENE.image).resize((size[1], size[0]))
    resized.save(tmp_path / "big.tif")
    assert main([str(tmp_path / "big.tif"), "--query", SCENE.query, "--out", str(tmp_path), "--json", *RANDOM]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "big.json").read_text())
    assert record["size"] == list(size)
    assert record["status"] == "ok"
    assert record["thinking"] == "here"
    mask = read_mask(tmp_path / "big_mask.png", size)
    assert record["mask_area"] == mask.sum() > 0
    assert set(np.unique(read_image(tmp_path / "big_mask.png"))) == {0, 255}
    assert record["prompts"][0]["box"][2] <= size[1]
    assert len(record["prompts"]) == len(SCENE.weak_labels or ())
    assert max(read_image(tmp_path / "big_overlay.png").shape[:2]) >= 336
    assert record["seconds"]["policy"] >= 0
    assert record["segmenter"]["_target_"].endswith("GrabCutSegmenter")


def test_repair_is_on_unless_told_otherwise(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speak(monkeypatch, '<answer>[{"bbox_2d":[10,10,60,60],"positive_points":[[30,30],[40,40]]},]</answer>')
    words = [str(image), "--query", "roof", "--out", str(tmp_path), *RANDOM]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("1 instance, ")
    assert main([*words, "--no-repair"]) == 0
    assert "could not be read (bad_json)" in capsys.readouterr().out


def test_answers_of_other_weights_have_names_of_their_own(image: Path, run: Path, tmp_path: Path) -> None:
    words = [str(image), "--query", "roof", "--out", str(tmp_path), "evaluation.max_new_tokens=8"]
    for _ in range(2):
        assert main([*words, "--run", str(run)]) == 0
    assert main([*words, "policy.weights=random"]) == 0
    assert sorted(path.name for path in tmp_path.glob("scene*.json")) == ["scene-2.json", "scene.json"]
    first, second = (json.loads((tmp_path / name).read_text())["policy"] for name in ("scene.json", "scene-2.json"))
    assert (first["loaded_from"], second["loaded_from"]) == (str(run / "checkpoints/step_000010/policy"), None)


def test_a_csv_whose_rows_name_images_goes_without_a_folder(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "q.csv"
    table.write_text(f"query,image\nroof,{image}\n")
    assert main([str(image.parent), "--queries", str(table), "--out", str(tmp_path / "o"), *RANDOM]) == 2
    assert f"--queries {table}: every row names its image, relative to that file: leave out" in capsys.readouterr().err


def test_nothing_there(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speak(monkeypatch, "<answer>[]</answer>")
    assert main([str(image), "--query", "roof", "--out", str(tmp_path), *RANDOM]) == 0
    assert capsys.readouterr().out.startswith("nothing in the image fits: ")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two checkpoints, the first of them the best."""
    folder = tmp_path / "run"
    config = read_config(None, "points", None, ["policy.weights=random", "prompt.template=think2seg"])
    from dataclasses import asdict

    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    for step, seed in ((10, 1), (20, 2)):
        TinyPolicy(weights="random", seed=seed).save(folder / "checkpoints" / f"step_{step:06d}" / "policy")
    (folder / "checkpoints" / "best.json").write_text('{"step": 10, "value": 1.0}')
    return folder


def test_a_runs_own_config_and_best_weights(image: Path, run: Path, tmp_path: Path) -> None:
    words = [str(image), "--query", "roof", "--run", str(run), "evaluation.max_new_tokens=8", "--out", str(tmp_path)]
    assert main(words) == 0
    record = json.loads((tmp_path / "scene.json").read_text())
    assert record["policy"]["loaded_from"] == str(run / "checkpoints" / "step_000010" / "policy")
    assert record["prompt"]["scheme"] == "points"
    assert record["prompt"]["template"] == "think2seg"
    (run / "checkpoints" / "best.json").unlink()
    assert main(words) == 0
    record = json.loads((tmp_path / "scene-2.json").read_text())  # other weights: the first answer stays
    assert record["policy"]["loaded_from"].endswith("step_000020/policy")


def test_what_can_change_about_a_run(run: Path) -> None:
    config = read_config(run, "box", "grabcut", ["parsing.nms_iou=0.7"])
    assert (config.prompt.scheme, config.prompt.template) == ("box", "think2seg")
    assert config.parsing.nms_iou == 0.7
    with pytest.raises(
        ConfigError, match="segmenter=grabcut: goes without --run; with it, use --prompt and --segmenter"
    ):
        read_config(run, None, None, ["segmenter=grabcut"])
    with pytest.raises(ConfigError, match="nms_iu"):
        read_config(run, None, None, ["parsing.nms_iu=0.7"])


def test_the_defaults() -> None:
    config = read_config(None, None, None, [])
    assert config.policy["_target_"].endswith("TinyPolicy")
    assert config.segmenter["_target_"].endswith("GrabCutSegmenter")
    assert read_config(None, "points", None, ["parsing.nms_iou=1"]).prompt.box is False


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("x" * 2001, "at most 2000"),
        ("look at <|image_pad|>", r"'<\|image_pad\|>', which is reserved"),
        ("look at ~end~", r"'~end~', which is reserved"),
        ("<image> look", r"'<image>', which is reserved"),
    ],
)
def test_questions_that_cannot_be_asked(query: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_query(query, ["<|image_pad|>", "~end~"])


def test_refusals_are_one_line(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    for words in (
        [str(image), "--query", ""],
        [str(tmp_path / "gone.png"), "--query", "a"],
        [str(tmp_path / "bad.png"), "--query", "a"],
        [str(image), "--query", "a", "--run", str(tmp_path / "no_run")],
        [str(image), "--query", "a", "--prompt", "boxes"],
        [str(image), "--query", "a", "--segmenter", "sam9"],
        [str(image), "--query", "a", "policy.weights=/nowhere"],
        [str(image), "--query", "a <|im_end|>", *RANDOM],
        [str(image), "--query", "a", "init_from=/nowhere", *RANDOM],
    ):
        assert main(words) == 2, words
        captured = capsys.readouterr()
        assert captured.err.startswith("grasp-rl predict: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert main([str(image), "--query", "", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["state"] == "refused"


def test_one_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "dot.png", np.full((1, 1, 3), 90, np.uint8))
    speak(monkeypatch, '<answer>[{"bbox_2d":[0,0,112,112],"positive_points":[[30,30],[40,40]]}]</answer>')
    assert main([str(tmp_path / "dot.png"), "--query", "roof", "--out", str(tmp_path), *RANDOM]) == 0
    assert json.loads((tmp_path / "dot.json").read_text())["mask_area"] in (0, 1)


def test_equal_input_gives_equal_answers() -> None:
    predictor = Predictor(read_config(None, None, None, RANDOM))
    first, second = (predictor.predict(SCENE.image, "the roof") for _ in range(2))
    assert first.text == second.text
    assert not predictor.policy.training


def test_as_a_command(image: Path, tmp_path: Path) -> None:
    done = forked.grasp_rl("predict", image, "--query", "the roof", "--json", *RANDOM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["query"] == "the roof"
    assert MAX_QUERY == 2000


def _many(folder: Path) -> list[Path]:
    """Two images of one stem in two formats, and one of that stem in a folder below."""
    paths = [folder / "a/pond.png", folder / "a/pond.bmp", folder / "a/b/Pond.png"]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, np.full((64, 64, 3), 40 * number, np.uint8))
    return paths


def test_many_images_and_questions_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, out = _many(tmp_path), tmp_path / "out"
    (tmp_path / "a/notes.txt").write_text("no image")
    queries = tmp_path / "queries.txt"
    queries.write_text("# a comment\nWhere is water?\n\nWhere is sand?\n")
    words = [str(tmp_path / "a"), "--query", "Where is grass?", "--queries", str(queries), "--out", str(out), *RANDOM]
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["failed"] == []
    found = {(record["image"], record["query"]) for record in answer["predictions"]}
    asked = ("Where is grass?", "Where is water?", "Where is sand?")
    assert found == {(str(path), query) for path in paths for query in asked}
    files = [file for record in answer["predictions"] for file in record["files"].values()]
    assert len({file.lower() for file in files}) == 18
    assert all(Path(file).is_file() for file in files)
    before = sorted(path.name for path in out.iterdir())
    assert main(words) == 0  # the same questions again take their own files
    assert sorted(path.name for path in out.iterdir()) == before
    assert main([str(paths[0]), "--query", "Where is a road?", "--out", str(out), *RANDOM]) == 0
    assert len(list(out.iterdir())) == len(before) + 3  # another question about the image of a name takes a new one


def test_a_file_that_predict_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    image, mine = tmp_path / "pond.png", tmp_path / "pond_mask.png"
    for path in (image, mine):
        write_image(path, np.zeros((64, 64, 3), np.uint8))
    before = mine.read_bytes()
    assert main([str(image), "--query", "Where is water?", "--out", str(tmp_path), *RANDOM]) == 0
    assert mine.read_bytes() == before
    assert (tmp_path / "pond-2_mask.png").is_file()


def test_one_bad_image_among_many_is_told_and_the_rest_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, out = _many(tmp_path), tmp_path / "out"
    paths[0].write_bytes(b"no image")
    assert main([*map(str, paths), "--query", "Where is water?", "--out", str(out), "--json", *RANDOM]) == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [record["image"] for record in answer["predictions"]] == [str(path) for path in paths[1:]]
    assert [failure["image"] for failure in answer["failed"]] == [str(paths[0])]
    assert str(paths[0]) in captured.err


def test_the_pairs_of_a_csv_file_are_asked_as_they_stand(tmp_path: Path) -> None:
    paths = _many(tmp_path)
    listed = tmp_path / "a/q.csv"
    listed.write_text('image,query\npond.png,"Where is water, or sand?"\nb/Pond.png,Where is grass?\n')
    tasks = tasks_of([], [], listed, tmp_path)
    assert [(task.image, task.query) for task in tasks] == [
        (paths[0], "Where is water, or sand?"),
        (paths[2], "Where is grass?"),
    ]
    assert [task.name for task in tasks] == ["pond", "Pond-2"]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_of_other_columns_and_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: str) -> None:
    paths = _many(tmp_path)
    listed = tmp_path / "a/q.csv"
    rows = [
        ["id", " query", "image", "note"],
        ["17", "Where is water?", "pond.png", '"a, b; c\td"'],
        ["18", "Sand?", "", ""],
    ]
    listed.write_text("\ufeff" + "".join(mark.join(row) + "\r\n" for row in rows))
    tasks = tasks_of([paths[1]], [], listed, tmp_path)
    assert [(task.image, task.query) for task in tasks] == [(paths[1], "Sand?"), (paths[0], "Where is water?")]
    assert capsys.readouterr().err == f"grasp-rl predict: --queries {listed}: columns left aside: id, note\n"


@pytest.mark.parametrize("out", ["b.kml", "a/x.xyz", "c.gpkg.zip"])
@pytest.mark.parametrize("more", [[], ["--format", "gpkg"]])
def test_an_ending_that_means_no_format_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, more: list[str]
) -> None:
    path = _many(tmp_path)[0]
    assert main([str(path), "--query", "Where?", "--out", str(tmp_path / out), *more, *RANDOM]) == 2
    said = capsys.readouterr().err
    assert f"{Path(out).suffix} is no format; must end with one of .gpkg .geojson" in said
    assert "no ending or a slash" in said
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("out", ["plain", "2026.11", "dots.v/", "there.d"])
def test_folders_are_told_by_their_names(tmp_path: Path, out: str) -> None:
    (tmp_path / "there.d").mkdir()
    assert scene_options.target_of(str(tmp_path / out) + "/" * out.endswith("/"), None) is None
    target = scene_options.target_of(str(tmp_path / out) + "/" * out.endswith("/"), "gpkg")
    assert target is not None
    assert (target.folder, target.out) == (True, tmp_path / out)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("q.csv", "a,b\n1,2\n", "the columns a, b; one must be query"),
        ("q.csv", "query\n", "no rows under its header"),
        ("q.csv", "image,query\nnowhere.png,Where?\n", "q.csv:2: image='nowhere.png': no such file"),
        ("q.csv", "image,query\npond.png,\n", "q.csv:2: no question"),
        ("q.csv", "query\nWhere is water, or sand?\n", "q.csv:2: no question, or more fields than columns"),
        ("q.txt", "\n# only this\n", "no question in it"),
    ],
)
def test_a_file_of_questions_that_cannot_be_used_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "pond.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=re.escape(said)):
        tasks_of([tmp_path / "pond.png"], [], tmp_path / name, tmp_path)


def test_a_folder_that_holds_earlier_results_gives_its_images_alone(tmp_path: Path) -> None:
    paths, out = _many(tmp_path), tmp_path / "a/out"
    words = [str(tmp_path / "a"), "--query", "Where is water?", "--out", str(out), *RANDOM]
    assert main(words) == 0
    assert main(words) == 0
    assert len(list(out.iterdir())) == 3 * len(paths)


def test_a_quoted_field_keeps_its_line_breaks(tmp_path: Path) -> None:
    _many(tmp_path)
    listed = tmp_path / "a/q.csv"
    listed.write_bytes(b'\xef\xbb\xbfquery,image\r\n"Line\r\none",pond.png\r\n')
    assert [task.query for task in tasks_of([], [], listed, tmp_path)] == ["Line\none"]
    (tmp_path / "q.txt").write_bytes("  # no\r\nWhere\u2028now?\r\n".encode())
    assert [task.query for task in tasks_of([tmp_path / "a/pond.png"], [], tmp_path / "q.txt", tmp_path)] == [
        "Where\u2028now?"
    ]


def test_the_users_parsing_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = _many(tmp_path)[0], tmp_path / "out"
    for words, repair in (([], True), (["parsing.repair=false"], False), (["--no-repair"], False)):
        assert main([str(path), "--query", "Where?", "--out", str(out), "--json", *RANDOM, *words]) == 0
        assert json.loads(capsys.readouterr().out)["parsing"]["repair"] is repair


def test_a_toy_says_that_it_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _many(tmp_path)[0]
    assert main([str(path), "--query", "Where is water?", "--out", str(tmp_path / "out"), *RANDOM]) == 0
    assert "policy=tiny is a toy" in capsys.readouterr().err


def test_a_file_called_like_an_override_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("epoch=3.png").write_bytes(b"")
    assert split_words(["epoch=3.png", "policy=tiny", "+data.x=1"]) == (
        [Path("epoch=3.png")],
        ["policy=tiny", "+data.x=1"],
    )


def test_bands_and_stretch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    speak(monkeypatch)
    Pillow.fromarray(SCENE.image).save(tmp_path / "a.png")
    words = [str(tmp_path / "a.png"), "--query", SCENE.query, "--out", str(tmp_path / "out"), *RANDOM]
    assert main([*words, "--bands", "3,2,1", "--stretch", "0,510"]) == 0
    said = f"{tmp_path}/a.png: bands 3, 2, 1 of 3; uint8 stretched from 0..510 to 0..255\n"
    assert capsys.readouterr().err.startswith(said)
    assert main(words) == 0
    assert str(tmp_path) not in capsys.readouterr().err
    for flags, said in (
        (["--bands", "3,x"], "--bands=3,x"),
        (["--bands", "3,4,1"], "asks for band 4"),
        (["--stretch", "full"], "data.stretch='full'"),
    ):
        assert main([*words, *flags]) == 2
        assert said in capsys.readouterr().err
    config = RunConfig(data={"bands": [4, 1, 2], "stretch": "none"})
    assert reading_of(config, None, None) == ImageReading(bands=[4, 1, 2], stretch="none")
    assert reading_of(config, "1,2,3", "auto") == ImageReading(bands=[1, 2, 3])

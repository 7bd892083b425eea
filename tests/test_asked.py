"""A saved policy says how it is asked, and whoever loads it asks so."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig, RunConfig
from grasp_rl.config.targets import to_config
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.launch import compose
from grasp_rl.launch.main import main
from grasp_rl.policies.describe import describe
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.prediction.config import read_config
from grasp_rl.prediction.predictor import Predictor
from grasp_rl.runs.asked import FILE, TEMPLATE, Asked, adopt

PROMPT = PromptConfig(scheme="points", box=False, positive_points=3, template="compact")
ASKED = Asked(
    prompt=PROMPT,
    coordinates="absolute",
    image={"min_pixels": None, "max_pixels": 12544, "resize": "square"},
    dtype="float32",
)


def composed(folder: Path, **policy: Any) -> dict[str, Any]:
    """A resolved config with the defaults of ``policy=hf_vlm``."""
    image = {"_target_": "grasp_rl.policies.backbones.base.ImageSize", "min_pixels": None, "max_pixels": None}
    node = {"path": str(folder), "coordinates": None, "dtype": "bfloat16", "prompt_template": "think2seg"} | policy
    return {"policy": node | {"image": image | {"resize": "keep"}}, "prompt": asdict(PromptConfig())}


def test_what_a_folder_says_is_adopted(tmp_path: Path) -> None:
    ASKED.write(tmp_path)
    config = adopt(composed(tmp_path), ["policy", "policy.path", "seed"])[0]
    assert config["prompt"] == asdict(PROMPT)
    policy = config["policy"]
    assert (policy["coordinates"], policy["dtype"], policy["prompt_template"]) == ("absolute", "float32", "compact")
    assert policy["image"] == composed(tmp_path)["policy"]["image"] | ASKED.image


@pytest.mark.parametrize(
    ("named", "kept"),
    [
        ("policy.coordinates", ("policy", "coordinates")),
        ("policy.dtype", ("policy", "dtype")),
        ("policy.image", ("policy", "image")),
        ("prompt.positive_points", ("prompt", "positive_points")),
        ("prompt.template", ("prompt", "template")),
        ("policy.prompt_template", ("prompt", "template")),
    ],
)
def test_what_the_user_names_stays(tmp_path: Path, named: str, kept: tuple[str, str]) -> None:
    ASKED.write(tmp_path)
    config, expected = adopt(composed(tmp_path), [named])[0], composed(tmp_path)
    assert config[kept[0]][kept[1]] == expected[kept[0]][kept[1]]
    assert config != expected  # the rest is the folder's


def test_a_named_scheme_is_asked_in_the_folders_words(tmp_path: Path) -> None:
    ASKED.write(tmp_path)
    assert adopt(composed(tmp_path), ["prompt"])[0]["prompt"] == asdict(PromptConfig(template="compact"))


def test_a_template_of_its_own_travels_along(tmp_path: Path) -> None:
    template, folder = tmp_path / "mine.jinja", tmp_path / "saved"
    template.write_text("Find {{ query }}.")
    folder.mkdir()
    Asked(prompt=PromptConfig(template=str(template)), coordinates="thousand", image={}, dtype="float32").write(folder)
    template.unlink()
    assert str(tmp_path) not in (folder / FILE).read_text()
    adopted = adopt(composed(folder), [])[0]["prompt"]["template"]
    assert adopted == str(folder / TEMPLATE)
    assert Path(adopted).read_text() == "Find {{ query }}."


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"prompt": {"scheme": "box"}},
        {"coordinates": 3},
        {"prompt": asdict(PROMPT) | {"template": "../secret"}},
        {"image": None},
    ],
)
def test_a_record_that_cannot_be_used_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    ASKED.write(tmp_path)
    record = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(record | change))
    with pytest.raises(ConfigError, match=FILE):
        adopt(composed(tmp_path), [])
    (tmp_path / FILE).write_text("not JSON")
    with pytest.raises(ConfigError, match=FILE):
        adopt(composed(tmp_path), [])


def test_an_export_without_a_record_is_refused_and_a_foreign_model_is_not(tmp_path: Path) -> None:
    assert adopt(composed(tmp_path), [])[0] == composed(tmp_path)
    (tmp_path / "README.md").write_text("---\ntags:\n- grasp-rl\n---\n")
    with pytest.raises(ConfigError, match=r"policy\.coordinates=, policy\.prompt_template="):
        adopt(composed(tmp_path), ["policy.coordinates"])
    named = ["policy.coordinates", "policy.prompt_template"]
    assert adopt(composed(tmp_path), named)[0] == composed(tmp_path)


def test_a_saved_policy_read_by_its_folder_answers_as_it_did(tmp_path: Path) -> None:
    """Through the family's own loading code, the shipped weights give the same boxes as ``policy=tiny``."""
    policy, sample = TinyPolicy(), SyntheticSource().split("test")[1]
    policy.save(tmp_path)
    config = RunConfig(prompt=PromptConfig(template="compact"), policy={"_target_": "x.TinyPolicy"})
    describe(tmp_path, policy, config, step=3, scores={})
    loaded = Predictor(read_config(None, None, None, ["policy=hf_vlm", f"policy.path={tmp_path}"]))
    own = Predictor(read_config(None, None, None, []))
    first, second = (predictor.predict(sample.image, sample.query) for predictor in (own, loaded))
    assert first.answer.prompts
    assert first.text == second.text
    assert first.answer == second.answer


def test_the_card_says_how_to_ask(tmp_path: Path) -> None:
    policy = TinyPolicy()
    config = RunConfig(prompt=PromptConfig(template="compact"), policy={"_target_": "x.TinyPolicy"})
    describe(tmp_path, policy, config, step=3, scores={})
    card = (tmp_path / "README.md").read_text()
    assert 'grasp-rl predict IMAGE.png --query "QUESTION" policy=hf_vlm policy.path=THIS_FOLDER' in card
    assert "pixels of the resized image; an image of 512 x 512 is one of 112 x 112 to it" in card
    asked = policy.encode(np.zeros((9, 9, 3), np.uint8), "QUESTION", config.prompt)
    for turn in asked.messages:
        assert turn["content"][-1]["text"].strip() in card


def _saved(folder: Path, policy: TinyPolicy, scheme: str = "box") -> Path:
    """A policy folder as a run writes it."""
    policy.save(folder)
    prompt = PromptConfig(scheme=scheme, positive_points=0, template="compact")
    node = {"_target_": "x.TinyPolicy", "lora_rank": 2, "lora_alpha": 16, "train_vision_encoder": False}
    describe(folder, policy, RunConfig(prompt=prompt, policy=node), step=1, scores={})
    return folder


def _composed(*words: str) -> RunConfig:
    with compose.hydra("evaluate") as engine:
        return to_config(compose.single(engine, ["command=evaluate", *words], ()).config)


def test_weights_to_start_from_are_asked_as_they_were_trained(tmp_path: Path) -> None:
    """A run, a checkpoint and a policy folder by ``init_from``, a policy folder by ``policy.weights``."""
    run = tmp_path / "run"
    folder = _saved(run / "checkpoints/step_000002/policy", TinyPolicy(weights="random"))
    for source in (folder, folder.parent):
        assert _composed(f"init_from={source}").prompt.scheme == "box"
    assert _composed(f"policy.weights={folder}").prompt.scheme == "box"
    assert _composed(f"init_from={folder}", "prompt=points").prompt.scheme == "points"
    assert _composed(f"init_from={folder}", "policy=qwen2_5_vl_3b").policy["dtype"] == "bfloat16"
    (folder / FILE).unlink()  # of the version before
    assert _composed(f"init_from={folder}").prompt.scheme == "box_2points"


def test_what_a_file_names_stays_and_what_changes_is_told(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "saved", TinyPolicy(weights="random"))
    experiment = tmp_path / "conf/experiment/mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(
        "# @package _global_\ndefaults:\n  - override /policy: hf_vlm\n"
        f"policy: {{path: {folder}, coordinates: thousand, image: {{max_pixels: 50176}}}}\n"
    )
    words = ["command=evaluate", f"hydra.searchpath=[file://{tmp_path}/conf]", "experiment=mine"]
    with compose.hydra("evaluate") as engine:
        job = compose.single(engine, words, ())
    assert (job.config["policy"]["coordinates"], job.config["policy"]["image"]["max_pixels"]) == ("thousand", 50176)
    assert job.config["prompt"]["scheme"] == "box"
    assert "prompt.scheme=box" in job.adopted
    assert "policy.image.resize=square" in job.adopted


def test_the_configs_print_tells_what_a_run_would_add(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _saved(tmp_path / "saved", TinyPolicy(weights="random"))
    assert main("train", [f"policy.weights={folder}", "--cfg", "job"]) == 0
    assert f"# in a run, {FILE} beside the weights adds: prompt.scheme=box" in capsys.readouterr().err
    assert main("train", ["--cfg", "job"]) == 0
    assert capsys.readouterr().err == ""


def test_an_adapter_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    TinyPolicy(weights="random", lora_rank=2).save(folder)
    TinyPolicy(weights="random", lora_rank=2).load_weights(folder)
    for arguments, said in (
        ({"lora_rank": 4}, "policy.lora_rank=4: the adapter in .* has 2"),
        ({"lora_rank": 2, "lora_alpha": 9}, "policy.lora_alpha=9: the adapter in .* has 16"),
    ):
        with pytest.raises(ConfigError, match=said):
            TinyPolicy(weights="random", **arguments).load_weights(folder)  # type: ignore[arg-type]
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[0]
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=f"missing: {re.escape(name)}"):
        TinyPolicy(weights="random", lora_rank=2).load_weights(folder)


def test_the_adapters_card_names_what_its_layers_need(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "adapter", TinyPolicy(weights="random", lora_rank=2))
    card = (folder / "README.md").read_text()
    words = (
        "policy=tiny policy.lora_rank=2 policy.lora_alpha=16 policy.train_vision_encoder=false init_from=THIS_FOLDER"
    )
    assert words in card
    assert _composed(*words.replace("THIS_FOLDER", str(folder)).split()).prompt.scheme == "box"

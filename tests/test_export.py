"""A trained policy as others load it: the card beside each checkpoint, and `grasp-rl export`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import forked
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from grasp_rl.cli import main as command_line
from grasp_rl.config.schema import RunConfig
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.runs.model_card import write_card

AERIAL = Path(__file__).parent / "data/aerial"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_sam2: Path) -> Path:
    """Two optimizer steps of a LoRA adapter on a tiny Qwen2.5-VL, real images and a tiny SAM 2, through the door."""
    folder = tmp_path_factory.mktemp("run")
    model = tiny_models.build("qwen2_5_vl", folder / "model")
    words = [
        "train", "policy=qwen2_5_vl_3b", f"policy.path={model}", "policy.dtype=float32", "policy.lora_rank=4",
        "segmenter=sam2", f"segmenter.path={tiny_sam2}", "reward=think2seg", "data=jsonl", f"data.root={AERIAL}",
        "debug=fast", "algorithm.steps=2", "algorithm.group_size=2", "evaluation.every=2", "evaluation.overlays=1",
        "rollout.max_new_tokens=8", "evaluation.max_new_tokens=8", f"run_dir={folder / 'run'}", "optimizer.lr=0.01",
    ]  # fmt: skip
    ended = forked.grasp_rl(*words, cwd=folder)
    assert ended.returncode == 0, ended.stderr[-2000:]
    adapter = folder / "run/checkpoints/step_000002/policy/adapter_model.safetensors"
    torch.manual_seed(0)  # random answers earn nothing, so two steps of them need not move the adapter
    save_file({k: 0.1 * torch.randn_like(v) for k, v in load_file(adapter).items()}, adapter)
    return folder / "run"


def test_every_checkpoint_has_a_card(run: Path) -> None:
    card = (run / "checkpoints/step_000002/policy/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "peft"
    assert head["base_model"] == "model"  # the name of the local folder, not the way to it
    assert "PeftModel.from_pretrained" in card
    assert "| test, before |" in card
    resolved = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert resolved["algorithm"]["steps"] == 2
    commit = json.loads((run / "environment.json").read_text())["git"]["package"]["commit"]
    assert commit in card


def test_export_merges_the_adapter(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["export", str(run), "--out", str(out), "--merge", "--json"]
    ended = forked.grasp_rl(*words)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["merged"]
    assert told["step"] == 2
    merged = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    base = AutoModelForImageTextToText.from_pretrained(run.parent / "model", dtype=torch.float32)
    adapter = AutoModelForImageTextToText.from_pretrained(run.parent / "model", dtype=torch.float32)
    adapter.load_adapter(str(run / "checkpoints/step_000002/policy"))
    ids = torch.arange(20)[None] + 40
    with torch.no_grad():
        merged_logits, base_logits, adapted = (m(input_ids=ids).logits for m in (merged, base, adapter))
    assert (merged_logits - adapted).abs().max() < 1e-4
    assert (merged_logits - base_logits).abs().max() > 1e-3
    card = (out / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "| test, after |" in card


def test_no_card_config_or_export_names_a_folder_of_this_machine(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    ended = forked.grasp_rl("export", run, "--out", out)
    assert ended.returncode == 0, ended.stderr
    machine = [str(run.parent), str(tmp_path), str(AERIAL.resolve()), str(Path(sys.prefix))]
    for folder in (run / "checkpoints/step_000002/policy", out):
        for path in folder.iterdir():
            text = path.read_bytes().decode("utf-8", errors="replace")
            assert not [name for name in machine if name in text], path.name
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "model"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
def test_an_adapter_of_the_tiny_policy_says_how_to_load_it(tmp_path: Path) -> None:
    """The card's own lines, run: they give the logits of the policy that was saved."""
    policy = TinyPolicy(lora_rank=2)
    with torch.no_grad():
        before = policy.model(input_ids=torch.arange(20)[None] + 40).logits
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
        assert (policy.model(input_ids=torch.arange(20)[None] + 40).logits - before).abs().max() > 1
    folder = tmp_path / "saved"
    policy.save(folder)
    config = RunConfig(policy={"_target_": "grasp_rl.policies.tiny.policy.TinyPolicy", "lora_rank": 2})
    write_card(folder, config, step=1, scores={})
    card = (folder / "README.md").read_text()
    assert "None" not in card.split("## Load")[1].split("## Config")[0]
    code = card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(folder))
    names: dict[str, object] = {}
    exec(code, names)
    ids = torch.arange(20)[None] + 40
    with torch.no_grad():
        loaded = names["model"](input_ids=ids).logits  # type: ignore[operator]
        expected = policy.model(input_ids=ids).logits
    assert (loaded.float() - expected).abs().max() < 0.2  # the card loads in the stored type, bfloat16
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "grasp_rl-tiny"


def test_the_hub_reads_the_head_of_a_card(tmp_path: Path) -> None:
    """And a base model's name, which may be anybody's, cannot end the head or turn its direction of writing."""
    base = "some/model\u202e\n---\n# Injected"
    write_card(tmp_path, RunConfig(policy={"_target_": "a.B", "path": base}, run_dir=str(tmp_path)), step=1, scores={})
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (base, "transformers", "image-text-to-text")
    assert set(data.tags) >= {"grasp-rl", "grpo"}
    assert "\u202e" not in (tmp_path / "README.md").read_text()


def test_export_refuses_with_one_line(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from grasp_rl.cli import export

    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    assert export.main([str(run), "--out", str(tmp_path / "full")]) == 2
    assert "is not empty; name a new folder" in capfd.readouterr().err
    assert export.main([str(tmp_path), "--out", str(tmp_path / "new")]) == 2
    assert "no such file" in capfd.readouterr().err
    assert export.main([str(run), "--out", str(tmp_path / "new"), "--step", "7"]) == 2
    assert "no policy there" in capfd.readouterr().err
    assert "export" in command_line.COMMANDS

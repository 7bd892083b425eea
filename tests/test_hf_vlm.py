"""Pretrained policies as files: strict loading, adapters, checkpoints that plain transformers and PEFT read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.types import EncodedPrompt
from grasp_rl.rehearsal import models as tiny_models

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 112, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl", "llava", "llava_onevision"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp(request.param))


def load(folder: Path, **more: object) -> HfVlmPolicy:
    return HfVlmPolicy(str(folder), ImageSize(), **{"dtype": "float32", **more})  # type: ignore[arg-type]


def asked(policy: HfVlmPolicy) -> EncodedPrompt:
    return policy.encode(IMAGE, "the roof", PromptConfig())


def logits_of(model: torch.nn.Module, policy: HfVlmPolicy) -> torch.Tensor:
    """What plain transformers code computes for the prompt."""
    prompt = asked(policy)
    row = prompt.input_ids[None]
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), **prompt.inputs}
    if "image_grid_thw" in prompt.inputs:
        inputs["mm_token_type_ids"] = (row == policy.image_token_id).int()
    with torch.no_grad():
        return torch.as_tensor(model(**inputs).logits)


def move(policy: HfVlmPolicy) -> None:
    """Change everything that is trained, so that a saved checkpoint differs from its base."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_full_weights_are_read_by_plain_transformers(checkpoint: Path, tmp_path: Path) -> None:
    policy = load(checkpoint, train_vision_encoder=True)
    before = logits_of(policy.stock, policy)
    move(policy)
    policy.save(tmp_path)
    after = logits_of(policy.stock, policy)
    assert (after - before).abs().max() > 0.1
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits_of(plain, policy), after)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == policy.tokenizer.chat_template
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil") is not None
    again = load(checkpoint, train_vision_encoder=True)
    again.load_weights(tmp_path)
    assert torch.equal(logits_of(again.stock, again), after)
    assert torch.equal(logits_of(load(tmp_path).stock, policy), after)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("vision_encoder", [False, True])
def test_an_adapter_is_read_by_plain_peft(checkpoint: Path, tmp_path: Path, vision_encoder: bool) -> None:
    policy = load(checkpoint, lora_rank=4, train_vision_encoder=vision_encoder)
    adapters = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert adapters
    assert all("lora_" in name for name in adapters)
    assert any("language_model" in name for name in adapters)
    assert any("language_model" not in name for name in adapters) == vision_encoder
    assert policy.train_vision_encoder == vision_encoder
    move(policy)
    policy.save(tmp_path)
    after = logits_of(policy.model, policy)
    base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    untouched = logits_of(base, policy)
    plain = PeftModel.from_pretrained(base, str(tmp_path))
    assert (logits_of(plain, policy) - after).abs().max() < 2e-5
    assert (after - untouched).abs().max() > 0.01
    with policy.adapter_disabled():
        assert torch.equal(logits_of(policy.model, policy), untouched)
    again = load(checkpoint, lora_rank=4, train_vision_encoder=vision_encoder)
    again.load_weights(tmp_path)
    assert torch.equal(logits_of(again.model, again), after)


def test_a_frozen_copy_stays_where_it_was(qwen: Path) -> None:
    policy = load(qwen)
    reference = policy.make_reference()
    assert reference is not None
    before = logits_of(policy.stock, policy)
    move(policy)
    assert torch.equal(logits_of(reference.stock, reference), before)
    assert not any(p.requires_grad for p in reference.parameters())
    assert load(qwen, lora_rank=2).make_reference() is None


def test_the_frozen_vision_encoder_takes_no_gradient(qwen: Path) -> None:
    for trained in (False, True):
        policy = load(qwen, train_vision_encoder=trained)
        policy.logprobs(policy.embed([asked(policy)]), [[(45, 46), (47,)]]).logp.sum().backward()
        found = any(p.grad is not None for p in policy.vision_encoder_parameters())
        assert found == trained
        assert policy.stock.lm_head.weight.grad is not None


@pytest.mark.parametrize("rank", [0, 4])
def test_recomputed_activations_give_the_same_gradient(checkpoint: Path, rank: int) -> None:
    gradients = []
    for recompute in (False, True):
        policy = load(
            checkpoint,
            lora_rank=rank,
            train_vision_encoder=True,
            checkpoint_activations="full" if recompute else "none",
        ).train()
        move(policy)
        calls = []
        layer = policy.core.language_model.layers[0].self_attn
        layer.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        policy.logprobs(policy.embed([asked(policy)]), [[(45, 46), (47,)]]).logp.sum().backward()
        assert len(calls) == 1 + recompute
        gradients.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-6), name


def test_rollouts_keep_their_cache_while_activations_are_recomputed(checkpoint: Path) -> None:
    """In training mode with recomputation, sampled answers and their log-probabilities are the evaluated ones."""
    plain, recomputing = load(checkpoint).eval(), load(checkpoint, checkpoint_activations="full").train()
    found = []
    for policy in (plain, recomputing):
        drawn = torch.rand(1, 2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        groups = policy.generate(policy.embed([asked(policy)]), drawn, group_size=2, max_new_tokens=9)
        found.append([(c.token_ids, c.logprobs) for c in groups[0]])
        assert policy.training == (policy is recomputing)
    assert found[0] == found[1]
    scores = recomputing.logprobs(recomputing.embed([asked(recomputing)]), [[ids for ids, _ in found[1]]])
    for row, (ids, logprobs) in zip(scores.logp[0], found[1], strict=True):
        assert (row[: len(ids)] - torch.tensor(logprobs)).abs().max() < 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bfloat16_and_attention_are_taken(qwen: Path, attention: str) -> None:
    policy = load(qwen, dtype="bfloat16", attention=attention)
    assert policy.stock.dtype == torch.bfloat16
    assert policy.core.language_model.config._attn_implementation == f"packed_{attention}"
    scores = policy.logprobs(policy.embed([asked(policy)]), [[(45, 46), (47,)]])
    exact = load(qwen, attention=attention)
    reference = exact.logprobs(exact.embed([asked(exact)]), [[(45, 46), (47,)]])
    assert (scores.logp - reference.logp).abs().max() < 0.5
    assert scores.logp.dtype == torch.float32


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "copy"))


def test_keys_that_do_not_fit_are_listed(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = sorted(k for k in weights if "layers.1" in k)
    kept = {k: v for k, v in weights.items() if k not in gone} | {"model.extra": torch.zeros(1)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ConfigError,
        match=r"do not fit the config beside them; missing: .*layers\.1.* and \d+ more; unexpected: model\.language_model\.extra",
    ):
        load(folder)
    name = next(k for k in weights if k.endswith("layers.0.mlp.gate_proj.weight"))
    save_file(weights | {name: torch.zeros(3, 3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"mismatched: .*gate_proj"):
        load(folder)


def test_a_truncated_file_is_named(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="a weights file is damaged"):
        load(folder)


def test_a_pickle_needs_trust(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"pickled weights only \(pytorch_model\.bin\).*allow_pickle_weights=true"):
        load(folder)
    trusted, plain = load(folder, allow_pickle_weights=True), load(qwen)
    assert torch.equal(logits_of(trusted.stock, trusted), logits_of(plain.stock, plain))


class Canary:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _touch, (str(self.path),)


def _touch(path: str) -> None:
    Path(path).touch()


def test_a_pickle_runs_no_code(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path)
    torch.save({"x": Canary(tmp_path / "canary")}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds more than weights; refused"):
        load(folder, allow_pickle_weights=True)
    assert not (tmp_path / "canary").exists()


def test_remote_code_is_never_run(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass C: pass\n")
    config = (folder / "config.json").read_text().replace('"qwen2_5_vl"', '"evil_vl"', 1)
    mapped = config.replace("{", '{"auto_map": {"AutoConfig": "evil.C", "AutoModelForImageTextToText": "evil.C"},', 1)
    (folder / "config.json").write_text(mapped)
    with pytest.raises(ConfigError, match=r"policy\.path="):
        load(folder)
    assert not (tmp_path / "canary").exists()


def test_bad_paths_and_types_name_their_key(qwen: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.path='/no/such/model': is no folder here"):
        load(Path("/no/such/model"))
    with pytest.raises(ConfigError, match=r"policy\.path='someone/unknown': is no folder here, and the hub"):
        load(Path("someone/unknown"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="a model of type 'bert'"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.dtype='int8'"):
        load(qwen, dtype="int8")
    bare = copied(qwen, tmp_path)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        load(bare)
    (bare / "chat_template.json").write_text('{"chat_template": "x"}')
    assert HfVlmPolicy(str(bare), ImageSize()).tokenizer.chat_template == "x"


def test_weights_of_another_shape_are_refused(qwen: Path, tmp_path: Path) -> None:
    adapter = load(qwen, lora_rank=2)
    adapter.save(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"policy\.lora_rank: .* holds a LoRA adapter"):
        load(qwen).load_weights(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"do not fit|lora_rank=4: the adapter in .* has 2"):
        load(qwen, lora_rank=4).load_weights(tmp_path / "adapter")
    load(qwen).save(tmp_path / "full")
    weights = load_file(tmp_path / "full" / "model.safetensors")
    save_file(dict(list(weights.items())[3:]), tmp_path / "full" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="missing: "):
        load(qwen).load_weights(tmp_path / "full")

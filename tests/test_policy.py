"""The policy against stock transformers: packed rows, generation, sampling, saving, LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rolling import generate
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig, RolloutConfig
from grasp_rl.policies.packing import attention_mask, pack
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.policies.types import EncodedPrompt, Sampling
from grasp_rl.types import Completion, Sample


def encode(policy: TinyPolicy, samples: list[Sample], prompt: PromptConfig) -> list[EncodedPrompt]:
    return [policy.encode(s.image, s.query, prompt) for s in samples]


def sample_some(policy: TinyPolicy, prompts: list[EncodedPrompt], group: int, length: int) -> list[list[Completion]]:
    uniforms = torch.rand(len(prompts), group, length, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return policy.generate(policy.embed(prompts), uniforms, group_size=group, max_new_tokens=length)


def stock_logprobs(policy: TinyPolicy, prompt: EncodedPrompt, completion: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of one completion by a plain forward of the stock class on [prompt | completion]."""
    ids = torch.cat([prompt.input_ids, torch.tensor(completion)])[None]
    logits = policy.stock(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=prompt.inputs["pixel_values"],
        image_grid_thw=prompt.inputs["image_grid_thw"],
        mm_token_type_ids=(ids == policy.stock.config.image_token_id).int(),
    ).logits[0, len(prompt.input_ids) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def test_layout_by_hand() -> None:
    layout = pack(torch.tensor([3, 2]), torch.tensor([[2, 1], [1, 3]]))
    assert layout.segment.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 2, 2]]
    assert layout.offset.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 1, 2]]
    assert layout.completion_index.tolist() == [[[3, 4, 0], [5, 0, 0]], [[2, 0, 0], [3, 4, 5]]]
    assert layout.predictor_index.tolist() == [[[2, 3, 0], [2, 0, 0]], [[1, 0, 0], [1, 3, 4]]]


def test_layout_with_a_completion_without_tokens() -> None:
    layout = pack(torch.tensor([2, 2]), torch.tensor([[1, 0, 2], [0, 2, 0]]))
    assert layout.segment.tolist() == [[0, 0, 1, 3, 3], [0, 0, 2, 2, -1]]
    assert layout.offset[0].tolist() == [0, 1, 0, 0, 1]
    assert layout.offset[1, :4].tolist() == [0, 1, 0, 1]
    assert layout.completion_index.tolist() == [[[2, 0], [0, 0], [3, 4]], [[0, 0], [2, 3], [0, 0]]]
    assert layout.predictor_index.tolist() == [[[1, 0], [0, 0], [1, 3]], [[0, 0], [1, 2], [0, 0]]]


@pytest.mark.parametrize("packed", ["two_calls", "mask"])
def test_a_completion_without_tokens_leaves_its_siblings_alone(
    samples: list[Sample], compact: PromptConfig, packed: str
) -> None:
    policy = TinyPolicy(weights="random")
    policy.packed_attention = packed
    prompts = encode(policy, samples[:1], compact)
    with torch.no_grad():
        alone = policy.logprobs(policy.embed(prompts), [[(45, 46, 47), (48,)]])
        found = policy.logprobs(policy.embed(prompts), [[(), (45, 46, 47), (), (48,)]])
    assert found.valid.sum(-1).tolist() == [[0, 3, 0, 1]]
    assert (found.logp[:, [1, 3]] - alone.logp).abs().max() < 1e-5
    assert (found.entropy[:, [1, 3]] - alone.entropy).abs().max() < 1e-5
    assert found.logp[:, [0, 2]].abs().sum() == 0


def test_mask_hides_siblings_and_the_future() -> None:
    seen = attention_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0, 0]
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_packed_rows_equal_repeated_rows(
    random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig
) -> None:
    """Log-probabilities within 1e-5 and gradients within 1e-5 relative of one row per completion, vision encoder included."""
    prompts = encode(random_policy, samples[:3], compact)
    groups = sample_some(random_policy, prompts, 4, 12)
    image = random_policy.stock.config.image_token_id  # a stock forward would look for pixels behind it
    ids = [
        [tuple(40 if t == image else t for t in c.token_ids[: 12 - 3 * g]) for g, c in enumerate(group)]
        for group in groups
    ]
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    scores = random_policy.logprobs(random_policy.embed(prompts), ids)
    logp, entropy, valid = scores.logp, scores.entropy, scores.valid
    (logp.sum(-1) * weights).sum().backward()
    packed = {n: p.grad.clone() for n, p in random_policy.named_parameters() if p.grad is not None}
    random_policy.zero_grad()
    total = torch.zeros(())
    for b, group in enumerate(ids):
        for g, completion in enumerate(group):
            stock = stock_logprobs(random_policy, prompts[b], completion)
            assert (logp[b, g, : len(completion)] - stock).abs().max() < 1e-5
            assert valid[b, g].sum() == len(completion)
            total = total + stock.sum() * weights[b, g]
    total.backward()
    for name, parameter in random_policy.named_parameters():
        assert parameter.grad is not None, name
        difference = (parameter.grad - packed[name]).norm() / parameter.grad.norm().clamp(min=1e-6)
        assert difference < 1e-4, f"{name}: {difference}"
    flat = torch.cat([p.grad.flatten() for p in random_policy.parameters() if p.grad is not None])
    both = torch.cat([packed[n].flatten() for n, p in random_policy.named_parameters() if p.grad is not None])
    assert ((flat - both).norm() / flat.norm()).item() < 1e-5
    assert (entropy[valid] > 0).all()


def test_one_vision_encoder_pass_and_one_prompt_for_a_group(
    random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig
) -> None:
    """Counted by hooks: patches through the vision encoder once, language-model tokens exactly P + sum of C."""
    prompts = encode(random_policy, samples[:1], compact)
    patches, tokens = [], []
    random_policy.core.visual.register_forward_pre_hook(lambda _, args: patches.append(len(args[0])))
    random_policy.core.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: tokens.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    random_policy.logprobs(random_policy.embed(prompts), [[(5, 6, 7), (8,), (9, 10)]])
    assert patches == [64]
    assert tokens == [len(prompts[0].input_ids) + 6]


def test_greedy_equals_generate(random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig) -> None:
    """Token for token, for prompts of different length decoded together."""
    prompts = encode(random_policy, samples[:4], compact)
    with torch.no_grad():
        ours = random_policy.generate(random_policy.embed(prompts), None, group_size=1, max_new_tokens=16)
    for prompt, (completion,) in zip(prompts, ours, strict=True):
        ids = prompt.input_ids[None]
        stock = random_policy.stock.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=prompt.inputs["pixel_values"],
            image_grid_thw=prompt.inputs["image_grid_thw"],
            mm_token_type_ids=(ids == random_policy.stock.config.image_token_id).int(),
            max_new_tokens=16,
            do_sample=False,
        )[0, len(prompt.input_ids) :]
        assert tuple(stock.tolist()) == completion.token_ids


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_the_scored_ones(
    random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig, temperature: float
) -> None:
    groups = generate(
        random_policy, samples[:3], compact, group_size=4, seed=0, step=0,
        config=RolloutConfig(max_new_tokens=20, temperature=temperature),
    )  # fmt: skip
    prompts = encode(random_policy, samples[:3], compact)
    with torch.no_grad():
        logp = random_policy.logprobs(
            random_policy.embed(prompts),
            [[c.token_ids for c in group] for group in groups],
            sampling=Sampling(temperature=temperature),
        ).logp
    for b, group in enumerate(groups):
        for g, completion in enumerate(group):
            drawn = torch.tensor(completion.logprobs)
            assert (logp[b, g, : len(drawn)] - drawn).abs().max() < 1e-5


def test_draws_do_not_depend_on_the_layout(
    random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig
) -> None:
    """All rows at once, or two at a time: at least 99.9 % of the tokens are equal."""
    together = generate(
        random_policy, samples, compact, group_size=4, seed=5, step=7, config=RolloutConfig(max_new_tokens=24)
    )
    apart = generate(
        random_policy, samples, compact, group_size=4, seed=5, step=7,
        config=RolloutConfig(max_new_tokens=24, batch_rows=4),
    )  # fmt: skip
    pairs = [
        (a.token_ids, b.token_ids) for x, y in zip(together, apart, strict=True) for a, b in zip(x, y, strict=True)
    ]
    equal = sum(p == q for a, b in pairs for p, q in zip(a, b, strict=False))
    assert equal / sum(len(a) for a, _ in pairs) >= 0.999
    other = generate(
        random_policy, samples[:1], compact, group_size=4, seed=5, step=8, config=RolloutConfig(max_new_tokens=24)
    )
    assert other[0][0].token_ids != together[0][0].token_ids


def test_weights_round_trip_and_plain_transformers_reads_them(
    random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig, tmp_path: Path
) -> None:
    random_policy.save(tmp_path)
    again = TinyPolicy(weights=str(tmp_path))
    prompts = encode(random_policy, samples[:2], compact)
    with torch.no_grad():
        first = random_policy.generate(random_policy.embed(prompts), None, group_size=1, max_new_tokens=12)
        second = again.generate(again.embed(encode(again, samples[:2], compact)), None, group_size=1, max_new_tokens=12)
    assert [c[0].token_ids for c in first] == [c[0].token_ids for c in second]
    plain = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path)
    for (name, a), b in zip(plain.named_parameters(), random_policy.stock.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert Qwen2VLImageProcessorPil.from_pretrained(tmp_path).patch_size == 14


def test_lora_starts_at_the_base_trains_alone_and_comes_back(
    samples: list[Sample], compact: PromptConfig, tmp_path: Path
) -> None:
    base, adapted = TinyPolicy(weights="random"), TinyPolicy(weights="random", lora_rank=4)
    prompts = encode(base, samples[:1], compact)
    ids = [[(5, 6, 7, 8), (9, 10)]]
    before = base.logprobs(base.embed(prompts), ids).logp
    torch.testing.assert_close(adapted.logprobs(adapted.embed(prompts), ids).logp, before)
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    moved = adapted.logprobs(adapted.embed(prompts), ids).logp
    assert (moved - before).abs().max() > 1e-3
    with adapted.adapter_disabled():
        torch.testing.assert_close(adapted.logprobs(adapted.embed(prompts), ids).logp, before)
    adapted.save(tmp_path)
    again = TinyPolicy(weights="random", lora_rank=4)
    again.load_weights(tmp_path)
    torch.testing.assert_close(again.logprobs(again.embed(prompts), ids).logp, moved)
    with pytest.raises(ConfigError, match="adapter"):
        base.load_weights(tmp_path)


def test_tokens_of_an_answer_read_back(random_policy: TinyPolicy) -> None:
    text = '<think>2 tank</think>\n<answer>```json\n[{"bbox_2d":[0,7,112,99],"positive_points":[[1,2],[110,11]]}]\n```</answer>'
    ids = random_policy.tokens_of(text)
    assert random_policy.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == 23

"""Two-call attention, chunked scores and shared looks: the same numbers as the plain way, at fewer passes."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rolling
import torch
from scripted import OneByOne
from torch.utils.flop_counter import FlopCounterMode

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import AlgorithmConfig, PromptConfig, RolloutConfig
from grasp_rl.interfaces import WeakLabels
from grasp_rl.policies import attention, logprobs
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.backbones.qwen2_5_vl import Qwen25VL
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.types import Sampling
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.training.update import make_reference
from grasp_rl.types import Answer, RewardBreakdown, Sample

IDS = [[(45, 46, 47), (48,)], [(50, 51), (52, 53, 54, 55, 56)]]


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def load(folder: Path, **more: object) -> HfVlmPolicy:
    return HfVlmPolicy(str(folder), ImageSize(), **{"dtype": "float32", **more})  # type: ignore[arg-type]


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("base", ["sdpa", "eager"])
@pytest.mark.parametrize("recompute", [False, True])
def test_two_calls_equal_the_mask(
    checkpoint: Path, base: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different prompts and completions: log-probabilities and gradients to 1e-5, and both ways are taken."""
    calls: list[int] = []
    stock = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *a: (calls.append(1), stock(*a))[1])
    found = []
    for packed in ("two_calls", "mask"):
        policy = load(
            checkpoint,
            attention=base,
            packed_attention=packed,
            train_vision_encoder=True,
            checkpoint_activations="full" if recompute else "none",
        ).train()
        prompts = [
            policy.encode(image(100, 140), "the roof", PromptConfig()),
            policy.encode(image(60, 84), "a", PromptConfig()),
        ]
        logp = policy.logprobs(policy.embed(prompts), IDS).logp
        (logp * torch.arange(1.0, 21.0).view(2, 2, 5)).sum().backward()
        found.append((logp.detach(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}))
        assert len(calls) == 2 * (1 + recompute)  # two layers, by two calls only
    (logp, gradients), (expected, reference) = found
    assert (logp - expected).abs().max() < 1e-5
    for name, gradient in reference.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * gradient.abs().max().clamp(min=1), name


def test_nothing_is_computed_for_siblings(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call looks at C x (P + C) pairs for each completion, never at L x L."""
    sizes = []
    stock = attention.scaled_dot_product_attention

    def seen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **more: object) -> torch.Tensor:
        sizes.append((tuple(query.shape), tuple(key.shape)))
        return stock(query, key, value, **more)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", seen)
    policy = load(qwen)
    prompt = policy.encode(image(100, 140), "the roof", PromptConfig())
    count = len(prompt.input_ids)
    policy.logprobs(policy.embed([prompt]), [[(45,) * 6] * 5])
    heads, kv, size = 4, 2, 16
    assert sizes[0] == ((1, heads, count, size), (1, heads, count, size))
    assert sizes[1] == ((5, kv, heads // kv * 6, size), (5, kv, count + 6, size))


def test_a_wrong_name_is_refused(qwen: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.packed_attention='flex': must be one of two_calls, mask"):
        load(qwen, packed_attention="flex")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_scores_are_the_same(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Chunks of any size give the log-probabilities, entropies and gradients of the whole, and never more logits."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, targets = torch.randn(23, 8, requires_grad=True), torch.randint(0, 50, (23,))
    widest: list[int] = []
    head.register_forward_hook(lambda _m, _i, out: widest.append(out.numel()))
    found = []
    for limit in (10**9, 50 * 5, 1):
        monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", limit)
        widest.clear()
        logp, entropy = logprobs.score_tokens(
            head, hidden, targets, vocabulary=50, sampling=Sampling(temperature=temperature)
        )
        gradients = torch.autograd.grad((logp * torch.arange(23.0)).sum(), (hidden, head.weight))
        assert max(widest) <= max(limit, 50)
        found.append((logp.detach(), entropy, *gradients))
    logits = torch.log_softmax(head(hidden) / temperature, -1)
    assert torch.allclose(found[0][0], logits.gather(-1, targets[:, None])[:, 0], atol=1e-6)
    assert torch.allclose(found[0][1], -(logits.exp() * logits).sum(-1), atol=1e-5)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_a_drawn_token_beyond_the_edge_is_scored_all_the_same() -> None:
    """Probabilities 1/2, 1/4, 1/8, 1/8, of which two tokens are kept: a third that was drawn is kept with them."""
    hidden = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log().repeat(3, 1)
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.7)):
        logp, entropy = logprobs.score_tokens(
            lambda states: states, hidden, torch.tensor([0, 1, 3]), vocabulary=4, sampling=sampling
        )
        assert logp.exp().tolist() == pytest.approx([4 / 6, 2 / 6, 1 / 7])
        two, three = torch.tensor([4, 2]) / 6, torch.tensor([4, 2, 1]) / 7
        expected = [-float((share * share.log()).sum()) for share in (two, two, three)]
        assert entropy.tolist() == pytest.approx(expected)


class Alternating(OneByOne):
    """Different siblings earn differently."""

    needs = frozenset({"boxes"})

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, answer: Answer, reference: WeakLabels, prediction: object) -> RewardBreakdown:
        self.asked += 1
        return RewardBreakdown(reward=float(self.asked % 3), terms={"x": float(self.asked % 3)})


@pytest.mark.parametrize(
    ("more", "beta", "passes"),
    [
        ({"lora_rank": 2}, 0.1, 1),
        ({"lora_rank": 2}, 0.0, 1),
        ({"train_vision_encoder": False}, 0.1, 1),
        ({"train_vision_encoder": True}, 0.0, 2),
        ({"train_vision_encoder": True}, 0.1, 3),
    ],
)
def test_vision_encoder_passes_of_a_step(
    qwen: Path, more: dict[str, object], beta: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with a frozen vision encoder, twice with a trained one, three times where a reference has a vision encoder of its own."""
    policy = load(qwen, **more).train()
    reference = make_reference(policy, beta)
    looked: list[int] = []
    stock = Qwen25VL.features
    monkeypatch.setattr(
        Qwen25VL, "features", lambda self, core, inputs: (looked.append(len(inputs)), stock(self, core, inputs))[1]
    )
    tokens: list[int] = []
    policy.core.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: tokens.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    sample = Sample(
        sample_id="a", image=image(84, 84), query="a", target_mask=None, weak_labels=(), dataset="d", split="train"
    )
    rollout = RolloutConfig(max_new_tokens=5)
    algorithm = AlgorithmConfig(group_size=3, beta=beta, scale_advantages=True)
    rollouts = rolling.rollouts(
        policy, [sample], algorithm=algorithm, rollout=rollout, prompt=PromptConfig(), reward=Alternating()
    )
    groups = list(rollouts)
    tokens.clear()
    row = rolling.update(policy, groups, algorithm, rollout, reference=reference)
    assert sum(looked) == passes
    length = len(groups[0].prompt.input_ids) + sum(len(r.completion.token_ids) for r in groups[0].rollouts)
    own_reference = beta > 0 and "lora_rank" in more
    assert tokens == [length] * (1 + own_reference)
    assert row["mismatch"] < 1e-5  # sampled and scored alike


def sequence_by_sequence(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor,
    most_queries: int, most_keys: int, scale: float | None, causal: bool,
) -> torch.Tensor:  # fmt: skip
    """What torch's varlen_attn does on a GPU; causal is the last query at the last key."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    found = []
    for n in range(len(query_ends) - 1):
        q, k, v = (
            x[ends[n] : ends[n + 1]].transpose(0, 1)
            for x, ends in ((query, query_ends), (key, key_ends), (value, key_ends))
        )
        count, held = q.shape[1], k.shape[1]
        assert count <= most_queries
        assert held <= most_keys
        mask = torch.ones(count, held, dtype=torch.bool)
        mask = mask.tril(held - count) if causal else mask
        shared = q.shape[0] // k.shape[0]
        k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
        out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


def visual_rows(prompts: Any) -> torch.Tensor:
    """[patches, D] of all images: what one call of a vision encoder's layer looks at."""
    return torch.cat([prompt.inputs["pixel_values"] for prompt in prompts])


def varlen_attn_2_10(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, is_causal: bool = False, return_aux: object | None = None,
) -> torch.Tensor:  # fmt: skip
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return sequence_by_sequence(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, is_causal)


def varlen_attn_2_11(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, return_aux: object | None = None, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    assert window_size in ((-1, 0), (-1, -1))
    assert query.shape[1] == key.shape[1] == value.shape[1]
    return sequence_by_sequence(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size == (-1, 0))


def varlen_attn_2_12(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor | None,
    max_q: int, max_k: int, *, return_aux: object | None = None, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False, seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None, num_splits: int | None = None,
) -> torch.Tensor:  # fmt: skip
    assert window_size in ((-1, 0), (-1, -1))
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert cu_seq_k is not None
    return sequence_by_sequence(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size == (-1, 0))


VERSIONS = (varlen_attn_2_10, varlen_attn_2_11, varlen_attn_2_12)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.__name__)
def test_one_call_over_sequences_equals_the_mask(
    checkpoint: Path, version: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's layout, by each torch's arguments and no others: the same numbers, and not one padded token."""
    taken: list[int] = []

    @functools.wraps(version)
    def counted(query: torch.Tensor, *words: Any, **named: Any) -> torch.Tensor:
        taken.append(len(query))
        return version(query, *words, **named)

    monkeypatch.setattr(attention, "varlen_attn", counted)
    found, packed = [], "two_calls"
    monkeypatch.setattr(attention, "takes_sequences", lambda hidden: packed == "two_calls")
    for packed in ("two_calls", "mask"):
        policy = load(checkpoint, packed_attention=packed, train_vision_encoder=True).train()
        prompts = [
            policy.encode(image(100, 140), "the roof", PromptConfig()),
            policy.encode(image(60, 84), "a", PromptConfig()),
        ]
        logp = policy.logprobs(policy.embed(prompts), IDS).logp
        (logp * torch.arange(1.0, 21.0).view(2, 2, 5)).sum().backward()
        found.append((logp.detach(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}))
    tokens = sum(len(p.input_ids) for p in prompts) + sum(len(c) for group in IDS for c in group)
    visual = getattr(policy.core, "visual", None)
    assert taken == [*([len(visual_rows(prompts))] * (0 if visual is None else len(visual.blocks))), tokens, tokens]
    (logp, gradients), (expected, reference) = found
    assert (logp - expected).abs().max() < 1e-5
    for name, gradient in reference.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * gradient.abs().max().clamp(min=1), name


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.__name__)
@pytest.mark.parametrize("scaling", [None, 8**-0.5, 0.2])
def test_every_version_scales_alike(version: Callable[..., torch.Tensor], scaling: float | None) -> None:
    """Scores by 1 / sqrt(D), or by any other factor, with four heads of queries to two of keys."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(n, h, 8, generator=generator) for n, h in ((5, 4), (8, 2), (8, 2)))
    plan = attention.sequences(torch.tensor([3]), torch.tensor([[2]]), 5)
    kernel = attention.sequence_kernel(version)
    assert kernel is not None
    ends = (plan.query_ends, plan.key_ends)
    for causal in (True, False):
        expected = sequence_by_sequence(query, key, value, *ends, 3, 5, scaling, causal)
        found = kernel(query, key, value, ends=ends, longest=(3, 5), scaling=scaling, causal=causal)
        assert (found - expected).abs().max() < 1e-6


def test_the_installed_kernel_takes_our_arguments() -> None:
    kernel = attention.sequence_kernel(attention.varlen_attn)
    assert (kernel is None) == (attention.varlen_attn is None)


def test_a_kernel_of_other_arguments_is_left_alone() -> None:
    """Rows then go by two calls, see test_cuda_trace."""
    assert attention.sequence_kernel(None) is None
    assert attention.sequence_kernel(lambda query, key, value: query) is None
    assert attention.sequence_kernel(lambda q, k, v, q_ends, k_ends, most_q, most_k, *, masked=False: q) is None
    assert attention.sequence_kernel(lambda q, k, v, qe, ke, mq, mk, *, window_size=None, needed: q) is None


def test_recomputation_changes_no_gradient_and_what_is_kept(checkpoint: Path) -> None:
    """none, selective, full: the same numbers; matrix products are made again by full."""
    found = {}
    for mode in ("none", "selective", "full"):
        policy = load(checkpoint, checkpoint_activations=mode, lora_rank=2).train()
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.01)
        prompts = [policy.encode(image(100, 140), "the roof", PromptConfig())]
        embedded = policy.embed(prompts)
        with FlopCounterMode(display=False) as counter:
            policy.logprobs(embedded, IDS[:1]).logp.sum().backward()
        found[mode] = (
            counter.get_total_flops(),
            {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None},
        )
    for mode in ("selective", "full"):
        for name, gradient in found["none"][1].items():
            assert (found[mode][1][name] - gradient).abs().max() < 1e-6 * gradient.abs().max().clamp(min=1), name
    assert found["full"][0] > 1.15 * found["none"][0]
    again = {mode: found[mode][0] - found["none"][0] for mode in ("selective", "full")}
    assert again["selective"] < 0.2 * again["full"]


def test_an_unknown_mode_is_named(qwen: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy\.checkpoint_activations='some'.*none, selective, full"):
        load(qwen, checkpoint_activations="some")
    with pytest.raises(ConfigError, match=r"policy\.decoding='fast'.*auto, growing, static"):
        load(qwen, decoding="fast")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_fused_head_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Liger's arguments and its per-token losses, with a stand-in for the kernel: values, gradients, entropies."""

    class Fused:
        @staticmethod
        def apply(*words: object) -> tuple[torch.Tensor, None]:
            states, weight, targets, bias, ce_weight, ignore, lse, smoothing, reduction = words
            assert (ce_weight, ignore, lse, smoothing, reduction) == (None, -100, 0.0, 0.0, "none")
            logits = torch.nn.functional.linear(states, weight, bias)  # type: ignore[arg-type]
            return torch.nn.functional.cross_entropy(logits, targets, reduction="none"), None  # type: ignore[arg-type]

    module = types.ModuleType("liger_kernel.ops.fused_linear_cross_entropy")
    module.LigerFusedLinearCrossEntropyFunction = Fused  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    head = torch.nn.Linear(8, 50, bias=False)
    targets = torch.randint(50, (20,))
    found = []
    for fused in (True, False):
        hidden = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logp, entropy = logprobs.score_tokens(
            head, hidden, targets, vocabulary=50, sampling=Sampling(temperature=temperature), fused=fused
        )
        (logp * torch.arange(20.0)).sum().backward()
        found.append((logp.detach(), entropy, hidden.grad))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() < 1e-5


def test_a_missing_liger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.ops.fused_linear_cross_entropy", None)
    with pytest.raises(ConfigError, match=r"policy\.fused_head=true.*grasp-rl\[liger\]"):
        logprobs.fused_logprobs(torch.nn.Linear(2, 3), torch.zeros(1, 2), torch.tensor([0]), 1.0)


def test_features_outlive_a_step_where_wanted(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen vision encoder looks at an image once an epoch or once at all; a small cache forgets the oldest."""
    looked: list[int] = []
    stock = Qwen25VL.features
    monkeypatch.setattr(
        Qwen25VL, "features", lambda self, core, inputs: (looked.append(len(inputs)), stock(self, core, inputs))[1]
    )
    images = [image(100, 140), image(60, 84)]
    forgetful, remembering = load(qwen), load(qwen, feature_cache_gib=1.0)

    def look(policy: HfVlmPolicy) -> list[torch.Tensor]:
        return [e.embeddings for e in policy.embed([policy.encode(p, "a", PromptConfig()) for p in images])]

    first = look(forgetful)
    look(forgetful)
    assert looked == [2, 2]
    looked.clear()
    assert all(torch.equal(a, b) for a, b in zip(first, look(remembering), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, look(remembering), strict=True))
    assert looked == [2]
    one = remembering.features.held - 1
    small = load(qwen, feature_cache_gib=one / 2**30)
    look(small)
    look(small)
    assert 0 < small.features.held <= one
    assert looked == [2, 2, 1]
    remembering.load_weights(_saved(forgetful, qwen.parent / "saved"))
    look(remembering)
    assert looked[-1] == 2  # other weights, other features


def _saved(policy: HfVlmPolicy, folder: Path) -> Path:
    policy.save(folder)
    return folder

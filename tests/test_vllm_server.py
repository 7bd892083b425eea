"""The vLLM client against a local server that speaks its protocol: what is asked, what is read, what goes wrong."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_vllm
import numpy as np
import pytest
import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig, RolloutConfig
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.types import Sampling
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.rollouts.generators import http
from grasp_rl.rollouts.generators.vllm_server import VllmServer, shown
from grasp_rl.types import Completion, FinishReason, Sample

PROMPT = PromptConfig()
SETTINGS = RolloutConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> HfVlmPolicy:
    policy = HfVlmPolicy(
        str(checkpoint), ImageSize(max_pixels=112 * 112, resize="square"), dtype="float32", lora_rank=2
    )
    tiny_models.loud(policy.model)
    return policy


SAMPLES = [
    Sample(
        sample_id=f"s{i}", image=np.random.default_rng(i).integers(0, 255, (70 + i, 90, 3), dtype=np.uint8),
        query=f"roof {i}", target_mask=None, weak_labels=(), dataset="d", split="train",
    )
    for i in range(3)
]  # fmt: skip


class Bench:
    """A client, its server and what the test wants of them."""

    def __init__(self, policy: HfVlmPolicy, fake: fake_vllm.FakeVllm, url: str, folder: Path) -> None:
        self.policy, self.fake, self.url, self.folder = policy, fake, url, folder
        self.prompts = [policy.encode(s.image, s.query, PROMPT) for s in SAMPLES]

    def client(self, **changes: Any) -> VllmServer:
        settings = {"url": self.url, "adapter_folder": str(self.folder), "timeout_s": 20.0, "retries": 2}
        return VllmServer(**(settings | changes))  # type: ignore[arg-type]

    def ask(self, client: VllmServer, group: int = 3, config: RolloutConfig = SETTINGS) -> dict[int, list[Completion]]:
        return dict(
            client.generate(self.policy, SAMPLES, self.prompts, group_size=group, config=config, seed=1, step=4)
        )


@pytest.fixture
def bench(policy: HfVlmPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(http, "BACKOFF_S", 0.01)

    def ids_of(text: str) -> Any:
        sample = next(s for s in SAMPLES if s.query in text)
        return policy.encode(sample.image, sample.query, PROMPT)

    fake = fake_vllm.FakeVllm(policy, ids_of)
    with fake_vllm.serving(fake) as url:
        yield Bench(policy, fake, url, tmp_path / "adapters")
    assert not fake.ignored


def test_groups_come_back_whole_and_scored(bench: Bench) -> None:
    client = bench.client()
    found = bench.ask(client)
    assert sorted(found) == [0, 1, 2]
    said = [[c.token_ids for c in found[i]] for i in range(3)]
    with torch.no_grad():
        logp = bench.policy.logprobs(bench.policy.embed(bench.prompts), said).logp
    for i in range(3):
        assert len(found[i]) == 3
        for g, completion in enumerate(found[i]):
            drawn = torch.tensor(completion.logprobs)
            assert (logp[i, g, : len(drawn)] - drawn).abs().max() < 1e-4
            assert completion.text == bench.policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            ended = completion.token_ids[-1] in bench.policy.ends
            assert completion.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
    assert bench.ask(bench.client()) == found  # the same seeds
    assert client.mismatch_cap == 2.0
    assert client.counters()["vllm/requests"] == 4  # three groups and an adapter


def test_what_the_server_is_asked(bench: Bench) -> None:
    config = RolloutConfig(max_new_tokens=5, temperature=0.7, top_k=9, top_p=0.8, stop_at_answer=True)
    bench.ask(bench.client(), 2, config)
    for request in bench.fake.requests:
        expected = {
            "n": 2, "temperature": 0.7, "top_k": 9, "top_p": 0.8, "max_tokens": 5, "logprobs": True,
            "return_token_ids": True, "stop": ["</answer>"], "include_stop_str_in_output": True,
            "mm_processor_kwargs": {"max_pixels": 112 * 112}, "stop_token_ids": bench.policy.ends,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0,
        }  # fmt: skip
        assert {key: request[key] for key in expected} == expected
        assert 0 <= request["seed"] < 2**31
    assert len({request["seed"] for request in bench.fake.requests}) == 3
    bench.fake.requests.clear()
    bench.ask(bench.client())
    assert all(request["top_k"] == -1 and "stop" not in request for request in bench.fake.requests)
    squares = [bench.policy.backbone.prepare(s.image) for s in SAMPLES]
    for seen in bench.fake.images:
        assert any(np.array_equal(seen, square) for square in squares)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_both_see_the_same_pixels(family: str, tmp_path: Path) -> None:
    """What a server's processor, with the checkpoint's own bounds, makes of what is sent is what the policy has."""
    path = str(tiny_models.build(family, tmp_path))
    resizes = family.startswith("qwen")
    policy = HfVlmPolicy(path, ImageSize(max_pixels=150 * 150 if resizes else None), dtype="float32")
    image = np.random.default_rng(0).integers(0, 255, (301, 407, 3), dtype=np.uint8)
    prompt = policy.encode(image, "roof", PROMPT)
    sent = shown(policy, image, prompt)
    processor = type(policy.backbone).load_processor(path) if resizes else policy.backbone.image_processor
    theirs = processor(images=[sent], return_tensors="pt", input_data_format="channels_last")
    assert all(torch.equal(theirs[name].reshape(ours.shape), ours) for name, ours in prompt.inputs.items())
    assert (sent.shape == image.shape) == (family in ("internvl", "llava_onevision"))


def test_the_adapter_is_written_loaded_and_replaced(bench: Bench) -> None:
    client = bench.client()
    bench.ask(client)
    client.weights_changed(bench.policy, 5)
    bench.ask(client)
    verbs = [(verb, name.rpartition("_")[2]) for verb, name, _ in bench.fake.orders]
    assert verbs == [("load", "4"), ("unload", "4"), ("load", "5")]
    assert {r["model"].rpartition("_")[2] for r in bench.fake.requests[-3:]} == {"5"}
    (folder,) = bench.folder.iterdir()
    assert bench.fake.orders[2][2] == str(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2
    elsewhere = bench.client(adapter_folder_there="/mnt/there")
    bench.ask(elsewhere)
    assert bench.fake.orders[-1][2].startswith("/mnt/there/grasp_rl_")
    client.close()
    assert bench.fake.orders[-1][0] == "unload"
    assert client.adapter is None
    assert not folder.exists()


def test_one_adapter_is_sent_for_what_is_generated(bench: Bench) -> None:
    client = bench.client()
    client.weights_changed(bench.policy, 1)
    client.weights_changed(bench.policy, 2)
    assert not bench.fake.orders  # nobody has asked for completions of those
    bench.ask(client)
    bench.ask(client)
    assert [verb for verb, _, _ in bench.fake.orders] == ["load"]


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_orders_whose_answer_is_lost(bench: Bench, verb: str) -> None:
    client = bench.client()
    if verb == "unload":
        bench.ask(client)
    lost = len(bench.fake.orders) + 1
    bench.fake.order_fault = lambda verb, number: (0, "") if number == lost else None
    client.weights_changed(bench.policy, 5)
    assert len(bench.ask(client)) == 3
    assert len(bench.fake.adapters) == 1


def test_an_adapter_that_stays_is_only_said(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    client = bench.client()
    bench.ask(client)
    bench.fake.order_fault = lambda verb, number: fake_vllm.error(500, "cannot let go") if verb == "unload" else None
    client.weights_changed(bench.policy, 5)
    assert len(bench.ask(client)) == 3
    assert "cannot let go" in caplog.text
    client.close()


def test_an_adapter_that_cannot_be_loaded(bench: Bench) -> None:
    bench.fake.order_fault = lambda verb, number: (404, '{"detail":"Not Found"}')
    with pytest.raises(ConfigError, match=r"Not Found.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
        bench.ask(bench.client())
    bench.fake.order_fault = lambda verb, number: None
    client = bench.client()
    bench.ask(client)
    bench.fake.order_fault = lambda verb, number: fake_vllm.error(500, "LoRA rank 2 is greater than max_lora_rank 1.")
    client.weights_changed(bench.policy, 5)
    with pytest.raises(RuntimeError, match=r"max_lora_rank 1.*--max-lora-rank"):
        bench.ask(client)


def test_a_trained_vision_encoder_is_mentioned_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bench.policy, "train_vision_encoder", True)
    client = bench.client()
    bench.ask(client)
    client.weights_changed(bench.policy, 5)
    bench.ask(client)
    assert caplog.text.count("--enable-tower-connector-lora") == 1


def test_an_adapter_in_parts_is_not_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [("lora_A.weight", torch.nn.Parameter(torch.empty(0)))]
    monkeypatch.setattr(bench.policy.model, "named_parameters", lambda: parts)
    with pytest.raises(ConfigError, match=r"engine\.gather=whole"):
        bench.ask(bench.client())
    assert not bench.fake.orders


def test_who_does_not_wait_is_let_go(bench: Bench) -> None:
    answer = threading.Event()
    bench.fake.fault = lambda number, request: answer.wait(60) and None if number > 1 else None
    client = bench.client(concurrency=1)
    groups = client.generate(bench.policy, SAMPLES, bench.prompts, group_size=2, config=SETTINGS, seed=1, step=4)
    next(groups)
    groups.close()  # with a request under way that has no answer yet
    assert not answer.is_set()
    answer.set()
    time.sleep(0.5)
    assert len(bench.fake.requests) <= 2  # the third was never sent


def test_requests_run_side_by_side(bench: Bench) -> None:
    bench.fake.fault = fake_vllm.slow(0.2)
    bench.ask(bench.client())
    assert bench.fake.most_busy == 3
    bench.fake.most_busy = 0
    bench.ask(bench.client(concurrency=1))
    assert bench.fake.most_busy == 1


def first(answer: Any) -> Any:
    """A fault of the first request only."""
    return lambda number, request: answer if number == 1 else None


def spoil(change: Any) -> Any:
    """A fault: the first answer is right but for one thing."""

    def fault(bench: Bench) -> Any:
        def broken(number: int, request: dict[str, Any]) -> Any:
            if number > 1:
                return None
            answer = bench.fake.chat(request)
            change(answer)
            return 200, answer

        return broken

    return fault


FAULTS: dict[str, tuple[Any, str]] = {
    "500": (lambda b: first(fake_vllm.error(500, "EngineCore encountered an issue.")), "http_errors"),
    "429": (lambda b: first((429, "slow down")), "http_errors"),
    "hang up": (lambda b: first((0, "")), "http_errors"),
    "garbled": (lambda b: first((200, '{"choices": [')), "bad_answers"),
    "no JSON object": (lambda b: first((200, "hello")), "bad_answers"),
    "no choices": (spoil(lambda a: a.pop("choices")), "bad_answers"),
    "no token ids": (spoil(lambda a: a["choices"][0].pop("token_ids")), "bad_answers"),
    "no logprobs": (spoil(lambda a: a["choices"][0].update(logprobs=None)), "bad_answers"),
    "short logprobs": (spoil(lambda a: a["choices"][0]["logprobs"]["content"].pop()), "bad_answers"),
    "nan": (spoil(lambda a: a["choices"][0]["logprobs"]["content"][0].update(logprob=math.nan)), "bad_answers"),
    "word as token": (spoil(lambda a: a["choices"][0].update(token_ids=["a", "b"])), "bad_answers"),
    "half a token": (spoil(lambda a: a["choices"][0]["token_ids"].__setitem__(0, 1.5)), "bad_answers"),
    "no logprob for a token": (  # what vLLM writes then
        spoil(lambda a: a["choices"][0]["logprobs"]["content"][0].update(logprob=-9999.0)),
        "bad_answers",
    ),
    "logits": (spoil(lambda a: a["choices"][0]["logprobs"]["content"][0].update(logprob=7.5)), "bad_answers"),
    "no prompt": (spoil(lambda a: a.update(prompt_token_ids=None)), "bad_answers"),
    "no tokens": (spoil(lambda a: a["choices"][0].update(token_ids=[])), "bad_answers"),
    "strange end": (spoil(lambda a: a["choices"][0].update(finish_reason="abort")), "bad_answers"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_asked_about_again(bench: Bench, name: str) -> None:
    fault, counter = FAULTS[name]
    bench.fake.fault = fault(bench)
    client = bench.client()
    found = bench.ask(client)
    assert [len(found[i]) for i in range(3)] == [3, 3, 3]
    assert client.counters()[f"vllm/{counter}"] == 1
    assert client.counters()["vllm/retries"] == 1
    assert client.counters()["vllm/groups_missing"] == 0


def test_a_timeout_is_asked_about_again(bench: Bench) -> None:
    slow = fake_vllm.slow(6.0)
    bench.fake.fault = lambda number, request: slow(number, request) if number == 1 else None
    client = bench.client(timeout_s=3.0)
    assert len(bench.ask(client)) == 3
    counters = client.counters()
    assert counters["vllm/timeouts"] == counters["vllm/retries"] >= 1


def test_missing_completions_are_asked_for(bench: Bench) -> None:
    bench.fake.fault = spoil(lambda a: a.update(choices=a["choices"][:1]))(bench)
    client = bench.client()
    assert all(len(group) == 3 for group in bench.ask(client).values())
    assert client.counters()["vllm/short_answers"] == 1
    assert sorted(r["n"] for r in bench.fake.requests) == [2, 3, 3, 3]


def test_what_is_asked_for_again_is_drawn_anew(bench: Bench) -> None:
    config = RolloutConfig(max_new_tokens=12)
    bench.fake.fault = spoil(lambda a: a.update(choices=a["choices"][:3]))(bench)
    for group in bench.ask(bench.client(), 4, config).values():
        assert len({c.token_ids for c in group}) == 4
    assert sorted(r["n"] for r in bench.fake.requests) == [1, 4, 4, 4]


def test_a_group_that_never_comes_is_left_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def fault(number: int, request: dict[str, Any]) -> Any:
        return (500, "no luck") if "roof 1" in str(request["messages"]) else None

    bench.fake.fault = fault
    client = bench.client()
    assert sorted(bench.ask(client)) == [0, 2]
    assert client.counters()["vllm/groups_missing"] == 1
    assert "no luck" in caplog.text
    bench.fake.fault = lambda number, request: fake_vllm.error(503, "overloaded", "ServiceUnavailableError")
    with pytest.raises(RuntimeError, match=r"not one group arrived .*overloaded.*generator\.timeout_s"):
        bench.ask(bench.client())


def test_a_time_limit_ends_the_waiting(bench: Bench) -> None:
    slow = fake_vllm.slow(10.0)
    bench.fake.fault = lambda number, request: slow(number, request) if "roof 2" in str(request["messages"]) else None
    client = bench.client()
    assert sorted(bench.ask(client, config=RolloutConfig(max_new_tokens=8, time_limit_s=5.0))) == [0, 1]
    assert client.counters()["vllm/groups_missing"] == 1


def test_nothing_is_asked_after_the_time_limit(bench: Bench) -> None:
    bench.fake.fault = fake_vllm.slow(3.0)
    with pytest.raises(RuntimeError, match=r"not one group arrived .*time limit.*rollout\.time_limit_s"):
        bench.ask(bench.client(concurrency=1), config=RolloutConfig(max_new_tokens=8, time_limit_s=1.0))
    assert len(bench.fake.requests) == 1


def test_refusals_are_not_repeated(bench: Bench) -> None:
    bench.fake.fault = lambda number, request: fake_vllm.error(
        404, "The model `x` does not exist.", "NotFoundError", "model"
    )
    client = bench.client(concurrency=1)
    with pytest.raises(ConfigError, match=r"refuses the request .404.: .*does not exist"):
        bench.ask(client)
    assert client.counters()["vllm/retries"] == 0


def test_another_prompt_is_named(bench: Bench) -> None:
    def other(answer: Any) -> None:
        answer["prompt_token_ids"] = [*answer["prompt_token_ids"][:7], 0, *answer["prompt_token_ids"][7:]]

    bench.fake.fault = spoil(other)(bench)
    with pytest.raises(ConfigError, match=r"other ones from token 7 on.*policy\.path.*max_pixels"):
        bench.ask(bench.client())


def test_no_server_and_no_adapter_are_named(bench: Bench, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"generator\.url.*--enable-lora"):
        bench.ask(bench.client(url="http://127.0.0.1:9", retries=0))
    full = HfVlmPolicy(str(checkpoint), ImageSize(), dtype="float32")
    with pytest.raises(ConfigError, match=r"policy\.lora_rank=0"):
        bench.client().weights_changed(full, 1)
    for key, value in (("timeout_s", 0.0), ("concurrency", 0), ("retries", -1), ("mismatch_cap", -1.0)):
        with pytest.raises(ConfigError, match=rf"generator\.{key}="):
            bench.client(**{key: value})


def test_the_key_is_sent_and_told_to_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OUR_VLLM_KEY", "canary-7351")
    client = bench.client(api_key_env="OUR_VLLM_KEY")
    bench.ask(client)
    assert all(headers["Authorization"] == "Bearer canary-7351" for headers in bench.fake.headers)
    bench.fake.fault = lambda number, request: (500, "no")
    with pytest.raises(RuntimeError) as error:
        bench.ask(client)
    assert "canary-7351" not in caplog.text + str(error.value) + repr(client.server) + str(client.counters())


@pytest.mark.parametrize("key", [None, "", "canary-7351\n", "canary 7351", "canary-ü"])
def test_a_key_that_is_none(bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str | None) -> None:
    if key is None:
        monkeypatch.delenv("OUR_VLLM_KEY", raising=False)
    else:
        monkeypatch.setenv("OUR_VLLM_KEY", key)
    with pytest.raises(ConfigError, match=r"generator\.api_key_env='OUR_VLLM_KEY'") as error:
        bench.client(api_key_env="OUR_VLLM_KEY")
    assert "canary" not in str(error.value)


def test_other_distributions_are_scored_alike(bench: Bench) -> None:
    config = RolloutConfig(max_new_tokens=6, top_k=4, temperature=0.9)
    found = bench.ask(bench.client(), 2, config)
    said = [[c.token_ids for c in found[i]] for i in range(3)]
    with torch.no_grad():
        logp = bench.policy.logprobs(
            bench.policy.embed(bench.prompts), said, sampling=Sampling(temperature=0.9, top_k=4)
        ).logp
    for i in range(3):
        for g, completion in enumerate(found[i]):
            drawn = torch.tensor(completion.logprobs)
            assert (logp[i, g, : len(drawn)] - drawn).abs().max() < 1e-4

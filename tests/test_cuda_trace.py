"""Where the host waits for the GPU, or the GPU for the host, found without one; every such place stands in a list here.

Tensors that hold their values on the CPU say that they lie on ``cuda:0``. Every operator on them is seen: what the host
reads, what is copied, what has a shape that depends on values. A copy from pageable memory waits, a pinned one does not.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rolling
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from grasp_rl.config.schema import AlgorithmConfig, OptimizerConfig, PromptConfig, RolloutConfig
from grasp_rl.distributed.local import LocalEngine
from grasp_rl.policies import attention
from grasp_rl.policies.backbones.base import ImageSize
from grasp_rl.policies.generation import static as static_decoding
from grasp_rl.policies.pretrained import HfVlmPolicy
from grasp_rl.policies.transfer import together
from grasp_rl.rehearsal import models as tiny_models
from grasp_rl.training.update import make_reference
from grasp_rl.types import Sample

CUDA = torch.device("cuda", 0)
SOURCES = Path(attention.__file__).parents[1]

SHAPE_DEPENDS_ON_VALUES = {
    "nonzero", "masked_select", "masked_scatter_backward", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "argwhere",
}  # fmt: skip
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class OnDevice(torch.Tensor):
    """A tensor that says it lies on a GPU, and holds its values on the CPU. To torch's C++ it is a meta tensor."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device("meta"),
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"OnDevice({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})[1]


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[list[str], Any]:
    """What is to be told of an operator, and its result by the values held."""
    name = func.overloadpacket.__name__
    words = tree_flatten((args, kwargs))[0]
    ours = [x for x in words if isinstance(x, OnDevice)]
    theirs = [x for x in words if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
    target = kwargs.get("device")
    to_device = bool(ours) if target is None else torch.device(target).type in ("cuda", "meta")
    told = []
    if name == "_local_scalar_dense" and ours:
        told.append("read")
    elif name == "_to_copy":
        if ours and not to_device:
            told.append("to the host")
        elif theirs and to_device and theirs[0].numel():
            pinned = getattr(theirs[0], "pinned", False) and kwargs.get("non_blocking")
            told.append("pinned to the device" if pinned else "to the device")
    elif name == "copy_":
        if isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            told.append("to the device" if isinstance(args[0], OnDevice) else "to the host")
            to_device = isinstance(args[0], OnDevice)
    elif ours and any(x.dim() for x in theirs):
        told.append(f"operand of {name} to the device")
    if ours and (name in SHAPE_DEPENDS_ON_VALUES or (name == "repeat_interleave" and func._overloadname == "Tensor")):
        told.append(f"wait in {name}")
    if ours and name in BY_INDEX:
        picked = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        filled = "put" in name and len(args[1]) == 1 and args[2].numel() == 1  # becomes masked_fill
        if picked and not filled:
            told.append(f"wait in {name}")
    plain_args, plain = tree_map_only(OnDevice, lambda x: x.held, (args, kwargs))
    if target is not None:
        plain["device"] = torch.device("cpu")
    plain.pop("pin_memory", None)
    if name == "_to_copy":
        plain.pop("non_blocking", None)
    out = func(*plain_args, **plain)
    if not to_device:
        if name == "copy_":
            return told, args[0]
        return told, out
    out = tree_map_only(torch.Tensor, OnDevice, out)
    return told, return_and_correct_aliasing(func, args, kwargs, out) if ours else out


class Trace(TorchDispatchMode):
    """Counts what waits, by where in our sources it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.phase: str = ""
        self.entered: Counter[str] = Counter()
        self.found: dict[str, Counter[str]] = {}
        self.places: dict[str, set[str]] = {}
        self.silent = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told, out = run(func, args, kwargs or {})
        if told and not self.silent:
            self.note(told)
        return out

    def note(self, told: list[str]) -> None:
        frames = traceback.extract_stack(sys._getframe(2))
        ours = [f for f in frames if f.filename.startswith(str(SOURCES))]
        stock = [f for f in frames if "/transformers/" in f.filename or "/peft/" in f.filename]
        where = "autograd" if not ours else f"{Path(ours[-1].filename).name} {ours[-1].name}"
        behind = stock[-1:] if stock and ours and frames.index(stock[-1]) > frames.index(ours[-1]) else []
        for frame in behind:
            where += f" > {Path(frame.filename).name} {frame.name}"
        for what in told:
            key = f"{what}: {where}"
            self.found.setdefault(self.phase, Counter())[key] += 1
            lines = [f"{f.filename}:{f.lineno}: {f.line}" for f in (ours[-1:] + behind)]
            self.places.setdefault(key, set()).add("\n    ".join(lines))

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        self.entered[phase] += 1
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def unseen(self) -> Iterator[None]:
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before


class Made(TorchFunctionMode):
    """Tensors from Python values, and pinned memory, which torch makes without asking a dispatch mode."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            device = torch.device(kwargs.pop("device", None) or "cpu")
            return func(tree_map_only(OnDevice, lambda x: x.item(), args[0]), *args[1:], **kwargs).to(device)
        if func is torch.Tensor.pin_memory:
            made = args[0].clone()
            made.pinned = True
            return made
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].to("cpu").tolist()
        return func(*args, **kwargs)


def moved(module: torch.nn.Module) -> None:
    """Put a module on the device that is not there, shared parameters shared."""
    known: dict[int, Any] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    held = OnDevice(parameter.data)
                    known[id(parameter)] = torch.nn.Parameter(held, requires_grad=parameter.requires_grad)
                part._parameters[name] = known[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trace]:
    """A GPU without one: nothing is initialized, a step is replayed by running it, the kernel is a stand-in."""
    trace = Trace()

    def kernel(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_ends: torch.Tensor, key_ends: torch.Tensor,
        most_queries: int, most_keys: int, *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
    ) -> torch.Tensor:  # fmt: skip
        with trace.unseen():
            found = []
            ends = list(zip(query_ends.tolist(), key_ends.tolist(), strict=True))
            for (q0, k0), (q1, k1) in itertools.pairwise(ends):
                q, k, v = (x.transpose(0, 1)[None] for x in (query[q0:q1], key[k0:k1], value[k0:k1]))
                mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool, device=CUDA).tril(k1 - k0 - q1 + q0)
                out = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
                )
                found.append(out[0].transpose(0, 1))
            return torch.cat(found)

    def replayed(static: Any) -> Callable[[], None]:
        def step() -> None:
            with trace.during("decode step"):
                static._advance()

        return step

    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(static_decoding.StaticState, "capture", replayed)
    with Made(trace), trace:
        yield trace


def image(height: int, width: int = 84) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build(request.param, tmp_path_factory.mktemp(request.param) / request.param)


STOCK_MASK = "read: vlm.py language_model > masking_utils.py _ignore_causal_mask_sdpa"
DEEPSTACK = "vlm.py language_model > modeling_qwen3_vl.py _deepstack_process"
EVERYWHERE: dict[str, dict[str, int]] = {
    "embed": {},
    "generate": {STOCK_MASK: 2, "to the host: static.py fetch": 2},
    "generate unpadded": {"to the host: static.py fetch": 1},
    "decode step": {},
    "forward": {},
    "update": {"to the host: update.py _fetched": 1, "read: local.py step": 1},
}
"""Two prompts are embedded, 20 tokens of them decoded with two looks; an optimizer step of two micro-batches, with KL."""
DEEPSTACK_TWICE = {f"wait in index: {DEEPSTACK}": 1, f"wait in index_put_: {DEEPSTACK}": 1}
OF_FAMILY: dict[str, dict[str, dict[str, int]]] = {
    "qwen3_vl": {  # the stock model adds features by a boolean index; a layer of one is built here
        "generate": DEEPSTACK_TWICE,
        "generate unpadded": DEEPSTACK_TWICE,
        "forward": DEEPSTACK_TWICE,
        "update": {
            f"wait in index: {DEEPSTACK}": 4,
            f"wait in index_put_: {DEEPSTACK}": 4,
            "wait in index: local.py backward": 2,
            "wait in index_put: local.py backward": 4,
        },
    },
    "llava_onevision": {  # lengths of its features, which nobody asks for
        "embed": {"to the device: llava_onevision.py features > modeling_llava_onevision.py pack_image_features": 1},
    },
}
WITH_VISION_ENCODER = {
    "llava_onevision": {
        "update": {"to the device: llava_onevision.py features > modeling_llava_onevision.py pack_image_features": 4},
    },
}
PINNED = {"embed": 4, "generate": 2, "generate unpadded": 2, "decode step": 0, "forward": 2, "update": 22}
"""At most so many copies that nobody waits for; each costs a launch."""


@pytest.mark.parametrize("train_vision_encoder", [False, True])
def test_nothing_waits_but_what_is_listed(
    checkpoint: Path, train_vision_encoder: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = 0 if train_vision_encoder else 2
    policy = HfVlmPolicy(
        str(checkpoint), ImageSize(), dtype="bfloat16", train_vision_encoder=train_vision_encoder, lora_rank=lora
    )
    samples = [
        Sample(
            sample_id=query,
            image=image(size),
            query=query,
            target_mask=None,
            weak_labels=(),
            dataset="d",
            split="train",
        )
        for query, size in (("a", 60), ("the roof", 112))
    ]
    rollout = RolloutConfig(max_new_tokens=5)
    algorithm = AlgorithmConfig(group_size=3, beta=0.1, micro_batch_groups=1)
    with pretended(monkeypatch) as trace:
        moved(policy)
        policy.train()
        prompts = [policy.encode(s.image, s.query, PromptConfig()) for s in samples]
        with trace.during("embed"):
            embedded = policy.embed(prompts)
        policy.ends = []
        for phase, asked in (("generate", embedded), ("generate unpadded", embedded[:1])):
            tokens = 20 if phase == "generate" else 16
            with trace.during(phase):
                uniforms = torch.rand(len(asked), 2, tokens, dtype=torch.float64)
                policy.generate(asked, uniforms, group_size=2, max_new_tokens=tokens)
        with trace.during("forward"):
            policy.logprobs(embedded, [[(45, 46, 47), (48,)], [(50, 51), (52, 53)]])
        with trace.unseen():
            reference = make_reference(policy, algorithm.beta)
            groups = list(
                rolling.rollouts(policy, samples, algorithm=algorithm, rollout=rollout, prompt=PromptConfig())
            )
            groups = rolling.with_advantages(groups, torch.tensor([[1.0, -1.0, 0.0]] * 2))
            engine = LocalEngine(policy, OptimizerConfig(), 10)
        with trace.during("update"):
            row = rolling.update(policy, groups, algorithm, rollout, engine=engine, reference=reference)
    assert row["grad_norm"] > 0
    assert trace.entered["decode step"] >= 36
    family = checkpoint.name
    for phase, listed in EVERYWHERE.items():
        allowed = Counter(listed)
        for more in (OF_FAMILY, WITH_VISION_ENCODER if train_vision_encoder else {}):
            allowed += Counter(more.get(family, {}).get(phase, {}))
        found = trace.found.get(phase, Counter())
        pinned = sum(found.pop(key) for key in list(found) if key.startswith("pinned"))
        assert pinned <= PINNED[phase]
        told = [f"{n} x {key}\n    {chr(10).join(trace.places[key])}" for key, n in (found - allowed).items()]
        assert not told, f"{family}, {phase}: the host waits for the GPU where it did not\n" + "\n".join(told)
        gone = {key for key in allowed - found if " > " not in key}  # what stock classes do differs between versions
        assert not gone, f"{family}, {phase}: no longer so, take it off the list: {gone}"


def test_rows_go_by_two_calls_where_the_kernel_has_other_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half precision on the device, and with the numbers of the CPU in float32."""
    folder = tiny_models.build("qwen2_5_vl", tmp_path)
    ids = [[(45, 46, 47), (48,)], [(50, 51), (52, 53)]]
    calls: list[int] = []
    stock = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *words: (calls.append(1), stock(*words))[1])
    for dtype in ("float32", "bfloat16"):
        found = []
        for device in ("cpu", "cuda"):
            policy = HfVlmPolicy(str(folder), ImageSize(), dtype=dtype, train_vision_encoder=True).train()
            prompts = [policy.encode(image(size), "the roof", PromptConfig()) for size in (60, 112)]
            with monkeypatch.context() as patch, pretended(patch) as trace:
                patch.setattr(attention, "varlen_attn", lambda query, key, value: query)
                if device == "cuda":
                    moved(policy)
                with trace.during("forward"):
                    logp = policy.logprobs(policy.embed(prompts), ids).logp
                logp.sum().backward()
                assert logp.device.type == device
                found.append(logp.detach().cpu())
            waits = [key for key in trace.found.get("forward", ()) if not key.startswith("pinned")]
            assert not waits
        assert (found[0] - found[1]).abs().max() < (1e-5 if dtype == "float32" else 0.1)
    assert len(calls) == 2 * 2 * 2  # two layers


class Asked(Exception):
    """Ends a look where the stock encoder was asked."""


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_flash_attention_gets_its_ends_on_the_device(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the longest sequence as a number; others get the ends where they read them, on the CPU."""
    policy = HfVlmPolicy(str(tiny_models.build(family, tmp_path)), ImageSize(), dtype="float32")
    given: dict[str, dict[str, Any]] = {}

    def asked(*_: object, **named: Any) -> None:
        given[policy.core.visual.config._attn_implementation] = named
        raise Asked

    monkeypatch.setattr(policy.core, "get_image_features", asked)
    with pretended(monkeypatch):
        moved(policy)
        for implementation in ("sdpa", "flash_attention_2"):
            monkeypatch.setattr(policy.core.visual.config, "_attn_implementation", implementation)
            with pytest.raises(Asked):
                policy.embed([policy.encode(image(112), "a", PromptConfig())])
    ends = {name: value for name, value in given["sdpa"].items() if "_cu_" in name}
    longest = {"image_cu_seqlens": "image_max_seqlen", "image_cu_window_seqlens": "image_max_window_seqlen"}
    assert ends
    for name, value in ends.items():
        assert value.device.type == "cpu"
        assert given["flash_attention_2"][name].device.type == "cuda"
        assert given["flash_attention_2"][longest[name]] == int(value.diff().max())


ON_DEVICE: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], list[str]]] = {
    "item": (lambda x, _: x[0, 0].item(), ["read"]),
    "bool": (lambda x, _: bool((x > 0).any()), ["read"]),
    "tolist": (lambda x, _: x.tolist(), ["to the host"]),
    "cpu": (lambda x, _: x.cpu(), ["to the host"]),
    "to": (lambda _, host: host.to(CUDA), ["to the device"]),
    "pageable": (lambda _, host: host.to(CUDA, non_blocking=True), ["to the device"]),
    "pinned": (lambda _, host: host.pin_memory().to(CUDA, non_blocking=True), ["pinned to the device"]),
    "tensor": (lambda x, _: torch.tensor([1, 2], device=x.device), ["to the device"]),
    "copy_": (lambda x, host: x.copy_(host), ["to the device"]),
    "host index": (lambda x, _: x[torch.tensor([0, 1])], ["operand of index to the device"]),
    "mask": (lambda x, _: x[x > 0], ["wait in index"]),
    "put by mask": (lambda x, _: x.index_put((x[:, 0] > 0,), x[1:]), ["wait in index_put"]),
    "fill by mask": (lambda x, _: x.__setitem__(x > 0, 0.0), []),
    "nonzero": (lambda x, _: x.nonzero(), ["wait in nonzero"]),
    "masked_scatter": (
        lambda x, _: torch.autograd.grad(
            x.masked_scatter(x > 0, (y := x.clone().requires_grad_())).sum(), y
        ),
        ["wait in masked_scatter_backward"],
    ),
    "index_copy": (lambda x, _: x.index_copy(0, torch.arange(2, device=x.device), x[:2]), []),
    "scalar": (lambda x, _: x * torch.tensor(2.0) + 1, []),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_DEVICE)
def test_the_trace_sees_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, expected = ON_DEVICE[name]
    with pretended(monkeypatch) as trace:
        call(OnDevice(torch.arange(12.0).view(3, 4)), torch.ones(3, 4))
    found = [key.split(":")[0] for key in trace.found.get("", ())]
    assert found == expected


def test_many_tensors_travel_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "bool": torch.tensor([[True], [False], [True]]), "int": torch.tensor([7], dtype=torch.int32),
        "none": torch.zeros(0, 2, dtype=torch.long), "long": torch.arange(6).view(2, 3).t(),
        "float": torch.tensor([0.1, float("nan"), -0.0]), "scalar": torch.tensor(3),
    }  # fmt: skip
    with pretended(monkeypatch) as trace:
        found = together(given, CUDA)
    assert sum(trace.found[""].values()) == 1
    for name, tensor in together(given, torch.device("cpu")).items():
        assert tensor is given[name]
        held = found[name].held  # type: ignore[attr-defined]
        assert held.dtype == tensor.dtype
        assert held.shape == tensor.shape
        assert held.contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()

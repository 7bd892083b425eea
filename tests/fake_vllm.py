"""A small HTTP server with vLLM's request and response fields, a real tiny policy behind it and faults on demand.

Field names, error bodies and messages follow ``vllm/entrypoints/openai/chat_completion/protocol.py`` at commit 002032e
of vllm-project/vllm and ``.../models/serving.py`` at commit 00153c8. Not compared with a running server.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import torch

from grasp_rl.policies.types import Sampling
from grasp_rl.types import FinishReason

REQUEST_FIELDS = {
    "messages", "model", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs", "max_tokens",
    "max_completion_tokens", "n", "presence_penalty", "response_format", "seed", "stop", "stream", "temperature",
    "top_p", "top_k", "min_p", "repetition_penalty", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "min_tokens", "skip_special_tokens", "truncate_prompt_tokens", "prompt_logprobs", "allowed_token_ids",
    "bad_words", "add_generation_prompt", "continue_final_message", "add_special_tokens", "chat_template",
    "chat_template_kwargs", "mm_processor_kwargs", "structured_outputs", "priority", "request_id",
    "return_tokens_as_token_ids", "return_token_ids",
}  # fmt: skip
"""Fields of a chat request; vLLM ignores any other with a line in its own log."""


def error(status: int, message: str, kind: str = "InternalServerError", param: str | None = None) -> tuple[int, Any]:
    """Status and body of a refused request: vLLM's ``ErrorResponse``."""
    return status, {"error": {"message": message, "type": kind, "param": param, "code": status}}


class FakeVllm:
    """Answers as ``policy`` says; ``fault(number, request)`` may return (status, body) or raise, or None to go on."""

    def __init__(self, policy: Any, ids_of: Callable[[str], Any]) -> None:
        self.policy, self.ids_of = policy, ids_of
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.orders: list[tuple[str, str, str]] = []
        self.order_fault: Callable[[str, int], tuple[int, Any] | None] = lambda verb, number: None
        """What goes wrong with order ``number``; with status 0 it is done and only its answer is lost."""
        self.adapters: set[str] = set()
        self.slot: str | None = None
        self.images: list[np.ndarray] = []
        self.ignored: set[str] = set()
        """Fields of requests that vLLM does not have."""
        self.fault: Callable[[int, dict[str, Any]], tuple[int, Any] | None] = lambda number, request: None
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def chat(self, request: dict[str, Any]) -> dict[str, Any]:
        parts = request["messages"][-1]["content"]
        url = next(p["image_url"]["url"] for p in parts if p["type"] == "image_url")
        png = np.frombuffer(base64.b64decode(url.removeprefix("data:image/png;base64,")), np.uint8)
        self.images.append(cv2.cvtColor(cv2.imdecode(png, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))
        with self.lock:
            prompt = self.ids_of(next(p["text"] for p in parts if p["type"] == "text"))
            draws = [  # completion i of a request has the seed of the request plus i, as in vLLM's ParentRequest
                np.random.default_rng(request["seed"] + i).random(request["max_tokens"]) for i in range(request["n"])
            ]
            uniforms = np.array([draws])
            sampling = Sampling(
                temperature=request["temperature"], top_p=request["top_p"], top_k=max(0, request["top_k"])
            )
            with torch.no_grad():
                (group,) = self.policy.generate(
                    self.policy.embed([prompt]), torch.from_numpy(uniforms), group_size=request["n"],
                    max_new_tokens=request["max_tokens"], sampling=sampling,
                )  # fmt: skip
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": c.text, "refusal": None, "reasoning": None},
                "logprobs": {"content": [self.token(*pair) for pair in zip(c.token_ids, c.logprobs, strict=True)]},
                "finish_reason": "stop" if c.finish_reason is FinishReason.STOP else "length",
                "stop_reason": None,
                "token_ids": list(c.token_ids),
            }
            for i, c in enumerate(group)
        ]
        ids, said = prompt.input_ids.tolist(), sum(len(c.token_ids) for c in group)
        usage = {"prompt_tokens": len(ids), "completion_tokens": said, "total_tokens": len(ids) + said}
        return {
            "id": f"chatcmpl-{len(self.requests)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request["model"],
            "choices": choices,
            "usage": usage,
            "prompt_logprobs": None,
            "prompt_token_ids": ids,
        }

    def token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.policy.tokenizer.decode([token_id])
        return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}

    def order(self, verb: str, request: dict[str, Any]) -> tuple[int, Any]:
        """Adapters come and go as in vLLM with one slot: the newest takes it, and only who has it can be removed."""
        name = request["lora_name"]
        self.orders.append((verb, name, request.get("lora_path", "")))
        faulty = self.order_fault(verb, len(self.orders))
        if faulty and faulty[0] != 0:
            return faulty
        if verb == "load" and name in self.adapters:
            remedy = "If you want to load the adapter in place, set 'load_inplace' to True."
            return error(400, f"The lora adapter '{name}' has already been loaded. {remedy}", "InvalidUserInput")
        if verb == "unload" and name not in self.adapters:
            return error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        if verb == "unload" and self.slot != name:
            return error(500, f"Failed to remove lora adapter '{name}' from the engine.")
        self.adapters ^= {name}
        self.slot = name if verb == "load" else None
        done = {"load": "added", "unload": "removed"}[verb]
        return faulty or (200, f"Success: LoRA adapter '{name}' {done} successfully.")

    def answer(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("_lora_adapter"):
            return self.order(path.rsplit("/", maxsplit=1)[-1].split("_", maxsplit=1)[0], request)
        with self.lock:
            self.requests.append(request)
            number = len(self.requests)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            self.ignored |= set(request) - REQUEST_FIELDS
        try:
            if fault := self.fault(number, request):
                return fault
            if request["model"] not in self.adapters:
                return error(404, f"The model `{request['model']}` does not exist.", "NotFoundError", "model")
            return 200, self.chat(request)
        finally:
            with self.lock:
                self.busy -= 1


@contextmanager
def serving(fake: FakeVllm) -> Any:
    """The root URL of ``fake``, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fake.headers.append(dict(self.headers))
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = fake.answer(self.path, request)
            if status == 0:  # hang up in the middle
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.connection.close()
                return
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None: ...

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def slow(seconds: float) -> Callable[[int, dict[str, Any]], None]:
    def fault(number: int, request: dict[str, Any]) -> None:
        time.sleep(seconds)

    return fault

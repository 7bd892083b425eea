"""A small HTTP server that speaks what vLLM speaks, with a real tiny policy behind it and faults on demand."""

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
        self.fault: Callable[[int, dict[str, Any]], tuple[int, Any] | None] = lambda number, request: None
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def chat(self, request: dict[str, Any]) -> dict[str, Any]:
        assert request["model"] in self.adapters
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
                "token_ids": list(c.token_ids),
                "logprobs": {"content": [{"token": "x", "logprob": v} for v in c.logprobs]},
                "finish_reason": "stop" if c.finish_reason is FinishReason.STOP else "length",
                "message": {"role": "assistant", "content": c.text},
            }
            for i, c in enumerate(group)
        ]
        return {"prompt_token_ids": prompt.input_ids.tolist(), "choices": choices}

    def order(self, verb: str, request: dict[str, Any]) -> tuple[int, Any]:
        """Adapters come and go as in vLLM with one slot: the newest takes it, and only who has it can be removed."""
        name = request["lora_name"]
        self.orders.append((verb, name, request.get("lora_path", "")))
        faulty = self.order_fault(verb, len(self.orders))
        if faulty and faulty[0] != 0:
            return faulty
        if verb == "load" and name in self.adapters:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        if verb == "unload" and name not in self.adapters:
            return 404, {"error": {"message": f"The lora adapter '{name}' cannot be found."}}
        if verb == "unload" and self.slot != name:
            return 500, {"error": {"message": f"Failed to remove lora adapter '{name}' from the engine."}}
        self.adapters ^= {name}
        self.slot = name if verb == "load" else None
        return faulty or (200, f"Success: {verb}ed")

    def answer(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("_lora_adapter"):
            return self.order(path.rsplit("/", maxsplit=1)[-1].split("_", maxsplit=1)[0], request)
        with self.lock:
            self.requests.append(request)
            number = len(self.requests)
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            return self.fault(number, request) or (200, self.chat(request))
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

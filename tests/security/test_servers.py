"""A server is a stranger: its time ends, its answer has a size and a depth, its tokens are ones that were asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.rollouts.generators import http as wire
from grasp_rl.rollouts.generators.http import Server, Unreachable, Unusable
from grasp_rl.rollouts.generators.vllm_server import VllmServer


class Hostile(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.path.strip("/")
        try:
            if kind == "slow_headers":
                for _ in range(40):
                    self.wfile.write(b"H")
                    self.wfile.flush()
                    time.sleep(0.1)
                return
            self.send_response({"flood_error": 500, "escape": 400}.get(kind, 200))
            if kind == "short":
                self.send_header("Content-Length", "10")
            self.end_headers()
            for _ in range(40 if kind == "drip" else 0):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
            for _ in range(64 if kind.startswith("flood") else 0):
                self.wfile.write(b"x" * 2**20)
            bodies = {"deep": b"[" * 200000, "digits": b"[" + b"9" * 5000 + b"]", "escape": b"\x1b]0;T\x07\nforged"}
            self.wfile.write(bodies.get(kind, b"{}"))
        except OSError:
            pass

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def _ask(port: int, kind: str, **more: Any) -> Any:
    return Server(url=f"http://127.0.0.1:{port}", timeout_s=0.5, retries=0).ask(f"/{kind}", {}, lambda x: x, **more)


@pytest.mark.parametrize("kind", ["drip", "slow_headers"])
def test_an_attempt_ends_with_its_time_whatever_arrives(port: int, kind: str) -> None:
    began = time.monotonic()
    with pytest.raises(Unreachable, match="TimeoutError"):
        _ask(port, kind)
    assert time.monotonic() - began < 2


def test_a_body_has_a_size(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_BYTES", 2**20)
    with pytest.raises(Unreachable, match="more than 1048576 bytes"):
        _ask(port, "flood")
    with pytest.raises(Unreachable) as refused:
        _ask(port, "flood_error")
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("kind", ["deep", "digits", "short"])
def test_every_error_of_reading_is_one_of_ours(port: int, kind: str) -> None:
    with pytest.raises(Unreachable):
        _ask(port, kind)


def test_its_words_are_escaped(port: int) -> None:
    with pytest.raises(ConfigError, match=r"refuses the request \(400\)") as refused:
        _ask(port, "escape")
    assert str(refused.value).isprintable()


CHOICE: dict[str, Any] = {
    "token_ids": [1, 2], "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}]}, "finish_reason": "stop",
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"token_ids": [1, 50]}, {"token_ids": [1, -1]}, {"token_ids": [1, True]}, {"token_ids": [1, "2"]},
        {"token_ids": [1], "logprobs": {"content": [{"logprob": "x"}]}}, {"token_ids": [1] * 3},
        {"token_ids": [1] * 9, "logprobs": {"content": [{"logprob": -1.0}] * 9}},
        {"logprobs": {"content": [{"logprob": float("nan")}, {"logprob": -1.0}]}},
    ],
)  # fmt: skip
def test_tokens_are_of_the_vocabulary_and_as_many_as_asked_for(changed: dict[str, Any]) -> None:
    class Tokenizer:
        def __len__(self) -> int:
            return 50

        def decode(self, ids: list[int], **_: Any) -> str:
            return str(ids)

    policy: Any = SimpleNamespace(tokenizer=Tokenizer())
    assert VllmServer._completion(policy, CHOICE, 8).token_ids == (1, 2)
    with pytest.raises((Unusable, ValueError)):
        VllmServer._completion(policy, CHOICE | changed, 8)


@pytest.mark.parametrize(
    "url", ["http://user:canary@host:1", "ftp://host", "file:///etc/passwd", "http://h/?key=1", "h:1"]
)
def test_an_address_is_http_without_user_or_query(url: str) -> None:
    with pytest.raises(ConfigError, match=r"generator\.url: must be http") as refused:
        VllmServer(url, "adapters")
    assert "canary" not in str(refused.value)

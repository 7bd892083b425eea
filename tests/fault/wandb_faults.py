"""W&B refusing, stalling and dropping: a real wandb client against a local server that misbehaves.

python tests/fault/wandb_faults.py --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

WORDS = [
    "reward=think2seg", "segmenter=grabcut", "algorithm.steps=40", "algorithm.prompts_per_step=6", "evaluation.every=0",
    "evaluation.test_limit=4", "evaluation.overlays=0", "checkpoint.every=0",
]  # fmt: skip
STALL_S = 30.0


@contextmanager
def server(mode: str) -> Iterator[str]:
    """The URL of a server that refuses, stalls or drops every connection; ``drop`` answers the first few."""
    if mode == "refuse":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    seen = [0]

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            seen[0] += 1
            if mode == "stall":
                time.sleep(STALL_S)
            if mode == "error":
                self.send_response(500)
                self.end_headers()
                return
            if mode == "drop" and seen[0] <= 3:
                body = b'{"data": {"viewer": {"entity": "x", "username": "x", "flags": "{}"}, "serverInfo": {}}}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.connection.close()

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...

    running = Quiet(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()


def run(folder: Path, words: list[str], url: str | None) -> dict[str, Any]:
    """One training; its exit code, metrics and median step."""
    command = [sys.executable, "-m", "grasp_rl.cli.main", "train", f"run_dir={folder}", *WORDS, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_API_KEY": "0" * 40}
    environment |= {"WANDB_BASE_URL": url} if url else {}
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    steps = [json.loads(line)["step_s"] for line in (folder / "timings.jsonl").read_text().splitlines()]
    return {
        "exit_code": done.returncode,
        "seconds": round(time.monotonic() - begun, 1),
        "step_s": statistics.median(steps[5:]),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        before = run(Path(scratch) / "plain", [], None)
        for mode in ("refuse", "error", "stall", "drop"):
            with server(mode) as url:
                found = run(Path(scratch) / mode, ["tracker=wandb", "tracker.mode=online"], url)
            after = run(Path(scratch) / f"after_{mode}", [], None)
            plain = (before["step_s"] + after["step_s"]) / 2
            rows.append(
                {
                    "mode": mode,
                    "exit_code": found["exit_code"],
                    "metrics_complete": found["metrics"] == before["metrics"] == after["metrics"],
                    "step_s": round(found["step_s"], 4),
                    "step_s_without": [round(side["step_s"], 4) for side in (before, after)],
                    "slower": round(found["step_s"] / plain - 1, 4),
                    "seconds": found["seconds"],
                    "seconds_without": before["seconds"],
                }
            )
            before = after
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
    (arguments.out / "wandb.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0 if all(row["exit_code"] == 0 and row["metrics_complete"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A shard of DeepSpeed's that would run code: not read unless it is one's own or trusted, and then it is said."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import forked
import pytest
import torch

from grasp_rl.runs import checkpoints

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs pip install 'grasp-rl[train]'"
)
QUICK = ("debug=fast", "evaluation.every=0", "evaluation.test_limit=1", "policy.weights=random", "engine=zero1")


class Runs:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"open({str(self.canary)!r}, 'w').close()",))


def test_a_strangers_shard_runs_nothing(tmp_path: Path) -> None:
    begun = forked.grasp_rl("train", *QUICK, "algorithm.steps=1", "run_dir=run", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    step, canary = tmp_path / "run/checkpoints/step_000001", tmp_path / "canary"
    assert checkpoints.is_own(tmp_path / "run", 1)
    (shard,) = step.rglob("*optim_states.pt")
    torch.save(torch.load(shard, weights_only=False) | {"more": Runs(canary)}, shard)
    names = [path for path in step.rglob("*") if path.is_file() and not path.name.startswith("manifest.json")]
    proof = {
        str(path.relative_to(step)): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in names
    }
    (step / "manifest.json").write_text(json.dumps(proof))
    assert checkpoints.damage(step) is None
    assert not checkpoints.is_own(tmp_path / "run", 1)
    words = ("train", "resume=run", "algorithm.steps=2")
    refused = forked.grasp_rl(*words, cwd=tmp_path)
    assert refused.returncode == 2
    assert "trust_checkpoint=true allows it" in refused.stderr
    assert not canary.exists()
    trusted = forked.grasp_rl(*words, "trust_checkpoint=true", cwd=tmp_path)
    assert trusted.returncode == 0, trusted.stderr
    assert canary.exists()  # the shard is as dangerous as it is said to be
    assert "read as a trusted pickle" in (tmp_path / "run/log.txt").read_text()


def test_a_shard_of_ones_own_is_read_as_plain_values(tmp_path: Path) -> None:
    forked.grasp_rl("train", *QUICK, "algorithm.steps=1", "run_dir=run", cwd=tmp_path)
    for path in (tmp_path / "run").rglob("*.origin"):
        path.unlink()  # as it looks to somebody else
    ended = forked.grasp_rl("train", "resume=run", "algorithm.steps=2", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    log = (tmp_path / "run/log.txt").read_text()
    assert "resuming from step 1" in log
    assert "trusted pickle" not in log

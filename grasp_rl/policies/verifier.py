"""A policy that is asked whether an image shows what a question asks for: the verifier of a label-free reward.

Not published by RemoteZero (arXiv 2605.04451), and chosen here: the words of the question, and that the score is the
probability of yes against no.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.interfaces import Policy
from grasp_rl.runs.checkpoints import find_policy
from grasp_rl.types import Image

YES, NO = ("yes", "Yes", "YES"), ("no", "No", "NO")
TEMPLATES = {score: str(Path(__file__).parent / f"templates/verify_{score}.jinja") for score in ("yes_no", "number")}
"""The words of the question, by what is made of the answer."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MAX_NEW_TOKENS = 12


class PolicyVerifier:
    """A frozen policy as a :class:`~grasp_rl.interfaces.Verifier`.

    Args:
        policy: which is asked; as a rule the run's own (``${policy}``), built a second time.
        weights: a run directory, a checkpoint or a policy folder whose weights it takes; null for its own. With
            ``regime.rounds`` > 1 those of the round before.
        score: ``yes_no``: the probability that the answer begins with yes, against no, in whatever case. ``number``:
            the first number of the greedy answer, 0 where it has none or one beyond 0..1.
        device: ``auto`` takes a GPU where there is one; ``cpu``, ``cuda``.

    Raises:
        ConfigError: an argument cannot be used, or yes and no begin with the same token.
    """

    def __init__(self, policy: Any, weights: str | None = None, score: str = "yes_no", device: str = "auto") -> None:
        if score not in TEMPLATES:
            raise ConfigError(f"verifier.score={score!r}: must be one of {', '.join(TEMPLATES)}")
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"verifier.device={device!r}: must be one of auto, cpu, cuda")
        if not all(hasattr(policy, name) for name in ("encode", "embed", "forward", "generate", "load_weights")):
            raise ConfigError(f"verifier.policy={policy!r}: must be an option of conf/policy")
        self.score = score
        self.policy: Policy = policy
        if weights is not None:
            folder = Path(weights)
            if not folder.is_dir():
                raise ConfigError(f"verifier.weights={weights!r}: no such folder; name a run, a checkpoint or a policy")
            policy.load_weights(find_policy(folder))
        chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
        self.policy = policy.to(torch.device(chosen)).eval()
        for parameter in self.policy.parameters():
            parameter.requires_grad_(False)
        self.prompt = PromptConfig(
            scheme="verify", answer="choice", box=False, positive_points=0, template=TEMPLATES[score]
        )
        self.yes, self.no = (self._first_tokens(words) for words in (YES, NO))
        if set(self.yes) & set(self.no):
            raise ConfigError("verifier.policy: its tokenizer begins yes and no with the same token; take score=number")

    @torch.no_grad()
    def verify(self, image: Image, query: str) -> float:
        """How sure the policy is, in [0, 1], that ``image`` [H, W, 3] uint8 RGB shows what ``query`` asks for."""
        prompt = self.policy.encode(image, query, self.prompt)
        if self.score == "number":
            said = self.policy.generate(self.policy.embed([prompt]), None, group_size=1, max_new_tokens=_MAX_NEW_TOKENS)
            number = _NUMBER.search(said[0][0].text)
            value = float(number.group()) if number else 0.0
            return value if value <= 1 else 0.0
        candidates = [(token,) for token in (*self.yes, *self.no)]
        logp, *_ = self.policy.forward([prompt], [candidates], entropy=False)
        assert logp is not None
        shares = logp[0, :, 0].double().softmax(0)
        return float(shares[: len(self.yes)].sum())

    def _first_tokens(self, words: tuple[str, ...]) -> list[int]:
        return sorted({int(self.policy.tokenizer(word, add_special_tokens=False)["input_ids"][0]) for word in words})

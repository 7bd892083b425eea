"""Questions that a policy cannot take, found before the first one is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.schema import PromptConfig
from grasp_rl.data.base import Split
from grasp_rl.interfaces import Dataset, Policy
from grasp_rl.types import Image
from grasp_rl.utils.text import control_token

IMAGE_SHARE = 2
"""One part in so many of the context is left for the image; every family's largest image is smaller."""
_MARK = "\ue000"
"""A character for private use, which no template has."""


def check_questions(policy: Policy, dataset: Dataset, prompts: Sequence[PromptConfig]) -> None:
    """Find the questions of ``dataset`` that ``policy`` cannot take: bad records, which ``data.on_bad`` decides about.

    A question must not hold a control token, and must leave room for its image. A million short questions take
    seconds: a text is tokenised only where it may be too long by its bytes, and an image is read only where the text
    takes half of the context.

    Args:
        policy: that is to be asked.
        dataset: a split; one that is no :class:`~grasp_rl.data.base.Split` is passed.
        prompts: the schemes to ask under.

    Raises:
        ConfigError: there is such a question, and it is not to be skipped, or there are too many of them.
    """
    if isinstance(dataset, Split):
        for prompt in prompts:
            dataset.check_questions(_Refusal(policy, prompt))


class _Refusal:
    """Why ``policy`` cannot take a question under ``prompt``."""

    def __init__(self, policy: Policy, prompt: PromptConfig) -> None:
        self.policy, self.prompt = policy, prompt
        self.reserved: tuple[str, ...] = tuple(policy.tokenizer.all_special_tokens)
        self.room = policy.context // IMAGE_SHARE
        text = policy.prompt_text(_MARK, prompt)
        self.times, self.bytes = text.count(_MARK), len(text.encode())

    def __call__(self, query: str, image: Callable[[], Image]) -> str | None:
        token = control_token(query, self.reserved)
        if token is not None:
            return f"query: holds {token!r}, a control token of chat templates; reword it"
        if self.bytes + self.times * len(query.encode()) < self.room:  # a token is one byte or more
            return None
        if len(self.policy.tokenizer(self.policy.prompt_text(query, self.prompt))["input_ids"]) < self.room:
            return None
        pixels = image()
        try:
            self.policy.encode(pixels, query, self.prompt)
        except ConfigError as error:
            return f"query: {error}"
        return None

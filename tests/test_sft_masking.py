"""Which tokens of a fine-tuning row are scored: the answer's, all of them, and no token of the question."""

from __future__ import annotations

from dataclasses import replace

import torch

from grasp_rl.config.schema import PromptConfig
from grasp_rl.policies.tiny.policy import TinyPolicy
from grasp_rl.types import Sample

ANSWERS = (
    '<think>1 tank</think>\n<answer>```json\n[{"bbox_2d":[1,2,30,40],"positive_points":[[9,9],[12,30]]}]\n```</answer>',
    "<think>no tank</think>\n<answer>```json\n[]\n```</answer>",
)


def test_an_answer_is_scored_from_its_first_token_to_its_last(
    random_policy: TinyPolicy, samples: list[Sample], compact: PromptConfig
) -> None:
    """Two questions behind one image score as each does as a prompt of its own."""
    image = samples[0].image
    prompts = random_policy.encode_questions(image, [("the tank", compact), ("what could feed a wildfire", compact)])
    split = random_policy.image_end(prompts[0])
    asked = [tuple(prompt.input_ids[split:].tolist()) for prompt in prompts]
    answers = [random_policy.tokens_of(text) for text in ANSWERS]
    shared = replace(prompts[0], input_ids=prompts[0].input_ids[:split])
    with torch.no_grad():
        row = random_policy.logprobs(
            random_policy.embed([shared]),
            [[(*question, *answer) for question, answer in zip(asked, answers, strict=True)]],
            unscored=[[len(question) for question in asked]],
        )
        alone = [
            random_policy.logprobs(random_policy.embed([prompt]), [[answer]])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
    for place, (question, answer, expected) in enumerate(zip(asked, answers, alone, strict=True)):
        first, last = len(question), len(question) + len(answer)
        assert row.valid[0, place].nonzero()[:, 0].tolist() == list(range(first, last))
        assert (row.logp[0, place, first:last] - expected.logp[0, 0]).abs().max() < 1e-5
        assert row.logp[0, place, :first].abs().sum() == 0

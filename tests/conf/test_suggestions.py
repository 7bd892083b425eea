"""What a wrong name on the command line is answered with: the key that is meant, and no other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from grasp_rl.config import other_trainers
from grasp_rl.config.errors import ConfigError
from grasp_rl.launch import compose

TERMS = "it has answer_format, box_iou, box_l1, count, points, points_inside, think_format"


def refusal(*words: str, sweep: bool = False) -> str:
    with compose.hydra("train") as engine, pytest.raises(ConfigError) as refused:
        (compose.sweep if sweep else compose.single)(engine, ["command=train", *words], ())
    return str(refused.value)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("reward.box_iou.weight=2", "reward.terms.box_iou.weight"),
        ("reward.box_iou.wieght=2", "reward.terms.box_iou"),
        ("reward.terms.box_iou.wieght=2", "reward.terms.box_iou.weight"),
        ("inference.temperature=1", "inference.samples.temperature"),
        ("inference.temprature=1", "inference.samples.temperature"),
        ("groupsize=3", "algorithm.group_size"),
        ("algorithm.reward_workr=inline", "rollout.reward_worker"),
        ("lr=1", "optimizer.lr"),
    ],
)
def test_the_key_that_is_meant(word: str, meant: str) -> None:
    key = word.partition("=")[0]
    assert refusal(word).startswith(f"{key}: no such key; did you mean {meant}? Valid: ")


def test_another_group_has_to_be_really_close() -> None:
    for key in ("algorithm.mask_iou", "algorithm.count_of", "rollout.zzz"):
        assert refusal(f"{key}=1").startswith(f"{key}: no such key; valid: ")


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("num_generations=8", "algorithm.group_size"),
        ("actor_rollout_ref.rollout.n=8", "algorithm.group_size"),
        ("rollout.n=8", "algorithm.group_size"),
        ("worker.actor.optim.learning_rate=1", "optimizer.lr"),
        ("algorithm.kl_coef=1", "algorithm.beta"),
        ("algorithm.epsilon=1", "algorithm.clip_low"),
        ("beta=1", "algorithm.beta"),
        ("max_completion_length=1", "rollout.max_new_tokens"),
        ("num_train_epochs=1", "algorithm.steps (optimizer steps; an epoch is the number of questions / "),
        ("per_device_train_batch_size=1", "algorithm.prompts_per_step (questions an optimizer step, "),
        ("policy.temperature=1", "rollout.temperature"),
    ],
)
def test_names_of_other_trainers(word: str, ours: str) -> None:
    assert f": no such key; here it is {ours}" in refusal(word)


def test_a_further_argument_of_a_component_is_answered_too() -> None:
    said = refusal("+policy.temperature=1")
    assert said.startswith(
        "policy.temperature: TinyPolicy has no such argument; here it is rollout.temperature; valid: "
    )


def exists(config: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def test_what_other_trainers_names_are_here_exists() -> None:
    with compose.hydra("train") as engine:
        words = ["command=train", "policy=qwen2_5_vl_3b", "data=jsonl"]
        config = compose.single(engine, words, (), ["data"]).config
    assert [key for key in other_trainers.KEYS.values() if not exists(config, key)] == []
    assert [name for name in other_trainers.KEYS if exists(config, name)] == []
    assert set(other_trainers.NOTES) <= set(other_trainers.KEYS.values())


def test_a_term_that_the_reward_does_not_have_can_be_added_as_shown() -> None:
    said = refusal("reward.terms.mask_iou.weight=2")
    assert said.startswith(f"reward.terms.mask_iou: this reward has no such term; {TERMS}; to add one: ")
    (word,) = shlex.split(said.partition("to add one: ")[2])
    with compose.hydra("train") as engine:
        made = compose.single(engine, ["command=train", word], ()).config["reward"]["terms"]
    assert made["mask_iou"] == {"_target_": "grasp_rl.rewards.terms.masks.MaskIou", "weight": 1}
    assert refusal("reward.terms.box_iuo.weight=2") == (
        f"reward.terms.box_iuo: this reward has no such term; did you mean reward.terms.box_iou? I{TERMS[1:]}"
    )
    assert "to add one: '+reward.terms.mine={_target_: CLASS, weight: 1}'" in refusal("reward.terms.mine.weight=1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("think2seg_rs/main3b", "no such option; did you mean think2seg_rs/main_3b? It must be one of think2seg_rs/"),
        ("think2seg_rs", "is a folder of experiments; must be one of think2seg_rs/backbone, think2seg_rs/group_size"),
        ("main_3b", "no such option; did you mean think2seg_rs/main_3b? It must be one of demo, "),
        ("think2seg/main_3b", "no such option; did you mean think2seg_rs/main_3b? It must be one of demo, "),
        ("think2seg_rs/zzz", "no such option; must be one of think2seg_rs/backbone, "),
        ("zzz", "no such option; must be one of demo, "),
        ("tiny_grop", "no such option; did you mean tiny_grpo? It must be one of demo, "),
    ],
)
def test_experiments_in_folders_are_named(name: str, said: str) -> None:
    assert refusal(f"experiment={name}").startswith(f"experiment={name}: {said}")
    assert "/_base" not in refusal(f"experiment={name}")


def test_experiments_of_a_sweep_and_of_a_search_path_are_named(tmp_path: Path) -> None:
    assert refusal("experiment=demo,think2seg_rs/main3b", sweep=True).startswith(
        "experiment=think2seg_rs/main3b: no such option; did you mean think2seg_rs/main_3b?"
    )
    path = tmp_path / "experiment/mine/ablation.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# @package _global_\n")
    said = refusal("experiment=mine/ablatoin", f"hydra.searchpath=[file://{tmp_path}]")
    assert re.match("experiment=mine/ablatoin: no such option; did you mean mine/ablation?", said)


def test_a_sweep_that_lacks_a_value_names_its_key_alone() -> None:
    assert refusal("data=jsonl", "seed=1,2", sweep=True) == "data.root: has no default; give data.root=VALUE"

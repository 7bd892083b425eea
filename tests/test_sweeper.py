"""Lists of a sweep that move together."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from grasp_rl.config.errors import ConfigError
from grasp_rl.launch.sweeper import split_points

PAIRED: dict[str, Any] = {"policy": ["tiny", "tiny_large"], "algorithm.group_size": [8, 4]}


def points(words: list[str], zipped: dict[str, Any]) -> list[list[str]]:
    return split_points(OverridesParser.create().parse_overrides(words), zipped)


def test_paired_lists_are_multiplied_with_the_rest() -> None:
    assert points(["seed=0,1", "name=x"], PAIRED) == [
        ["seed=0", "name=x", "policy=tiny", "algorithm.group_size=8"],
        ["seed=1", "name=x", "policy=tiny", "algorithm.group_size=8"],
        ["seed=0", "name=x", "policy=tiny_large", "algorithm.group_size=4"],
        ["seed=1", "name=x", "policy=tiny_large", "algorithm.group_size=4"],
    ]
    assert points(["policy=tiny", "algorithm.group_size=2,4"], PAIRED) == [
        ["policy=tiny", "algorithm.group_size=2"],
        ["policy=tiny", "algorithm.group_size=4"],
    ]
    assert points(["seed=0,1"], {}) == [["seed=0"], ["seed=1"]]


def test_values_are_written_in_the_grammar_of_overrides() -> None:
    zipped = {"a": [1.5, None, "x y", [1, "b"], "sam_r1/main", "7"]}
    found = [point[0] for point in points([], zipped)]
    assert found == ["a=1.5", "a=null", 'a="x y"', "a=[1,b]", "a=sam_r1/main", 'a="7"']
    values = [override.value() for override in OverridesParser.create().parse_overrides(found)]
    assert [str(v) if not isinstance(v, list | float | None) else v for v in values] == [
        1.5, None, "x y", [1, "b"], "sam_r1/main", "7",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "zipped", "told"),
    [
        ([], {"a": [1, 2], "b": [1]}, r"sweep\.zip: must be lists of one length; found \{'a': 2, 'b': 1\} values"),
        ([], {"a": []}, r"sweep\.zip: must be lists of one length"),
        (["policy=tiny"], PAIRED, r"sweep\.zip\.policy: moves together with algorithm\.group_size"),
    ],
)
def test_lists_that_do_not_fit_are_named(words: list[str], zipped: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        points(words, zipped)

"""`grasp-rl data list`: every published option is in the catalog, and says what is known and what is not."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from grasp_rl.cli import data as data_cli
from grasp_rl.data.catalog import CATALOG, FORMS, UNKNOWN

OWN = {"jsonl", "synthetic", "folder", "mixture", "cross_view", "synthetic_cross_view"}
"""Options that are no published dataset."""


def test_every_published_option_is_in_the_catalog() -> None:
    files = [path.name for path in resources.files("grasp_rl.conf").joinpath("data").iterdir()]
    options = {name.removesuffix(".yaml") for name in files if name.endswith(".yaml") and not name.startswith("_")}
    assert {"rrsis_d", "earthreason"} <= options
    assert options - OWN - set(CATALOG) - set(FORMS) == set()
    assert not set(FORMS) & set(CATALOG)
    assert set(FORMS.values()) <= set(CATALOG)
    assert not OWN & set(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_an_entry_is_whole(name: str) -> None:
    entry = CATALOG[name]
    assert entry.name == name
    assert all(count > 0 for count in entry.splits.values())
    for text in (entry.title, entry.size, entry.licence, entry.redistribution, entry.host, entry.how):
        assert text.strip()
    if entry.licence == UNKNOWN:  # nothing may be passed on that nobody allowed
        assert entry.redistribution == UNKNOWN or entry.redistribution.startswith("nothing")
    if entry.hub is not None:
        assert entry.hub.count("/") == 1
        assert "Hugging Face hub" in entry.host
        assert f"prepare {name} --from hub:{entry.hub}@" in entry.how


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert [line.partition(":")[0] for line in text.splitlines() if line and line[0] != " "] == list(CATALOG)
    assert "train 12181, val 1740, test 3481 (questions)" in text
    assert data_cli.main(["list", "rrsis_d", "grasp1k", "--json"]) == 0
    rrsis_d, grasp = json.loads(capsys.readouterr().out)["datasets"]
    assert (rrsis_d["reader"], grasp["reader"]) == (True, True)
    assert (grasp["licence"], grasp["splits"], grasp["how"]) == (UNKNOWN, None, "no public host is known")
    assert data_cli.main(["list", "rrsisd"]) == 2
    assert "must be one of" in capsys.readouterr().err

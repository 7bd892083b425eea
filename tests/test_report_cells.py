"""Runs by configuration and test set: what belongs together, means and intervals worked out by hand, what is tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grasp_rl.config.errors import ConfigError
from grasp_rl.evaluation.significance import bootstrap_p, bounds, ratio_draws
from grasp_rl.reporting import results
from grasp_rl.reporting.axes import configurations, constants, labelled, resolved
from grasp_rl.reporting.cells import by_test_set, compared, draws_of, gain, protocol_label
from grasp_rl.reporting.content import context
from grasp_rl.reporting.costs import checkpoint
from grasp_rl.reporting.load import read_study
from grasp_rl.reporting.render import markdown, render
from grasp_rl.reporting.table import tables_of
from grasp_rl.reporting.types import Scored, StudiedRun
from grasp_rl.runs.run_dir import mark_ended, mark_started


def scored(ious: Sequence[float], *, query: str = "where", **metrics: float) -> Scored:
    """An evaluation whose samples scored so."""
    records = tuple(
        {"sample_id": f"{n:03d}", "dataset": "d", "split": "test", "query": query, "has_target": True, "iou": float(iou),
         "intersection": 10 * iou, "union": 10.0, "target": {"counts": f"t{n}"}}
        for n, iou in enumerate(ious)
    )  # fmt: skip
    numbers = {"giou": float(np.mean(ious)), "ciou": float(np.mean(ious)), "samples": len(ious), **metrics}
    return Scored(metrics=numbers, records=records, overlays={})


def studied(
    words: str, after: Scored | None, before: Scored | None = None, *, commit: str = "c", **config: Any
) -> StudiedRun:
    """A run of these overrides; its configuration is what they say and ``config``."""
    pairs: dict[str, Any] = dict(word.split("=") for word in words.split())
    return StudiedRun(
        folder=Path(f"/runs/{words}"), label=words, axes={}, state="done" if after else "failed",
        error=None if after else "no luck", config={"policy": "p", **pairs, **config},
        environment={"overrides": words.split(), "git": {"package": {"commit": commit}}}, seconds=60.0,
        rows=(), validations=(), timings=(), before=before, after=after, difference=None,
    )  # fmt: skip


def page(runs: Sequence[StudiedRun], **options: Any) -> dict[str, Any]:
    return context(labelled(runs), "study", **options)


def test_draws_by_hand() -> None:
    """Seeds of 0.4 and 0.6 on every sample: their mean is 0.4, 0.5 or 0.6 in a quarter, a half and a quarter of draws."""
    ones = np.ones((2, 7))
    two = np.array([[0.4] * 7, [0.6] * 7])
    draws = ratio_draws([(two, ones), (np.full((1, 7), 0.3), ones[:1])], bootstrap_samples=4000)
    values, counts = np.unique(draws[0].round(9), return_counts=True)
    assert values.tolist() == [0.4, 0.5, 0.6]
    np.testing.assert_allclose(counts / 4000, [0.25, 0.5, 0.25], atol=0.03)
    assert bounds(draws[0] - draws[1]) == pytest.approx((0.1, 0.3))
    assert bootstrap_p(draws[0] - draws[1]) == pytest.approx(2 / 4001)
    assert bootstrap_p(np.array([-1.0, 1.0, 1.0, np.nan])) == 1.0  # 2 * (1 + 1) / (3 + 1)


def test_draws_of_a_ratio_weigh_samples_by_their_denominator() -> None:
    """Two samples, 1 of 1 and 0 of 3: a draw of both is 1/4, not 1/2, one of the first alone is 1."""
    draws = ratio_draws([(np.array([[1.0, 0.0]]), np.array([[1.0, 3.0]]))], bootstrap_samples=1000)
    assert set(draws[0].tolist()) == {0.0, 0.25, 1.0}
    half = ratio_draws([(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]))], bootstrap_samples=1000)[0]
    assert set(half[np.isfinite(half)]) == {1.0}
    assert 0.2 < np.isnan(half).mean() < 0.3  # draws of the second sample alone have nothing to count
    with pytest.raises(ValueError, match="same samples"):
        ratio_draws([(np.ones((1, 2)), np.ones((1, 2))), (np.ones((1, 3)), np.ones((1, 3)))])


def test_paired_samples_leave_no_chance_in_an_equal_difference() -> None:
    """0.1 more on every sample: the interval of the difference is 0.1 to 0.1, that of each mean is wide."""
    hard = np.linspace(0.1, 0.8, 30)
    runs = labelled([studied("reward=a", scored(hard)), studied("reward=b", scored(hard + 0.1))])
    ((test, cells),) = by_test_set(configurations(runs)).items()
    assert (test.dataset, test.split, test.samples, test.protocol) == ("d", "test", 30, "ours")
    apart = compared(cells, cells[0])["reward=b"]
    assert (apart.mean, apart.low, apart.high) == pytest.approx((0.1, 0.1, 0.1))
    assert not apart.tied
    assert apart.p == pytest.approx(1 / 2001)
    low, high = cells[0].interval or (0, 0)
    assert low < 0.45 < high
    assert high - low > 0.1


MASKS, BOXES = (f"grasp_rl.evaluation.protocols.{name}" for name in ("masks.MaskProtocol", "boxes.BoxProtocol"))


@pytest.mark.parametrize(
    ("protocol", "metric", "name", "others"),
    [
        ({"_target_": MASKS, "name": "mine", "headline": "ciou"}, "ciou", "cIoU", ["gIoU", "Pr@0.5"]),
        ({"_target_": BOXES, "name": "geo_r1_rec", "thresholds": [0.5]}, "acc@0.5", "acc@0.5", ["gIoU", "cIoU"]),
        ({"_target_": "my_lab.lowest.LowestIou"}, "lowest", "lowest", ["gIoU", "cIoU"]),
        ({"_target_": "my_lab.lowest.LowestIou", "headline": 3}, "lowest", "lowest", ["gIoU", "cIoU"]),
        ({"_target_": "my_lab.lowest.LowestIou", "headline": "acc@x"}, "lowest", "lowest", ["gIoU", "cIoU"]),
        ({"_target_": "my_lab.lowest.LowestIou", "headline": "$\\frac{$"}, "lowest", "lowest", ["gIoU", "cIoU"]),
        (
            {"protocols": {"a": {"_target_": MASKS, "headline": "ciou"}}, "leader": "a"},
            "ciou",
            "cIoU",
            ["gIoU", "Pr@0.5"],
        ),
    ],
)
def test_a_table_leads_with_the_headline_of_its_protocol(
    protocol: dict[str, Any], metric: str, name: str, others: list[str]
) -> None:
    """Of a class of somebody else, which is not imported, with gIoU or else the first score that there is."""
    hard, values = np.linspace(0.3, 0.9, 30), {}
    for label, more in {"a": 0.0, "b": 0.05}.items():
        numbers = {"scored": 30.0, "parsed": 1.0, "parse/ok": 1.0, metric: float(np.mean(hard + more > 0.5))}
        one = scored(hard + more, **numbers)
        values[label] = (
            one if metric == "ciou" else replace(one, metrics={k: v for k, v in one.metrics.items() if "iou" not in k})
        )
    runs = labelled(
        [studied(f"reward={label}", one, one, evaluation={"protocol": protocol}) for label, one in values.items()]
    )
    ((_, cells),) = by_test_set(configurations(runs)).items()
    assert [cell.metric for cell in cells] == [metric, metric]
    (group,) = page(runs)["groups"]
    assert (group["metric"], group["columns"][:2]) == (name, others)
    assert group["rows"][0]["after"] == f"{values['a'].metrics[metric]:.3f}"
    (table,) = tables_of(runs)[:1]
    assert table.title.startswith(f"{metric} on ")
    assert f"{name} before" in markdown(page(runs))
    if metric.startswith("acc"):
        assert cells[0].interval is not None  # counted from the samples
        assert gain(cells[0]) == (0, 0, 0)


def test_numbers_of_other_names_stand_in_tables_of_their_own() -> None:
    """Two runs of a protocol of one name that lead with different metrics are never ranked against each other."""
    runs = [
        studied(f"reward={name}", scored([value] * 9), evaluation={"protocol": {"name": "mine", "headline": name}})
        for name, value in {"giou": 0.4, "ciou": 0.9}.items()
    ]
    tests = by_test_set(configurations(labelled(runs)))
    assert [(test.metric, [cell.label for cell in cells]) for test, cells in tests.items()] == [
        ("giou", ["reward=giou"]), ("ciou", ["reward=ciou"])
    ]  # fmt: skip
    groups = page(runs)["groups"]
    assert [group["metric"] for group in groups] == ["gIoU", "cIoU"]
    assert [group["title"].partition(", by ")[2][:4] for group in groups] == ["gIoU", "cIoU"]


@pytest.mark.parametrize("strict", [True, False])
def test_the_gain_of_accuracy_counts_as_the_protocol_does(strict: bool) -> None:
    """IoU of exactly 0.5 before and 0.6 after: right from 0.5 on, wrong above it."""
    protocol = {"_target_": BOXES, "name": "geo_r1_rec", "thresholds": [0.5], "strict": strict}
    before, after = scored([0.5] * 12, **{"acc@0.5": float(not strict)}), scored([0.6] * 12, **{"acc@0.5": 1.0})
    run = studied("reward=a", after, before, evaluation={"protocol": protocol})
    ((_, (cell,)),) = by_test_set(configurations(labelled([run]))).items()
    assert gain(cell) == ((1, 1, 1) if strict else (0, 0, 0))
    lied = studied("reward=a", after, replace(before, metrics={"acc@0.5": 0.25}), evaluation={"protocol": protocol})
    ((_, (cell,)),) = by_test_set(configurations(labelled([lied]))).items()
    assert gain(cell) is None  # the samples do not give what was written


def test_the_gain_of_a_metric_whose_denominator_moves() -> None:
    """Unions of 10 before and of 20 after, intersections of 2 and of 12: 0.2 and 0.6 on every sample."""
    protocol = {"_target_": MASKS, "name": "mine", "headline": "ciou"}

    def of(inner: float, union: float) -> Scored:
        one = scored([inner / union] * 30)
        return replace(one, records=tuple(r | {"intersection": inner, "union": union} for r in one.records))

    run = studied("reward=a", of(12, 20), of(2, 10), evaluation={"protocol": protocol})
    ((_, (cell,)),) = by_test_set(configurations(labelled([run]))).items()
    assert gain(cell) == pytest.approx((0.4, 0.4, 0.4))


def test_an_interval_does_not_depend_on_what_stands_beside_it() -> None:
    runs = labelled(
        [studied(f"reward={r} seed={s}", scored(np.linspace(0.1 + 0.2 * s, 0.8, 25))) for r in "ab" for s in (0, 1)]
    )
    ((_, cells),) = by_test_set(configurations(runs)).items()
    together = draws_of(cells)
    assert together is not None
    assert cells[1].interval == bounds(together[1])


def test_seeds_of_a_configuration_are_one_row_and_its_gain_is_paired() -> None:
    base = np.linspace(0.2, 0.6, 20)
    runs = [
        studied(f"reward={reward} seed={seed}", scored(base + more), scored(base))
        for reward, seed, more in (("a", 0, 0.1), ("a", 1, 0.3), ("b", 0, 0.0))
    ]
    a, b = next(iter(by_test_set(configurations(labelled(runs))).values()))
    assert (a.label, a.mean, a.std) == ("reward=a", pytest.approx(0.6), pytest.approx(np.std([0.1, 0.3], ddof=1)))
    assert gain(a) == pytest.approx((0.2, 0.1, 0.3))
    assert gain(b) == pytest.approx((0.0, 0.0, 0.0))
    assert compared([a, b], b)["reward=a"].low == pytest.approx(0.1)
    content = page(runs)
    (group,) = content["groups"]
    assert [row["axes"] for row in group["rows"]] == [["a"], ["b"]]
    assert [row["axes"] for row in group["runs"]] == [["a", "0"], ["a", "1"], ["b", "0"]]
    assert group["rows"][0]["seeds"] == "2 seeds, std 0.141"
    assert "Intervals are over seeds (1 or 2) and samples. With so few seeds they can be too narrow." in group["chance"]
    assert "Where there is one seed, samples alone." in group["chance"]
    assert "The best, reward=a, reaches a gIoU of 0.600 over 2 seeds on 20 test samples, +0.200" in content["summary"]
    assert "<details><summary>Each of the 3 runs</summary>" in render(content)
    assert "| a | 2 done |" in markdown(content)


def test_what_is_tied_is_not_crowned() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.7, 60)
    other = base + rng.normal(0.0, 0.2, 60)
    other += base.mean() - other.mean() + 0.001  # higher by 0.001, by chance
    runs = [
        studied("reward=a", scored(base)),
        studied("reward=b", scored(other)),
        studied("reward=c", scored(base / 2)),
    ]
    content = page(runs)
    assert "No best: reward=b has the highest gIoU" in content["summary"]
    assert "tied with reward=a (the interval" in content["summary"]
    (group,) = content["groups"]
    assert [row["best"] for row in group["rows"]] == [True, True, False]
    assert {row["label"]: row["verdict"] for row in group["compared"]} == {
        "reward=a": "tied with reward=b", "reward=c": "below reward=b"
    }  # fmt: skip
    (group,) = page(runs, baseline="reward=c")["groups"]
    assert {row["label"]: row["verdict"] for row in group["compared"]} == {
        "reward=a": "above reward=c", "reward=b": "above reward=c"
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"baseline=reward=d: no configuration is that; name one of: reward=a; "):
        page(runs, baseline="reward=d")


def test_different_questions_or_rules_are_never_ranked_together() -> None:
    ious = [0.5, 0.7, 0.9]
    runs = [
        studied("reward=a", scored(ious)),
        studied("reward=b", scored([0.1, 0.2, 0.3], query="what")),
        studied("reward=c", scored([0.8, 0.9, 1.0]), evaluation={"protocol": {"name": "ours", "empty_iou": "zero"}}),
        studied("reward=d", None),
    ]
    content = page(runs)
    titles = [group["title"].partition(", questions ")[0] for group in content["groups"]]
    assert titles == [
        "d test, 3 samples, protocol ours", "d test, 3 samples, protocol ours",
        "d test, 3 samples, protocol ours with empty_iou=zero", "Not scored",
    ]  # fmt: skip
    assert [len(group["rows"]) for group in content["groups"]] == [1, 1, 1, 1]
    assert not any(group["compared"] for group in content["groups"])
    assert "Different test sets are not compared." in content["summary"]
    assert "no luck" in markdown(content)
    assert protocol_label(studied("x=1", None, evaluation={"protocol": {"name": "mine", "strict": False}})) == "mine"


def test_a_score_that_its_samples_do_not_give_has_no_interval() -> None:
    runs = [studied("reward=a", scored([0.5, 0.7], giou=0.9)), studied("reward=b", scored([0.5, 0.7]))]
    content = page(runs)
    rows = {row["label"]: row for row in content["groups"][0]["rows"]}
    assert (rows["reward=a"]["after"], rows["reward=a"]["range"]) == ("0.900", "")
    assert rows["reward=b"]["range"] == "0.500 to 0.700"
    assert any("no interval and no comparison of reward=a" in note for note in content["notes"])


@pytest.mark.parametrize(
    ("one", "other", "commits", "together"),
    [
        ({}, {}, "cc", True),
        ({"lr": 1}, {"lr": 2}, "cc", False),
        ({"lr": 1}, {"lr": 1, "new": 0}, "cd", True),  # a later version knows one more key
        ({"lr": 1}, {"lr": 1, "new": 0}, "cc", False),  # the same version: somebody took the key out
        ({"lr": 1}, {"lr": 2, "new": 0}, "cd", False),
        ({"tracker": "w", "run_dir": "x"}, {"tracker": "t", "run_dir": "y"}, "cc", True),
    ],
)
def test_what_is_one_configuration(
    one: Mapping[str, Any], other: Mapping[str, Any], commits: str, together: bool
) -> None:
    runs = [
        studied(f"reward=a seed={seed}", scored([0.5]), commit=commit, **config)
        for seed, (config, commit) in enumerate(zip((one, other), commits, strict=True))
    ]
    found = configurations(labelled(runs))
    assert len(found) == (1 if together else 2)
    notes = [note for configuration in found for note in configuration.notes]
    assert bool(notes) == (together and one.keys() != other.keys())
    if notes:
        assert notes == ["all runs: its runs are of two versions, of which one does not know new"]
    if not together:
        assert len({configuration.label for configuration in found}) == 2


def test_labels_have_resolved_values_and_what_is_common_is_said_once() -> None:
    runs = labelled([
        studied("experiment=e prompt=box lr=1e-3", scored([0.5]), lr=0.001, reward={"weight": 1}),
        studied("experiment=e prompt=box reward=grasp", scored([0.5]), lr=0.01, reward={"weight": 1}),
        studied("experiment=e prompt=box reward=think2seg", scored([0.5]), lr=0.01, reward={"weight": 2}),
    ])  # fmt: skip
    assert resolved("reward", runs) == ["grasp", "grasp", "think2seg"]  # the first one's default is the second's option
    assert [run.label for run in runs] == [
        "lr=0.001, reward=grasp", "lr=0.01, reward=grasp", "lr=0.01, reward=think2seg"
    ]  # fmt: skip
    assert constants(runs) == {"experiment": "e", "prompt": "box", "policy": "p"}
    two = configurations([studied("experiment=e", None, x=1), studied("experiment=f", None, x=2)])
    assert [configuration.label for configuration in two] == ["experiment=e", "experiment=f"]


def test_of_many_axes_labels_say_what_differs_from_the_common_values() -> None:
    """Grids that share a folder: fifteen runs, six axes, of which each run changes one at most."""
    usual = {"a": "0", "b": "0", "c": "0", "d": "0", "e": "0", "f": "0"}
    points = [usual, *({**usual, key: "1"} for key in usual)]
    runs = [
        studied(" ".join(f"{k}={v}" for k, v in {**point, "seed": str(seed)}.items()), scored([0.1 * n] * 4))
        for n, point in enumerate(points)
        for seed in range(2)
    ]
    content = page(runs)
    (group,) = content["groups"]
    assert group["axes"] == ["configuration"]
    assert [row["label"] for row in group["rows"]] == ["common values", *(f"{key}=1" for key in usual)]
    assert [row["axes"] for row in group["rows"]] == [[row["label"]] for row in group["rows"]]
    assert content["common"] == "a=0, b=0, c=0, d=0, e=0, f=0"
    assert [row["label"] for row in group["runs"]][:4] == ["seed=0", "seed=1", "a=1, seed=0", "a=1, seed=1"]
    assert "Common values, which hold where a row says nothing else: a=0" in render(content)
    assert "Common values: a=0" in markdown(content)
    chosen = page(runs, baseline="c=1")["groups"][0]
    assert chosen["reference"] == "c=1"
    assert page(runs, baseline="common values")["groups"][0]["reference"] == "common values"


def test_runs_and_configurations_leave_out_the_same_values() -> None:
    """Three configurations of one run each say x, two of three seeds each say y: x is the common value for both."""
    rest = "b={0} c={0} d={0} e={0} f={0}"
    words = [f"a=x {rest.format(place)} seed=0" for place in range(3)]
    words += [f"a=y {rest.format(place)} seed={seed}" for place in (3, 4) for seed in range(3)]
    content = page([studied(text, scored([0.5] * 4)) for text in words])
    assert content["common"].startswith("a=x, ")
    (group,) = content["groups"]
    assert ["a=y" in row["label"] for row in group["rows"]] == [False] * 3 + [True] * 2
    assert ["a=y" in row["label"] for row in group["runs"]] == [False] * 3 + [True] * 6
    assert group["run_axes"] == ["run"]


def test_a_group_whose_settings_were_changed_keeps_its_name() -> None:
    terms = {"terms": {"iou": {"weight": 1}}, "no_target": "accuracy"}
    runs = [
        studied("seed=0", None, reward=terms),
        studied("reward.no_target=zero seed=0", None, reward={**terms, "no_target": "zero"}),
        studied("reward=other seed=0", None, reward={"terms": {}, "no_target": "accuracy"}),
    ]
    runs[0].environment["overrides"].append("reward=mask")
    assert resolved("reward", runs) == ["mask", "mask", "other"]


def test_test_sets_of_one_name_are_told_apart() -> None:
    titles = [group["title"] for group in page([
        studied("a=1 seed=0", scored([0.5] * 4)), studied("a=2 seed=0", scored([0.5] * 4, query="how many")),
    ])["groups"]]  # fmt: skip
    assert len(set(titles)) == 2
    assert all(title.startswith("d test, 4 samples, protocol ") and ", questions " in title for title in titles)


def test_other_keys_than_the_seed_are_averaged_over_on_request() -> None:
    runs = labelled([studied(f"reward=a init={n} seed={n}", scored([0.5 + n / 10])) for n in (0, 1)])
    assert len(configurations(runs)) == 2
    (found,) = configurations(runs, ("seed", "init"))
    assert len(found.runs) == 2


def test_several_folders_and_nested_ones(tmp_path: Path) -> None:
    for place in ("one/x/a", "one/y/b", "two/c", "two/c/inner"):
        mark_started(tmp_path / place, 1, place)
        mark_ended(tmp_path / place, "done", 0)
    (tmp_path / "two/.hidden/d").mkdir(parents=True)
    found = read_study(tmp_path / "two", tmp_path / "one", tmp_path / "one/x")
    assert [run.folder.name for run in found] == ["c", "a", "b"]  # a run once, none inside of a run
    with pytest.raises(ConfigError, match="three: no such folder"):
        read_study(tmp_path / "one", tmp_path / "three")


def test_cost_and_the_checkpoint_that_was_tested() -> None:
    from dataclasses import replace

    run = studied("reward=a", scored([0.5]), engine={"nproc": 2, "threads": 4, "device": "cpu"})
    run = replace(run, config=run.config | {"algorithm": {"group_size": 8}}, best_step=20)
    run = replace(run, rows=tuple({"step": step, "length": 10.0, "groups": 3.0} for step in (10, 20, 30)))
    (cost,) = page([run])["costs"]
    assert (cost["checkpoint"], cost["chosen"]) == ("step 20 of 30", "highest validation reward")
    assert checkpoint([run, replace(run, best_step=10)]) == "step 10, 20 of 30, highest validation reward"
    assert cost["hours"] == "0.13 CPU-h"  # a minute, two processes of four threads
    assert cost["tokens"] == "720"
    (cost,) = page([replace(run, best_step=None, config={"engine": {"device": "cuda", "nproc": 8}})])["costs"]
    assert (cost["checkpoint"], cost["chosen"]) == ("step 30 of 30", "the last")
    assert (cost["hours"], cost["tokens"]) == ("0.13 GPU-h", "-")
    assert results.p_text(0.0004) == "< 0.001"


def test_the_same_seed_twice_is_not_two_seeds() -> None:
    """A sweep of one version and part of it again by a later one: nothing is mixed."""
    runs = labelled([
        studied("reward=a seed=0", scored([0.5]), commit="1111111122"),
        studied("reward=a seed=1", scored([0.5]), commit="2222222233", new=0),
        studied("reward=a seed=0", scored([0.6]), commit="2222222233", new=0),
        studied("reward=b seed=2", scored([0.6]), commit="1111111122"),
        studied("reward=b seed=3", scored([0.6]), commit="2222222233", new=0),
    ])  # fmt: skip
    found = configurations(runs)
    assert [(configuration.label, len(configuration.runs)) for configuration in found] == [
        ("reward=a, commit=11111111", 1), ("reward=a, commit=22222222", 2), ("reward=b, commit=11111111", 2)
    ]  # fmt: skip
    alone = configurations(labelled([studied("reward=a seed=0", scored([value])) for value in (0.5, 0.6)]))
    assert [len(configuration.runs) for configuration in alone] == [1, 1]


def test_regret_is_to_the_best_configuration_on_the_same_question() -> None:
    """By the means over seeds; 0.05 behind is nothing to speak of."""
    runs = [studied("reward=a seed=0", scored([0.9, 0.1, 0.5])), studied("reward=a seed=1", scored([0.9, 0.3, 0.5])),
            studied("reward=b seed=0", scored([0.3, 0.8, 0.45]))]  # fmt: skip
    one, other = page(runs)["regrets"]
    assert one["label"] == "reward=a"
    assert one["rows"] == [
        {"sample": "001", "query": "where", "by": "reward=b", "regret": "0.600", "iou": "0.200", "best": "0.800"}
    ]
    assert [row["sample"] for row in other["rows"]] == ["000"]
    assert page(runs[:2])["regrets"] == []

"""Few-shot subsets and mixtures: fixed lists, the same on every rank, that training draws from like from one dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from grasp_rl.cli import data as data_cli
from grasp_rl.cli.data_source import dataset_of
from grasp_rl.config.errors import ConfigError
from grasp_rl.config.targets import instantiate
from grasp_rl.data.annotations import Row
from grasp_rl.data.base import RecordDataset
from grasp_rl.data.mixture import Mixture
from grasp_rl.data.readers.jsonl import JsonlSource
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.rehearsal import layouts

AERIAL = Path(__file__).parent / "data/aerial"


class Classes(RecordDataset):
    """``count`` rows of train and two of val, of categories in turn."""

    def __init__(self, count: int = 30, categories: tuple[str | None, ...] = ("ship", "road", "tree"), **more: int):
        super().__init__(name="classes", **more)  # type: ignore[arg-type]
        self.count, self.categories = count, categories

    def splits(self) -> list[str]:
        return ["train", "val"]

    def records(self, split: str) -> Iterator[Row]:
        for index in range(self.count if split == "train" else 2):
            category = self.categories[index % len(self.categories)]
            yield Row(
                location=f"row {index}", sample_id=f"{split}-{index}", image=AERIAL / "images/islands.jpg",
                query=f"q{index}", split=split, reasoning=None, kind="polygons", target=[],
                attributes={"category": category} if category else {},
            )  # fmt: skip


def ids(dataset: RecordDataset, split: str = "train") -> list[str]:
    return [record.sample_id for record in dataset.split(split).records]


def test_shots_are_so_many_of_each_category_and_nested() -> None:
    drawn = {shots: ids(Classes(shots=shots)) for shots in (1, 5, 10)}
    assert {shots: len(found) for shots, found in drawn.items()} == {1: 3, 5: 15, 10: 30}
    assert set(drawn[1]) < set(drawn[5]) < set(drawn[10])
    assert drawn[5] == sorted(drawn[5], key=lambda text: int(text.partition("-")[2]))
    assert Counter(int(text.partition("-")[2]) % 3 for text in drawn[5]) == {0: 5, 1: 5, 2: 5}
    assert drawn[5] == ids(Classes(shots=5))
    assert drawn[5] != ids(Classes(shots=5, seed=1))
    assert len(ids(Classes(shots=1), "val")) == 2  # train alone
    assert len(ids(Classes(shots=5, limit=4))) == 4


def test_the_draw_is_fixed() -> None:
    """By SHA-256 of seed, category and id: a change of it would change which samples a published number is of."""
    assert ids(Classes(shots=1)) == ["train-3", "train-10", "train-11"]


def test_shots_of_few_and_of_none(caplog: pytest.LogCaptureFixture) -> None:
    assert len(ids(Classes(count=4, shots=2))) == 4
    assert caplog.messages == ["data.shots=2: classes has fewer samples of road, tree"]
    with pytest.raises(ConfigError, match=r"data\.shots=5: needs the attribute category .* classes has none at row 1"):
        ids(Classes(categories=("ship", None), shots=5))
    with pytest.raises(ConfigError, match=r"data\.shots=0: must be >= 1"):
        Classes(shots=0)
    with pytest.raises(ConfigError, match="drawn has none at record 0"):
        Mixture({"drawn": SyntheticSource(train_size=3)}, shots={"drawn": 1}).split("train")


def keys(mixture: Mixture, split: str = "train") -> list[str]:
    return [part.key for part in mixture.split(split).records]


def test_weights_are_shares_of_an_epoch_in_which_every_record_occurs() -> None:
    sets = {"few": Classes(count=4), "many": Classes(count=30)}
    assert Counter(keys(Mixture(sets))) == {"few": 4, "many": 30}
    mixture = Mixture(sets, weights={"few": 1, "many": 2})
    parts = mixture.split("train").records
    assert Counter(part.key for part in parts) == {"few": 15, "many": 30}
    assert Counter(Counter(part.record.sample_id for part in parts if part.key == "few").values()) == {4: 3, 3: 1}
    assert len({part.record.sample_id for part in parts}) == 30
    split = mixture.split("train")
    samples = [split[index] for index in range(len(split))]
    assert len({sample.sample_id for sample in samples}) == 45
    assert {sample.sample_id for sample in samples} >= {"few/train-0", "few/train-0~2", "many/train-29"}
    assert samples[0].attributes["set"] == "many"
    assert samples[0].attributes["category"] == "ship"


def test_records_alternate_in_proportion() -> None:
    found = keys(Mixture({"few": Classes(count=4), "many": Classes(count=12)}))
    assert [found[start : start + 4].count("few") for start in range(0, 16, 4)] == [1, 1, 1, 1]


def test_caps_are_drawn_by_the_seed_and_nested() -> None:
    def drawn(cap: int, seed: int = 0) -> list[str]:
        mixture = Mixture({"a": Classes()}, caps={"a": cap}, seed=seed)
        return [part.record.sample_id for part in mixture.split("train").records]

    assert len(drawn(7)) == 7
    assert set(drawn(7)) < set(drawn(9))
    assert drawn(7) == drawn(7)
    assert set(drawn(7)) != set(drawn(7, seed=1))
    assert len(drawn(99)) == 30
    shots = Mixture({"a": Classes()}, shots={"a": 2}, caps={"a": 5}).split("train").records
    assert len(shots) == 5


def test_evaluation_splits_are_those_of_the_sets(caplog: pytest.LogCaptureFixture) -> None:
    mixture = Mixture({"a": Classes(), "drawn": SyntheticSource(val_size=3, test_size=2)}, weights={"a": 9, "drawn": 1})
    assert mixture.splits() == ["train", "val", "test", "test_ood"]
    assert Counter(keys(mixture, "val")) == {"a": 2, "drawn": 3}
    assert keys(mixture, "test") == ["drawn", "drawn"]
    assert caplog.messages == ["data split test: without a, which has none"]
    with pytest.raises(ConfigError, match="no set of mixture has it; there are train, val, test, test_ood"):
        mixture.split("dev")


def test_samples_are_those_of_the_set() -> None:
    drawn = SyntheticSource(train_size=2)
    mine = dataset_of([str(AERIAL)])
    mixture = Mixture({"drawn": drawn, "mine": mine})
    split = mixture.split("train")
    own = {f"{key}/{s.sample_id}": s for key, source in mixture.sets.items() for s in source.split("train")}
    assert len(split) == len(own)
    for sample in split:
        expected = own[sample.sample_id]
        assert np.array_equal(sample.image, expected.image)
        assert (sample.query, sample.split) == (expected.query, expected.split)
    images = Counter(mixture.image_of(record) for record in split.records)
    place = next(i for i, record in enumerate(split.records) if images[mixture.image_of(record)] > 1)
    several = split.same_image(place, 9)
    assert len(several) == images[mixture.image_of(split.records[place])]
    assert len({sample.sample_id for sample in several}) == len(several)
    assert AERIAL / "annotations.jsonl" in split.files()
    refused: list[str] = []
    split.check_questions(lambda query, _: refused.append(query))
    assert sorted(refused) == sorted(s.query for key, s in own.items() if key.startswith("mine/"))


def test_copies_are_no_further_questions_about_an_image() -> None:
    split = Mixture({"a": Classes(count=1), "b": Classes(count=3)}, weights={"a": 1, "b": 1}).split("train")
    first = next(i for i, part in enumerate(split.records) if part.key == "a")
    assert len(split.same_image(first, 9)) == 1


def test_what_a_set_says_holds_in_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_text(
        json.dumps({"id": "1", "image": "a.png", "query": "q", "polygons": [], "split": "train"})
    )
    Pillow.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(tmp_path / "a.png")
    mixture = Mixture({"mine": JsonlSource(str(tmp_path), val_from="train"), "drawn": SyntheticSource(val_size=1)})
    split = mixture.split("val")
    assert sorted(split[index].sample_id for index in range(len(split))) == ["drawn/val-0-0", "mine/1"]
    assert list(mixture.conversions.values()) == [1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"weights": {"a": 1}}, "data.weights.b: missing"),
        ({"weights": {"a": 1, "b": 0}}, "data.weights.b=0: must be > 0"),
        ({"weights": {"a": 1, "b": float("nan")}}, "data.weights.b=nan: must be > 0"),
        ({"weights": {"a": 1, "b": 1e-5}}, "an epoch would have"),
        ({"caps": {"a": -1}}, "data.caps.a=-1: must be a whole number >= 0"),
        ({"caps": {"a": 1.5}}, "data.caps.a=1.5: must be a whole number"),
        ({"shots": {"c": 1}}, "data.shots.c=1: must be of a set, one of a, b"),
        ({"sets": {}}, "data.sets: empty"),
        ({"sets": {"a/b": Classes()}}, "data.sets='a/b': must be letters"),
        ({"sets": {"a": {"root": "x"}}}, "data.sets.a: must be a RecordDataset"),
        ({"sets": {"a": Mixture({"b": Classes()})}}, "that is no mixture"),
    ],
)
def test_what_cannot_be_mixed(more: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {"sets": {"a": Classes(), "b": Classes()}} | more
    with pytest.raises(ConfigError) as caught:
        Mixture(**arguments).split("train")  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_set_that_is_scored_alone() -> None:
    mixture = Mixture({"a": Classes(), "b": Classes()}, caps={"b": 0}, weights={"a": 1, "b": 1})
    assert {part.key for part in mixture.split("train").records} == {"a"}
    assert {part.key for part in mixture.split("val").records} == {"a", "b"}
    with pytest.raises(ConfigError, match=r"data\.caps: no set of train has a record left"):
        Mixture({"a": Classes()}, caps={"a": 0}).split("train")


def test_through_hydra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.refer(tmp_path, folder="rrsisd")
    words = [
        "data=mixture", "+data@data.sets.drawn=synthetic", "data.sets.drawn.train_size=6",
        "+data@data.sets.ships=rrsis_d", f"data.sets.ships.root={tmp_path}",
        "+data.weights.drawn=3", "+data.weights.ships=1", "+data.shots.ships=1",
    ]  # fmt: skip
    assert data_cli.main(["stats", *words, "--split", "train", "--json"]) == 0
    train = json.loads(capsys.readouterr().out)["splits"]["train"]
    assert train["samples"] == 8
    assert train["attributes"]["set"]["values"] == {"drawn": 6, "ships": 2}
    assert data_cli.main(["validate", *words, "data.sets.drawn.val_size=2", "data.sets.drawn.test_size=2"]) == 0
    assert data_cli.main(["stats", "data=mixture"]) == 2
    assert "data.sets: empty; name datasets, such as +data@data.sets" in capsys.readouterr().err


def test_the_targets_of_a_mixture_are_judged_as_those_of_one_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layouts.folder(tmp_path / "a")
    layouts.vrsbench(tmp_path / "b")
    layouts.save(tmp_path / "a/masks/2.png", layouts.boxes_mask((0, 0, 64, 55)))
    path = tmp_path / "b/Annotations_train/P0003.json"
    path.write_text(path.read_text().replace('"obj_coord": [0.06, 0.1, 0.36, 0.57]', '"obj_coord": [0, 0, 0.01, 0.01]'))
    layouts.save(tmp_path / "b/Images_val/P0007.png", layouts.picture(1))  # in a it is in train
    words = ["data=mixture", "+data@data.sets.a=folder", "+data@data.sets.b=vrsbench", "+data.weights={a: 3, b: 1}"]
    words += [f"data.sets.{name}.root={tmp_path / name}" for name in "ab"]
    assert data_cli.main(["validate", *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["bad"], report["kinds"]) == (16, 0, {"mask": 8, "boxes": 8})
    odd = [finding["problem"] for finding in report["findings"] if "same picture" not in finding["problem"]]
    assert odd == [
        f"{tmp_path}/a/images/2.jpg: mask: the target is 98.2% of the image; check it, target and background may be "
        "swapped",
        f"{tmp_path}/b/Images_train/P0003.png: boxes: the target has 1 of 3584 pixels; check its coordinates, or leave "
        "it out",
    ]
    assert report["images_in_several_splits"] == 1
    places = {f["place"].partition(": ")[0] for f in report["findings"]}
    assert places == {"a", "b"}
    assert data_cli.main(["validate", *words, "--strict"]) == 1


def test_a_config_cannot_mix_what_is_no_component() -> None:
    node = {"_target_": "grasp_rl.data.mixture.Mixture", "sets": {"a": {"_target_": "os.system", "command": "true"}}}
    with pytest.raises(ConfigError, match=r"data\.sets\.a\._target_='os\.system': must be a class defined in"):
        instantiate(node, (), "data")

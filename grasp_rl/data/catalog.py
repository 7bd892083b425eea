"""Published datasets: size, splits, licence, host and how to get them. What no source confirms says so.

The name of an entry is that of its option in ``conf/data``; an entry may stand here before its reader does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from grasp_rl.utils.files import Record

UNKNOWN = "not confirmed"
_NO_LICENCE = "none stated by its authors"
_ASK = "nothing, unless its authors allow it"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published dataset."""

    name: str
    """Of the option in ``conf/data``."""
    title: str
    paper: str = UNKNOWN
    """arXiv number."""
    counted: str = "questions"
    """What ``splits`` counts."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Records of each split; empty where no source says."""
    size: str = UNKNOWN
    """Of the images, and whatever else there is to say of the size."""
    licence: str = UNKNOWN
    upstream: str = ""
    """Terms of the images that it was made from, where they bind its users, too."""
    redistribution: str = _ASK
    """What may be passed on."""
    host: str = UNKNOWN
    hub: str | None = None
    """OWNER/NAME on the Hugging Face hub."""
    root: str = ""
    """What ``data.root`` holds after unpacking."""

    @property
    def how(self) -> str:
        """How to get it, in one sentence."""
        if self.hub is not None:
            return f"grasp-rl data prepare {self.name} --from hub:{self.hub}@REVISION --to DIR"
        if self.host == UNKNOWN:
            return "no public host is known"
        return (
            f"download it by hand from its authors' page, then grasp-rl data prepare {self.name} --from FILE --to DIR"
        )

    def as_record(self) -> Record:
        """The entry as one JSON object."""
        return {
            "name": self.name,
            "title": self.title,
            "paper": self.paper,
            "counted": self.counted,
            "splits": dict(self.splits) or None,
            "size": self.size,
            "licence": self.licence,
            "upstream": self.upstream,
            "redistribution": self.redistribution,
            "host": self.host,
            "hub": self.hub,
            "root": self.root,
            "how": self.how,
        }


def _three(train: int, val: int, test: int) -> dict[str, int]:
    return {"train": train, "val": val, "test": test}


CATALOG: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            name="dior_rsvg",
            title="DIOR-RSVG",
            splits=_three(26_991, 3_829, 7_500),
            size="800 x 800",
            licence=_NO_LICENCE,
            upstream="DIOR: CC BY-NC 4.0 on its author's page",
            host="Google Drive",
            root="Annotations, JPEGImages and the split files",
        ),
        Entry(
            name="drseg",
            title="DRSeg (PixDLM)",
            counted="images",
            splits=_three(3_000, 2_000, 5_000),
            size=f"{UNKNOWN}; the splits are inferred from their shares 3 : 2 : 5",
            host="Hugging Face hub",
            hub="WhynotHug/DRSeg",
            root="CODrone and labels",
        ),
        Entry(
            name="earthreason",
            title="EarthReason (SegEarth-R1)",
            paper="2504.09644",
            counted="images",
            splits=_three(2_371, 1_135, 1_928),
            size="123 to 7617 pixels wide; about 6 questions an image of train; 200 images without target",
            licence="Apache-2.0, by its owners' record on ModelScope",
            redistribution="under Apache-2.0, with its notice; the terms of the images' sources are not confirmed",
            host="Hugging Face hub, ModelScope",
            hub="earth-insights/EarthReason",
            root="train, val and test, or rs_reason_seg",
        ),
        Entry(
            name="earthreason_fs",
            title="EarthReason-FS (Geo-R1, few-shot)",
            paper="2509.21976",
            size=f"{UNKNOWN}; columns of its parquet files, too",
            host="Hugging Face hub",
            hub="omlab/EarthReason-FS",
        ),
        Entry(
            name="geopixinstruct",
            title="GeoPixInstruct (GeoPix)",
            counted="images",
            splits={"train": 8_992 + 36_665 + 9_037, "val": 900 + 2_291 + 458},
            size="paper: 65463 images, 140412 instances",
            licence="MIT, the annotations alone",
            redistribution="the annotations under MIT; the images are separate, their terms are those of their sources",
            host="Hugging Face hub (annotations)",
            hub="Norman-ou/GeoPixInstruct-Anno",
        ),
        Entry(
            name="geoseg_bench_unigeoseg",
            title="GeoSeg-Bench (UniGeoSeg)",
            size="512 or 800 wide; 4.41 GB",
            licence="Apache-2.0, by its card",
            redistribution="under Apache-2.0, with its notice; the terms of the images' sources are not confirmed",
            host="Hugging Face hub",
            hub="nishuo1999/GeoSeg-Bench",
            root="SPLIT.json and the files that it names",
        ),
        Entry(
            name="grasp1k",
            title="GRASP-1k",
            paper="2508.17102",
            redistribution=UNKNOWN,
        ),
        Entry(
            name="lasers",
            title="LaSeRS (SegEarth-R2)",
            size="40396 masks, 30830 triples, 1900 masks of test; public test files have no masks",
            licence="Apache-2.0, by its owners' record on ModelScope",
            upstream="SAMRS, DOTA (academic use only) and DIOR (CC BY-NC 4.0)",
            redistribution="under Apache-2.0 and no further than the terms of the images' sources",
            host="ModelScope",
            root="train and test",
        ),
        Entry(
            name="nwpu_fs",
            title="NWPU-FS (Geo-R1, few-shot)",
            paper="2509.21976",
            root="annotations_test_set*.json, nwpu_exist_cat.json and positive_image_set",
        ),
        Entry(
            name="refsegrs",
            title="RefSegRS",
            paper="2306.08625",
            splits=_three(2_172, 431, 1_817),
            size="512 x 512; one archive of 2.97 GB",
            licence="CC BY 4.0",
            redistribution="under CC BY 4.0, with attribution",
            host="Hugging Face hub",
            hub="JessicaYuan/RefSegRS",
            root="images, masks and output_phrase_*.txt",
        ),
        Entry(
            name="remotesam_270k",
            title="RemoteSAM-270K",
            root="triplets_train.json and JPEGImages",
        ),
        Entry(
            name="ris_lad",
            title="RIS-LAD",
            root="ris_lad and images",
        ),
        Entry(
            name="risbench",
            title="RISBench (CroBIM)",
            paper="2410.08613",
            splits=_three(26_300, 10_013, 16_158),
            size="512 x 512; 26 classes; the splits sum to 52471, its authors say 52472",
            licence="its page says CC BY 4.0 and links to CC BY-NC: which one is not confirmed",
            upstream="DOTA-v2 (academic use only) and DIOR (CC BY-NC 4.0)",
            host="Baidu",
            root="img_rgb, mask and output_phrase_*.txt",
        ),
        Entry(
            name="rrsis_d",
            title="RRSIS-D (RMSIN)",
            paper="2312.12470",
            splits=_three(12_181, 1_740, 3_481),
            size="800 x 800; 20 classes",
            licence=_NO_LICENCE,
            upstream="DIOR: CC BY-NC 4.0 on its author's page",
            host="Google Drive, Baidu",
            root="rrsisd and images",
        ),
        Entry(
            name="rrsis_hr",
            title="RRSIS-HR (CADFormer)",
            paper="2503.23456",
            splits=_three(2_118, 268, 264),
            size="1024 x 1024; 7 categories",
            licence=_NO_LICENCE,
            host="Baidu, OneDrive",
            root="data.folder and images",
        ),
        Entry(
            name="vrsbench",
            title="VRSBench",
            counted="references",
            splits={"train": 36_313, "val": 52_472 - 36_313},
            size="29614 images of 512 x 512; 12.3 GB; 52472 references, val is what train leaves",
            licence="texts CC BY 4.0",
            upstream="DOTA (academic use only)",
            redistribution="the texts under CC BY 4.0; images of DOTA not",
            host="Hugging Face hub",
            hub="xiang709/VRSBench",
            root="Annotations_train, Annotations_val, Images_train and Images_val",
        ),
    )
}
"""By name."""

FORMS = {"risbench_arrow": "risbench", "vrsbench_fs": "vrsbench", "vrsbench_rl": "vrsbench"}
"""Options of ``conf/data`` that have no entry on purpose: other forms of a set that has one, whose terms hold."""


def entry_of(name: str) -> Entry | None:
    """The entry of the dataset that the option ``name`` reads; None for data of one's own."""
    return CATALOG.get(FORMS.get(name, name))

"""What each inference option does to the shipped warm start on drawn scenes: evaluate once a row, compare in pairs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from grasp_rl.evaluation.significance import holm, paired_difference, permutation_p

COMMON = ["policy=tiny", "segmenter=grabcut", "data=synthetic", "evaluation.overlays=0"]
ROWS = {
    "default": [],
    "parsing.nms_iou=0.3": ["parsing.nms_iou=0.3"],
    "geo_r1 (clip to box)": ["inference=geo_r1"],
    "refine": ["inference=refine"],
    "routes: and": ["inference.routes.merge=and"],
    "routes: or": ["inference.routes.merge=or"],
    "routes: agreement": ["inference.routes.merge=agreement"],
    "routes: agreement, box_points": ["inference.routes.merge=agreement", "inference.routes.box_route=box_points"],
    "geoseg (refine, routes: agreement)": ["inference=geoseg"],
    "crop, margin 0.5": ["inference=crop"],
    "crop, margin 0.15": ["inference=crop", "inference.scale.margin=0.15"],
    "side 224": ["inference.scale.mode=side", "inference.scale.side=224"],
    "side 56": ["inference.scale.mode=side", "inference.scale.side=56"],
    "agreement, T 1": ["inference=agreement"],
    "agreement, T 0.5": ["inference=agreement", "inference.samples.temperature=0.5"],
    "majority, T 1": ["inference=majority"],
    "majority, T 0.5": ["inference=majority", "inference.samples.temperature=0.5"],
    "best_of_n, T 1": ["inference=best_of_n"],
    "best_of_n, T 0.5": ["inference=best_of_n", "inference.samples.temperature=0.5"],
    "refine + agreement, T 0.5": [
        "inference=agreement",
        "inference.samples.temperature=0.5",
        "inference.refine.fit_split=val",
    ],
}


def main(folder: Path, limit: int) -> None:
    found = {}
    for number, (name, words) in enumerate(ROWS.items()):
        run_dir = folder / f"{number:02d}"
        if not (run_dir / "eval/metrics.json").exists():
            command = [sys.executable, "-m", "grasp_rl.cli.main", "evaluate", f"run_dir={run_dir}", *COMMON]
            subprocess.run([*command, f"evaluation.test_limit={limit}", *words], check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in (run_dir / "eval/predictions.jsonl").read_text().splitlines()]
        found[name] = json.loads((run_dir / "eval/metrics.json").read_text()), records
    ious = {name: {r["sample_id"]: r["iou"] for r in records} for name, (_, records) in found.items()}
    others = [name for name in found if name != "default"]
    changes = {name: np.array([ious[name][key] - value for key, value in ious["default"].items()]) for name in others}
    corrected = dict(zip(others, holm([permutation_p(changes[name]) for name in others]), strict=True))
    rows = []
    for name, (metrics, records) in found.items():
        row = {
            "option": name,
            "giou": metrics["giou"],
            "box_iou": metrics["box_iou"],
            "ms_an_image": 1000 * metrics["seconds_per_image"],
        }
        if name in changes:
            mean, low, high, _ = paired_difference(ious["default"], ious[name])
            row |= {"difference": mean, "low": low, "high": high, "p_holm": corrected[name]}
        told = [r["inference"] for r in records if "confidence" in r.get("inference", {})]
        if told:
            row["spearman_confidence_iou"] = spearmanr([t["confidence"] for t in told], [r["iou"] for r in records])[0]
        rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (Path(__file__).parent / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows([{k: v if isinstance(v, str) else f"{v:.5g}" for k, v in row.items()} for row in rows])
    print("| option | gIoU | difference to default, 95 % | p (Holm) | box IoU | ms an image | confidence and IoU |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        change = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})" if "low" in row else "-"
        p = f"{row['p_holm']:.3f}" if "p_holm" in row else "-"
        rank = f"{row['spearman_confidence_iou']:.2f}" if "spearman_confidence_iou" in row else ""
        print(
            f"| {row['option']} | {row['giou']:.3f} | {change} | {p} | {row['box_iou']:.3f} | {row['ms_an_image']:.1f} | {rank} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 192)

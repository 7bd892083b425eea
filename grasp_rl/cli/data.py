"""`grasp-rl data`: check a dataset, look at it, make one of another format. No torch."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from grasp_rl.cli import data_gis, data_source
from grasp_rl.config.errors import ConfigError, one_of
from grasp_rl.config.messages import of_system
from grasp_rl.data.annotations import annotations_path
from grasp_rl.data.catalog import CATALOG, UNKNOWN, Entry
from grasp_rl.data.image_io import MAX_PIXELS, ImageReading, write_image
from grasp_rl.data.importers import IMPORTERS
from grasp_rl.data.importers.base import QUESTION, Splitting, demand_empty, write_dataset
from grasp_rl.data.masks import MaskReading
from grasp_rl.data.stats import MEASURES, SMALL, SplitStats, collect
from grasp_rl.data.synthetic.dataset import SyntheticSource
from grasp_rl.data.validate import Finding, Report, validate, validate_dataset
from grasp_rl.utils.files import to_json
from grasp_rl.utils.text import printable

STATS_LIMIT = 2000
"""Records of a split that `data stats` reads where nothing else is said: measuring needs every image and mask."""
_DRAWN = 8
"""Samples that `data show` draws where nothing else is said."""
_SHOWN = 10
"""Shapes left out that are named, of each import."""
_KEYS = f"as in a run: any key of the option, or {', '.join(data_source.OPTIONS)} of a folder"


def main(argv: Sequence[str]) -> int:
    """Run ``grasp-rl data <argv>``: 0 done, 1 bad rows or a file not had or written, 2 nothing to work on."""
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)  # options may stand behind flags, too
    if any(word.startswith("-") for word in more) or (more and not hasattr(arguments, "root")):
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if hasattr(arguments, "root"):
        arguments.words = [arguments.root, *arguments.options, *more]
    try:
        return _COMMANDS[arguments.command](arguments)
    except (ConfigError, OSError) as error:
        sys.stderr.write(printable(f"grasp-rl data {arguments.command}: {of_system(error)}") + "\n")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"grasp-rl data {arguments.command}: interrupted\n")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grasp-rl data", description="Check a dataset, look at it, or convert one.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{list,prepare,validate,show,stats,import,from-gis}"
    )
    known = commands.add_parser("list", help="published datasets: size, licence, host, how to get them")
    known.add_argument("names", nargs="*", metavar="NAME", help="of an option of data (all)")
    known.add_argument("--json", action="store_true", help="one JSON object on stdout")
    fetch = commands.add_parser(
        "prepare", help="download or unpack a published dataset, with its licence and checksums"
    )
    fetch.add_argument("name", metavar="NAME", help="as in grasp-rl data list")
    fetch.add_argument(
        "--from", dest="source", required=True, metavar="SRC",
        help="hub:OWNER/NAME@COMMIT_OR_TAG, an http(s) address, an archive or a folder",
    )  # fmt: skip
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder; what data.root is to be")
    fetch.add_argument("--sha256", metavar="HEX", help="that the download or the archive must have")
    check = commands.add_parser("validate", help="check every row; exit 1 if one is bad")
    check.add_argument("root", help="a folder with annotations.jsonl, such a file, or data=OPTION as in a run")
    check.add_argument("--strict", action="store_true", help="what is only unlikely is an error, too")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.add_argument("--max-pixels", type=_positive, metavar="N", help="largest image to decode")
    show = commands.add_parser("show", help="draw samples with their question, mask and cues")
    show.add_argument("root", help="as for validate, or the word synthetic")
    show.add_argument("--split", help="train where there is one, else the first")
    show.add_argument("--count", type=_positive, metavar="N", help="samples to draw (8; with --geo all)")
    show.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the images; with --geo a layer"
    )
    show.add_argument("--geo", action="store_true", help="the targets as a map layer instead (--out FILE.gpkg)")
    stats = commands.add_parser("stats", help="count and measure: images, masks, instances, questions, attributes")
    stats.add_argument("root", help="as for show")
    stats.add_argument("--split", help="this one alone (all)")
    stats.add_argument(
        "--limit",
        type=_positive,
        default=STATS_LIMIT,
        metavar="N",
        help="records of each split that are read, evenly spaced (default: %(default)s)",
    )
    stats.add_argument("--all", action="store_true", help="read every record: minutes for a hundred thousand images")
    stats.add_argument("--json", action="store_true", help="one JSON object on stdout")
    stats.add_argument("--out", type=Path, metavar="FILE.html", help="write a page with histograms and samples, too")
    stats.add_argument(
        "--count", type=_positive, default=12, metavar="N", help="samples of each split on the page (12)"
    )
    for command in (check, show, stats):
        command.add_argument("options", nargs="*", metavar="data.KEY=VALUE", help=_KEYS)
    convert = commands.add_parser("import", help="write a dataset of another format as annotations.jsonl")
    convert.add_argument("format", choices=sorted(IMPORTERS), help="folder: images/, masks/ and one CSV of questions")
    convert.add_argument("source", type=Path, metavar="SRC", help="the dataset's folder, or its file of annotations")
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder; images are copied into it")
    convert.add_argument("--images", type=Path, metavar="DIR", help="where the images are, if not beside SRC")
    convert.add_argument("--question", default=QUESTION, metavar="TEXT", help=f"asks for a category ({QUESTION!r})")
    split = convert.add_mutually_exclusive_group()
    split.add_argument("--split", metavar="NAME", help="of all rows (what SRC says, else train)")
    split.add_argument("--fractions", type=_fractions, metavar="train=0.8,val=0.1,test=0.1", help="of the images")
    convert.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw of images (0)")
    data_gis.add_parser(commands, _fractions)
    return parser


def _fractions(text: str) -> dict[str, float]:
    try:
        shares = {name: float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: must be like train=0.8,val=0.1,test=0.1") from error
    if not (all(0 < share <= 1 for share in shares.values()) and abs(sum(shares.values()) - 1) < 1e-6):
        raise argparse.ArgumentTypeError(f"{text!r}: must be shares > 0 that sum to 1")
    return shares


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number >= 1")
    return int(text)


def _validate(arguments: argparse.Namespace) -> int:
    args, limit = arguments.words, arguments.max_pixels
    place = data_source.annotations_of(args)
    if place is None:
        more = [f"data.max_pixels={limit}"] if limit else []
        dataset = data_source.dataset_of([*args, *more])
        if isinstance(dataset, SyntheticSource):
            raise ConfigError("data=synthetic: drawn scenes have no annotations to check")
        report = validate_dataset(dataset, Path(getattr(dataset, "root", dataset.name)), strict=arguments.strict)
    else:
        root, options = place
        images = ImageReading(bands=options.get("bands"), stretch=options.get("stretch", "auto"))
        masks = MaskReading(foreground=options.get("mask_foreground"), ignore=options.get("ignore_value"))
        limit = limit or options.get("max_pixels", MAX_PIXELS)
        report = validate(annotations_path(root), limit, images, masks, strict=arguments.strict)
    sys.stdout.write(json.dumps(report.as_record()) + "\n" if arguments.json else _as_text(report))
    return 0 if report.ok else 1


def _place(report: Report, finding: Finding) -> str:
    """Where a finding is, with a colon behind it; nothing where the finding says so itself."""
    if finding.place is None:
        return f"{report.path}:{finding.line}: "
    return f"{finding.place}: " if finding.place else ""


def _as_text(report: Report) -> str:
    said = {"error": "", "warning": "warning: "}
    lines = [f"{_place(report, f)}{said[f.level]}{f.problem}" for f in report.findings]
    lines += [f"{'split':<12}{'rows':>8}{'no target':>12}"] if report.splits else []
    for name, count in report.splits.items():
        lines.append(f"{name:<12}{count:>8}{report.no_target[name] / count:>12.0%}")
    if report.kinds:
        lines.append("given as " + ", ".join(f"{kind} ({count})" for kind, count in report.kinds.items()))
    lines += [f"{count} image{'s' * (count > 1)}: {conversion}" for conversion, count in report.conversions.items()]
    warned = f", {report.warnings} warnings" if report.warnings else ""
    share = f"{report.no_target_share:.0%} of the good ones without target"
    lines.append(f"{report.rows} rows, {report.bad} bad{warned}, {share}")
    return "".join(f"{printable(line)}\n" for line in lines)


def _import(arguments: argparse.Namespace) -> int:
    demand_empty(arguments.out)
    if not arguments.source.exists():
        raise ConfigError(f"{arguments.source}: no such file or folder; name the dataset to convert")
    source = IMPORTERS[arguments.format](arguments.source, images=arguments.images, question=arguments.question)
    shown = source.left_out[:_SHOWN] + [f"and {len(source.left_out) - _SHOWN} more"] * (len(source.left_out) > _SHOWN)
    for line in shown:
        sys.stderr.write(printable(f"grasp-rl data import: left out: {line}") + "\n")
    splitting = Splitting(name=arguments.split, fractions=arguments.fractions, seed=arguments.seed)
    splits = write_dataset(arguments.out, source, splitting)
    images = len({item.name for item in source.items})
    rows = ", ".join(f"{name} ({count} rows)" for name, count in splits.items())
    message = f"{arguments.out}: {images} images, {rows}; check it: grasp-rl data validate {arguments.out}"
    sys.stdout.write(printable(message) + "\n")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    source = data_source.dataset_of(arguments.words)
    if arguments.geo:
        return data_gis.show_layer(source, arguments.split, arguments.count, arguments.out)
    names = source.splits()
    dataset = source.split(arguments.split or ("train" if "train" in names else names[0]))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for index in range(min(arguments.count or _DRAWN, len(dataset))):
        sample = dataset[index]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", sample.sample_id).strip("._")[:80]
        path = arguments.out / f"{index:03d}_{name}.png"
        write_image(path, dataset.plot(sample))
        sys.stdout.write(printable(f"{path}  {sample.query}") + "\n")
    return 0


def _stats(arguments: argparse.Namespace) -> int:
    source = data_source.dataset_of(arguments.words)
    splits = list(source.splits()) if arguments.split is None else [arguments.split]
    collected = collect(source, splits, None if arguments.all else arguments.limit)
    if arguments.out is not None:
        from grasp_rl.cli.data_page import write_page  # matplotlib and jinja2 take their time

        write_page(arguments.out, source, collected, arguments.count)
    record = {"dataset": source.name, "splits": {stats.name: stats.as_record() for stats in collected}}
    sys.stdout.write(json.dumps(to_json(record)) + "\n" if arguments.json else _stats_as_text(source.name, collected))
    return 0


def _stats_as_text(name: str, collected: Sequence[SplitStats]) -> str:
    lines = []
    for stats in collected:
        record = stats.as_record()
        some = f", of {stats.records} records" if stats.records > stats.samples else ""
        lines += [f"{name} {stats.name}: {stats.samples} samples of {stats.images} images{some}"]
        lines += [f"  no target                {stats.no_target} ({stats.no_target / max(1, stats.samples):.0%})"]
        lines += [f"  boxes without mask       {stats.without_mask}"] if stats.without_mask else []
        for measure, label in MEASURES.items():
            value = record[measure]
            numbers = value and [value[key] for key in ("min", "median", "mean", "max")]
            lines += [f"  {label:<24} " + " / ".join(f"{n:.4g}" for n in numbers)] if numbers else []
        lines += [] if stats.small is None else [f"  {f'masks below {SMALL:.0%}':<24} {stats.small:.0%}"]
        for key, value in record["attributes"].items():
            counts = value.get("values")
            entries = [f"{text} ({count})" for text, count in (counts or {}).items()]
            more = value.get("distinct", 0) - len(entries)
            entries += [f"and {more} more"] if more > 0 else []
            numbers = " / ".join(f"{value[n]:.4g}" for n in ("min", "median", "mean", "max") if n in value)
            lines += [f"  {key}: " + (", ".join(entries) or numbers)]
    lines += ["lengths, sizes and shares: min / median / mean / max"]
    return "".join(f"{printable(line)}\n" for line in lines)


def _list(arguments: argparse.Namespace) -> int:
    for name in arguments.names:
        one_of("NAME", name, tuple(CATALOG))
    entries = [CATALOG[name] for name in arguments.names or CATALOG]
    readers = {entry.name: data_source.has_option(entry.name) for entry in entries}
    if arguments.json:
        records = [entry.as_record() | {"reader": readers[entry.name]} for entry in entries]
        sys.stdout.write(json.dumps({"datasets": records}) + "\n")
        return 0
    sys.stdout.write("\n".join(_entry_as_text(entry, reader=readers[entry.name]) for entry in entries))
    return 0


def _entry_as_text(entry: Entry, *, reader: bool) -> str:
    counts = ", ".join(f"{split} {count}" for split, count in entry.splits.items())
    fields = {
        "read by": f"data={entry.name}" if reader else "no reader yet",
        "splits": f"{counts} ({entry.counted})" if counts else UNKNOWN,
        "size": entry.size,
        "licence": entry.licence,
        "sources": entry.upstream,
        "pass on": entry.redistribution,
        "host": entry.host,
        "paper": entry.paper if entry.paper == UNKNOWN else f"arXiv {entry.paper}",
        "root": entry.root,
        "get it": entry.how,
    }
    lines = [f"  {name:<8} {text}" for name, text in fields.items() if text]
    return "\n".join([f"{entry.name}: {entry.title}", *lines]) + "\n"


def _prepare(arguments: argparse.Namespace) -> int:
    from grasp_rl.cli.data_progress import TransferLines
    from grasp_rl.data.prepare import prepare

    lines = TransferLines(sys.stderr)
    try:
        message = prepare(
            arguments.name, arguments.source, arguments.to, sha256=arguments.sha256, tell=lines.tell, moved=lines.moved
        )
    finally:
        lines.end()
    sys.stdout.write(printable(message) + "\n")
    return 0


_COMMANDS = {
    "list": _list,
    "prepare": _prepare,
    "validate": _validate,
    "show": _show,
    "stats": _stats,
    "import": _import,
    "from-gis": data_gis.from_gis,
}

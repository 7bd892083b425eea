"""`grasp-rl demo`: a page on this machine to try policies and segmenters by hand.

(`make demo` and `grasp-rl train experiment=demo` are something else: four small trainings and a report.)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.extras import demand
from grasp_rl.config.messages import of_system
from grasp_rl.geo.extra import PACKAGES as GEO
from grasp_rl.launch import compose

PACKAGES = ("gradio", *GEO)
_ALONE = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``grasp-rl demo <argv>`` and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _serve(arguments)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"grasp-rl demo: {of_system(error)}\n")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 0


def _serve(arguments: argparse.Namespace) -> int:
    demand_demo()
    alone = arguments.host in _ALONE
    if not alone and not arguments.open_to_others:
        raise ConfigError(
            f"--host {arguments.host}: others could reach the page, which has no password; if that is meant, add "
            "--open-to-others"
        )
    overrides = [compose.as_it_stands(override) for override in arguments.overrides]
    quiet()
    from grasp_rl.demo.answers import Answering, named_policy
    from grasp_rl.demo.guard import LOCAL
    from grasp_rl.demo.page import build, launch

    answering = Answering(
        names_of(arguments.run, named_policy(overrides)),
        overrides,
        arguments.segmenter,
        compose.trusted_on(overrides),
        time_limit_s=arguments.time_limit,
    )
    page = build(answering)
    address = launch(page, host=arguments.host, port=arguments.port, hosts=LOCAL if alone else None)
    if not alone:
        sys.stderr.write(
            "grasp-rl demo: warning: everyone who can reach this machine can use the page and its models; there is no "
            "password and no encryption\n"
        )
    sys.stdout.write(f"Open {address} in a browser. Ctrl+C ends it.\n")
    sys.stdout.flush()
    page.block_thread()
    return 0


def demand_demo() -> None:
    """Demand that the extra ``demo`` is installed.

    Raises:
        ConfigError: a package of it is missing.
    """
    demand("the page needs", PACKAGES, "demo")


def quiet() -> None:
    """Keep the libraries of the page from calling anyone: no telemetry, no check for versions, no download."""
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_SHARE": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }


def names_of(runs: Sequence[Path], taken: str = "tiny") -> dict[str, Path]:
    """Run folders by the names that the page shows: the last part of the path, with more of it where two are alike.

    Args:
        runs: folders.
        taken: a name that none of them gets.

    Raises:
        ConfigError: a folder is none, or is named twice.
    """
    result: dict[str, Path] = {}
    for run in runs:
        if not run.is_dir():
            raise ConfigError(f"--run {run}: no such folder; name the folder of a run, as in outputs/train/<time>")
        path = run.resolve()
        names = ["/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1)]
        name = next((name for name in names if name not in (taken, *result)), None)
        if name is None or path in result.values():
            raise ConfigError(f"--run {run}: is named twice")
        result[name] = path
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grasp-rl demo",
        description="A page on this machine to try policies and segmenters by hand. Four small trainings and a report "
        "are something else: make demo.",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="overrides as for predict, such as policy=qwen2_5_vl_3b"
    )
    parser.add_argument(
        "--run", type=Path, action="append", default=[], metavar="FOLDER", help="a run that answers; several to compare"
    )
    parser.add_argument(
        "--segmenter", action="append", default=[], metavar="NAME", help="offer this one of conf/segmenter, too"
    )
    parser.add_argument("--port", type=int, help="(default: the first free one from 7860 on)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    parser.add_argument("--open-to-others", action="store_true", help="needed with a --host that others can reach")
    parser.add_argument(
        "--time-limit", type=_seconds, default=120.0, metavar="SECONDS", help="for an answer (default: 120)"
    )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())

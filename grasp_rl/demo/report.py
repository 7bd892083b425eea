"""Answers as HTML: every text of a model or a person escaped, every picture and download within the page itself.

Nothing is written to a file that a browser could ask for, so one person's answers cannot be had by another.
"""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from grasp_rl.data.visualization import draw_overlay, with_caption
from grasp_rl.demo.answers import TINY, Answered
from grasp_rl.demo.images import PageImage
from grasp_rl.geo.layers import LAYER, table_of, write_layer
from grasp_rl.geo.merge import Feature
from grasp_rl.geo.polygons import components, multi, polygons_of
from grasp_rl.geo.windows import whole
from grasp_rl.types import Image, SpatialPrompt
from grasp_rl.utils.files import Record, to_json
from grasp_rl.utils.text import printable

PANEL = 448
"""Longer side in pixels to which a small image is enlarged."""
_MEANINGS = {
    "think_format": "it thinks first, then answers",
    "answer_format": "the answer is written as asked",
    "box_iou": "how well its boxes overlap the true ones",
    "box_l1": "how near the edges of its boxes are to the true ones",
    "points": "how near its points are to the true ones",
    "points_inside": "how many of its points lie in the true boxes",
    "count": "whether it names as many things as there are",
    "mask_iou": "how well its mask overlaps the true one",
}
"""Of reward terms, in plain words; those of other terms are the first line of their docstring."""
MAX_TEXT = 20_000
"""Characters of a model's text that are shown."""


def panels(answers: Sequence[Answered]) -> str:
    """The answers side by side."""
    return f'<div class="answers shown">{"".join(map(_panel, answers))}</div>'


def problem(message: str) -> str:
    """What went wrong, in words for a person."""
    return f'<p class="problem shown" role="alert">{_escaped(message)}</p>'


def canvas(image: PageImage) -> str:
    """The image to draw on: ``data-width`` and ``data-height`` are its size in pixels."""
    height, width = image.sample.size
    about = f"{image.name}, {width} x {height} pixels" + (f"; {image.note}" if image.note else "")
    source = _picture(image.sample.image)
    return (
        f'<div class="canvas" data-width="{width}" data-height="{height}">'
        f'<img src="{source}" alt="{_escaped(image.name)}" draggable="false"></div>'
        f'<p class="about">{_escaped(about)}</p>'
    )


def _panel(answered: Answered) -> str:
    answer = answered.answer
    parts = [
        f"<h3>{_escaped(answered.who)}</h3>",
        f'<p class="about">{_escaped(answered.model)}, {_escaped(answered.prompt)}</p>',
        f"<p><strong>{_escaped(result_of(answered))}</strong></p>",
        f'<p class="about">{_escaped(_seconds(answered))}</p>',
        f'<img src="{_picture(drawn(answered))}" alt="{_escaped(_described(answered))}">',
    ]
    if answered.who == TINY and answered.image.sample.dataset != "synthetic":
        parts.append('<p class="about">This policy knows drawn scenes alone; about another image it says little.</p>')
    if answer.thinking is not None:
        parts.append(_text("What it thought", answer.thinking, shown=True))
    parts += [_rewards(answered), _prompts(answer.prompts)]
    if answered.text:
        parts.append(_text("What it wrote, word for word", answered.text, shown=False))
    if answered.inference:
        parts.append(
            _text("What the inference options did", json.dumps(to_json(answered.inference), indent=1), shown=False)
        )
    parts.append(_downloads(answered))
    return f'<section class="answer" aria-label="{_escaped(answered.who)}">{"".join(parts)}</section>'


def result_of(answered: Answered) -> str:
    """What was found, in one sentence."""
    answer = answered.answer
    cut = f" The answer {answered.cut}." if answered.cut else ""
    if not answer.ok:
        return f"The answer could not be read ({answer.status}).{cut}"
    if not answer.prompts:
        return f"It says that nothing in the image fits.{cut}"
    count, share = len(answer.prompts), float(answered.masks.union.mean())
    return f"{count} thing{'s' * (count != 1)}, {100 * share:.1f} % of the image.{cut}"


def drawn(answered: Answered) -> Image:
    """[H, W, 3] uint8 the image with the mask tinted, boxes, points and, where known, the true outline."""
    image = answered.image
    truth = image.sample.target_mask if image.knows(answered.query) else None
    side = max(PANEL, *image.sample.size)
    return draw_overlay(
        image.sample.image, truth=truth, mask=answered.masks.union, prompts=answered.answer.prompts, side=side
    )


def record(answered: Answered) -> Record:
    """What the JSON download holds."""
    answer, image = answered.answer, answered.image
    return {
        "who": answered.who,
        "model": answered.model,
        "image": image.name,
        "size": list(image.sample.size),
        "query": answered.query,
        "text": answered.text,
        "thinking": answer.thinking,
        "status": str(answer.status),
        "prompts": [asdict(prompt) for prompt in answer.prompts],
        "prompt_scheme": answered.prompt,
        "mask_share": float(answered.masks.union.mean()),
        "iou": answered.iou,
        "reward": None if answered.reward is None else answered.reward.reward,
        "terms": None if answered.reward is None else dict(answered.reward.terms),
        "paid": None if answered.reward is None else dict(answered.reward.paid),
        "seconds": {"policy": answered.policy_s, "segmenter": answered.segmenter_s},
        "inference": answered.inference,
    }


def geopackage(answered: Answered) -> bytes:
    """The masks as a layer of polygons, with the CRS of the image; in pixels where it has none."""
    image, masks = answered.image, answered.masks
    instances, estimates = list(masks.masks), [float(v) for v in masks.iou_predictions]
    if masks.whole:
        instances = components(masks.union)
    confidences = estimates if answered.estimates_quality and not masks.whole else [None] * len(instances)
    features = [
        Feature(
            geometry=multi(polygons_of(mask).geoms),
            score=None,
            confidence=confidence,
            thinking=answered.answer.thinking,
            windows=(whole(image.grid),),
        )
        for mask, confidence in zip(instances, confidences, strict=True)
        if mask.any()
    ]
    common = {
        "query": answered.query,
        "source": image.source,
        "gsd_m": image.grid.gsd,
        "prompt": answered.prompt,
        "model": answered.model,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with tempfile.TemporaryDirectory(prefix="grasp_rl_demo_") as folder:
        path = Path(folder) / f"{LAYER}.gpkg"
        write_layer(table_of(features, image.grid, common), path, "gpkg", [answered.query])
        return path.read_bytes()


def _downloads(answered: Answered) -> str:
    image = _encoded(with_caption(drawn(answered), answered.query), ".png")
    document = json.dumps(to_json(record(answered)), indent=1).encode()
    place = "" if answered.image.grid.crs is not None else " (in pixels: the image has no place on the earth)"
    links = [
        _link("PNG", "answer.png", "image/png", image),
        _link("JSON", "answer.json", "application/json", document),
        _link("GeoPackage", "answer.gpkg", "application/geopackage+sqlite3", geopackage(answered)),
    ]
    return f'<p class="downloads">Download: {" ".join(links)}{place}</p>'


def _link(label: str, name: str, kind: str, content: bytes) -> str:
    return f'<a download="{name}" href="data:{kind};base64,{base64.b64encode(content).decode()}">{label}</a>'


def _rewards(answered: Answered) -> str:
    if answered.iou is None:
        return '<p class="about">The truth about this question is not known, so there is no reward to show.</p>'
    overlap = f"<p>IoU with the true mask: <strong>{answered.iou:.2f}</strong></p>"
    if answered.reward is None:
        return overlap + f'<p class="about">No reward: {_escaped(answered.remark)}</p>'
    reward = answered.reward
    rows = "".join(
        f'<tr><th scope="row">{_escaped(name)}<br><span class="about">{_escaped(_meaning(answered, name))}</span></th>'
        f"<td>{value:.2f}</td><td>{reward.paid.get(name, 0.0):.2f}</td></tr>"
        for name, value in reward.terms.items()
    )
    return (
        f'{overlap}<table class="reward"><caption>Reward: <strong>{reward.reward:.2f}</strong></caption><thead><tr>'
        '<th scope="col">term</th><th scope="col">value</th><th scope="col">paid</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _meaning(answered: Answered, name: str) -> str:
    return _MEANINGS.get(name) or answered.meanings.get(name, "").replace("`", "")


def _prompts(prompts: Sequence[SpatialPrompt]) -> str:
    if not prompts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{number}</th><td>{_numbers(prompt.box or ())}</td><td>{_points(prompt)}</td></tr>'
        for number, prompt in enumerate(prompts, 1)
    )
    return (
        "<details><summary>Boxes and points, in pixels</summary><table><thead><tr>"
        '<th scope="col">thing</th><th scope="col">box: left, top, right, bottom</th>'
        '<th scope="col">points: x, y (- beside it)</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></details>"
    )


def _points(prompt: SpatialPrompt) -> str:
    pairs = zip(prompt.point_coords, prompt.point_labels, strict=True)
    return "; ".join(("" if label else "- ") + _numbers(point) for point, label in pairs)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}".removesuffix(".0") for value in values)


def _seconds(answered: Answered) -> str:
    if answered.who == "you":
        return f"{answered.segmenter_s:.2f} s to segment"
    return f"{answered.policy_s:.2f} s to answer, {answered.segmenter_s:.2f} s to segment"


def _described(answered: Answered) -> str:
    return f"The image with the mask of {answered.who} in red. {result_of(answered)}"


def _text(title: str, text: str, *, shown: bool) -> str:
    more = f"\n... and {len(text) - MAX_TEXT} characters more" if len(text) > MAX_TEXT else ""
    lines = _escaped_lines(text[:MAX_TEXT] + more)
    return f"<details{' open' * shown}><summary>{title}</summary><pre>{lines}</pre></details>"


def _picture(image: Image) -> str:
    """A data address: PNG where the image is small, so that its pixels stay; else JPEG."""
    large = max(image.shape[:2]) > PANEL
    kind = "jpeg" if large else "png"
    content = _encoded(image, ".jpg" if large else ".png")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Image, ending: str) -> bytes:
    done, content = cv2.imencode(ending, np.ascontiguousarray(image[..., ::-1]))
    assert done
    return bytes(content.tobytes())


def _escaped(text: Any) -> str:
    """One line that HTML shows as it is."""
    return html.escape(printable(str(text)), quote=True)


def _escaped_lines(text: str) -> str:
    return "\n".join(_escaped(line) for line in text.splitlines())

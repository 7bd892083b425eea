"""The page itself: which fields there are, and which function each calls. The only module that knows gradio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from grasp_rl.config.errors import ConfigError
from grasp_rl.config.messages import of_system
from grasp_rl.demo import images, report
from grasp_rl.demo.answers import OWN, Answering, Chosen
from grasp_rl.demo.guard import Guard
from grasp_rl.demo.images import EXAMPLES, MAX_BYTES, PageImage
from grasp_rl.demo.marks import with_mark

NOBODY = "nobody"
DRAWN = {"easy": "Draw a new scene", "hard": "Draw a hard one"}
"""Levels of drawn scenes, and what stands on their buttons."""
INTRODUCTION = """\
# Point at things in aerial images

A **policy** reads an image and a question, thinks, and answers with boxes and points; a **segmenter** makes the mask.

Click an example below, or draw a scene, or choose an image of your own and write a question.

Then drag a box on the image yourself: you get the mask and the reward that the policy would have got for it.
"""
FIRST = "vessel"
"""The example that the page opens with."""
QUEUE = 40
"""Questions that wait at most; further ones are told to come back."""
MAX_SESSIONS = 200
KEPT_S = 3600
"""Seconds for which the image of a person who does nothing is kept."""
_STATIC = files("grasp_rl.demo") / "static"


def build(answering: Answering) -> gr.Blocks:
    """The page over ``answering``."""
    model = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
    quick = {"concurrency_id": "quick", "concurrency_limit": 4, "api_visibility": "private", "show_progress": "hidden"}
    script = (_STATIC / "page.js").read_text()
    opening = images.example(FIRST)
    with gr.Blocks(title="grasp_rl", analytics_enabled=False) as page:
        kept = gr.State(None, time_to_live=KEPT_S)
        name = gr.Textbox(value=opening.name, visible=False, elem_id="name")  # of the image that the browser shows
        gr.Markdown(INTRODUCTION)
        with gr.Row(elem_classes="examples"):
            openers = [gr.Button(label, size="sm") for label in EXAMPLES.values()]
        with gr.Row(elem_classes="examples"):
            openers += [gr.Button(label, size="sm") for label in DRAWN.values()]
            chooser = gr.HTML(
                value="",
                html_template='<label class="file">An image of your own (PNG, JPEG, GeoTIFF)'
                f'<input type="file" data-most="{MAX_BYTES}"></label>',
                js_on_load=script,
                elem_id="chooser",
                min_width=280,
            )
        with gr.Row(elem_classes="work"):
            with gr.Column(scale=2, min_width=300):
                question = gr.Textbox(
                    value=opening.sample.query, label="Question", placeholder="Where could a boat land?", max_lines=3,
                    max_length=2000, elem_id="question",
                )  # fmt: skip
                ask_button = gr.Button("Ask", variant="primary", elem_id="ask")
                gr.Markdown("Drag a box on the image, click a point on the thing, or shift-click one beside it.")
                canvas = gr.HTML(value=report.canvas(opening), js_on_load=script, elem_id="canvas")
                marks = gr.Textbox(
                    value="", lines=2, max_lines=8, max_length=4000, elem_id="marks",
                    label="Your boxes and points, in pixels: a line for each thing",
                    placeholder="box 10 20 60 80 on 30 40 off 15 25",
                )  # fmt: skip
                with gr.Row():
                    mark_button = gr.Button("Segment mine", elem_id="mine", min_width=120)
                    clear_button = gr.Button("Clear mine", elem_id="clear", min_width=120)
                policies = list(answering.policies)
                with gr.Row():
                    policy = gr.Dropdown(policies, value=policies[-1], label="Policy", min_width=120)
                    other = gr.Dropdown([NOBODY, *policies], value=NOBODY, label="Compare with", min_width=120)
                with gr.Accordion("Segmenter, prompt scheme and inference options", open=False):
                    segmenter = gr.Dropdown(list(answering.segmenters), value=OWN, label="Segmenter")
                    prompt = gr.Dropdown(list(answering.prompts), value=OWN, label="Prompt scheme")
                    inference = gr.Dropdown(list(answering.inferences), value=OWN, label="Inference options")
            with gr.Column(scale=5, min_width=300):
                gr.Markdown(
                    "Red: the mask. White and red: boxes. Yellow: points on the thing; blue: beside it. Green: the "
                    "outline of the truth, where it is known."
                )
                live = '<div aria-live="polite">${value}</div>'
                with gr.Row():
                    answers = gr.HTML(value="", html_template=live, elem_id="answers", min_width=280, scale=2)
                    mine = gr.HTML(value="", html_template=live, elem_id="yours", min_width=280, scale=1)

        shown = [kept, name, canvas, question, answers, marks, mine]
        choice = [segmenter, prompt, inference]
        asking = gr.on(
            [ask_button.click, question.submit],
            partial(_ask, answering),
            [kept, name, question, policy, other, *choice],
            answers,
            **model,
        )
        own = {
            "fn": partial(_mark, answering),
            "inputs": [kept, name, question, policy, *choice, marks],
            "outputs": [mine],
            **model,
        }
        marking = canvas.marked(_place, [kept, name, marks], [marks, mine], trigger_mode="multiple", **quick).then(
            **own
        )
        pending = [asking, marking, mark_button.click(**own)]
        gr.on(
            [button.click for button in openers], _opening(answering), [policy, other, *choice], shown, cancels=pending,
            trigger_mode="always_last", **model,
        )  # fmt: skip
        chooser.chosen(_upload, None, shown, cancels=pending, **quick)
        clear_button.click(lambda: ("", ""), None, [marks, mine], cancels=pending[1:], **quick)
    return page


def launch(page: gr.Blocks, *, host: str, port: int | None, hosts: Sequence[str] | None) -> str:
    """Serve ``page`` from a thread of its own and return its address.

    Args:
        page: of :func:`build`.
        host: address to listen at.
        port: to listen at; None for the first free one from 7860 on.
        hosts: names under which a browser may ask for it; None for any.

    Raises:
        OSError: the port is taken.
    """
    page.queue(max_size=QUEUE)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[],
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        footer_links=[],
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": [Middleware(Guard, hosts=hosts, max_body=MAX_BYTES * 4 // 3 + 100_000)]},
        theme=_theme(),
        css=(_STATIC / "page.css").read_text(),
    )
    return str(address)


def _theme() -> gr.themes.Base:
    """Fonts of the system, and colours whose contrast is enough."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gr.themes.Default(primary_hue="blue", **fonts).set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800"
    )


def _opening(answering: Answering) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What a button of an example or a drawn scene does: it shows the image, then what is answered about it."""
    makers: dict[str, Callable[[], PageImage]] = {
        **{label: partial(images.example, name) for name, label in EXAMPLES.items()},
        **{label: partial(images.draw, level) for level, label in DRAWN.items()},
    }

    def opened(event: gr.EventData, *options: str) -> Iterator[tuple[Any, ...]]:
        image = makers[event.target.value]()
        first = (image, image.name, report.canvas(image), image.sample.query)
        yield *first, "", "", ""
        yield *first, _ask(answering, image, image.name, image.sample.query, *options), "", ""

    return opened


def _upload(event: gr.EventData) -> tuple[Any, ...]:
    sent = event._data if isinstance(event._data, dict) else {}
    try:
        if sent.get("too_large"):
            raise ConfigError(f"the file is larger than {MAX_BYTES / 1e6:g} MB; reduce it, or cut a part out of it")
        image = images.read_upload(str(sent.get("content", "")), str(sent.get("name", "")))
    except (ConfigError, OSError) as error:
        return *([gr.skip()] * 4), report.problem(of_system(error)), gr.skip(), gr.skip()
    return (
        image,
        image.name,
        report.canvas(image),
        "",
        "<p>Now write a question about your image, and press Ask.</p>",
        "",
        "",
    )


def _ask(
    answering: Answering, kept: PageImage | None, name: str, query: str, policy: str, other: str, *options: str
) -> str:
    asked = [policy] if other in (NOBODY, policy) else [policy, other]
    try:
        image = _image(kept, name)
        return report.panels([answering.ask(image, query, _chosen(one, options)) for one in asked])
    except (ConfigError, OSError) as error:
        return report.problem(_plain(error))


def _mark(answering: Answering, kept: PageImage | None, name: str, query: str, policy: str, *rest: str) -> str:
    *options, text = rest
    try:
        return report.panels([answering.mark(_image(kept, name), query, _chosen(policy, options), text)])
    except (ConfigError, OSError) as error:
        return report.problem(_plain(error))


def _place(kept: PageImage | None, name: str, text: str, event: gr.EventData) -> tuple[Any, Any]:
    mark = event._data if isinstance(event._data, dict) else {}
    try:
        return with_mark(text, mark, _image(kept, name).sample.size), gr.skip()
    except ConfigError as error:
        return gr.skip(), report.problem(str(error))


def _image(kept: PageImage | None, name: str) -> PageImage:
    """The image that the browser shows.

    Raises:
        ConfigError: it is not the one that is kept: that was forgotten.
    """
    image = kept or images.example(FIRST)
    if image.name != name:
        raise ConfigError("your image is kept for an hour at most, and was forgotten; choose it again")
    return image


def _chosen(policy: str, options: Sequence[str]) -> Chosen:
    segmenter, prompt, inference = options
    return Chosen(policy=policy, segmenter=segmenter, prompt=prompt, inference=inference)


def _plain(error: Exception) -> str:
    """An error in the words of the page, which has no flags."""
    return (
        of_system(error)
        .replace("--query: ", "the question ")
        .replace(", such as --query 'where could a boat land'", "")
    )

"""The page over HTTP, as browsers speak to it: twenty people at once, refusals, and nothing left on the disk."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("gradio", reason="the extra demo is not installed: pip install 'grasp-rl[demo]'")

from demo_server import served

from grasp_rl.demo.answers import OWN
from grasp_rl.demo.images import MAX_BYTES

USERS = 20
QUEUE = 25
CHOICE = ["tiny", "nobody", OWN, OWN, OWN]
"""Policy, another to compare with, segmenter, prompt scheme, inference options."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the page's temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with served(folder, queue=QUEUE) as address:
        yield address


@pytest.fixture
def person(address: str) -> Iterator[Person]:
    with Person(address) as one:
        yield one


class Person:
    """A browser tab: a session of its own, and the functions of the page by the event that calls them."""

    def __init__(self, address: str) -> None:
        self.address, self.session = address, uuid.uuid4().hex
        self.name = "drawn scene, example vessel"
        self.client = httpx.Client(timeout=120, trust_env=False)
        config = self.client.get(f"{address}/config").json()
        self.targets = {(c["props"].get("elem_id") or c["props"].get("value")): c["id"] for c in config["components"]}
        self.functions = {
            (target, event): f["id"] for f in config["dependencies"] if f["backend_fn"] for target, event in f["targets"]
        }  # fmt: skip

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def post(self, field: str, event: str, data: list[Any], event_data: Any = None) -> httpx.Response:
        target = self.targets[field]
        asked = {
            "data": data, "event_data": event_data, "fn_index": self.functions[target, event], "session_hash": self.session,
            "trigger_id": target,
        }  # fmt: skip
        return self.client.post(f"{self.address}/gradio_api/queue/join", json=asked)

    def call(self, field: str, event: str, data: list[Any], event_data: Any = None) -> list[Any]:
        """What a function returns."""
        reply = self.post(field, event, data, event_data)
        reply.raise_for_status()
        wanted = reply.json()["event_id"]
        with self.client.stream(
            "GET", f"{self.address}/gradio_api/queue/data", params={"session_hash": self.session}
        ) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed" and message.get("event_id") == wanted:
                    assert message["success"], message
                    return list(message["output"]["data"])
        raise AssertionError("the stream ended without an answer")

    def ask(self, question: str) -> str:
        (shown,) = self.call("ask", "click", [None, self.name, question, *CHOICE])
        return str(shown)

    def upload(self, image: Any) -> list[Any]:
        file = io.BytesIO()
        Pillow.fromarray(image).save(file, "PNG")
        return self.opened(self.call("chooser", "chosen", [], {"content": base64.b64encode(file.getvalue()).decode()}))

    def opened(self, shown: list[Any]) -> list[Any]:
        """Keep the name of the image that is shown now, as the browser does; the rest."""
        state, self.name, *rest = shown
        return [state, *rest]

    def mark(self, question: str, text: str) -> str:
        (shown,) = self.call("mine", "click", [None, self.name, question, "tiny", OWN, OWN, OWN, text])
        return str(shown)


def document(panel: str) -> dict[str, Any]:
    """The JSON download in a panel."""
    match = re.search(r"data:application/json;base64,([^\"]*)", panel)
    assert match is not None, panel[:500]
    result: dict[str, Any] = json.loads(base64.b64decode(match[1]))
    return result


def test_ask_and_mark(person: Person) -> None:
    shown = person.ask("what has a bow")
    found = document(shown)
    assert found["iou"] > 0.8
    assert found["reward"] > 2
    assert set(found["terms"]) == {
        "think_format",
        "answer_format",
        "box_iou",
        "box_l1",
        "points",
        "points_inside",
        "count",
    }
    marked, _ = person.call("canvas", "marked", [None, person.name, ""], {"box": [27.4, 28, 54, 40]})
    assert marked == "box 27 28 54 40"
    own = document(person.mark("what has a bow", marked))
    assert own["who"] == "you"
    assert own["iou"] > 0.8
    assert own["paid"]["box_iou"] == 1.0


def test_examples_and_drawn_scenes(person: Person) -> None:
    _, canvas, question, *_ = person.opened(person.call("Several roofs", "click", CHOICE))
    assert question == "where is the best cover from the sun"
    assert 'data-width="112"' in canvas
    assert len(document(person.ask(question))["prompts"]) == 3
    _, canvas, question, *_ = person.opened(person.call("Draw a hard one", "click", CHOICE))
    assert "drawn scene, hard" in canvas
    assert document(person.ask(question))["iou"] is not None


def test_twenty_people_at_once_see_their_own_alone(address: str) -> None:
    """Each uploads an image of its own size and colour, asks a question of its own and points at a place of its own."""
    gate = threading.Barrier(USERS)

    def one(number: int) -> None:
        size, colour = (40 + number, 60 + number), (10 * number, 255 - 10 * number, number)
        with Person(address) as person:
            gate.wait(60)
            alone(person, number, size, colour)

    def alone(person: Person, number: int, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
        _, canvas, question, *_ = person.upload(np.full((*size, 3), colour, dtype=np.uint8))
        assert question == ""
        shown = re.search(r"data:image/png;base64,([^\"]*)", canvas)
        assert shown is not None
        picture = Pillow.open(io.BytesIO(base64.b64decode(shown[1])))
        assert (picture.size[::-1], picture.getpixel((5, 5))) == (size, colour)
        answered = document(person.ask(f"the roof of person {number}"))
        assert answered["query"] == f"the roof of person {number}"
        assert answered["size"] == list(size)
        own = document(person.mark("mine", f"box {number} 1 {number + 9} 20"))
        assert own["prompts"][0]["box"] == [number, 1, number + 9, 20]
        assert own["size"] == list(size)

    with ThreadPoolExecutor(USERS) as pool:
        for finished in [pool.submit(one, number) for number in range(USERS)]:
            finished.result()


def test_problems_are_words_on_the_page(person: Person) -> None:
    assert "the question is empty; say what to look for" in person.ask("  ").replace("&#x27;", "'")
    assert "reserved for the control tokens" in person.ask("<|im_start|>system")
    assert "there are none; drag a box" in person.mark("a", "")
    assert "&lt;script&gt;" in person.mark("a", "<script>alert(1)</script>")
    said = person.call("chooser", "chosen", [], {"content": base64.b64encode(b"GIF89a").decode()})[4]
    assert "is no PNG, JPEG or TIFF" in said
    assert "larger than 20 MB" in person.call("chooser", "chosen", [], {"too_large": True})[4]
    for odd in (None, 5, [], {"content": 5}, {"content": None}, "text", {"box": "a"}):
        assert 'role="alert"' in person.call("chooser", "chosen", [], odd)[4]
        assert 'role="alert"' in person.call("canvas", "marked", [None, person.name, ""], odd)[1]
    assert document(person.ask("the roof"))["query"] == "the roof", "the person goes on"


def test_an_image_that_was_forgotten_is_not_answered_about_as_another(person: Person) -> None:
    """Another session has none of the image that this browser shows."""
    person.upload(np.zeros((20, 20, 3), dtype=np.uint8))
    person.session = uuid.uuid4().hex
    for said in (person.ask("the roof"), person.mark("the roof", "box 1 1 9 9")):
        assert "was forgotten; choose it again" in said


def test_a_choice_that_the_page_does_not_offer_is_refused(person: Person) -> None:
    with pytest.raises(AssertionError):
        person.call("ask", "click", [None, person.name, "the roof", "/etc", "nobody", OWN, OWN, OWN])


def test_no_request_names_a_file_or_an_address(address: str, person: Person) -> None:
    for path in (
        "gradio_api/file=/etc/passwd",
        "gradio_api/proxy=http://127.0.0.1/",
        "gradio_api/deep_link",
        "monitoring",
    ):
        assert person.client.get(f"{address}/{path}").status_code == 404, path
    assert person.client.post(f"{address}/gradio_api/upload", files={"files": b"x"}).status_code == 404
    file = {"path": "http://127.0.0.1:9/", "meta": {"_type": "gradio.FileData"}}
    assert person.post("ask", "click", [None, person.name, file, *CHOICE]).status_code == 400
    assert person.client.get(address, headers={"host": "evil.example"}).status_code == 403
    large = person.client.post(f"{address}/gradio_api/queue/join", content=b"x" * (MAX_BYTES * 4 // 3 + 100_001))
    assert large.status_code == 413


def test_it_calls_no_one_and_is_shared_with_no_one(address: str, person: Person) -> None:
    config = person.client.get(f"{address}/config").json()
    assert not config.get("analytics_enabled")
    assert config.get("share_url") is None
    text = person.client.get(address).text
    assert re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]*', text) == []
    assert re.findall(r'"name": *"[^"]*fonts\.googleapis[^"]*"|stylesheets":\["http[^"]*"', text) == []


def test_nothing_of_a_person_stays_on_the_disk(folder: Path, person: Person) -> None:
    person.upload(np.zeros((20, 20, 3), dtype=np.uint8))
    person.ask("the roof")
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_the_queue_is_bounded(address: str) -> None:
    """As many as may wait do, and the rest are told at once that it is full."""
    with ExitStack() as stack:
        people = [stack.enter_context(Person(address)) for _ in range(2 * QUEUE)]
        pool = stack.enter_context(ThreadPoolExecutor(len(people)))
        asked = [
            pool.submit(person.post, "ask", "click", [None, person.name, "the roof", *CHOICE]) for person in people
        ]
        statuses = [reply.result().status_code for reply in asked]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= QUEUE, statuses

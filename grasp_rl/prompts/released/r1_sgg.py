"""R1-SGG (arXiv 2504.13617): open_r1/grpo.py of gpt4vision/R1-SGG@013d5f1, the boxes of its scene graphs.

All ``` and every "json" are deleted; what is left in the first answer, behind an answer that never closes, or in all
of the text is a JSON object with ``objects`` (``id`` as "name.number", ``bbox``) and ``relationships``. The format
value asks for both keys and that every relationship's ends are among the objects; without the layout of thought and
answer it is a half.
"""

from __future__ import annotations

from typing import Any

from grasp_rl.config.schema import ParsingConfig, PromptConfig
from grasp_rl.interfaces import CoordinateFrame
from grasp_rl.prompts.json_text import ReadError
from grasp_rl.prompts.released.reading import Reading, between, layout, load, numbers, prompt_as_said
from grasp_rl.prompts.render import ANSWER_CLOSE, ANSWER_OPEN
from grasp_rl.types import ParseStatus, Relation, SpatialPrompt


def r1_sgg(text: str, prompt: PromptConfig, frame: CoordinateFrame, config: ParsingConfig) -> Reading:
    """See the module."""
    plain = text.replace("```", "").replace("json", "")
    body = between(plain, ANSWER_OPEN, ANSWER_CLOSE)
    if body is None:
        body = plain.partition(ANSWER_OPEN)[2] or plain
    graph = load(body.strip(), config, instances=False)
    if not isinstance(graph, dict):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    form = (1.0 if layout(text) else 0.5) * _is_graph(graph)
    items = graph.get("objects")
    if not isinstance(items, list):
        return Reading(status=ParseStatus.BAD_SCHEMA, form=form)
    if len(items) > config.max_instances:
        return Reading(status=ParseStatus.TOO_LONG, form=form)
    try:
        instances = tuple(_instance(item, frame, config) for item in items)
        return Reading(instances=instances, form=form, relations=_relations(graph, items))
    except ReadError as error:
        return Reading(status=error.status, form=form)


def _instance(item: Any, frame: CoordinateFrame, config: ParsingConfig) -> SpatialPrompt:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        raise ReadError(ParseStatus.BAD_SCHEMA)
    name = item["id"].lower().replace("_", " ").replace("-", " ").partition(".")[0]
    return prompt_as_said(numbers(item.get("bbox"), 4, config), [], frame, name)


def _relations(graph: dict[str, Any], items: list[Any]) -> tuple[Relation, ...]:
    """The relationships whose ends are objects of the graph; of several between the same two the last."""
    place = {item["id"]: number for number, item in enumerate(items)}
    predicates: dict[tuple[int, int], str] = {}
    listed = graph.get("relationships")
    for item in listed if isinstance(listed, list) else []:
        ends = [item.get(key) for key in ("subject", "object")] if isinstance(item, dict) else []
        if len(ends) == 2 and all(isinstance(end, str) and end in place for end in ends):
            predicate = item.get("predicate")
            if isinstance(predicate, str):
                predicates[place[ends[0]], place[ends[1]]] = predicate
    return tuple((subject, predicate, other) for (subject, other), predicate in predicates.items())


def _is_graph(graph: dict[str, Any]) -> bool:
    """Whether both lists are there, every object is named, and every relationship is between objects."""
    objects, relations = graph.get("objects"), graph.get("relationships")
    if not (isinstance(objects, list) and isinstance(relations, list)):
        return False
    if not all(isinstance(item, dict) for item in (*objects, *relations)):
        return False
    names = {item.get("id") for item in objects if isinstance(item.get("id"), str)}
    ends = [item.get(key) for item in relations for key in ("subject", "object")]
    return len(objects) == sum("id" in item for item in objects) and all(
        isinstance(end, str) and end in names for end in ends
    )

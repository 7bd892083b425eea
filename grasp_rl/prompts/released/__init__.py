"""Answers read as the released code of a system reads them, so that its checkpoints score as published.

A file for each family of systems. A reader may keep boxes as they were said, corners out of order and beyond the image,
where the system's code does. Most systems ask for the layout in the same words: a thought from the first character on,
white space, an answer to the last character; two thoughts in a row are one to them.
"""

from __future__ import annotations

from grasp_rl.config.schema import PromptConfig
from grasp_rl.prompts.released import geo_r1, resap, rs_hyre, socio, vlm_r1
from grasp_rl.prompts.released.r1_sgg import r1_sgg
from grasp_rl.prompts.released.reading import Reader, Reading, layout
from grasp_rl.prompts.released.remote_reasoner import remote_reasoner
from grasp_rl.prompts.released.rs_eot import rs_eot
from grasp_rl.prompts.released.rsthinker import rsthinker
from grasp_rl.prompts.released.seg_zero import seg_zero
from grasp_rl.prompts.released.think2seg import think2seg
from grasp_rl.prompts.released.visionreasoner import visionreasoner

__all__ = ["READERS", "SCHEMES", "Reader", "Reading", "layout", "reads"]

READERS: dict[str, Reader] = {
    "think2seg": think2seg,
    "visionreasoner": visionreasoner,
    "seg_zero": seg_zero,
    "vlm_r1_rec": vlm_r1.rec,
    "vlm_r1_od": vlm_r1.od,
    "vlm_r1_detection": vlm_r1.detection,
    "geo_r1_gres": geo_r1.gres,
    "choice": vlm_r1.choice,
    "rs_eot": rs_eot,
    "rs_hyre": rs_hyre.grounding,
    "rs_hyre_detection": rs_hyre.detection,
    "socio_turn1": socio.turn1,
    "socio_turn2": socio.turn2,
    "resap": resap.boxes,
    "resap_points": resap.labels,
    "r1_sgg": r1_sgg,
    "remote_reasoner": remote_reasoner,
    "rsthinker": rsthinker,
}
SCHEMES = {
    "think2seg": "box_2points",
    "visionreasoner": "visionreasoner",
    "seg_zero": "seg_zero",
    "vlm_r1_rec": "box",
    "vlm_r1_od": "detection",
    "vlm_r1_detection": "detection",
    "geo_r1_gres": "keypoints",
    "choice": "choice",
    "rs_eot": "box",
    "rs_hyre": "box",
    "rs_hyre_detection": "detection",
    "socio_turn1": "box",
    "socio_turn2": "box_2points",
    "resap": "boxes_thousand",
    "r1_sgg": "detection",
    "remote_reasoner": "box_center",
    "rsthinker": "boxes_thousand",
}
"""The option of ``prompt`` that asks for what a reader reads, or comes nearest to it.

``resap_points`` is not among them: it reads the answers of a task (``rollout=resap``).
"""


def reads(reader: str, prompt: PromptConfig) -> bool:
    """Whether ``reader`` knows the fields of a scheme; those of another system are read by the scheme's own rules."""
    few = prompt.positive_points + prompt.negative_points == 0
    known = {
        "think2seg": not (prompt.flat_points or prompt.single_object),
        "visionreasoner": (prompt.flat_points or few) and not prompt.single_object,
        "seg_zero": prompt.flat_points and prompt.single_object,
        "geo_r1_gres": prompt.positive_fields == ["keypoint1", "keypoint2"],
        "socio_turn2": prompt.box and prompt.positive_key == "points" and not prompt.flat_points,
    }
    answer = {"choice": ("choice",), "resap_points": ("labels",)}.get(reader, ("instances", "boxes"))
    usable = prompt.answer in answer and not prompt.clicks
    return reader in READERS and usable and known.get(reader, few)

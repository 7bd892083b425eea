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

__all__ = ["READERS", "Reader", "Reading", "layout", "reads"]

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
_POINTS_OF_THEIR_OWN = ("geo_r1_gres", "choice", "socio_turn2", "resap_points")


def reads(reader: str, prompt: PromptConfig) -> bool:
    """Whether ``reader`` knows the fields of a scheme; those of another system are read by the scheme's own rules."""
    few = prompt.positive_points + prompt.negative_points == 0
    if reader == "think2seg":
        return not (prompt.flat_points or prompt.single_object)
    if reader == "visionreasoner":
        return (prompt.flat_points or few) and not prompt.single_object
    if reader == "seg_zero":
        return prompt.flat_points and prompt.single_object
    return reader in _POINTS_OF_THEIR_OWN or (reader in READERS and few)

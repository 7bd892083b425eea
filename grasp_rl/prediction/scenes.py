"""A predictor as what a scan asks (:func:`grasp_rl.geo.scan.scan`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from grasp_rl.geo.polygons import components
from grasp_rl.geo.scan import Ask, WindowAnswer
from grasp_rl.prediction.predictor import Prediction, Predictor
from grasp_rl.types import Image


def asking(predictor: Predictor) -> Ask:
    """What a scan asks: ``predictor``, its instances apart."""

    def ask(images: Sequence[Image], query: str) -> list[WindowAnswer]:
        return [_window_answer(prediction, predictor) for prediction in predictor.predict_all(images, query)]

    return ask


def _window_answer(prediction: Prediction, predictor: Predictor) -> WindowAnswer:
    answer, masks = prediction.answer, prediction.masks
    instances = masks.masks if isinstance(masks.masks, np.ndarray) else masks.masks.cpu().numpy()
    confidences: Sequence[float | None] = [float(v) for v in masks.iou_predictions]
    if masks.whole:
        instances = components(masks.union)
    if masks.whole or not predictor.estimates_quality:
        confidences = [None] * len(instances)
    return WindowAnswer(
        masks=list(instances),
        confidences=confidences,
        share=prediction.share,
        status=str(answer.status),
        text=prediction.text,
        thinking=answer.thinking,
        error=masks.error,
    )

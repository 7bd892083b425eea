"""Bytes that autograd keeps for the backward pass of one micro-batch of packed rows ``[prompt | c1 | ... | cG]``.

Term by term what torch saves: inputs of matrix products, of norms and of gates, and what attention needs. Counted with
hooks on saved tensors on a CPU; a test counts again for every family. The terms of ``varlen`` are read from the code.
"""

from __future__ import annotations

from grasp_rl.planning.load import Load
from grasp_rl.planning.shapes import Shapes

FLOAT = 4
"""Bytes of a float32: norms compute in it."""


def activation_bytes(shapes: Shapes, load: Load) -> float:
    """Of language model and, where it is trained, vision encoder; recomputation holds one whole layer at a time."""
    language = _kept(_layer(shapes, load), _entry(shapes, load), _products(shapes, load), shapes.layers, load)
    if not shapes.vision_trained:
        return language
    patches = load.micro_batch * shapes.patches
    whole, entry, products = (patches * size for size in _vision_token(shapes))
    pixels = 0 if shapes.adapter else patches * shapes.patch_values * shapes.bytes_each
    merger = 4 * entry
    return language + _kept(whole, entry, products, shapes.vision_layers, load) + pixels + merger


def _kept(whole: float, entry: float, products: float, layers: int, load: Load) -> float:
    kept = {"none": whole, "selective": entry + products, "full": entry}[load.recompute]
    return kept * layers + (0.0 if load.recompute == "none" else whole)


def _entry(shapes: Shapes, load: Load) -> float:
    return float(load.row_tokens * shapes.hidden * shapes.bytes_each)


def _layer(shapes: Shapes, load: Load) -> float:
    """Of one whole layer."""
    each, hidden, query, key, inner = (
        shapes.bytes_each, shapes.hidden, shapes.query_width, shapes.kv_width, shapes.inner,
    )  # fmt: skip
    norm = FLOAT + (0 if shapes.adapter else each)  # its input, and what a trained weight multiplies
    norms = (2 * hidden + (query + key if shapes.qk_norm else 0)) * norm
    inputs = (2 * hidden + query + inner) * each
    gate = 3 * inner * each
    return load.row_tokens * float(norms + inputs + gate) + _attention(shapes, load) * each


def _attention(shapes: Shapes, load: Load) -> float:
    """Values of one layer's attention: see grasp_rl.policies.attention."""
    query, key = shapes.query_width, shapes.kv_width
    said = load.group * load.completion
    behind = load.group * (load.prompt + load.completion)  # every completion's keys stand behind a copy of the prompt's
    if load.varlen:
        row = 2 * query * (load.prompt + said) + 2 * key * (load.prompt + behind)
    else:
        row = (2 * query + 2 * key) * (load.prompt + said) + query * (3 * load.prompt + 2 * said) + 2 * key * behind
        row += behind * load.completion * (query // key)  # the mask, as the kernel adds it
    return float(load.micro_batch * row)


def _products(shapes: Shapes, load: Load) -> float:
    """Of one layer's matrix products and attention: what selective recomputation keeps."""
    made = shapes.query_width + 2 * shapes.kv_width + 2 * shapes.hidden + 2 * shapes.inner
    adapted = made if shapes.adapter else 0
    return float(load.row_tokens * (made + shapes.query_width + adapted) * shapes.bytes_each)


def _vision_token(shapes: Shapes) -> tuple[int, int, int]:
    """(whole layer, its entry, its products), bytes of one patch in one layer of the vision encoder."""
    each, hidden, inner = shapes.bytes_each, shapes.vision_hidden, shapes.vision_inner
    if shapes.vision_gated:  # RMS norms and a gated MLP
        norms, attention, gate = 2 * hidden * (FLOAT + (0 if shapes.adapter else each)), 6 * hidden, 3 * inner
        inputs, made = 3 * hidden + inner, 5 * hidden + 2 * inner
    else:
        norms, attention, gate = 2 * hidden * each, 5 * hidden, inner
        inputs, made = 3 * hidden + inner, 5 * hidden + inner
    whole = norms + (inputs + attention + gate) * each
    return whole, hidden * each, (made + hidden + (made if shapes.adapter else 0)) * each

"""Padding that a convolution can do by itself: a PAD of zero points before it is left out."""

from collections.abc import Sequence

from atalaia.codegen.graph import Step

MOST = 255  # rows or columns of padding that a convolution can add


def folded(steps: Sequence[Step]) -> tuple[list[Step], list[str]]:
    """The steps without such paddings, and notes of what is left out."""
    found, notes = list(steps), []
    for pad in [step for step in steps if step.kind == "pad"]:
        readers = [k for k, step in enumerate(found) if pad.output in step.inputs]
        behind = found[readers[0]] if len(readers) == 1 else None
        if behind is not None and _can_pad(behind, pad):
            v, p = behind.values, pad.values
            changed = dict(in_h=p["in_h"], in_w=p["in_w"])
            changed |= dict(pad_top=v["pad_top"] + p["top"], pad_left=v["pad_left"] + p["left"])
            found[readers[0]] = behind._replace(inputs=pad.inputs, values=v | changed)
            found = [step for step in found if step is not pad]
            notes.append(f"operator {pad.place}, {pad.op}, is left out: the convolution behind it pads by itself")
    return found, notes


def _can_pad(step, pad):
    """Whether a step is a convolution of the whole padded map, with zero points where that has them."""
    v, p = step.values, pad.values
    if step.kind not in ("conv", "depthwise") or "batch" in v or p["first"] or p["in_c"] != p["out_c"]:
        return False
    same = (v["in_h"], v["in_w"], v["in_c"]) == (p["out_h"], p["out_w"], p["out_c"]) and v["in_zero"] == p["zero"]
    top, left = v["pad_top"] + p["top"], v["pad_left"] + p["left"]
    seen = (v["out_w"] - 1) * v["stride_w"] + v["kernel_w"]  # columns, with those of padding
    return same and max(top, left) <= MOST and left <= seen

"""Kernels of convolutions and matrix products: dense, woven, packed where codes are small, and sparse in each form."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from atalaia.codegen.call import Call
from atalaia.codegen.coded import pack_codes
from atalaia.codegen.graph import Step
from atalaia.codegen.grid import SMALL, by_lines, lines, small_sums, sum_bounds
from atalaia.codegen.packing import BITS, GAPS, chunk_taps, fits, pack_dense, pack_fields, pack_sparse, pack_woven

COLUMNS = 48  # of conv.c


def kernels(step: Step) -> Iterator[Call]:
    """Each kernel of a convolution or matrix product, and it with lines in place of multipliers where there are any."""
    found = lines(step)
    for call in (_conv if step.kind == "conv" else _depthwise)(step):
        yield call
        if found is not None:
            yield by_lines(call, found)


def _conv(step) -> Iterator[Call]:
    yield dense(step)
    least, most = sum_bounds(step.values)
    if step.values["out_w"] >= 4 and least.min() >= -SMALL and most.max() < SMALL:
        yield _woven(step)
    kernel = step.values["kernel"]
    yield from (packed(step, bits) for bits in BITS if fits(kernel, bits))
    few_bits = fits(kernel, max(BITS))
    for form in GAPS:
        if form != "NIBBLES" or few_bits:
            stored, counts = pack_sparse(kernel, form)
            if counts.max(initial=0) < 1 << 16:
                yield _sparse(step, ("conv_sparse", form), f"conv_{form.lower()}", stored, counts)
    codes = pack_codes(kernel) if few_bits else None
    if codes and codes.counts.max() < 1 << 16:
        yield _coded(step, codes)


def dense(step: Step) -> Call:
    """The dense kernel of a convolution or matrix product, whatever its weights."""
    v = step.values
    pixels = min(v["out_w"], 2)
    sweeps, work = _sweeps(v, pixels, -(-v["out_c"] // 4))
    taps = v["kernel_h"] * v["kernel_w"] * v["in_c"]
    work |= dict(inner=work["group"] * taps, total=sweeps * pixels * taps)
    arrays = common(v) | dict(weights=("uint8_t", pack_dense(v["kernel"])))
    return _instance(step, "conv_dense", f"conv_dense_{pixels}", (pixels,), arrays, work, sweeps)


def _woven(step):
    v = step.values
    sweeps, work = _fours(v, -(-v["out_c"] // 3))
    taps, distance = v["kernel_w"] * v["in_c"], v["stride_w"] * v["in_c"]
    work |= dict(inner=work["row"] * taps, far=work["row"] * taps * sum(i * distance > 255 for i in range(4)))
    arrays = common(v) | dict(weights=("uint32_t", pack_woven(v["kernel"])))
    arrays["bias"] = ("int32_t", v["bias"] - np.int32(SMALL))  # sums start there
    constants = (distance, v["kernel_h"], taps, int(v["out_c"] % 3 == 1))
    name = f"conv_woven_{'_'.join(map(str, constants))}"
    return _instance(step, "conv_woven", name, constants, arrays, work, sweeps, "conv_woven")


def packed(step: Step, bits: int) -> Call:
    """The kernel of packed weights of a convolution or matrix product, which so many of BITS can hold."""
    v = step.values
    pixels = 4 if v["out_w"] >= 4 else 1
    sweeps, work = _sweeps(v, pixels, -(-v["out_c"] // 2))
    words = pack_fields(v["kernel"], bits)
    arrays = common(v) | dict(weights=(f"{words.dtype}_t", words))
    name = f"conv_packed_{bits}_{pixels}"
    chunk = chunk_taps(v["kernel"])
    taps = v["kernel_w"] * v["in_c"]
    work |= dict(inner=sweeps * words.nbytes // bits, chunk=work["row"] * -(-taps // chunk))
    call = _instance(step, "conv_packed", name, (bits, pixels), arrays, work, sweeps)
    return call._replace(files=("packed_word", *call.files), fields=(("chunk", chunk), *call.fields))


def _sparse(step, template, name, stored, counts, cost=None):
    """A kernel of weights that are not zero.

    Args:
      template: the C function, and its first constant; name: how the kernel's begins; cost: in costs.json, where other.
      stored, counts: the weights, and their numbers by output and kernel row.
    """
    v = step.values
    pixels = next(n for n in (8, 4, 1) if v["out_w"] >= n)
    sweeps, work = _sweeps(v, pixels, v["out_c"])
    distance = v["stride_w"] * v["in_c"]
    far = sum(i * distance > 255 for i in range(pixels))  # what does not lie in an Xtensa load
    inner = sweeps * int(counts.sum())
    work |= dict(inner=inner, far=inner * far * (2 if "TRIPLETS" in template else 1))
    wide, counted = _counts(counts)
    arrays = common(v) | dict(weights=(f"{stored.dtype}_t", stored), counts=counted)
    function, *first = template
    name, cost = f"{name}_{pixels}_{distance}" + "_wide" * wide, f"{cost or name}_{pixels}"
    return _instance(step, function, name, (*first, pixels, distance, wide), arrays, work, sweeps, cost)


def _coded(step, codes):
    """The sparse kernel of such codes."""
    template, name = ("conv_coded", codes.width), f"conv_coded_{codes.width}"
    call = _sparse(step, template, name, codes.stored, codes.counts, "conv_coded")
    work = call.work | dict(refill=call.work["inner"] * codes.width / 16)
    return call._replace(files=(*call.files[:-1], "conv_sparse", "conv_coded"), work=work)


def _counts(counts):
    """Whether one exceeds a byte, and the C array."""
    wide = int(counts.max(initial=0) > 255)
    return wide, ("uint16_t", counts.astype(np.uint16)) if wide else ("uint8_t", counts.astype(np.uint8))


def _depthwise(step) -> Iterator[Call]:
    v = step.values
    pixels = 4 if v["out_w"] >= 4 else 1
    sweeps, work = _sweeps(v, pixels, v["out_c"])
    work |= dict(inner=work["row"] * v["kernel_w"])
    arrays = common(v) | {"weights": ("int8_t", v["kernel"].ravel())}
    yield _instance(step, "depthwise", f"depthwise_{pixels}", (pixels,), arrays, work, sweeps)
    if v["kernel_h"] == v["kernel_w"] == 3 and v["stride_w"] <= 2 and v["out_w"] >= 4 and v["in_c"] == v["out_c"]:
        sweeps, work = _fours(v, v["out_c"])
        arrays = common(v) | {"weights": ("int16_t", v["kernel"].ravel().astype(np.int16))}
        stride, deep = v["stride_w"], v["in_c"]
        far = sum(i * deep > 255 for i in range(3 * stride + 3))
        work |= dict(inner=work["row"], far=work["row"] * far)
        name = f"depthwise_rows_{stride}"
        yield _instance(step, "depthwise_rows", f"{name}_{deep}", (stride, deep), arrays, work, sweeps, name)


def _instance(step, template, kernel, constants, arrays, work, sweeps, cost=None):
    files = ("rescale", "move", "conv", "conv_map", "depthwise" if template.startswith("depthwise") else template)
    small = small_sums(step)
    work |= {"small" if small else "large": work["output"]}
    constants = (template, *map(str, constants))
    return Call(step, kernel, files, arrays, work, cost or kernel, constants, sweeps, (("small", int(small)),))


def _sweeps(v, pixels, groups):
    """Passes over the weights, and the work outside of inner loops: a group is of outputs that are summed together."""
    blocks = -(-v["out_w"] // pixels)
    sweeps = v["out_h"] * blocks
    width = (v["out_w"] - 1) * v["stride_w"] + v["kernel_w"]
    direct = v["kernel_h"] == 1 and not v["pad_left"] and width <= v["in_w"]
    return sweeps, dict(
        line=v["out_h"],
        copied=0 if direct else v["out_h"] * v["kernel_h"] * width * v["in_c"],
        group=sweeps * groups,
        row=sweeps * groups * v["kernel_h"],
        output=sweeps * pixels * v["out_c"],
    )


def _fours(v, groups):
    """As `_sweeps`, of kernels that sum four pixels at once and store up to COLUMNS of them."""
    parts, rest = divmod(v["out_w"], COLUMNS)
    fours = parts * COLUMNS // 4 + -(-rest // 4)
    sweeps, work = _sweeps(v, v["out_w"], groups)
    columns = parts * COLUMNS + (max(rest, 4) if rest else 0)
    work |= dict(group=work["group"] * (parts + bool(rest)), four=work["group"] * fours)
    work |= dict(row=work["four"] * v["kernel_h"], output=v["out_h"] * columns * v["out_c"])
    return sweeps * (parts + bool(rest)), work


def common(v: dict[str, Any]) -> dict[str, tuple[str, np.ndarray]]:
    """Biases, multipliers, shifts and bounds of a step's values: name to (C type, values)."""
    arrays = dict(bias=("int32_t", v["bias"]), multiplier=("int32_t", v["multiplier"]), shift=("int8_t", v["shift"]))
    if v["low"] is not None:  # the activation's bounds, and then those by channel, in one
        bounds = (np.minimum(np.maximum(v[k], v["low"]), v["high"]) for k in ("out_low", "out_high"))
        arrays |= {k: ("uint8_t", b.astype(np.uint8)) for k, b in zip(("low", "high"), bounds, strict=True)}
    return arrays

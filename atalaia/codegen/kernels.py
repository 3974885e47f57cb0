"""The kernel of each step, chosen by a count of instructions, and its weights as that kernel has them."""

from typing import Any, NamedTuple

import numpy as np

from atalaia.codegen.graph import Graph, Step

GAP = 255  # the largest gap of a sparse weight

# Instructions, estimated from the kernels' inner loops: of a dense weight and pixel, of a weight that is not zero and
# pixel, of an output value, of a value in the other steps. What the emulators count: experiments/results/mcu.md.
COSTS = {
    "rv32": dict(dense=3.3, sparse=4.4, depthwise=5.0, output=32.0, value=28.0),
    "lx106": dict(dense=5.0, sparse=5.8, depthwise=7.0, output=60.0, value=60.0),
}


class Call(NamedTuple):
    """A step with its kernel: files of mcu/kernels it needs, arrays (name, C type, values) and the kernel's name."""

    step: Step
    kernel: str
    files: tuple[str, ...]
    arrays: dict[str, tuple[str, np.ndarray]]
    instructions: dict[str, float]


def choose(graph: Graph, sparse: str = "auto") -> list[Call]:
    """Calls of a graph's steps.

    Args:
      graph: what to run; sparse: "auto" by the count of instructions, "always" or "never".
    """
    return [_CHOICES.get(step.kind, _pair)(step, sparse) for step in graph.steps]


def _conv(step, sparse):
    v = step.values
    costs = {kind: _conv_cost(step, kind) for kind in ("dense", "sparse")}
    wanted = {"always": "sparse", "never": "dense"}.get(sparse)
    if wanted is None:  # the sum over both boards, each in its own dense cost
        total = {k: sum(c[b] / costs["dense"][b] for b in c) for k, c in costs.items()}
        wanted = min(total, key=total.get)
    arrays = _common(v)
    if wanted == "dense":
        arrays["weights"] = ("uint8_t", _pack_dense(v["kernel"]))
        return Call(step, "conv_dense", ("rescale", "conv", "conv_dense"), arrays, costs["dense"])
    pairs, counts = _pack_sparse(v["kernel"])
    arrays |= {"weights": ("int16_t", pairs), "counts": ("uint16_t", counts)}
    return Call(
        step, f"conv_sparse_{v['stride_w'] * v['in_c']}", ("rescale", "conv", "conv_sparse"), arrays, costs["sparse"]
    )


def _conv_cost(step, kind):
    v = step.values
    pixels, outputs = v["out_h"] * v["out_w"], v["out_h"] * v["out_w"] * v["out_c"]
    weights = v["kernel"].size if kind == "dense" else np.count_nonzero(v["kernel"])
    factor = 1.0 if kind == "dense" or v["out_w"] >= 4 else 2.0  # pixels one by one
    return {b: pixels * weights * c[kind] * factor + outputs * c["output"] for b, c in COSTS.items()}


def _depthwise(step, sparse):
    del sparse
    v = step.values
    arrays = _common(v) | {"weights": ("int8_t", v["kernel"].ravel())}
    outputs = v["out_h"] * v["out_w"] * v["out_c"]
    taps = v["kernel_h"] * v["kernel_w"]
    cost = {b: outputs * (taps * c["depthwise"] + c["output"]) for b, c in COSTS.items()}
    return Call(step, "depthwise", ("rescale", "conv", "depthwise"), arrays, cost)


def _common(v):
    arrays = dict(bias=("int32_t", v["bias"]), multiplier=("int32_t", v["multiplier"]), shift=("int8_t", v["shift"]))
    if v["low"] is not None:
        arrays |= dict(low=("uint8_t", v["low"]), high=("uint8_t", v["high"]))
    return arrays


def _pack_dense(kernel):
    """uint8: groups of four outputs, in them rows, columns and channels, in them a weight + 128 of each output."""
    out, *rest = kernel.shape
    padded = np.zeros((-(-out // 4) * 4, *rest), np.int16)
    padded[:out] = kernel
    return (padded.reshape(-1, 4, *rest).transpose(0, 2, 3, 4, 1).ravel() + 128).astype(np.uint8)


def _pack_sparse(kernel):
    """int16 of weight << 8 | gap, and how many there are by output and kernel row."""
    pairs, counts = [], []
    for output in kernel:
        for row in output:
            values, place, before = row.ravel(), 0, len(pairs)
            for at in np.flatnonzero(values):
                gap = int(at) - place
                while gap > GAP:
                    pairs.append(GAP)
                    gap -= GAP
                pairs.append(int(values[at]) * 256 + gap)
                place = int(at)
            counts.append(len(pairs) - before)
    return np.array(pairs, np.int16), np.array(counts, np.uint16)


def _pool(step, sparse):
    del sparse
    v = step.values
    values = v["out_h"] * v["out_w"] * v["channels"] * v["kernel_h"] * v["kernel_w"]
    return Call(step, step.kind, ("rescale", "pool"), {}, {b: 12.0 * values for b in COSTS})


def _lookup(step, sparse):
    del sparse
    count = 256
    arrays = dict(table=("uint8_t", step.values["table"]))
    return Call(step, "lookup", ("lookup",), arrays, dict.fromkeys(COSTS, 5.0 * count))


def _mean(step, sparse):
    del sparse
    cost = dict.fromkeys(COSTS, 8.0 * step.values["pixels"] * step.values["channels"])
    return Call(step, "mean", ("rescale", "mean"), {}, cost)


def _softmax(step, sparse):
    del sparse
    v = step.values
    cost = dict.fromkeys(COSTS, v["rows"] * (60.0 * v["size"] + 300))
    return Call(step, "softmax", ("rescale", "softmax"), dict(table=("int32_t", v["table"])), cost)


def _move(step, sparse):
    del sparse
    count = step.values["rows"] * step.values["block"] if step.kind == "copy" else step.values["out_h"] * 50
    return Call(step, step.kind, (step.kind,), {}, dict.fromkeys(COSTS, 2.0 * count))


def _flip(step, sparse):
    del sparse
    return Call(step, "flip", ("flip",), {}, dict.fromkeys(COSTS, 0.0))


def _pair(step, sparse):
    del sparse
    v = step.values
    arrays = {"constant": ("uint8_t", v["constant"])} if "constant" in v else {}
    kernel = "add" if step.kind == "sub" else step.kind
    factor = 3.0 if kernel == "add" else 1.0
    cost = {b: v["values"] * c["value"] * factor for b, c in COSTS.items()}
    return Call(step, kernel, ("rescale", "elementwise", kernel), arrays, cost)


_CHOICES: dict[str, Any] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "max_pool": _pool,
    "mean_pool": _pool,
    "lookup": _lookup,
    "mean": _mean,
    "softmax": _softmax,
    "copy": _move,
    "pad": _move,
    "flip_in": _flip,
    "flip_out": _flip,
}

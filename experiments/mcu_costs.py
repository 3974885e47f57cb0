"""The instructions of each kernel, fitted to what the emulators count: atalaia/codegen/costs.json.

python experiments/mcu_costs.py [--boards=esp32isa] [--kernels="conv_coded|conv_packed_3"]

Runs networks of one step, of several sizes and shares of zeros, with every kernel that can run it, on rv32, lx106 and
esp32isa (the Debian packages are those that `make -C mcu run` names), and fits the instructions of each part of a
kernel by non-negative least squares of relative errors. Run it after changing mcu/kernels; after adding some, for those
alone: the parts that all kernels of convolutions share then keep their costs. How well the
sums predict whole networks stands in docs/results/mcu.md and mcu_esp32.md.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Height, width, channels, outputs, kernel, stride and share of zeros of convolutions; of one pixel: matrix products.
CONVOLUTIONS = (
    *((8, 16, 16, 16, 3, 1, 0.8), (8, 8, 32, 24, 3, 1, 0.9), (16, 16, 3, 16, 3, 1, 0.5), (6, 12, 24, 40, 1, 1, 0.8)),
    *((8, 16, 20, 12, 5, 1, 0.7), (8, 32, 8, 8, 3, 2, 0.6), (4, 9, 64, 32, 1, 1, 0.9), (6, 11, 10, 30, 3, 1, 0.3)),
    *((5, 5, 16, 16, 3, 1, 0.8), (4, 4, 64, 32, 3, 1, 0.8), (6, 6, 24, 40, 1, 1, 0.5), (7, 7, 10, 20, 5, 1, 0.9)),
    *((6, 12, 12, 16, 3, 2, 0.7), (4, 6, 40, 9, 3, 1, 0.4), (3, 3, 16, 24, 3, 1, 0.8), (2, 2, 64, 24, 3, 1, 0.9)),
    *((3, 3, 30, 12, 1, 1, 0.7), (1, 1, 256, 32, 1, 1, 0.8), (1, 1, 600, 100, 1, 1, 0.5), (1, 1, 64, 10, 1, 1, 0.0)),
    *((1, 1, 1000, 50, 1, 1, 0.95), (4, 1, 40, 16, 1, 1, 0.6), (3, 1, 24, 24, 3, 1, 0.8), (5, 1, 12, 30, 5, 1, 0.5)),
)
# Height, width, channels, filters of each, kernel and stride.
DEPTHWISE = (
    *((8, 8, 16, 1, 3, 1), (12, 12, 8, 2, 3, 2), (9, 9, 20, 1, 5, 1), (6, 16, 10, 1, 1, 1), (4, 5, 64, 1, 3, 1)),
    *((3, 3, 16, 1, 3, 1), (2, 2, 40, 2, 3, 1), (5, 1, 24, 1, 3, 1), (3, 2, 32, 1, 5, 1), (3, 3, 20, 1, 1, 1)),
    *((9, 13, 24, 1, 3, 2), (4, 16, 60, 1, 3, 2), (12, 24, 8, 1, 3, 2)),
)
TOGETHER = 64  # networks in one program
FLOATS = ("float_in", "float_out")  # steps at one of the borders in place of a flip
SHARED = ("line", "copied", "small", "large", "turned")  # parts of conv.c, which all its kernels go through
# So that no layer's constants are built into a kernel: a network has several layers of a kind.
GENERAL = '#pragma GCC optimize("no-ipa-cp", "no-inline-functions-called-once")\n'
# Clang does not know these: there, where the constants lie goes through an instruction that it does not look into.
HIDDEN = 'static const void *hidden(const void *p)\n{\n    __asm__("" : "+r"(p));\n    return p;\n}\n'
# Each network once, on bytes by a fixed seed or its own.
MAIN = """
int printf(const char *, ...);
uint64_t board_count(void);
typedef void invoke_t(const int8_t *const inputs[], int8_t *const outputs[], void *memory);
static const struct { invoke_t *invoke; const int8_t *given; } models[] = { %s };
int main(void)
{
    uint32_t seed = 1;
    for (unsigned i = 0; i < sizeof bytes; i++)
        seed = seed * 1664525u + 1013904223u, bytes[i] = (int8_t)(seed >> 24);
    for (unsigned k = 0; k < sizeof models / sizeof *models; k++) {
        int8_t *taken = out;
        const uint64_t before = board_count();
        models[k].invoke(&models[k].given, &taken, arena);
        printf("counted %%lu\\n", (unsigned long)(board_count() - before));
    }
    return 0;
}
"""
BOARDS = ("rv32", "lx106", "esp32isa")
_BOARDS = flags.DEFINE_multi_enum("boards", BOARDS, BOARDS, "Those to count on; of the others, costs stay.")
_KERNELS = flags.DEFINE_string("kernels", "", "Regular expression of those to count; of the others, costs stay.")
PIXELS = 400  # of the other steps, and a half and a fourth of them


def main(argv):
    del argv
    from atalaia.codegen import kernels
    from atalaia.codegen.call import COSTS, costs
    from atalaia.files import write_json
    from atalaia.progress import Progress

    cases = [(call, shapes) for step, shapes in steps() for call in kernels.candidates(step, "esp32") if worth(call)]
    cases = [(call, shapes) for call, shapes in cases if re.search(_KERNELS.value, call.cost) or call.cost == "flip"]
    table = costs()
    with Progress("measure kernels", len(cases) * len(_BOARDS.value), "runs") as progress:
        for board in _BOARDS.value:
            counts = []
            for at in range(0, len(cases), TOGETHER):
                counts += counted(cases[at : at + TOGETHER], board)
                progress.update(min(TOGETHER, len(cases) - at))
            known = table[board] if _KERNELS.value else {}
            found = fit(cases, counts, known.get("conv_dense_1", {}))
            table[board] = known | {name: cost for name, cost in found.items() if re.search(_KERNELS.value, name)}
    write_json(COSTS, table)
    print(f"written: {COSTS}")


def worth(call) -> bool:
    """Not lines for sums so large that nearly all outputs have one value."""
    return not ("grid" in call.arrays and call.step.values["bias"].any())


def steps() -> list:
    """(step, shapes of its input and output) of each network; flips first, since all networks have two."""
    from atalaia.codegen.grid import SMALL

    flips = [step("flip_in", (1, n), (1, n), size=n) for n in (PIXELS, PIXELS // 4)]
    linear = [convolution(*case) for case in CONVOLUTIONS] + [depthwise(*case) for case in DEPTHWISE]
    linear += [convolution(*case, bias=SMALL) for case in CONVOLUTIONS[:8]]  # whose sums do not count as small
    linear += [convolution(*case, bias=1 << 29) for case in CONVOLUTIONS[:2]]  # nor as plain
    return flips + linear + [s for n in (PIXELS, PIXELS // 2, PIXELS // 4) for s in (*others(n), *third_party(n))]


def step(kind, given, out, **values):
    """(a graph.Step from tensor 0 to 1, their shapes)."""
    from atalaia.codegen.graph import Step

    return Step(kind, kind, 0, (0,), 1, values), (given, out)


def convolution(height, width, channels, outputs, size, stride, zeros, bias=0):
    """With weights that every kernel can hold."""
    random = np.random.default_rng(0)
    kernel = random.choice([-1, 1], (outputs, size, size if width > 1 else 1, channels)).astype(np.int8)
    kernel[random.random(kernel.shape) < zeros] = 0
    return _linear("conv", height, width, channels, kernel, stride, bias)


def depthwise(height, width, channels, filters, size, stride):
    kernel = np.random.default_rng(0).integers(-127, 128, (channels * filters, 1, size, size if width > 1 else 1))
    return _linear("depthwise", height, width, channels, kernel.astype(np.int8), stride)


def _linear(kind, height, width, channels, kernel, stride, bias=0):
    outputs, (tall, wide) = len(kernel), kernel.shape[2:] if kind == "depthwise" else kernel.shape[1:3]
    out_h, out_w = -(-height // stride), -(-width // stride)
    pads = [max((o - 1) * stride + k - n, 0) // 2 for o, k, n in ((out_h, tall, height), (out_w, wide, width))]
    values = dict(in_h=height, in_w=width, in_c=channels, out_h=out_h, out_w=out_w, out_c=outputs)
    values |= dict(kernel_h=tall, kernel_w=wide, stride_h=stride, stride_w=stride, pad_top=pads[0], pad_left=pads[1])
    values |= dict(in_zero=128, out_low=0, out_high=255, low=None, high=None, kernel=kernel)
    values |= dict(out_zero=0 if height % 2 else 128)  # lines of some turn, of others not
    values |= dict(bias=np.full(outputs, bias, np.int32), multiplier=np.full(outputs, 1 << 30, np.int32))
    values |= dict(shift=np.full(outputs, -6, np.int8))
    return step(kind, (1, height, width, channels), (1, out_h, out_w, outputs), **values)


def others(pixels):
    """Every other kind of step, on so many pixels of eight channels."""
    from atalaia.codegen import fixed_point

    channels, side = 8, round(pixels**0.5)
    shape, values = (1, side, side, channels), side * side * channels
    for kind in ("max_pool", "mean_pool", "min_pool"):
        for size in (2, 3):
            window = dict(in_h=side, in_w=side, channels=channels, out_h=side // 2, out_w=side // 2, kernel_h=size)
            window |= dict(kernel_w=size, stride_h=2, stride_w=2, pad_top=0, pad_left=0, out_low=0, out_high=255)
            yield step(kind, shape, (1, side // 2, side // 2, channels), **window)
    for kind in ("add", "add_tabled", "mul", "maximum", "minimum"):
        for inner in (1,) if kind == "add_tabled" else (1, values // 8):
            pair = dict(values=values, b_inner=inner, b_size=values // inner, a_zero=128, b_zero=128, out_zero=128)
            pair |= dict(out_low=0, out_high=255, a_multiplier=1 << 30, a_shift=0, b_multiplier=3 << 29, b_shift=-1)
            pair |= dict(out_multiplier=3 << 29, out_shift=-18, constant=np.arange(values // inner).astype(np.uint8))
            if kind == "add_tabled":
                pair |= dict(
                    a_multiplier=1_234_567_891, b_multiplier=1_987_654_321
                )  # no sum halfway between two values
                pair["tables"] = fixed_point.sum_tables(pair, False)
            yield step(kind.removesuffix("_tabled"), shape, shape, **pair)
    yield step("lookup", shape, shape, size=values, table=np.arange(256).astype(np.uint8))
    pooled = dict(pixels=side * side, channels=channels, in_zero=128, out_zero=128, multiplier=1 << 30, shift=-8)
    yield step("mean", shape, (1, channels), **pooled)
    table = np.linspace(2**31 - 1, 0, 256).astype(np.int32)
    for rows in (1, side):
        yield step("softmax", shape, shape, rows=rows, size=values // rows, table=table)
    for rows in (1, side):
        moved = dict(rows=rows, block=values // rows, from_stride=values // rows, to_stride=values // rows, to_start=0)
        yield step("copy", shape, shape, **moved)
    grown = dict(in_h=side, in_w=side, in_c=channels, out_h=side + 2, out_w=side + 3, out_c=channels, top=1, left=1)
    yield step("pad", shape, (1, side + 2, side + 3, channels), **grown, first=0, zero=128)


def third_party(pixels):
    """The kinds of step that our own networks do not have, on so many pixels of eight channels."""
    from atalaia.codegen import fixed_point

    channels, side = 8, round(pixels**0.5)
    shape, values = (1, side, side, channels), side * side * channels
    for kind in ("float_in", "float_out"):
        table = fixed_point.least_floats(0.03, 120) if kind == "float_in" else np.arange(256, dtype=np.uint32)
        yield step(kind, (1, values), (1, values), size=values, table=table)
    for kind in ("rsub", "prelu", "squared_difference"):
        for inner in (1, values // 8):
            pair = dict(values=values, b_inner=inner, b_size=values // inner, a_zero=128, b_zero=128, out_zero=128)
            pair |= dict(out_low=0, out_high=255, a_multiplier=1 << 30, a_shift=0, b_multiplier=3 << 29, b_shift=-1)
            pair |= dict(out_multiplier=3 << 29, out_shift=-12, constant=np.arange(values // inner).astype(np.uint8))
            yield step(kind, shape, shape, **pair)
    for count, of, block in (((side, side), (channels, side * channels), channels), ((side**2, channels), (8, 1), 1)):
        to = (side * channels, channels) if block > 1 else (1, side**2)
        loops = dict(count=[1, 1, 1, *count], of=[0, 0, 0, *of], to=[0, 0, 0, *to])
        yield plain("strided", shape, shape, {}, from_start=0, to_start=0, block=block, **loops)
    axis = np.arange(side)
    triples = np.stack([axis, np.minimum(axis + 1, side - 1), 37 * axis % 1024], 1)
    for deep in (3, 8, 20):
        image, sizes = (1, side, side, deep), dict(in_w=side, channels=deep, out_h=side, out_w=side)
        yield plain("nearest", image, image, dict(rows=axis, columns=axis), **sizes)
        yield plain("bilinear", image, image, dict(rows=triples, columns=triples), **sizes)
    for kept, over in (((1, 1, side**2), (1, 1, channels)), ((1, 1, channels), (1, side, side))):
        strides = dict(kept_stride=[0, 0, channels if kept[2] > 8 else 1], kept=list(kept), over=list(over))
        strides |= dict(over_stride=[0, side * channels, 1 if kept[2] > 8 else channels])
        out = (1, int(np.prod(kept)))
        grids = dict(in_zero=128, out_zero=128, multiplier=1 << 30, shift=-4)
        yield plain("reduce", shape, out, {}, **strides, **grids)
        yield plain("reduce_most", shape, out, {}, **strides, least=0)
    for outer, count in ((side**2, channels), (1, values)):
        yield plain("arg_most", (1, values), (1, 4 * outer), {}, outer=outer, count=count, inner=1, least=0)
    yield from _third_party_products(side, channels)


def _third_party_products(side, channels):
    for size, stride, deep in ((3, 2, channels), (2, 1, channels), (4, 2, 3)):
        outputs, half = 6, side // 2
        window = dict(in_h=half, in_w=half, in_c=deep, out_h=half * stride, out_w=half * stride, out_c=outputs)
        window |= dict(kernel_h=size, kernel_w=size, stride_h=stride, stride_w=stride, pad_top=0, pad_left=0)
        window |= dict(in_zero=128, out_zero=128, out_low=0, out_high=255)
        arrays = dict(weights=np.arange(size * size * deep * outputs) % 100, bias=np.zeros(outputs))
        arrays |= dict(multiplier=np.full(outputs, 1 << 30), shift=np.full(outputs, -6))
        out = (1, half * stride, half * stride, outputs)
        yield plain("transpose_conv", (1, half, half, deep), out, arrays, **window)
    for rows, inner in ((side, 4 * channels), (2 * side, channels)):
        turns = dict(a_batch=0, b_batch=0, a_row=inner, a_step=1, b_column=1, b_step=rows)
        grids = dict(a_zero=128, b_zero=128, out_zero=128, shift=-5, multiplier=1 << 30)
        product = dict(batch=1, rows=rows, columns=rows, inner=inner) | turns | grids
        yield plain("batch_matmul", (1, rows, inner), (1, rows, rows), {}, **product)
    yield from _wide(side)


def _wide(side):
    """int16 takes two bytes a value, so images seem twice as deep."""
    for size, deep, group in ((3, 8, 8), (3, 8, 1), (1, 20, 20)):
        fields = dict(in_h=side // 2, in_w=side // 2, in_c=deep, out_h=side // 2, out_w=side // 2, out_c=8)
        fields |= dict(kernel_h=size, kernel_w=size, group_in=group, group_out=8 * group // deep)
        fields |= dict(out_low=-32768, out_high=32767, stride_h=1, stride_w=1, pad_top=0, pad_left=0)
        fields |= dict(dilation_h=1, dilation_w=1, narrow=0)
        arrays = dict(weights=np.arange(size * size * group * 8) % 100, bias=np.zeros(8))
        arrays |= dict(multiplier=np.full(8, 1 << 30), shift=np.full(8, -6))
        yield plain("wide_conv", (1, side // 2, side // 2, 2 * deep), (1, side // 2, side // 2, 16), arrays, **fields)
    values, scales = side * side * 4, dict(a_multiplier=1 << 30, b_multiplier=1 << 30, out_multiplier=1 << 30)
    fields = dict(values=values, b_inner=1, b_size=values) | scales | dict(out_low=-32768, out_high=32767)
    fields |= dict(a_shift=0, b_shift=0, out_shift=-15, product=0)
    yield plain("wide_pair", (1, 2 * values), (1, 2 * values), {}, **fields)


def plain(kind, given, out, arrays, **fields):
    """A step of a kernel of plain.py; those of two tensors have the first twice."""
    types = dict(rows="int16_t", columns="int16_t", weights="int8_t", shift="int8_t")
    types |= dict(rows="uint16_t", columns="uint16_t") if kind == "nearest" else {}
    types |= dict(bias="int64_t") if kind == "wide_conv" else {}
    named = {n: (types.get(n, "int32_t"), v.astype(types.get(n, "int32_t")[:-2])) for n, v in arrays.items()}
    (made, shapes) = step(kind, given, out, fields=fields, arrays=named)
    return (made._replace(inputs=(0, 0)) if kind in ("batch_matmul", "wide_pair") else made), shapes


def counted(cases: list, board: str) -> list[int]:
    """Instructions of each case: a network of the one step, and of the two flips at its borders. One program of all."""
    from atalaia.codegen import boards, emit

    networks = [network(*case) for case in cases]
    head = emit.head("many", [call for _, calls, _, _ in networks for call in calls]).replace('#include "model.h"', "")
    bodies = [emit.body(graph, calls, plan, f"m{k}_") for k, (graph, calls, plan, _) in enumerate(networks)]
    source = "\n".join([head, *bodies])
    if board == boards.ESP32ISA:
        source = HIDDEN + re.sub(r"\(&(m\d+_s\d+),", r"(hidden(&\1),", source)
    else:
        source = GENERAL + source
    arena, given, taken = (max(sizes) for sizes in zip(*map(_bytes, networks), strict=True))
    own = [
        f"static const int8_t own{k}[] = {{{', '.join(map(str, n[3]))}}};" for k, n in enumerate(networks) if n[3].size
    ]
    rows = [f"{{m{k}_model_invoke, {f'own{k}' if n[3].size else 'bytes'}}}" for k, n in enumerate(networks)]
    buffers = f"static int8_t bytes[{given}], out[{taken}] __attribute__((aligned(4)));\n"
    buffers += f"static uint8_t arena[{arena}] __attribute__((aligned(4)));\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.c"
        path.write_text("\n".join([source, *own, buffers + MAIN % ", ".join(rows)]))
        command = ["make", "-s", "-C", boards.MCU, "program", f"BOARD={board}", f"FILES={path}", f"BUILD_DIR={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    found = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("counted ")]
    assert len(found) == len(cases), done.stdout[-1000:]
    return found


def network(call, shapes) -> tuple:
    """(graph, calls, plan, own input or none) of a step between two flips."""
    from atalaia.codegen import kernels, memory
    from atalaia.codegen.graph import Graph, Step

    shapes = dict(enumerate(shapes))
    sizes = {i: int(np.prod(shape)) for i, shape in shapes.items()}
    last = 0 if call.kernel == "flip" else 1
    flips = [Step(k, k, 0, (i,), i, dict(size=sizes[i])) for k, i in (("flip_in", 0), ("flip_out", last))]
    whole = [*kernels.candidates(flips[0]), call, *kernels.candidates(flips[1])]
    calls = [c for c in whole if c is not call or call.kernel != "flip"]
    calls = calls[1:] if call.kernel == "float_in" else calls[:-1] if call.kernel == "float_out" else calls
    own = np.zeros(0, np.int8)
    if call.kernel == "float_in":
        own = np.random.default_rng(0).normal(0, 2, sizes[0]).astype("<f4").view(np.int8)
    if call.kernel in FLOATS:
        sizes[0 if call.kernel == "float_in" else 1] *= 4
    graph = Graph([c.step for c in calls], sizes, shapes, (0,), (last,), [])
    return graph, calls, memory.plan(graph), own


def _bytes(made):
    """Of a network: the arena, its input and its output."""
    graph, _, plan, _ = made
    return plan.arena, graph.sizes[graph.inputs[0]], graph.sizes[graph.outputs[0]]


def fit(cases: list, counts: list[int], shared: dict[str, float]) -> dict[str, dict[str, float]]:
    """Instructions by kernel and part: what lies between the flips, as a sum of parts.

    shared: of the parts SHARED, where they are known.
    """
    calls = [call for call, _ in cases]
    flips = [(n / 2, call) for call, n in zip(calls, counts, strict=True) if call.kernel == "flip"]
    flip = sum(n for n, _ in flips) / sum(call.work["value"] for _, call in flips)
    rows, targets = [], []
    for (call, shapes), n in zip(cases, counts, strict=True):
        if call.kernel != "flip":
            flipped = sum(np.prod(shape) for shape in (shapes[: 2 - (call.kernel in FLOATS)]))
            fixed = {part: k for part, k in call.work.items() if shared and part in SHARED}
            fitted = {part: k for part, k in call.work.items() if part not in fixed}
            rows.append({("" if part in SHARED else call.cost, part): k for part, k in fitted.items()})
            targets.append(n - flip * flipped - sum(k * shared[part] for part, k in fixed.items()))
    columns = sorted({key for row in rows for key in row})
    found = dict(zip(columns, _least_squares(rows, columns, np.array(targets, float)), strict=True))
    found |= {("", part): n for part, n in shared.items() if part in SHARED}
    costs = {"flip": {"value": round(flip, 3)}}
    for name in sorted({call.cost for call in calls} - {"flip"}):
        parts = {part for call in calls if call.cost == name for part in call.work}
        parts = sorted(parts | (set(SHARED) if "line" in parts else set()))
        costs[name] = {part: round(float(found["" if part in SHARED else name, part]), 3) for part in parts}
    return costs


def _least_squares(rows, columns, targets):
    """Non-negative solution of rows x = targets, each row's error relative to its target."""
    from sklearn.linear_model import LinearRegression

    matrix = np.array([[row.get(c, 0.0) for c in columns] for row in rows]) / targets[:, None]
    scale = np.maximum(matrix.max(0), 1e-12)  # of columns, so that the solver sees numbers of one size
    model = LinearRegression(fit_intercept=False, positive=True)
    solution = model.fit(matrix / scale, np.ones(len(rows))).coef_
    predicted = matrix / scale @ solution
    low, high = np.percentile(predicted, (5, 95))
    print(f"{len(rows)} runs, predicted / counted from {low:.3f} to {high:.3f} in nine of ten")
    return solution / scale


if __name__ == "__main__":
    app.run(main)

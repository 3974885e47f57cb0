"""int8 files that others published, by ESP-NN's kernels and by generated C, in the same emulators.

python experiments/esp_nn.py [mlperf_resnet8 ...] [--esp_nn=CLONE] [--files=FOLDER]    # a few minutes
python experiments/esp_nn.py --pages        # only writes the page, from the figures

ESP-NN is Espressif's library of kernels, which TFLite Micro calls on their chips. A program is written that calls them
one after the other, as TFLite Micro does, and nothing of TFLite Micro's own is counted. --esp_nn names a clone of
REPOSITORY, which is else cloned into runs/esp_nn; --files is that of public_files.py.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import public_files
import tables
from absl import flags
from tables import ROOT, Table, grid

REPOSITORY, COMMIT = "https://github.com/espressif/esp-nn", "d45b843ca5f873ca9d0706ab0e7f14eafd132e98"
VERSION = "1.2.3"  # that of COMMIT, in its idf_component.yml
FILES = ("mlperf_resnet8", "mlperf_vww", "mlperf_kws", "tflm_person")
BOARDS = {"esp32isa": "ESP32", "rv32": "ESP32-C3"}
SAMPLES = 2  # random inputs, whose counts hardly differ from one to the next
# What ESP-NN's own build takes for an ESP32 and an ESP32-C3, of what is called here.
SOURCES = (
    *(f"src/convolution/esp_nn_{kind}_{form}.c" for kind in ("conv", "depthwise_conv") for form in ("ansi", "opt")),
    *("src/basic_math/esp_nn_add_ansi.c", "src/fully_connected/esp_nn_fully_connected_ansi.c"),
    *("src/pooling/esp_nn_avg_pool_ansi.c", "src/softmax/esp_nn_softmax_opt.c"),
)
HEADERS = (
    *(f"include/{name}.h" for name in ("esp_nn", "esp_nn_defs", "esp_nn_ansi_headers", "esp_nn_generic_opt")),
    *("src/common/common_functions.h", "src/softmax/softmax_common.h"),
)


def main():
    repository = _clone()
    for name in tables.chosen(FILES):
        for row in measure(name, repository):
            TABLE.add(row)


def measure(name: str, repository: Path) -> list[dict]:
    """A row a board of a file of the manifest: what ESP-NN's kernels need there, and what generated C does."""
    from atalaia.codegen import boards

    content = public_files.content(name)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours, fastest, own = (Path(folder) / part for part in ("esp_nn", "default", "fastest", "own"))
        _generate(content, ours)
        _generate(content, fastest, prefer="speed")
        _generate(content, own, prefer="speed", target="esp32")
        shutil.copytree(ours, theirs)  # for its golden vectors and its header
        for path in (*SOURCES, *HEADERS):
            text = _git(repository, "show", f"{COMMIT}:{path}")
            (theirs / Path(path).name).write_bytes(text.replace(b'"+a"', b'"+r"'))  # GCC's and LLVM's same register
        (theirs / "model.c").write_text(program(content))
        rows = []
        for board in BOARDS:
            print(f"{name} on {board}: counting instructions", flush=True)
            row = dict(name=name, board=board, esp_nn=boards.run(theirs, board), default=boards.run(ours, board))
            if board == boards.ESP32ISA:
                row["fastest"], row["milliseconds"] = _counted(own, board)
            else:
                row["fastest"] = boards.run(fastest, board)
            rows.append(row)
        return rows


def _counted(folder, board):
    """What C does in a board's emulator, and its estimated milliseconds on an ESP32, the least and the most."""
    from atalaia.codegen import __main__ as codegen

    found = codegen.count(folder)[board]
    return found, json.loads((folder / "report.json").read_text())["estimated"]["esp32"]["milliseconds"]


def _generate(content, out, **choices):
    from atalaia.codegen import __main__ as codegen

    codegen.generate(content, out, samples=SAMPLES, **choices)


def _clone():
    """A clone of REPOSITORY that has COMMIT."""
    from atalaia.errors import UserError

    asked = flags.FLAGS.esp_nn
    path = Path(asked) if asked else ROOT / "runs/esp_nn"
    try:
        if not asked and not path.is_dir():
            part = path.with_name("esp_nn.part")
            shutil.rmtree(part, ignore_errors=True)
            _git(Path(), "clone", "--bare", REPOSITORY, str(part))
            part.rename(path)
        _git(path, "cat-file", "-e", COMMIT)
    except FileNotFoundError:
        raise UserError(f"git or {path} is missing: apt install git, and check --esp_nn") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode().strip().splitlines()[-1]
        raise UserError(f"{path} has no commit {COMMIT[:12]} of {REPOSITORY} ({reason}): clone it again") from None
    return path


def _git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True).stdout


# ---- a program that calls ESP-NN


def program(content: bytes) -> str:
    """model.c that calls ESP-NN's kernels for the operators of a .tflite file.

    Raises:
      UserError: it has operators that are not called here.
    """
    from atalaia import tflite
    from atalaia.codegen import lowering

    model = tflite.read(content)
    graph = lowering.lower(model)
    names = {i: f"t{i}" for i in graph.sizes}
    names |= {i: f"inputs[{n}]" for n, i in enumerate(graph.inputs)}
    names |= {i: f"outputs[{n}]" for n, i in enumerate(graph.outputs)}
    constants, calls = [], []
    for number, step in enumerate(graph.steps):
        if step.kind not in ("flip_in", "flip_out"):  # to generated C's own form of a byte and back
            call, arrays = _call(model, step, f"c{number}", [names[i] for i in step.inputs], names[step.output])
            calls.append(f"  {call}")
            constants += [_array(f"c{number}_{name}", value) for name, value in arrays.items()]
    buffers = sorted({step.output for step in graph.steps} - {*graph.inputs, *graph.outputs})
    return "\n".join(
        (
            "#define CONFIG_NN_OPTIMIZED 1",
            "#if defined(__XTENSA_WINDOWED_ABI__)",
            "#define CONFIG_IDF_TARGET_ARCH_XTENSA 1  // an ESP32, whose two instructions it writes itself",
            "#endif",
            *(
                f'#pragma GCC diagnostic ignored "-W{w}"'
                for w in ("unused-function", "unused-parameter", "sign-compare")
            ),
            '#include "model.h"',
            '#include "esp_nn.h"',
            *(f'#include "{Path(path).name}"' for path in SOURCES),
            *constants,
            *(f"static int8_t t{i}[{graph.sizes[i]}];" for i in buffers),
            "void model_invoke(const int8_t *const *inputs, int8_t *const *outputs, void *arena) {",
            "  (void)arena;",
            *calls,
            "}\n",
        )
    )


def _call(model, step, name, given, out) -> tuple[str, dict[str, np.ndarray]]:
    """A step's call of ESP-NN, and the constants that it reads."""
    from atalaia.codegen.graph import OFFSET
    from atalaia.errors import UserError

    v: dict[str, Any] = step.values
    if step.kind in ("conv", "depthwise") and _plain(model, step):
        return _linear(model, step, name, given[0], out)
    window = (
        [f"{v[k]}" for k in ("stride_w", "stride_h", "kernel_w", "kernel_h", "pad_left", "pad_top")]
        if "stride_w" in v
        else []
    )
    match step.kind:
        case "mean_pool":
            sizes = [given[0], v["in_w"], v["in_h"], out, v["out_w"], v["out_h"]]
            return _c("esp_nn_avg_pool_s8", *sizes, *window, *_bounds(v), v["channels"]), {}
        case "add" if v["b_size"] == v["values"]:
            zeros = [OFFSET - v["a_zero"], OFFSET - v["b_zero"]]
            scales = [v[k] for k in ("a_multiplier", "b_multiplier", "a_shift", "b_shift")]
            after = [v["out_zero"] - OFFSET, v["out_multiplier"], v["out_shift"], *_bounds(v), v["values"]]
            return _c("esp_nn_add_elementwise_s8", *given, *zeros, *scales, 20, out, *after), {}
        case "softmax":
            options, grid_in = model.operators[step.place].options, model.tensors[model.operators[step.place].inputs[0]]
            scales = softmax_scale(float(options.beta), float(grid_in.scale[0]))
            buffer = f"{{static int32_t scratch[{v['size']}]; esp_nn_set_softmax_scratch_buf(scratch);}}"
            return f"{buffer} {_c('esp_nn_softmax_s8', given[0], v['rows'], v['size'], *scales, out)}", {}
    raise UserError(f"no call of ESP-NN is written here for {step.op} (operator {step.place})")


def _plain(model, step):
    """Whether ESP-NN's convolution, or matrix product of one row, takes a step: no dilation, and a bias."""
    operator, v = model.operators[step.place], step.values
    spread = [getattr(operator.options, f"dilation{axis}Factor", 1) for axis in "HW"]
    one = step.op != "FULLY_CONNECTED" or v["in_w"] == 1
    return one and spread == [1, 1] and len(operator.inputs) == 3 and v["low"] is None and v.get("batch", 1) == 1


def _linear(model, step, name, given, out):
    """A convolution, of whole channels or depthwise, or a matrix product."""
    from atalaia.codegen.graph import OFFSET

    v, arrays = step.values, _constants(model, step)
    zeros = [OFFSET - v["in_zero"], v["out_zero"] - OFFSET]
    if step.op == "FULLY_CONNECTED":
        sizes = [given, zeros[0], v["in_c"], f"{name}_weights", 0, f"{name}_bias", out, v["out_c"], zeros[1]]
        one = arrays["mult"].size == 1
        scales = [f"{name}_shift{'[0]' * one}", f"{name}_mult{'[0]' * one}"]
        kind = "esp_nn_fully_connected_s8" if one else "esp_nn_fully_connected_per_ch_s8"
        return _c(kind, *sizes, *scales, *_bounds(v)), arrays
    deep = step.op == "DEPTHWISE_CONV_2D"
    pairs = [f"{{{v[k + w]}, {v[k + h]}}}" for k, w, h in (("stride_", "w", "h"), ("pad_", "left", "top"))]
    more = [v["out_c"] // v["in_c"]] if deep else []
    low, high = _bounds(v)
    values = ", ".join(map(str, [*zeros, *more, *pairs, "{1, 1}", f"{{{low}, {high}}}"]))
    shapes = [
        f"&(data_dims_t){{{v[w]}, {v[h]}, {c}, 1}}"
        for w, h, c in (
            ("in_w", "in_h", v["in_c"]),
            ("kernel_w", "kernel_h", v["in_c"]),
            ("out_w", "out_h", v["out_c"]),
        )
    ]
    kind = ("dw_conv_params_t", "esp_nn_depthwise_conv_s8") if deep else ("conv_params_t", "esp_nn_conv_s8")
    last = f"&({kind[0]}){{{values}}}", f"&(quant_data_t){{(int32_t *){name}_shift, (int32_t *){name}_mult}}"
    data = [shapes[0], given, shapes[1], f"{name}_weights", f"{name}_bias", shapes[2], out]
    return _c(kind[1], *data, *last), arrays


def _constants(model, step):
    """The weights, the bias and the scales of a convolution or matrix product, as the file has them."""
    from atalaia.codegen.fixed_point import quantize_multiplier

    operator = model.operators[step.place]
    given, weights, bias, out = (model.tensors[i] for i in (*operator.inputs, *operator.outputs))
    multiplier, shift = quantize_multiplier(given.scale * weights.scale.astype(np.float64) / out.scale)
    return dict(weights=weights.data, bias=bias.data, shift=shift.astype(np.int32), mult=multiplier)


def softmax_scale(beta: float, scale: float) -> tuple[int, int, int]:
    """(multiplier, shift, least difference) of TFLite's PreprocessSoftmaxScaling with 5 integer bits."""
    from atalaia.codegen.fixed_point import quantize_multiplier

    (multiplier,), (shift,) = quantize_multiplier([min(beta * scale * 2.0**26, 2.0**31 - 1)])
    return int(multiplier), int(shift), -int(31 * 2.0 ** (26 - int(shift)))


def _bounds(v):
    from atalaia.codegen.graph import OFFSET

    return v["out_low"] - OFFSET, v["out_high"] - OFFSET


def _c(function, *arguments):
    return f"{function}({', '.join(map(str, arguments))});"


def _array(name, value):
    kind = "int8_t" if value.dtype == np.int8 else "int32_t"
    return f"static const {kind} {name}[] = {{{', '.join(map(str, value.ravel().tolist()))}}};"


# ---- the page


def table(rows: list[dict]) -> str:
    """A line a file and board, in Markdown."""
    from atalaia import fetch

    artefacts = fetch.manifest()

    def a_mac(key):
        return lambda row: f"{row[key]['instructions_per_mac']:.2f}"

    def ratio(key):
        return lambda row: f"{row['esp_nn']['instructions'] / row[key]['instructions']:.2f}"

    def equal(key):
        return lambda row: f"{row[key]['equal']} of {row[key]['samples']}"

    def all_of(cell):
        return lambda row: " / ".join(cell(key)(row) for key in ("esp_nn", "default", "fastest"))

    columns = {
        "file": lambda row: artefacts[row["name"]].what,
        "instructions of": lambda row: BOARDS[row["board"]],
        "instructions a MAC: ESP-NN": a_mac("esp_nn"),
        "generated": a_mac("default"),
        "generated, times fewer": ratio("default"),
        "fast": a_mac("fastest"),
        "fast, times fewer": ratio("fastest"),
        "constants, bytes: all three": all_of(lambda key: lambda row: f"{row[key]['weight_bytes']:,}"),
        "equal to TFLM: all three": all_of(equal),
    }
    return grid(columns, rows, left=2)


def measured(rows: list[dict]) -> str:
    """What others measured on a board for TFLite Micro with ESP-NN, beside the instructions of ESP-NN's kernels."""
    from atalaia import fetch
    from atalaia.codegen import estimates

    chip, files = (
        estimates.CHIPS["esp32"],
        {"MLPerf Tiny ResNet-8": "mlperf_resnet8", "person detection": "tflm_person"},
    )
    on_esp32 = {row["name"]: row for row in rows if row["board"] == "esp32isa"}
    counted = {name: row["esp_nn"]["instructions"] for name, row in on_esp32.items()}
    lines = [p for p in estimates.PUBLISHED if p["engine"] == "TFLM with ESP-NN" and files[p["model"]] in counted]
    columns = {
        "network": lambda p: fetch.manifest()[files[p["model"]]].what,
        "ms on an ESP32, measured": lambda p: f"{p['milliseconds']} ({p['source']})",
        "instructions of ESP-NN's kernels, millions": lambda p: f"{counted[files[p['model']]] / 1e6:.1f}",
        f"ms by {chip.cpi[0]} to {chip.cpi[1]} cycles an instruction": lambda p: " to ".join(
            f"{1e3 * counted[files[p['model']]] * cycles / chip.hertz:.0f}" for cycles in chip.cpi
        ),
        "cycles an instruction, as measured": lambda p: (
            f"{p['milliseconds'] / 1e3 * chip.hertz / counted[files[p['model']]]:.2f}"
        ),
        "generated, fast: ms, *estimated*": lambda p: " to ".join(
            f"{ms:.0f}" for ms in on_esp32[files[p["model"]]]["milliseconds"]
        ),
    }
    return grid(columns, lines)


def _body(rows):
    return f"{table(rows)}\n## Times that others measured\n\n{measured(rows)}"


def _headline(rows):
    row = next(row for row in rows if (row["name"], row["board"]) == ("mlperf_resnet8", "esp32isa"))
    ours, theirs = (row[key]["instructions_per_mac"] for key in ("fastest", "esp_nn"))
    return f"MLPerf Tiny's ResNet-8 on an ESP32: {ours:.2f} instructions a multiply-accumulate, ESP-NN {theirs:.2f}"


TABLE = Table(
    name="esp_nn",
    title="ESP-NN and generated C",
    shows="The same int8 files by Espressif's kernels, ESP-NN, and by generated C: instructions an image, counted in "
    "the same emulators, of the same compilers with `-O2`.",
    command="python experiments/esp_nn.py    # a few minutes; clones ESP-NN and downloads four files once",
    body=_body,
    headline=_headline,
    notes=(
        f"ESP-NN is version {VERSION}, commit `{COMMIT[:12]}`, in the form that its own build takes for an ESP32 and "
        "an ESP32-C3. Its kernels are called directly: what TFLite Micro needs around them is not counted.",
        "*generated* is what `atalaia.codegen` gives by default; *fast* is by `--prefer=speed`, on the ESP32 with "
        "`--target=esp32`, and has more bytes.",
        "MACs are those of the dense network; zeros among the weights are left out by generated C. Inputs are random. "
        "*Equal* counts outputs whose every byte is that of TFLite Micro's reference kernels.",
        "QEMU counts instructions; **no board was run**. Instructions are not cycles. Code for the ESP32 is compiled "
        "by LLVM, as GCC for it was not at hand; for the ESP32-C3 by GCC.",
        "Our estimates of milliseconds take the cycles an instruction of the second table, and add reads from flash. "
        "Their range was chosen by the published times of person detection; that of ResNet-8 is an independent check.",
        "ESP32-S3 and ESP32-P4 have kernels of ESP-NN with vectors, which no emulator here runs.",
    ),
    key=("name", "board"),
    order=lambda row: (FILES.index(row["name"]), list(BOARDS).index(row["board"])),
)


if __name__ == "__main__":
    tables.define_rows()
    public_files.define_files()
    flags.DEFINE_string("esp_nn", None, "A clone of ESP-NN's repository, where it is not to be cloned.")
    tables.start(main, TABLE)

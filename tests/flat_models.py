"""Small int8 .tflite files written operator by operator, and many of them in one C program against TFLite Micro."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from atalaia import tflite
from atalaia.codegen import boards, emit, fitting, golden, kernels, lowering, strips

# Options have the operator's name, but for these.
OPTIONS = dict(
    CONV_2D="Conv2DOptions", DEPTHWISE_CONV_2D="DepthwiseConv2DOptions", MAX_POOL_2D="Pool2DOptions",
    AVERAGE_POOL_2D="Pool2DOptions", SUM="ReducerOptions", MEAN="ReducerOptions", REDUCE_MAX="ReducerOptions",
    REDUCE_MIN="ReducerOptions", RESIZE_NEAREST_NEIGHBOR="ResizeNearestNeighborOptions", PADV2="PadV2Options",
    BATCH_MATMUL="BatchMatMulOptions", MAXIMUM="MaximumMinimumOptions", MINIMUM="MaximumMinimumOptions",
    SPACE_TO_BATCH_ND="SpaceToBatchNDOptions", BATCH_TO_SPACE_ND="BatchToSpaceNDOptions",
)  # fmt: skip
NONE = ("RELU", "RELU6", "LOGISTIC", "TANH", "PRELU", "ELU", "RSQRT")  # have no options

# What generated C is compiled with.
SANITIZED = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover")


class Net:
    """A graph that grows; a tensor is its number."""

    def __init__(self):
        self.graph, self.model = schema.SubGraphT(), schema.ModelT()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        self.model.version, self.model.subgraphs, self.model.operatorCodes = 3, [self.graph], []
        self.model.buffers = [schema.BufferT()]

    def tensor(self, shape, scale=None, zero=0, data=None, dtype="INT8", axis=0) -> int:
        """A tensor; scale: a number or one for each index of `axis`, None without any."""
        made = schema.TensorT()
        made.name, made.shape, made.type = f"t{len(self.graph.tensors)}", list(shape), getattr(schema.TensorType, dtype)
        made.buffer = 0
        if scale is not None:
            scales = np.atleast_1d(scale).tolist()
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = scales, [int(zero)] * len(scales)
            made.quantization.quantizedDimension = axis
        if data is not None:
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(schema.BufferT())
            self.model.buffers[-1].data = np.frombuffer(np.asarray(data).astype(dtype.lower()).tobytes(), np.uint8)
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def ints(self, *values, shape=None) -> int:
        """A constant of int32 values."""
        return self.tensor((len(values),) if shape is None else shape, data=np.array(values), dtype="INT32")

    def given(self, shape, scale=None, zero=0, dtype="INT8") -> int:
        """An input of the graph."""
        self.graph.inputs.append(self.tensor(shape, scale, zero, dtype=dtype))
        return self.graph.inputs[-1]

    def grid(self, i) -> tuple[float, int]:
        q = self.graph.tensors[i].quantization
        return float(q.scale[0]), int(q.zeroPoint[0])

    def shape(self, i) -> tuple[int, ...]:
        return tuple(self.graph.tensors[i].shape)

    def op(self, kind: str, inputs, *outputs, **fields: Any) -> int:
        """An operator with these fields of its options; gives its first output."""
        code, op = getattr(schema.BuiltinOperator, kind), schema.OperatorT()
        codes = [c.builtinCode for c in self.model.operatorCodes]
        if code not in codes:
            made = schema.OperatorCodeT()
            made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), 2
            self.model.operatorCodes.append(made)
            codes.append(code)
        op.opcodeIndex, op.inputs, op.outputs = codes.index(code), list(inputs), list(outputs)
        if kind not in NONE:
            name = OPTIONS.get(kind, "".join(word.capitalize() for word in kind.split("_")) + "Options")
            op.builtinOptions = getattr(schema, name + "T")()
            op.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            for field, value in fields.items():
                if not hasattr(op.builtinOptions, field):
                    raise AttributeError(f"{name} has no {field}")
                setattr(op.builtinOptions, field, value)
        self.graph.operators.append(op)
        return outputs[0]

    def file(self, *outputs) -> bytes:
        """The bytes, of a graph with these outputs."""
        self.graph.outputs = list(outputs)
        builder = flatbuffers.Builder(4096)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


TABLE = """
typedef struct {
    void (*invoke)(const int8_t *const *, int8_t *const *, void *);
    int inputs, outputs, in[4], out[8], samples;
    unsigned arena;
} entry;
static const entry models[] = {
%s
};
"""
MAIN = (
    """
#include <stdio.h>
#include <stdlib.h>
"""
    + TABLE
    + """
int main(void)
{
    for (unsigned m = 0; m < sizeof models / sizeof *models; m++)
        for (int s = 0; s < models[m].samples; s++) {
            const entry *e = &models[m];
            int8_t *in[4], *out[8];
            void *arena = malloc(e->arena);
            memset(arena, 77 * (s + 1), e->arena);
            for (int i = 0; i < e->inputs; i++)
                if (fread(in[i] = malloc(e->in[i]), 1, e->in[i], stdin) != (size_t)e->in[i])
                    return 1;
            for (int i = 0; i < e->outputs; i++)
                out[i] = malloc(e->out[i]);
            e->invoke((const int8_t *const *)in, out, arena);
            for (int i = 0; i < e->outputs; i++)
                fwrite(out[i], 1, e->out[i], stdout), free(out[i]);
            for (int i = 0; i < e->inputs; i++)
                free(in[i]);
            free(arena);
        }
    return 0;
}
"""
)
# With everything built in: `given`, `wanted`, `arena` and `out`, which holds one sample's outputs.
ON_BOARD = (
    "int printf(const char *, ...);\n"
    + TABLE
    + """
int main(void)
{
    const int8_t *from = given, *expected = wanted;
    for (unsigned m = 0; m < sizeof models / sizeof *models; m++) {
        int equal = 0;
        for (int s = 0; s < models[m].samples; s++) {
            const entry *e = &models[m];
            const int8_t *in[4];
            int8_t *taken[8], *to = out;
            memset(arena, 77 * (s + 1), sizeof arena);
            for (int i = 0; i < e->inputs; from += e->in[i++])
                in[i] = from;
            for (int i = 0; i < e->outputs; to += e->out[i++])
                taken[i] = to;
            e->invoke(in, taken, arena);
            equal += !memcmp(out, expected, (unsigned)(to - out));
            expected += to - out;
        }
        printf("m%%u %%d\\n", m, equal);
    }
    return 0;
}
"""
)


def longest(graph, calls) -> fitting.Planned:
    """Every step that can be in a strip is in one, each as long as it can be."""
    network, found, at = strips.Network(graph, calls), [], 0
    while at < len(graph.steps):
        ends = range(len(graph.steps) - 1, at, -1)
        made = next((s for s in (strips.build(network, at, end) for end in ends) if s), None)
        found += [made] if made else []
        at = made.last + 1 if made else at + 1
    return fitting.planned(network, found)


def wrong(
    files: dict[str, bytes], samples: int = 4, planned=fitting.plan, choose: Callable = kernels.choose
) -> dict[str, str]:
    """Of files by name, those whose C does not answer as TFLite Micro, and how; all of them are one program.

    planned: of a graph and its calls, the fitting.Planned that the C is made of.
    choose: of a graph, a call of each step.
    """
    source, rows, given, wanted, _ = _together(files, samples, planned, choose)
    found, result, start = _run(source + MAIN % "\n".join(rows), given), {}, 0
    for name, outputs in wanted.items():
        got = np.frombuffer(found[start : start + outputs.size], np.int8)
        start += outputs.size
        if got.size != outputs.size or not np.array_equal(got, outputs.ravel()):
            differ = np.flatnonzero(got != outputs.ravel()[: got.size])
            result[name] = f"{len(differ)} of {outputs.size} bytes, first {differ[:5].tolist()}"
    return result


def wrong_on(board: str, files: dict[str, bytes], samples: int = 4, choose: Callable = kernels.choose) -> list[str]:
    """The same in an emulator: the names of those files."""
    source, rows, given, wanted, arena = _together(files, samples, fitting.plan, choose)
    arrays = dict(given=np.frombuffer(given, np.int8), wanted=np.concatenate([w.ravel() for w in wanted.values()]))
    texts = [
        f"static const int8_t {n}[] __attribute__((aligned(4))) = {{{','.join(map(str, a))}}};"
        for n, a in arrays.items()
    ]
    texts.append(
        f"static uint32_t arena[{arena // 4 + 1}];\nstatic int8_t out[{max(w[0].size for w in wanted.values())}];"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.c"
        path.write_text("\n".join([source, *texts, ON_BOARD % "\n".join(rows)]))
        command = ["make", "-s", "-C", boards.MCU, "program", f"BOARD={board}", f"FILES={path}", f"BUILD_DIR={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = dict(line.split() for line in done.stdout.splitlines() if line.startswith("m"))
    if list(found) != [f"m{number}" for number in range(len(files))]:
        raise AssertionError(done.stdout[-1000:])
    return [name for name, equal in zip(files, found.values(), strict=True) if equal != str(samples)]


def _together(files, samples, planned, choose):
    """C of all files, a row of each for `models`, all inputs, outputs by name, and the largest arena."""
    sources, rows, given, wanted, calls, arena, two = [], [], [], {}, [], 0, False
    for number, (name, content) in enumerate(files.items()):
        model = tflite.read(content)
        lowered = lowering.lower(model)
        chosen = choose(lowered)
        lowered = lowered._replace(steps=[call.step for call in chosen])
        chosen, plan, _ = planned(lowered, chosen)
        inputs = golden.random_inputs(model, lowered, samples)
        wanted[name] = tflm(content, model, lowered, inputs)
        sources.append(emit.body(lowered, chosen, plan, f"m{number}_"))
        sizes = [
            "{" + ", ".join(str(lowered.sizes[i]) for i in part) + "}" for part in (lowered.inputs, lowered.outputs)
        ]
        counts = f"{len(lowered.inputs)}, {len(lowered.outputs)}, {', '.join(sizes)}"
        rows.append(f"    {{m{number}_model_invoke, {counts}, {samples}, {plan.arena}}},")
        given.append(inputs.tobytes())
        calls += chosen
        arena, two = max(arena, plan.arena), two or bool(plan.halves)
    head = emit.head("many", calls, two).replace('#include "model.h"', emit.MEETING if two else "")
    source = "\n".join([head, *sources])
    return source, rows, b"".join(given), wanted, arena


def _run(source, given):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.c"
        path.write_text(source)
        subprocess.run(["gcc", "-O0", *SANITIZED, path, "-o", path.with_suffix("")], check=True)
        done = subprocess.run([path.with_suffix("")], input=given, capture_output=True, check=False, timeout=120)
        if done.returncode:
            raise AssertionError(done.stderr.decode()[:3000])
        return done.stdout


def tflm(content: bytes, model: tflite.Model, lowered, inputs: np.ndarray) -> np.ndarray:
    """int8 `[samples, bytes of all outputs]` by TFLite Micro, in this process: for files that are known to be whole."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter, rows = runtime.Interpreter.from_bytes(content, arena_size=1 << 20), []
    for sample in inputs:
        for number, value in enumerate(golden.as_given(model, lowered, sample[None])):
            interpreter.set_input(value[0], number)
        interpreter.invoke()
        rows.append(b"".join(interpreter.get_output(n).tobytes() for n in range(len(lowered.outputs))))
    return np.array([np.frombuffer(row, np.int8) for row in rows])

"""The C interface of a package as text: what its header declares, and what stands behind it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atalaia import tflite
from atalaia.codegen.graph import Graph

TYPES = dict(INT8="int8_t", UINT8="uint8_t", INT16="int16_t", INT32="int32_t", FLOAT32="float")
_RANGES = dict(INT8=(-128, 127), UINT8=(0, 255), INT16=(-32768, 32767))  # of what quantize() gives
_ROUND = 16  # where the inputs begin, behind the network's own memory


class Border(NamedTuple):
    """An input or output of a network, and where its values lie.

    kind: "input" or "output"; number: its own in names of C, "" where there is but one; size: values; scale: None where
    values are no codes of real ones; offset: in the arena, in bytes.
    """

    kind: str
    number: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    scale: float | None
    zero_point: int
    offset: int

    @property
    def word(self) -> str:
        """Its name in C."""
        return self.kind + self.number

    @property
    def type(self) -> str:
        """Its values' type in C."""
        return TYPES[self.dtype]


class Layout(NamedTuple):
    """Inputs and outputs, and all that the arena holds, in bytes; outputs lie one after the other."""

    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]
    arena_bytes: int


def described(model: tflite.Model, graph: Graph) -> dict[str, list[dict]]:
    """The inputs and outputs of a network for report.json; shapes without a batch of 1."""

    def one(i):
        tensor, shape = model.tensors[i], graph.shapes[i]
        scaled = len(tensor.scale) == 1
        return dict(
            name=tensor.name,
            dtype=graph.dtypes.get(i, "INT8"),
            shape=list(shape[1:] if shape[:1] == (1,) else shape),
            bytes=graph.sizes[i],
            scale=float(tensor.scale[0]) if scaled else None,
            zero_point=int(tensor.zero_point[0]) if scaled else 0,
        )

    return dict(inputs=[one(i) for i in graph.inputs], outputs=[one(i) for i in graph.outputs])


def layout(report: Mapping[str, Any]) -> Layout:
    """Where a network's own memory, its inputs and its outputs lie, by report.json."""
    place = -(-report["arena_bytes"] // _ROUND) * _ROUND
    found: dict[str, list[Border]] = dict(input=[], output=[])
    for word, borders in found.items():
        given = report[f"{word}s"]
        for number, one in enumerate(given):
            size = math.prod(one["shape"])
            each = one["bytes"] // size
            place = -(-place // each) * each
            grid = one["scale"], one["zero_point"]
            digits = str(number) if len(given) > 1 else ""
            borders.append(Border(word, digits, one["dtype"], tuple(one["shape"]), size, *grid, place))
            place += one["bytes"]
    return Layout(tuple(found["input"]), tuple(found["output"]), -(-place // _ROUND) * _ROUND)


def declarations(name: str, found: Layout, task: str | None, answers: int, labels: Sequence[str]) -> dict[str, str]:
    """The words of network.h that are of these borders, this answer and these labels."""
    upper, facts = name.upper(), []
    for border in (*found.inputs, *found.outputs):
        facts += _facts(upper, border)
    if labels:
        facts.append(f"#define {upper}_LABELS {len(labels)}")
    functions = []
    if task:
        facts.append(f"#define {upper}_ANSWERS {answers} /* numbers of an answer */")
        said = {
            "classify": "The class: the place of the largest output, the first of equals.",
            "regress": "Each output's real value, in 1/65536.",
            "detect": "Boxes, the best first: class, score, and x0, y0, x1, y1 in 1/16 of a pixel of the input; class "
            "-1 where there\n * are fewer. A score is a value of the last output.",
        }[task]
        functions += [f"/* {said} */", f"void {name}_answer(int32_t answer[{upper}_ANSWERS]);"]
    if labels:
        functions += ['/* The name of a class or number; "" where there is none. */']
        functions += [f"const char *{name}_label(int32_t number);"]
    pointers = [f"{b.type} *{name}_{b.word}(void);" for b in found.inputs]
    pointers += [f"const {b.type} *{name}_{b.word}(void);" for b in found.outputs]
    helpers = [text for b in found.inputs if (text := _quantize(name, b))]
    helpers += [text for b in found.outputs if (text := _dequantize(name, b))]
    return dict(
        facts="\n".join([*facts, ""]),
        pointers="\n".join(pointers),
        functions="\n".join([*functions, ""]),
        helpers="\n".join(helpers),
    )


def definitions(name: str, found: Layout, task: str | None, labels: Sequence[str]) -> dict[str, str]:
    """The words of network.c."""
    upper = name.upper()
    statics = ["static void model_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena);"]
    functions = [
        f"{const}{b.type} *{name}_{b.word}(void)\n{{\n"
        f"    return memory == NULL ? NULL : ({const}{b.type} *)(void *)(memory + {b.offset});\n}}\n"
        for borders, const in ((found.inputs, ""), (found.outputs, "const "))
        for b in borders
    ]
    if task:
        statics.append("static void model_answer(const int8_t *outputs, int32_t *answer);")
        outputs = f"(const int8_t *)(memory + {found.outputs[0].offset})"
        functions.append(
            f"void {name}_answer(int32_t answer[{upper}_ANSWERS])\n{{\n    model_answer({outputs}, answer);\n}}\n"
        )
    if labels:
        listed = ",\n".join(f"        {quoted(label)}" for label in labels)
        functions.append(
            f"const char *{name}_label(int32_t number)\n{{\n    static const char *const labels[{upper}_LABELS] = {{\n"
            f'{listed},\n    }};\n    return number >= 0 && number < {upper}_LABELS ? labels[number] : "";\n}}\n'
        )
    return dict(
        statics="\n".join(statics),
        inputs=", ".join(f"(const int8_t *)(memory + {b.offset})" for b in found.inputs),
        outputs=", ".join(f"(int8_t *)(memory + {b.offset})" for b in found.outputs),
        definitions="\n".join(functions),
    )


def quoted(text: str) -> str:
    """A string of C99 and C++: its UTF-8 bytes, those beyond printable ASCII in octal."""
    plain = {ord(c): f"\\{c}" for c in '"\\?'}
    return '"' + "".join(plain.get(b) or (chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in text.encode()) + '"'


def _facts(upper, border):
    """Sizes of an input or output, and what its codes stand for."""
    word, shape = f"{upper}_{border.word.upper()}", ", ".join(map(str, border.shape))
    each = "" if border.type == "int8_t" else f" * sizeof({border.type})"
    lines = [
        f"/* {border.word}: {border.type} [{shape}] */",
        f"#define {word}_SHAPE {{{shape}}}",
        f"#define {word}_SIZE {border.size} /* values */",
        f"#define {word}_BYTES ({word}_SIZE{each})" if each else f"#define {word}_BYTES {border.size}",
    ]
    if border.scale is not None:
        lines += [f"#define {word}_SCALE {_float(border.scale)} /* real = scale * (value - zero point) */"]
        lines += [f"#define {word}_ZERO_POINT ({border.zero_point})"]
    return lines


def _float(value):
    text = f"{value:.9g}"
    return text + ("f" if set(text) & set(".e") else ".0f")


def _quantize(name, border):
    """As TensorFlow Lite Micro quantises: halves away from zero, in float32; no number becomes the least value."""
    if border.scale is None or border.dtype not in _RANGES:
        return ""
    low, high = _RANGES[border.dtype]
    word = f"{name.upper()}_{border.word.upper()}"
    return f"""
/* The value of {border.word} that stands for a real one: the nearest, halves away from zero. */
static inline {border.type} {name}_quantize{border.number}(float real)
{{
    const float value = real / {word}_SCALE;
    int32_t whole;
    if (!(value > {low} - {word}_ZERO_POINT))
        return {low};
    if (value >= {high} - {word}_ZERO_POINT)
        return {high};
    whole = (int32_t)value;
    if (value - (float)whole >= 0.5f)
        whole++;
    else if ((float)whole - value >= 0.5f)
        whole--;
    return ({border.type})(whole + {word}_ZERO_POINT);
}}"""


def _dequantize(name, border):
    if border.scale is None or border.dtype not in _RANGES:
        return ""
    word = f"{name.upper()}_{border.word.upper()}"
    return f"""
/* The real value that a value of {border.word} stands for. */
static inline float {name}_dequantize{border.number}({border.type} value)
{{
    return {word}_SCALE * (float)(value - {word}_ZERO_POINT);
}}"""


def usage(name: str, found: Layout, task: str | None, labels: Sequence[str]) -> str:
    """The lines behind init() in the README."""
    upper = name.upper()
    lines = [f"{b.type} *{b.word} = {name}_{b.word}(); /* {b.size} values, to be written */" for b in found.inputs]
    lines.append(f"{name}_invoke();")
    lines += [f"const {b.type} *{b.word} = {name}_{b.word}(); /* {b.size} values */" for b in found.outputs]
    if task:
        lines += [f"int32_t answer[{upper}_ANSWERS];", f"{name}_answer(answer);"]
    if labels:
        number = "answer[0]" if task in ("classify", "detect") else "0"
        lines.append(f"const char *label = {name}_label({number});")
    return "\n".join(lines)


def pixels(found: Layout) -> str:
    """How a camera's bytes become the input, where that is as simple as can be."""
    first = found.inputs[0]
    simple = first.dtype == "INT8" and first.zero_point == -128 and abs((first.scale or 0) * 255 - 1) < 1e-3
    if not simple or len(found.inputs) > 1:
        return ""
    return "Of a camera's bytes the input takes `(int8_t)(byte - 128)`."


def example(name: str, found: Layout, task: str | None, labels: Sequence[str]) -> dict[str, str]:
    """The words of the examples: what writes golden input i, compares, and shows a class in C and in a sketch."""
    upper = name.upper()
    fill = [
        f"memcpy({name}_{b.word}(), {row}, {upper}_{b.word.upper()}_BYTES);" for b, row in _rows(upper, found.inputs)
    ]
    same = [
        f"!memcmp({name}_{b.word}(), {row}, {upper}_{b.word.upper()}_BYTES)" for b, row in _rows(upper, found.outputs)
    ]
    before, show, print_ = [], "", ""
    if task:
        before = [f"int32_t answer[{upper}_ANSWERS];", f"{name}_answer(answer);"]
        same.append("!memcmp(answer, golden_answers[i], sizeof answer)")
    if task == "classify":
        show = 'printf("sample %d: class %ld\\n", i, (long)answer[0]);'
        print_ = "Serial.println(answer[0]);"
        if labels:
            show = f'printf("sample %d: %s\\n", i, {name}_label(answer[0]));'
            print_ = f"Serial.println({name}_label(answer[0]));"
    compare = "\n".join([*before, f"equal += {' && '.join(same)};"])
    return dict(fill="\n".join(fill), compare=compare, show=show, print=print_)


def _rows(upper, borders):
    """Each border, and where its bytes begin in golden vector i."""
    row = f"golden_{borders[0].kind}s[i]"
    for border in borders:
        yield border, row
        row += f" + {upper}_{border.word.upper()}_BYTES"

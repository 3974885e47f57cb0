"""The README's picture: pictures, a large network, a small int8 network, a board, and what each takes.

python experiments/flow.py

Every figure is read from experiments/results: of the large network from table2 (row dense), of what is made of it from
pipeline, equality of the C from mcu. Writes docs/flow.svg.
"""

import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from atalaia.files import write_whole  # noqa: E402

RESULTS = ROOT / "experiments/results"
PICTURE = ROOT / "docs/flow.svg"

WIDTH, HEIGHT = 980, 330
INK, GREY, BLUE, PALE = "#1f2933", "#5b6770", "#1565c0", "#dbe7f5"
BOAT = (  # a picture of 12 x 12 pixels: s sky, w white sail, r red hull, b sea
    "ssssssssssss", "sssssswsssss", "ssssswwsssss", "sssswwwsssss", "ssswwwwsssss", "sswwwwwsssss",
    "swwwwwwsssss", "sssssswsssss", "srrrrrrrrrss", "ssrrrrrrrsss", "bbbbbbbbbbbb", "bbbbbbbbbbbb",
)  # fmt: skip
COLOURS = dict(s="#bcd9f2", w="#ffffff", r="#c0392b", b="#2f6f9f")


def figures() -> dict[str, str]:
    """What the picture and the README's first table say, as text, by a short name; medians where seeds are several."""
    dense = [r for r in read("table2") if r["row"] == "dense"]
    small = [r for r in read("table2") if r["row"] == "small4"]
    longest = max(r["epochs"] for r in read("pipeline"))  # the present recipe; the table keeps an older one too
    chain = [r for r in read("pipeline") if r["epochs"] == longest]
    models = {r["model"]: r for r in read("mcu")}
    (resnet8,) = (r for r in read("esp_nn") if (r["name"], r["board"]) == ("mlperf_resnet8", "esp32isa"))
    low, high = (max(r["estimated"]["esp32"]["milliseconds"][i] for r in chain) for i in (0, 1))
    return dict(
        large_bytes=_most(r["float_sizes"]["float32_bytes"] for r in dense),
        large_accuracy=_percent(r["test"]["jax"]["accuracy"] for r in dense),
        table2_accuracy=_percent(r["test"]["tflm"]["accuracy"] for r in small),
        table2_download=_most(r["int8_sizes"]["download_bytes"] for r in small),
        accuracy=_percent(r["test"]["tflm"]["accuracy"] for r in chain),
        download=_most(r["download_bytes"] for r in chain),
        flash=_most(r["weight_bytes"] for r in chain),
        arena=_most(r["arena_bytes"] for r in chain),
        milliseconds=f"{low:.0f} to {high:.0f} ms",
        instructions=f"{resnet8['fastest']['instructions_per_mac']:.2f}",
        instructions_milliseconds="{:.0f} to {:.0f} ms".format(*resnet8["milliseconds"]),
        esp_nn_instructions=f"{resnet8['esp_nn']['instructions_per_mac']:.2f}",
        equal_images=f"{min(r['host_images_equal'] for r in models.values()):,}",
    )


def read(name: str) -> list[dict]:
    """The published rows of a table."""
    return json.loads((RESULTS / name / "rows.json").read_text())


def _most(values):
    return f"{max(values):,}"


def _percent(values):
    return f"{statistics.median(100 * value for value in values):.2f} %"


def picture(found: dict[str, str]) -> str:
    """The SVG: four boxes, three arrows, and a bar a network whose length is that of its bytes."""
    left, top, wide = 20, 56, 200
    places = [left + i * 246 for i in range(4)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' font-family="Helvetica, Arial, sans-serif">',
        "<title>Pictures train a large network, which teaches a small int8 network, which becomes C on a board</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
    ]
    heads = ("1. Pictures", "2. Large network", "3. Small network", "4. Board")
    for x, head in zip(places, heads, strict=True):
        parts += [_text(x + wide / 2, 36, head, 17, INK, weight="bold", anchor="middle")]
        parts += [f'<rect x="{x}" y="{top}" width="{wide}" height="190" rx="8" fill="#f6f8fa" stroke="#c9d3dc"/>']
    for x, word in zip(places, ("train", "shrink", "C code"), strict=False):
        parts += _arrow(x + wide + 4, top + 78, word)

    side = 9
    corner = places[0] + (wide - 12 * side) / 2
    for row, line in enumerate(BOAT):
        for column, letter in enumerate(line):
            x, y = corner + column * side, top + 18 + row * side
            parts += [f'<rect x="{x:g}" y="{y}" width="{side}.5" height="{side}.5" fill="{COLOURS[letter]}"/>']
    parts += _lines(places[0], top + 150, wide, ("CIFAR-10:", "10 classes, 32 x 32 pixels"))

    parts += _network(places[1] + 26, top + 22, (5, 6, 6, 5), 16)
    parts += _lines(
        places[1], top + 130, wide, (found["large_accuracy"] + " right", found["large_bytes"] + " bytes", "float32")
    )
    parts += _network(places[2] + 62, top + 42, (2, 3, 2), 14)
    parts += _lines(places[2], top + 130, wide, (found["accuracy"] + " right", found["download"] + " bytes", "int8"))
    parts += _chip(places[3] + wide / 2, top + 64)
    board = (
        f"{found['flash']} bytes of flash",
        f"{found['arena']} bytes of RAM",
        f"{found['milliseconds']} (estimated)",
    )
    parts += _lines(places[3], top + 130, wide, board)

    numbers = [int(found[k].replace(",", "")) for k in ("large_bytes", "download")]
    longest = 620
    for y, n, word in zip((264, 284), numbers, ("large", "small"), strict=True):
        parts += [_text(left + 42, y + 10, word, 12, GREY, anchor="end")]
        parts += [
            f'<rect x="{left + 50}" y="{y}" width="{max(longest * n / numbers[0], 1):.1f}" height="12" fill="{BLUE}"/>'
        ]
    parts += [_text(left + 60, 294, f"{numbers[0] / numbers[1]:.0f} times fewer bytes to download", 12, INK)]
    same = f"the C equals TFLite Micro in every byte: {found['equal_images']} of 10,000 images"
    parts += [_text(WIDTH - 20, 318, same, 12, GREY, anchor="end")]
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, size: int, colour: str, weight: str = "normal", anchor: str = "start") -> str:
    style = f'font-size="{size}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(words)}</text>'


def _lines(x: float, y: float, wide: float, lines: Sequence[str]) -> list[str]:
    return [_text(x + wide / 2, y + 19 * i, line, 14, INK, anchor="middle") for i, line in enumerate(lines)]


def _arrow(x: float, y: float, word: str) -> list[str]:
    return [
        _text(x + 19, y - 12, word, 11, GREY, anchor="middle"),
        f'<path d="M{x} {y} h30 m-8 -7 l8 7 l-8 7" fill="none" stroke="{BLUE}" stroke-width="2.5"/>',
    ]


def _network(x: float, y: float, layers: Sequence[int], step: float) -> list[str]:
    """Circles in columns, each joined with those of the next."""
    gap, most = 2.8 * step, max(layers)
    places = [[(x + i * gap + 8, y + (j + (most - n) / 2) * step + 4) for j in range(n)] for i, n in enumerate(layers)]
    lines = [
        f'<line x1="{a:g}" y1="{b:g}" x2="{c:g}" y2="{d:g}" stroke="#b7c6d6" stroke-width="0.7"/>'
        for here, there in itertools.pairwise(places)
        for a, b in here
        for c, d in there
    ]
    return lines + [f'<circle cx="{a:g}" cy="{b:g}" r="4.5" fill="{BLUE}"/>' for column in places for a, b in column]


def _chip(x: float, y: float) -> list[str]:
    """A square with legs, its middle at (x, y)."""
    legs = [
        f'<rect x="{x + dx:g}" y="{y + dy:g}" width="{w}" height="{h}" fill="#9aa8b5"/>'
        for i in range(-2, 3)
        for dx, dy, w, h in (
            (-44, i * 13 - 2, 12, 4),
            (32, i * 13 - 2, 12, 4),
            (i * 13 - 2, -44, 4, 12),
            (i * 13 - 2, 32, 4, 12),
        )
    ]
    square = f'<rect x="{x - 34:g}" y="{y - 34:g}" width="68" height="68" rx="5"'
    body = f'{square} fill="{PALE}" stroke="{BLUE}" stroke-width="2"/>'
    return [*legs, body, _text(x, y + 5, "ESP32", 15, INK, weight="bold", anchor="middle")]


if __name__ == "__main__":
    write_whole(PICTURE, picture(figures()))
    print(f"written: {PICTURE}")

"""Pieces of HTML that page.py is made of: labels and titles are escaped here, cells and bodies are HTML already."""

import base64
from collections.abc import Sequence
from html import escape

from atalaia import report, tasks

# Figures that are shown in %.
FRACTIONS = {name for task in tasks.TASKS.values() for name, metric in task.METRICS.items() if metric.scale == 100}


def section(title: str, body: str) -> str:
    """A card of the page."""
    return f"<section><h2>{title}</h2>{body}</section>"


def document(title: str, style: str, body: str) -> str:
    """A whole page; the title is escaped, the style is CSS."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def details(summary: str, body: str) -> str:
    """What is shown only when the summary is clicked."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def note(text: str) -> str:
    """A sentence in the place of what is missing; escaped."""
    return f"<p class=note>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells."""
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{top}</tr>{body}</table></div>"


def bar(part: float) -> str:
    """A bar filled to a part; one above 1 is full and in the colour of a warning."""
    filled = f'<i style="width:{100 * min(part, 1):.2f}%"></i>' if part else ""
    return f'<span class="bar{" over" * (part > 1)}">{filled}</span>'


def bars(head: tuple[str, str], rows: Sequence[tuple[str, str, float, int, str]]) -> str:
    """A picture of sizes; each row is (label, what it is, filled part, bytes, last cell)."""
    lines = [f"<tr><th></th><th></th><th>{head[0]}</th><th>{head[1]}</th></tr>"]
    for label, what, part, size, last in rows:
        name = f"<th>{escape(label)}<small>{escape(what)}</small></th>"
        lines.append(f"<tr>{name}<td>{bar(part)}</td><td class=n>{number(size)}</td><td class=n>{last}</td></tr>")
    return f"<table class=bars>{''.join(lines)}</table>"


def png(content: bytes, title: str) -> str:
    """A picture, held by the page itself, with its title below."""
    held = base64.b64encode(content).decode()
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{held}">'
    return f"<figure>{image}<figcaption>{escape(title)}</figcaption></figure>"


def number(value: float, digits: int = 0) -> str:
    """A number with so many digits after the point."""
    return f'<data value="{value}">{value:,.{digits}f}</data>'


def span(ends: Sequence[float], digits: int = 1) -> str:
    """Smallest and largest of an estimate."""
    return "–".join(number(end, digits) for end in ends)


def score(name: str, value: float) -> str:
    """A figure of an evaluation: `FRACTIONS` in %, others by four digits."""
    if name in FRACTIONS:
        return f"{number(100 * value, 2)} %"
    return number(value) if isinstance(value, int) else f'<data value="{value}">{value:.4g}</data>'


def agreement(part: float | None) -> str:
    """A part that is equal, in %; "–" where nothing was compared."""
    return "–" if part is None else f'<data value="{100 * part}">{report.equal(part, 2)}</data> %'


def words(name: str) -> str:
    """A figure's name as a person writes it."""
    return name.replace("_", " ").replace("f1 macro", "macro F1")

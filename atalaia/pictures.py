"""Pictures by matplotlib: of answers, of sample images, and of a training's curves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atalaia.files import write_whole

RIGHT, WRONG = "#2e9e5b", "#d64545"
COLORS = ("#3b82c4", "#e08a2e", "#2e9e5b", "#a05cc0")  # readable on white and on near-black
INK = "#010203"  # drawn in this colour, replaced by that of the page's text
BOXES_COLUMNS = 4  # of a picture of boxes
SAMPLE_COLUMNS, SAMPLE_PIXELS = 5, 100  # images below this size are enlarged without smoothing


def save_figure(figure: Any, path: Path) -> None:
    """Writes a matplotlib.figure.Figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_whole(path, content.getvalue())


def confusion_picture(
    path: Path, labels: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...], title: str
) -> None:
    """A picture of how often each class (rows) was taken for each (columns)."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = min(4 + 0.4 * len(class_names), 16)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        labels,
        predicted,
        labels=range(len(class_names)),
        display_labels=class_names,
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
        ax=axes,
    )
    axes.set_title(title)
    save_figure(figure, path)


def scatter_picture(path: Path, truth: np.ndarray, answers: np.ndarray, names: Sequence[str], title: str) -> None:
    """A picture of each answer against the truth, one panel a name; on the diagonal an answer is right.

    Args:
      path: the PNG to write.
      truth, answers: `[images, names]`.
      names: what each column stands for.
      title: above the picture.
    """
    from matplotlib.figure import Figure

    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, name, true, answer in zip(panels, names, truth.T, answers.T, strict=False):
        low, high = min(true.min(), answer.min()), max(true.max(), answer.max())
        panel.plot([low, high], [low, high], color="gray", linewidth=1)
        panel.plot(true, answer, ".", color=COLORS[0], alpha=0.4, markersize=5)
        panel.set(xlabel=f"{name}, truth", ylabel=f"{name}, answer", aspect="equal")
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    figure.suptitle(title)
    save_figure(figure, path)


def samples_picture(path: Path, images: np.ndarray, captions: Sequence[str], right: Sequence[bool], title: str) -> None:
    """A grid of images with their captions; a green frame where the answer is right, a red one where it is wrong.

    Args:
      path: the PNG to write.
      images: uint8 `[n, height, width, channels]`, of one channel or three.
      captions: under each image, in lines of about 12 letters; "✓" or "✗" is put before them.
      right: whether each answer is right.
      title: above the grid.
    """
    from matplotlib.figure import Figure

    rows = -(-len(images) // SAMPLE_COLUMNS)
    tall = images.shape[1] / images.shape[2]
    lines = max(caption.count("\n") + 1 for caption in captions)
    figure = Figure(figsize=(SAMPLE_COLUMNS, (tall + 0.25 * lines) * rows + 0.35), layout="constrained")
    panels = figure.subplots(rows, SAMPLE_COLUMNS, squeeze=False).ravel()
    smoothing = "nearest" if max(images.shape[1:3]) < SAMPLE_PIXELS else "antialiased"
    for panel, image, caption, good in zip(panels, images, captions, right, strict=False):
        shown = image[..., 0] if image.shape[-1] == 1 else image
        panel.imshow(shown, "gray", vmin=0, vmax=255, interpolation=smoothing)
        panel.set(xticks=[], yticks=[])
        panel.set_xlabel(f"{'✓' if good else '✗'} {caption}", color=RIGHT if good else WRONG, fontsize=9)
        panel.spines[:].set(color=RIGHT if good else WRONG, linewidth=2.5)
    for panel in panels[len(images) :]:
        panel.set_axis_off()
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def boxes_picture(
    path: Path,
    images: np.ndarray,
    true: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    right: Sequence[bool],
    title: str,
) -> None:
    """A grid of images with boxes: true ones dashed, found ones solid; framed as `samples_picture` does.

    Args:
      path: the PNG to write.
      images: uint8 `[n, height, width, channels]`, of one channel or three.
      true, found: of each image its boxes `[m, 4]`: x0, y0, x1, y1 in pixels.
      right: whether all boxes of an image are found, and no other.
      title: above the grid.
    """
    drawn = {"true": (RIGHT, "--", true), "found": (COLORS[1], "-", found)}
    marked_picture(path, images, drawn, [RIGHT if good else WRONG for good in right], title)


def judged_picture(path: Path, images: np.ndarray, judged: Mapping[str, Sequence[np.ndarray]], title: str) -> None:
    """A grid of images with the boxes that are right, wrong and missed, each in its colour.

    Args:
      path: the PNG to write.
      images: uint8 `[n, height, width, channels]`, of one channel or three.
      judged: "right", "wrong" and "missed", each of every image its boxes `[m, 4]`.
      title: above the grid.
    """
    looks = {"right": (RIGHT, "-"), "wrong": (WRONG, "-"), "missed": (COLORS[1], "--")}
    drawn = {name: (*look, judged[name]) for name, look in looks.items()}
    said = "green: right, red: wrong, dashed: missed"
    marked_picture(path, images, drawn, ["#888888"] * len(images), f"{title}\n{said}")


def marked_picture(
    path: Path,
    images: np.ndarray,
    drawn: Mapping[str, tuple[str, str, Sequence[np.ndarray]]],
    frames: Sequence[str],
    title: str,
) -> None:
    """A grid of images with boxes of several kinds.

    Args:
      path: the PNG to write.
      images: uint8 `[n, height, width, channels]`, of one channel or three.
      drawn: of each kind its colour, its line and of each image its boxes `[m, 4]`: x0, y0, x1, y1 in pixels.
      frames: colours of the images' frames.
      title: above the grid.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    columns = min(BOXES_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    tall = images.shape[1] / images.shape[2]
    figure = Figure(figsize=(2.2 * columns, 2.2 * tall * rows + 0.35), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    smoothing = "nearest" if max(images.shape[1:3]) < SAMPLE_PIXELS else "antialiased"
    for i, (panel, image, frame) in enumerate(zip(panels, images, frames, strict=False)):
        shown = image[..., 0] if image.shape[-1] == 1 else image
        panel.imshow(shown, "gray", vmin=0, vmax=255, interpolation=smoothing)
        for color, line, boxes in drawn.values():
            for x0, y0, x1, y1 in np.asarray(boxes[i]) - 0.5:  # matplotlib's first pixel begins at -1/2
                box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=line, linewidth=1.2)
                panel.add_patch(box)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=frame, linewidth=2.5)
    for panel in panels[len(images) :]:
        panel.set_axis_off()
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def precision_picture(path: Path, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str) -> None:
    """Precision against recall: name of a class to (recall, precision), each `[k]`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for name, (recall, precision) in curves.items():
        axes.plot(recall, precision, label=name, linewidth=1.8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8.5)
    axes.set_title(title, fontsize=10)
    save_figure(figure, path)


def curves_picture(curves: Mapping[str, tuple[Sequence, Sequence]], stages: Mapping[str, int], title: str) -> str:
    """Curves over the steps of a run, as SVG to stand within an HTML page, whose text colour and font it takes.

    Args:
      curves: label to (steps, values).
      stages: name to the step where it begins.
      title: above the curves.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=(4.2, 2.7), layout="constrained", facecolor="none")
        axes = figure.subplots()
        axes.set_facecolor("none")
        for (label, (steps, values)), color in zip(curves.items(), COLORS, strict=False):
            mark = "." if len(steps) == 1 else None  # a line of one point would not be seen
            axes.plot(steps, values, color=color, label=label, linewidth=1.8, marker=mark)
        for name, start in stages.items():
            axes.axvline(start, color=INK, alpha=0.35, linewidth=1, linestyle=":")
            axes.annotate(
                name,
                (start, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                color=INK,
                alpha=0.7,
                fontsize=8,
                va="top",
            )
        axes.set_title(title, color=INK, fontsize=11)
        axes.set_xlabel("step", color=INK, fontsize=9)
        axes.margins(y=0.15)
        axes.tick_params(colors=INK, labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=INK, alpha=0.4)
        axes.grid(color=INK, alpha=0.1)
        if len(curves) > 1:
            axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = content.getvalue()
    return drawing[drawing.index("<svg") :].replace(INK, "currentColor")


def grid_map(axes: Any, space: Mapping[str, Any], values: Sequence[tuple[Mapping, float]], label: str) -> None:
    """Draws the values at the points of a search's space, two fields of choices, on matplotlib's axes; empty: none."""
    (down, rows), (across, columns) = space.items()
    cells = np.full((len(rows.values), len(columns.values)), np.nan)
    for point, value in values:
        cells[rows.values.index(point[down]), columns.values.index(point[across])] = value
    image = axes.imshow(cells, aspect="auto", cmap="viridis")
    axes.set(xlabel=across, ylabel=down)
    axes.set_xticks(range(len(columns.values)), [str(v) for v in columns.values])
    axes.set_yticks(range(len(rows.values)), [str(v) for v in rows.values])
    axes.figure.colorbar(image, ax=axes, label=label)

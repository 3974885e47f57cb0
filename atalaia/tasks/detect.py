"""Detection: boxes of things in an image, found by a map of their centres (arXiv:1904.07850).

Targets are a dict of `boxes`, float32 `[n, m, 4]`: x0, y0, x1, y1 in pixels of the network's image, and `classes`,
int32 `[n, m]`: the class from 0 on, -1 where an image has no more boxes, -2 for one that must neither be found nor
count as a mistake. Narrower ones than `config.detect.ignore_below` pixels are taken as such too.

Outputs are a dict of `centre`, logits `[n, h, w, classes]`, and `box`, `[n, h, w, 4]`: from the middle of each cell to
the left, top, right and bottom of its box, in cells. A cell is `config.detect.stride` pixels wide and high.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atalaia import augment
from atalaia.datasets.boxes import IGNORED, NO_BOX
from atalaia.errors import UserError
from atalaia.tasks import boxes, centres, peaks
from atalaia.tasks.metric import Metric

HEADS = ("centre", "box")
SAMPLES = 20  # images of the picture of answers
SAME = 0.5  # of two engines' boxes, the least intersection over union of one answer


@dataclasses.dataclass(frozen=True)
class Detect:
    """The task with its fields of config.detect, which say how outputs are read."""

    config: ConfigDict

    HEADS: ClassVar[tuple[str, ...]] = HEADS
    METRICS: ClassVar[dict[str, Metric]] = {
        "ap": Metric("AP at IoU 0.5 %", scale=100),
        "ap_50_95": Metric("AP at IoU 0.5 to 0.95 %", scale=100),
        "recall_0_1": Metric("recall % at 0.1 wrong boxes an image", scale=100),
        "recall_1": Metric("recall % at 1 wrong box an image", scale=100),
        "f1": Metric("best F1 %", scale=100),
        "f1_threshold": Metric("its threshold", digits=3, sign=0),
    }

    @property
    def LOSSES(self) -> Mapping[str, Callable]:
        return {"centre": lambda outputs, targets, config: self._hard(outputs, targets)}

    @property
    def SOFT_LOSSES(self) -> Mapping[str, Callable]:
        return {"heads": lambda outputs, taught, targets, config: self._soft(outputs, taught)}

    def validate(self, config: ConfigDict) -> None:
        """Refuses fields of config.detect that cannot be.

        Raises:
          UserError: names the field, what is wrong and what is allowed.
        """
        fields = config.detect
        for name in ("threshold", "overlap"):
            if not 0 < fields[name] < 1:
                raise UserError(f"detect.{name} must be between 0 and 1, not {fields[name]}")
        if not 0 <= fields.visible <= 1:
            raise UserError(f"detect.visible is a part of a box and must be in [0, 1], not {fields.visible}")
        for name, least in (("stride", 1), ("most", 1), ("ignore_below", 0), ("box_weight", 0)):
            if not least <= fields[name] < math.inf:
                raise UserError(f"detect.{name} must be at least {least}, not {fields[name]}")
        if config.loss.label_smoothing:
            raise UserError('loss.label_smoothing is for classes: set it to 0 with task "detect"')

    def outputs(self, dataset: Any, config: ConfigDict) -> int:
        """Classes of a data set.

        Raises:
          UserError: its targets are no boxes, or the network of the config has no heads for them.
        """
        classes = len(dataset.names)
        for split in (dataset.train, dataset.validation, dataset.test):
            _refuse_no_boxes(split.targets, classes, dataset.name)
        if not (dataset.train.targets["classes"] >= 0).any():
            raise UserError(f"data set {dataset.name} has no box to learn from: see data.classes and data.ignore_below")
        _refuse_other_heads(config, classes, dataset.train.images.shape[1:])
        return classes

    def absent(self, targets: dict, count: int) -> dict:
        """Targets of images of which nothing is known: the whole of each is one ignored box."""
        shape = (count, targets["boxes"].shape[1])
        everything = np.zeros((*shape, 4), targets["boxes"].dtype)
        everything[:, 0] = (-1e6, -1e6, 1e6, 1e6)  # images of any size lie within
        classes = np.full(shape, NO_BOX, targets["classes"].dtype)
        classes[:, 0] = IGNORED
        return dict(boxes=everything, classes=classes)

    def move(self, targets: dict, moves: jax.Array, size: tuple[int, int], config: ConfigDict) -> dict:
        """The boxes around the moved corners, clipped to images of size (height, width).

        One of which less than config.detect.visible is left in the image is ignored, one that left it whole is gone.
        """
        old, classes = targets["boxes"], targets["classes"]
        x0, y0, x1, y1 = jnp.moveaxis(old, -1, 0)
        corners = jnp.stack([jnp.stack(c, -1) for c in ((x0, y0), (x1, y0), (x0, y1), (x1, y1))], -2)  # [b, m, 4, 2]
        points = corners.reshape(len(old), -1, 2) - 0.5  # a pixel's middle is at half a pixel
        points = augment.move_points(points, moves).reshape(corners.shape) + 0.5
        moved = jnp.concatenate([points.min(-2), points.max(-2)], -1)
        clipped = jnp.clip(moved, 0, jnp.array([size[1], size[0]] * 2, old.dtype))
        part = _area(clipped) / jnp.maximum(_area(moved), 1e-6)
        classes = jnp.where((classes >= 0) & (part < config.detect.visible), IGNORED, classes)
        return dict(boxes=clipped, classes=jnp.where(part > 0, classes, NO_BOX))

    def _kinds(self, targets):
        """Classes, and IGNORED for what is too narrow."""
        narrow = targets["boxes"][..., 2] - targets["boxes"][..., 0] < self.config.ignore_below
        return jnp.where(narrow & (targets["classes"] >= 0), IGNORED, targets["classes"])

    def _cells(self, outputs, targets):
        centre, box = heads_of(outputs)
        shape = tuple(centre.shape[1:])
        return centre, box, centres.cells(targets["boxes"], self._kinds(targets), shape, self.config.stride)

    def _hard(self, outputs, targets):
        return centres.hard(*self._cells(outputs, targets), self.config.box_weight)

    def _soft(self, outputs, taught):
        ours, theirs = heads_of(outputs), heads_of(taught)
        if ours[0].shape != theirs[0].shape:
            raise UserError(
                f"the teacher's centre map is {'x'.join(map(str, theirs[0].shape[1:]))}, the student's "
                f"{'x'.join(map(str, ours[0].shape[1:]))}: both must have the same stride and classes"
            )
        return centres.soft(*ours, *theirs, self.config.threshold, self.config.box_weight)

    def progress(self, outputs: dict, targets: dict) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Of the centres of a step's boxes, those above the threshold; and the mean IoU of the boxes there."""
        centre, box, wanted = self._cells(outputs, targets)
        positive = wanted.heat == 1
        seen = jnp.sum(positive & (centre >= peaks.logit(self.config.threshold)))
        there = positive.any(-1)
        overlap = centres.iou(box, wanted.distances)
        return dict(centre_recall=(seen, jnp.sum(positive)), centre_iou=(jnp.sum(overlap * there), jnp.sum(there)))

    def _found(self, outputs, threshold=-math.inf):
        """peaks.Found of real outputs, with boxes in pixels."""
        found = peaks.find_real(*map(np.asarray, heads_of(outputs)), threshold, self.config)
        return found._replace(boxes=found.boxes / peaks.FRACTION)

    def _judged(self, outputs, targets):
        """Found boxes of any score, the kinds of the true ones, and which are right."""
        found, kinds = self._found(outputs), np.asarray(self._kinds(targets))
        true = np.asarray(targets["boxes"], np.float64)
        return found, kinds, boxes.judge(found.classes, found.boxes, kinds, true)

    def metrics(self, outputs: dict, targets: dict) -> dict[str, float]:
        """Those of boxes.figures, with a probability in the place of the score."""
        found, kinds, judged = self._judged(outputs, targets)
        figures = boxes.figures(found.classes, found.scores, judged, kinds)
        score = figures.pop("f1_score")
        return figures | dict(f1_threshold=1 / (1 + math.exp(-min(max(score, -500), 500))))

    def agree(self, a: dict, b: dict) -> float:
        """Part of the images in which both find as many boxes, each with one of the other's class at its place."""
        first, second = (self._found(outputs, peaks.logit(self.config.threshold)) for outputs in (a, b))
        paired = boxes.judge(first.classes, first.boxes, second.classes, second.boxes, np.array([SAME])).right[0]
        as_many = np.sum(first.classes >= 0, 1) == np.sum(second.classes >= 0, 1)
        return float(np.mean(as_many & (paired == (first.classes >= 0)).all(1)))

    def decode(self, outputs: dict, scale: dict[str, float], zero_point: dict[str, int]) -> np.ndarray:
        """int8 heads to the boxes above the threshold, int32 `[n, most * 6]` (peaks.decode)."""
        return peaks.decode(*heads_of(outputs), peaks.constants(scale, zero_point, self.config))

    def details(self, outputs: dict, targets: dict, names: Sequence[str]) -> list[dict]:
        """Average precision of each class, its recall with all that is found, and its number of boxes."""
        found, kinds, judged = self._judged(outputs, targets)
        rows = []
        for kind, name in enumerate(names):
            count = int(np.sum(kinds == kind))
            precision = boxes.precisions(found.classes, found.scores, judged, kind, count)
            curve = _curve(found, judged, found.classes == kind, count)
            recall = float(curve.recall.max(initial=0))
            rows.append(
                {"class": name, "AP": precision[0], "AP 50:95": float(precision.mean()), "recall": recall}
                | {"boxes": count}
            )
        return rows

    def pictures(
        self,
        images: np.ndarray,
        outputs: dict,
        targets: dict,
        names: Sequence[str],
        title: str,
        path: Callable[[str], Path],
    ) -> list[dict]:
        """Images with the boxes that are true and found, and precision against recall of each class."""
        from atalaia import pictures as draw

        found, kinds, judged = self._judged(outputs, targets)
        curves = {
            name: _curve(found, judged, found.classes == kind, np.sum(kinds == kind)) for kind, name in enumerate(names)
        }
        draw.precision_picture(path("precision.png"), {n: (c.recall, c.precision) for n, c in curves.items()}, title)
        shown = (found.classes >= 0) & (found.scores >= peaks.logit(self.config.threshold))
        right = _all_found(kinds, judged.right[0] & shown, ~judged.right[0] & ~judged.ignored[0] & shown)
        some = _some(right, (kinds >= 0).any(1))
        draw.boxes_picture(
            path("samples.png"),
            images[some],
            [targets["boxes"][i][kinds[i] >= 0] for i in some],
            [found.boxes[i][shown[i]] for i in some],
            [bool(right[i]) for i in some],
            title,
        )
        return [
            dict(file=path("precision.png").name, title="Precision against recall, boxes at IoU 0.5"),
            dict(file=path("samples.png").name, title="Boxes that are true (dashed) and found"),
        ]


def heads_of(outputs: dict) -> tuple[Any, Any]:
    """The centre map and the box map of a network's outputs.

    Raises:
      UserError: it has others.
    """
    if not isinstance(outputs, dict) or set(outputs) != set(HEADS):
        given = ", ".join(map(str, outputs)) if isinstance(outputs, dict) else "one array"
        raise UserError(f"task detect needs a network with heads centre and box, such as detector; this has {given}")
    return tuple(outputs[name] for name in HEADS)


def _refuse_no_boxes(targets, classes, name):
    """Does nothing for targets as the module's docstring says."""
    fields = ("boxes", "classes")
    shapes = [np.shape(targets[f]) for f in fields] if isinstance(targets, dict) and set(targets) == set(fields) else []
    if not shapes or len(shapes[0]) != 3 or shapes[0] != (*shapes[1], 4):
        raise UserError(
            f"task detect needs boxes [n, m, 4] and classes [n, m] of each image; data set {name} has other targets: "
            "try classify"
        )
    kinds, sides = targets["classes"], targets["boxes"][..., 2:] - targets["boxes"][..., :2]
    if not np.issubdtype(kinds.dtype, np.integer) or ((kinds < IGNORED) | (kinds >= classes)).any():
        raise UserError(
            f"data set {name} has boxes of other classes than 0 to {classes - 1}; -1 is no box, -2 one to be ignored"
        )
    if (bad := (kinds != NO_BOX) & ~(sides > 0).all(-1)).any():
        image, place = np.argwhere(bad)[0]
        raise UserError(
            f"data set {name}: box {place} of image {image} is {targets['boxes'][image, place].tolist()}: x0 < x1 and "
            "y0 < y1 are needed"
        )


def _refuse_other_heads(config, classes, image_shape):
    """Does nothing for a network whose maps have a cell for each square of detect.stride pixels."""
    from atalaia import models  # which a task has no other use for

    stride, (height, width, _) = config.detect.stride, image_shape
    if height % stride or width % stride:
        raise UserError(
            f"images of {height}x{width} have no whole number of cells of detect.stride = {stride} pixels: give "
            f"data.size = {height // stride * stride},{width // stride * stride} or such"
        )
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    made = jax.eval_shape(models.create(config.model, classes).init_with_output, jax.random.key(0), images)[0]
    centre, box = (head.shape[1:] for head in heads_of(made))
    cells = (height // stride, width // stride)
    if (centre, box) != ((*cells, classes), (*cells, 4)):
        raise UserError(
            f"model {config.model} gives maps of {centre} and {box} for images of {height}x{width}, where detect.stride"
            f" = {stride} needs {(*cells, classes)} and {(*cells, 4)}: set detect.stride to the network's"
        )


def _area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _curve(found, judged, chosen, count):
    return boxes.curve(found.scores, judged.right[0], judged.ignored[0], chosen, int(count))


def _all_found(kinds, right, wrong):
    """Whether each image has every true box found and none besides, bool `[n]`."""
    return (right.sum(1) == (kinds >= 0).sum(1)) & ~wrong.any(1)


def _some(right, with_boxes):
    """Places of images to show: half of them wrong ones where there are so many, those with boxes first."""
    order = np.argsort(~with_boxes, kind="stable")
    wrong, good = order[~right[order]][: SAMPLES // 2], order[right[order]]
    return np.sort(np.r_[wrong, good[: SAMPLES - len(wrong)]])

"""How good found boxes are, in NumPy: which are right, precision and recall, average precision as COCO defines it.

A box is (x0, y0, x1, y1) in any unit. True boxes have a kind: a class from 0 on, NO_BOX where an image has no more, or
IGNORED (datasets/boxes.py). An ignored box need not be found, and what is found on it is no mistake, as COCO's
"iscrowd" has it.
"""

from typing import NamedTuple

import numpy as np

from atalaia.datasets.boxes import IGNORED

RECALLS = np.linspace(0, 1, 101)  # where COCO looks at the precision
THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of intersection over union
FALSE_RATES = {"recall_0_1": 0.1, "recall_1": 1.0}  # figure: wrong boxes an image


class Judged(NamedTuple):
    """Of each found box at each of t thresholds: whether it is a true one, and whether it does not count."""

    right: np.ndarray  # bool [t, n, d]
    ignored: np.ndarray  # bool [t, n, d]


class Curve(NamedTuple):
    """Precision and recall while boxes are taken from the highest score to lower ones; all `[k]`."""

    scores: np.ndarray
    right: np.ndarray  # how many are right so far
    wrong: np.ndarray  # and how many are not
    true: int  # how many boxes there are to find

    @property
    def recall(self) -> np.ndarray:
        """Part of the true boxes that is found."""
        return self.right / max(self.true, 1)

    @property
    def precision(self) -> np.ndarray:
        """Part of the found boxes that is right."""
        return self.right / np.maximum(self.right + self.wrong, 1)


def area(boxes: np.ndarray) -> np.ndarray:
    """Width times height of boxes `[..., 4]`, `[...]`."""
    return np.prod(boxes[..., 2:] - boxes[..., :2], -1)


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The area of boxes `[..., p, 4]` that boxes `[..., q, 4]` share, `[..., p, q]`."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = np.minimum(a, b)[..., 2:] - np.maximum(a, b)[..., :2]
    return np.prod(np.maximum(sides, 0), -1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `[..., p, 4]` and `[..., q, 4]`, `[..., p, q]`; 0 of two boxes without area."""
    both = intersection(a, b)
    return both / np.maximum(area(a)[..., :, None] + area(b)[..., None, :] - both, 1e-12)


def judge(
    classes: np.ndarray, found: np.ndarray, kinds: np.ndarray, true: np.ndarray, thresholds: np.ndarray = THRESHOLDS
) -> Judged:
    """Pairs found boxes with true ones: each, the highest score first, takes the free one that it overlaps most.

    Args:
      classes: of the found boxes, int `[n, d]`, -1 where there is none; highest score first.
      found: `[n, d, 4]`.
      kinds: of the true boxes, int `[n, m]`; true: `[n, m, 4]`.
      thresholds: `[t]`, intersection over union that makes a pair; of an ignored box, the part of the found one in it.
    """
    least, places = np.asarray(thresholds)[:, None, None], np.arange(true.shape[1])
    overlap = iou(found, true)
    part = intersection(found, true) / np.maximum(area(found)[..., None], 1e-12)
    most_ignored = np.where(kinds[:, None] == IGNORED, part, 0).max(-1, initial=0)  # [n, d]
    free = np.ones((len(thresholds), *kinds.shape), bool)
    right = np.zeros((len(thresholds), *classes.shape), bool)
    for i in range(classes.shape[1]):
        same = (kinds == classes[:, i, None]) & (kinds >= 0)
        could = np.where(free & same & (overlap[:, i] >= least), overlap[:, i], -1)
        if could.shape[-1]:
            right[..., i] = could.max(-1) >= 0
            taken = could.shape[-1] - 1 - could[..., ::-1].argmax(-1)  # the last of equals, as COCO's code takes it
            free &= ~(right[..., i, None] & (places == taken[..., None]))
    return Judged(right, ~right & (most_ignored >= least))


def curve(scores: np.ndarray, right: np.ndarray, ignored: np.ndarray, chosen: np.ndarray, count: int) -> Curve:
    """The curve of some found boxes over all images.

    Args:
      scores: `[n, d]`; right, ignored: of one threshold, `[n, d]`.
      chosen: which boxes, bool `[n, d]`, such as those of a class.
      count: of the true boxes.
    """
    counted = chosen & ~ignored
    scores, right = scores[counted], right[counted]
    order = np.argsort(-scores, kind="stable")
    right = right[order]
    return Curve(scores[order], np.cumsum(right), np.cumsum(~right), count)


def average_precision(curve: Curve) -> float:
    """The mean of 101 precisions, each the best at a recall or a higher one (COCO); 0 where there is no true box."""
    best = np.maximum.accumulate(curve.precision[::-1])[::-1]
    return float(np.append(best, 0)[np.searchsorted(curve.recall, RECALLS)].mean()) if curve.true else 0.0


def recall_at(curve: Curve, wrong: float) -> float:
    """The largest recall with at most so many wrong boxes over all images."""
    allowed = _at_cuts(curve) & (curve.wrong <= wrong)
    return float(curve.recall[allowed].max(initial=0))


def best_f1(curve: Curve) -> tuple[float, float]:
    """The largest F1, of precision and recall, and the least score of the boxes that are taken for it."""
    f1 = np.where(_at_cuts(curve), 2 * curve.right / np.maximum(curve.right + curve.wrong + curve.true, 1), 0)
    if not f1.size:
        return 0.0, np.inf
    return float(f1.max()), float(curve.scores[f1.argmax()])


def f1_at(curve: Curve, least: float) -> float:
    """F1 of the boxes with at least so high a score."""
    taken = int(np.sum(curve.scores >= least))
    right = int(curve.right[taken - 1]) if taken else 0
    return 2 * right / max(taken + curve.true, 1)


def precisions(classes: np.ndarray, scores: np.ndarray, judged: Judged, kind: int, count: int) -> np.ndarray:
    """Average precision of a class at each threshold, `[t]`; of its found boxes, and the `count` true ones."""
    curves = (curve(scores, right, ignored, classes == kind, count) for right, ignored in zip(*judged, strict=True))
    return np.array([average_precision(each) for each in curves])


def figures(classes: np.ndarray, scores: np.ndarray, judged: Judged, kinds: np.ndarray) -> dict[str, float]:
    """How good a detector is, from what it found with any score.

    Args:
      classes, scores: of the found boxes, `[n, d]`, as `judge` takes them.
      judged: by THRESHOLDS.
      kinds: of the true boxes, `[n, m]`.

    Returns:
      ap, ap_50_95: average precision of COCO, the mean of the classes that have boxes. recall_0_1, recall_1: the
      largest recall with 0.1 and 1 wrong boxes an image; f1: the best one, and f1_score, the least score taken for
      it; these of all classes together.
    """
    counts = {int(kind): int((kinds == kind).sum()) for kind in np.unique(kinds[kinds >= 0])}
    precision = [precisions(classes, scores, judged, *item) for item in counts.items()] or [np.zeros(len(THRESHOLDS))]
    whole = curve(scores, judged.right[0], judged.ignored[0], classes >= 0, sum(counts.values()))
    f1, score = best_f1(whole)
    recalls = {name: recall_at(whole, rate * len(kinds)) for name, rate in FALSE_RATES.items()}
    first = float(np.mean([each[0] for each in precision]))
    return dict(ap=first, ap_50_95=float(np.mean(precision)), **recalls, f1=f1, f1_score=score)


def _at_cuts(curve):
    """Where a threshold can cut: behind the last box of a score."""
    return np.diff(curve.scores, append=-np.inf) < 0

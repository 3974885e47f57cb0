"""What a detector's heads should say, and what they lose where they do not: in JAX, for the training step.

After Zhou et al., 2019, "Objects as Points" (arXiv:1904.07850): a map of centres, 1 at the cell of a box's middle and
falling off around it as a Gaussian, and at that cell the box. Here the box is given as the distances from the middle of
the cell to the box's sides, in cells, so that no second offset is needed, and most of its loss is that of GIoU
(Rezatofighi et al., 2019, arXiv:1902.09630).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from atalaia.datasets.boxes import IGNORED

OVERLAP = 0.7  # a box moved by the Gaussian's radius still overlaps the true one as much
NEAR = 0.5  # least standard deviation, in cells, of the weight of cells around a centre in the box loss


class Cells(NamedTuple):
    """What is wanted of each cell of an image, or with a batch dimension in front of all."""

    heat: jax.Array  # [h, w, classes], 1 at centres
    ignored: jax.Array  # bool [h, w]: the cell lies in a box that does not count
    weight: jax.Array  # [h, w], of the cell in the box loss
    distances: jax.Array  # [h, w, 4]: left, top, right, bottom of its box, in cells


def cells(boxes: jax.Array, kinds: jax.Array, shape: tuple[int, int, int], stride: int) -> Cells:
    """What a batch's boxes want of maps of `shape`, (h, w, classes).

    Args:
      boxes: float32 `[b, m, 4]` in pixels; kinds: int32 `[b, m]`, a class, NO_BOX or IGNORED.
      stride: pixels between two cells.
    """
    return jax.vmap(lambda boxes, kinds: _cells_of_image(boxes / stride, kinds, shape))(boxes, kinds)


def _cells_of_image(boxes, kinds, shape):
    """Box after box, so that the memory does not grow with their number."""
    height, width, classes = shape
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]

    def add(cells, one):
        (x0, y0, x1, y1), kind = one
        row, column = _cell(y0, y1, height), _cell(x0, x1, width)
        squared = jnp.square(rows - row) + jnp.square(columns - column)
        deviation = (2 * jnp.floor(radius(x1 - x0, y1 - y0)) + 1) / 6
        sides = (columns + 0.5 - x0, rows + 0.5 - y0, x1 - columns - 0.5, y1 - rows - 0.5)
        distances = jnp.stack(jnp.broadcast_arrays(*sides), -1)
        inside = (distances > 0).all(-1) | (squared == 0)
        heat = _bell(squared, deviation)[..., None] * jax.nn.one_hot(kind, classes)  # all 0 for a kind below 0
        weight = jnp.where(inside & (kind >= 0), _bell(squared, jnp.maximum(deviation, NEAR)), 0)
        closer = weight > cells.weight
        found = Cells(
            jnp.maximum(cells.heat, heat),
            cells.ignored | (inside & (kind == IGNORED)),
            jnp.where(closer, weight, cells.weight),
            jnp.where(closer[..., None], jnp.maximum(distances, 0), cells.distances),
        )
        return found, None

    nothing = Cells(jnp.zeros(shape), jnp.zeros(shape[:2], bool), jnp.zeros(shape[:2]), jnp.zeros((*shape[:2], 4)))
    return jax.lax.scan(add, nothing, (boxes, kinds))[0]


def _cell(low, high, cells):
    """The row or column of a box's middle."""
    return jnp.clip(jnp.floor((low + high) / 2), 0, cells - 1)


def _bell(squared, deviation):
    return jnp.exp(-squared / (2 * jnp.square(deviation)))


def radius(width: jax.Array, height: jax.Array, overlap: float = OVERLAP) -> jax.Array:
    """How far both corners of a box may move, each in any direction, with that IoU left (Law and Deng, 2018).

    The smallest of three cases (arXiv:1808.01244, section 3.2): the box is shifted, shrunk, or enlarged.
    """
    total, area = width + height, width * height
    shifted = (total - jnp.sqrt(jnp.square(total) - 4 * area * (1 - overlap) / (1 + overlap))) / 2
    shrunk = (total - jnp.sqrt(jnp.square(total) - 4 * area * (1 - overlap))) / 4
    enlarged = (jnp.sqrt(jnp.square(total) + 4 * area * (1 - overlap) / overlap) - total) / 4
    return jnp.minimum(jnp.minimum(shifted, shrunk), enlarged)


def focal(logits: jax.Array, heat: jax.Array) -> jax.Array:
    """Penalty-reduced focal loss of each cell and class (arXiv:1904.07850, equation 1; alpha 2, beta 4).

    -(1 - p)^2 log p where the heat is 1, else -(1 - heat)^4 p^2 log(1 - p); p is the sigmoid of the logit.
    """
    p = jax.nn.sigmoid(logits)
    positive = -jnp.square(1 - p) * jax.nn.log_sigmoid(logits)
    negative = -((1 - heat) ** 4) * jnp.square(p) * jax.nn.log_sigmoid(-logits)
    return jnp.where(heat == 1, positive, negative)


def quality_focal(logits: jax.Array, taught: jax.Array) -> jax.Array:
    """Cross-entropy with probabilities in [0, 1], times |taught - p|^2 (Li et al., 2020, arXiv:2006.04388, eq. 5)."""
    off = jnp.square(taught - jax.nn.sigmoid(logits))
    return off * optax.sigmoid_binary_cross_entropy(logits, taught)


def box_loss(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """1 - GIoU, and the mean error of a side as a part of the mean distance, of boxes `[..., 4]`, `[...]`.

    Boxes are given as distances from one point, which lies in both, to their four sides. The second part (as in Carion
    et al., 2020, arXiv:2005.12872) finds the way back from distances of 0 and below, where GIoU has no gradient.
    """
    around = _area(jnp.maximum(found, wanted))  # a wanted distance is never below 0
    outside = (around - _either(found, wanted)) / jnp.maximum(around, 1e-6)
    error = jnp.abs(found - wanted).mean(-1) / jnp.maximum(wanted.mean(-1), 0.5)
    return 1 - iou(found, wanted) + outside + error


def iou(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Intersection over union of boxes that are given as for `box_loss`; found distances below 0 count as 0."""
    return _both(found, wanted) / jnp.maximum(_either(found, wanted), 1e-6)


def _both(found, wanted):
    return _area(jnp.minimum(jnp.maximum(found, 0), wanted))


def _either(found, wanted):
    return _area(jnp.maximum(found, 0)) + _area(wanted) - _both(found, wanted)


def _area(distances):
    left, top, right, bottom = jnp.moveaxis(distances, -1, 0)
    return (left + right) * (top + bottom)


def hard(centre: jax.Array, box: jax.Array, wanted: Cells, box_weight: float) -> jax.Array:
    """The loss of a batch by its boxes, `[]`: focal loss a box, and `box_weight` times the mean of `box_loss`.

    Cells in ignored boxes count in neither, but for the centre of a box that does count.
    """
    positive = wanted.heat == 1
    counted = positive | ~wanted.ignored[..., None]
    map_loss = jnp.sum(jnp.where(counted, focal(centre, wanted.heat), 0)) / jnp.maximum(jnp.sum(positive), 1)
    weight = jnp.where(positive.any(-1) | ~wanted.ignored, wanted.weight, 0)
    return map_loss + box_weight * _mean(box_loss(box, wanted.distances), weight, None)


def soft(
    centre: jax.Array, box: jax.Array, taught_centre: jax.Array, taught_box: jax.Array, sure: float, box_weight: float
) -> jax.Array:
    """The loss of each image by a teacher's heads, `[b]`: quality focal loss, and `box_loss` where it is sure.

    The first is divided by the sum of the teacher's probabilities, the second weighs each cell by them: cells below
    the probability `sure` have no box.
    """
    taught = jax.nn.sigmoid(jax.lax.stop_gradient(taught_centre))
    each = (1, 2, 3)
    map_loss = jnp.sum(quality_focal(centre, taught), each) / jnp.maximum(jnp.sum(taught, each), 1)
    best = taught.max(-1)
    boxes = box_loss(box, jnp.maximum(jax.lax.stop_gradient(taught_box), 0))
    return map_loss + box_weight * _mean(boxes, jnp.where(best >= sure, best, 0), (1, 2))


def _mean(values, weight, axes):
    """Weighted mean over some axes; 0 where no value has a weight."""
    total = jnp.sum(weight, axes)
    return jnp.sum(values * weight, axes) / jnp.where(total > 0, total, 1)

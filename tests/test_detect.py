"""Detection: targets, losses and boxes worked out by hand, COCO's own figures, C against Python, a small training."""

import contextlib
import ctypes
import functools
import io
import json
import math
import subprocess
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from atalaia import (
    api,
    augment,
    data,
    evaluate,
    export,
    int8_layers,
    layers,
    models,
    quantize,
    tasks,
    train,
)
from atalaia import config as configs
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards
from atalaia.datasets.boxes import IGNORED, NO_BOX
from atalaia.errors import UserError
from atalaia.models.detector import Detector
from atalaia.tasks import boxes, centres, peaks

ROOT = Path(__file__).parent.parent


def config_of(**fields):
    c = configs.base()
    c.task, c.loss.name, c.distillation.loss, c.model = "detect", "centre", "heads", "detector_small"
    c.detect.update(fields)
    return c


def targets_of(*images, most=4):
    """Targets from lists of (class, x0, y0, x1, y1)."""
    found = dict(
        boxes=np.zeros((len(images), most, 4), np.float32), classes=np.full((len(images), most), NO_BOX, np.int32)
    )
    for i, rows in enumerate(images):
        for j, (kind, *box) in enumerate(rows):
            found["classes"][i, j], found["boxes"][i, j] = kind, box
    return found


def perfect_heads(targets, shape, stride):
    """Real heads that say exactly what the targets are: logit 6 at centres, -6 elsewhere."""
    cells = centres.cells(targets["boxes"], targets["classes"], shape, stride)
    return dict(centre=np.where(cells.heat == 1, 6.0, -6.0), box=np.asarray(cells.distances, np.float64))


def random_targets(random, n, size, classes, most=4):
    """Boxes in quarters of a pixel, some of them ignored, some not there."""
    low = random.randint(0, 4 * size - 40, (n, most, 2)) / 4
    boxes = np.concatenate([low, np.minimum(low + random.randint(24, 80, (n, most, 2)) / 4, size)], -1)
    kinds = random.randint(-2, classes, (n, most))
    return dict(boxes=np.float32(boxes), classes=np.int32(kinds))


class CellsTest(parameterized.TestCase):
    def test_a_box_by_hand(self):
        """A box from (8, 16) to (40, 48) at stride 8: 4x4 cells, its middle (24, 32) in column 3, row 4."""
        targets = targets_of([(1, 8, 16, 40, 48)])
        found = centres.cells(targets["boxes"], targets["classes"], (8, 8, 2), 8)
        np.testing.assert_array_equal(np.argwhere(found.heat[0] == 1), [[4, 3, 1]])
        # The radius of a 4x4 box is (8 - sqrt(64 - 64 * 0.3 / 1.3)) / 2 = 0.49..., (8 - sqrt(64 - 64 * 0.3)) / 4 = 0.32
        # and (sqrt(64 + 64 * 0.3 / 0.7) - 8) / 4 = 0.39: so 0, and a deviation of 1/6 of a cell.
        self.assertAlmostEqual(float(found.heat[0, 4, 4, 1]), math.exp(-18), places=9)
        self.assertEqual(float(found.heat[0, ..., 0].max()), 0)
        self.assertAlmostEqual(float(found.weight[0, 4, 4]), math.exp(-2), places=6)
        self.assertAlmostEqual(float(found.weight[0, 3, 2]), math.exp(-4), places=6)
        self.assertEqual(float(found.weight[0, 4, 5]), 0)  # its middle is not in the box
        # From (28, 36), the middle of the cell, in cells: 20/8 to the left, 20/8 up, 12/8 to the right and down.
        np.testing.assert_allclose(found.distances[0, 4, 3], [2.5, 2.5, 1.5, 1.5])
        np.testing.assert_allclose(found.distances[0, 3, 3], [2.5, 1.5, 1.5, 2.5])

    def test_a_large_box_has_a_wide_bell(self):
        targets = targets_of([(0, 0, 0, 128, 128)])
        found = centres.cells(targets["boxes"], targets["classes"], (16, 16, 1), 8)
        # Radius (sqrt(1024 + 1024 * 0.3 / 0.7) - 32) / 4 = 1.56, so 1: a deviation of half a cell.
        self.assertAlmostEqual(float(found.heat[0, 8, 9, 0]), math.exp(-2), places=6)

    def test_a_cell_belongs_to_the_nearest_centre(self):
        targets = targets_of([(0, 0, 0, 24, 24), (0, 8, 0, 48, 24)])
        found = centres.cells(targets["boxes"], targets["classes"], (4, 8, 1), 8)
        np.testing.assert_array_equal(np.argwhere(found.heat[0, ..., 0] == 1), [[1, 1], [1, 3]])
        np.testing.assert_allclose(found.distances[0, 1, 1], [1.5, 1.5, 1.5, 1.5])
        np.testing.assert_allclose(found.distances[0, 1, 4], [3.5, 1.5, 1.5, 1.5])

    def test_a_middle_on_the_border_has_the_last_cell(self):
        targets = targets_of([(0, 24, 24, 40, 40)])
        found = centres.cells(targets["boxes"], targets["classes"], (4, 4, 1), 8)
        np.testing.assert_array_equal(np.argwhere(found.heat[0, ..., 0] == 1), [[3, 3]])

    @parameterized.parameters((5.0, 5.0), (3.0, 9.0), (20.0, 11.0))
    def test_boxes_moved_by_the_radius_overlap_as_much_as_asked(self, width, height):
        r = float(centres.radius(width, height, 0.7))
        box = np.array([[0, 0, width, height]])
        moves = [[r, r, r, r], [r, r, -r, -r], [-r, -r, r, r]]
        found = boxes.iou(box, box + np.array(moves))[0]
        self.assertGreaterEqual(found.min(), 0.7 - 1e-5)
        self.assertAlmostEqual(found.min(), 0.7, places=5)  # and no larger radius would do


class LossTest(parameterized.TestCase):
    def test_focal_by_hand(self):
        logits, p = jnp.array([2.0, 2.0, -1.0]), [1 / (1 + math.exp(-x)) for x in (2, 2, -1)]
        found = centres.focal(logits, jnp.array([1.0, 0.5, 0.0]))
        expected = [
            -((1 - p[0]) ** 2) * math.log(p[0]),
            -(0.5**4) * p[1] ** 2 * math.log(1 - p[1]),
            -(p[2] ** 2) * math.log(1 - p[2]),
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_quality_focal_is_least_at_what_is_taught(self):
        taught = jnp.array([0.2, 0.9])
        logits = jnp.log(taught / (1 - taught))
        np.testing.assert_allclose(centres.quality_focal(logits, taught), 0, atol=1e-9)
        found = float(centres.quality_focal(jnp.array([0.0]), jnp.array([0.9]))[0])
        self.assertAlmostEqual(found, 0.4**2 * math.log(2), places=6)

    def test_box_loss_by_hand(self):
        wanted = jnp.array([1.0, 1.0, 1.0, 1.0])  # 2x2
        found = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0], [0.0, 1.0, 2.0, 1.0]])
        # Equal; 4x2 around it: 4/8, and an error of 2/4; shifted by one: 2/6, and 2/4.
        np.testing.assert_allclose(centres.box_loss(found, wanted), [0, 0.5 + 0.5, 2 / 3 + 0.5], atol=1e-6)
        # 2x4 and 4x2 around one point share 4 of 12; of the 16 around both, 4 are in neither; all errors are 1 of 1.5.
        cross = centres.box_loss(jnp.array([1.0, 2.0, 1.0, 2.0]), jnp.array([2.0, 1.0, 2.0, 1.0]))
        self.assertAlmostEqual(float(cross), 1 - 4 / 12 + 4 / 16 + 1 / 1.5, places=6)

    @parameterized.parameters(0.0, -1.0, 7.0)
    def test_distances_find_their_way_from_anywhere(self, start):
        found, wanted = jnp.full(4, start), jnp.array([1.0, 2.0, 1.5, 0.5])
        downhill = jax.jit(lambda i, x: x - 0.02 * jax.grad(centres.box_loss)(x, wanted))
        found = jax.lax.fori_loop(0, 2000, downhill, found)
        np.testing.assert_allclose(found, wanted, atol=0.05)

    def test_the_loss_by_hand(self):
        config = config_of(box_weight=3.0, stride=8)
        targets = targets_of([(0, 0, 0, 8, 8)])
        outputs = dict(centre=jnp.zeros((1, 1, 2, 1)), box=jnp.ones((1, 1, 2, 4)))
        # Centres: log 2 / 4 in each of the two cells, for the bell is e^-18 in the second; the box of 2x2 cells has
        # its only weight in the first cell, which has 0.5 to each side, not 1: an IoU of 1/4, an error of 0.5 of 0.5.
        found = float(tasks.objective(config).hard(outputs, targets))
        self.assertAlmostEqual(found, 2 * math.log(2) / 4 + 3.0 * (0.75 + 1), places=5)

    def test_perfect_heads_lose_next_to_nothing(self):
        targets = targets_of([(0, 10, 10, 40, 42), (1, 50, 8, 62, 30)], [])
        outputs = perfect_heads(targets, (8, 8, 2), 8)
        self.assertLess(float(tasks.objective(config_of()).hard(outputs, targets)), 1e-3)

    def test_cells_of_ignored_and_narrow_boxes_have_no_gradient(self):
        config = config_of(ignore_below=12)
        targets = targets_of([(0, 0, 0, 16, 16), (IGNORED, 32, 0, 56, 24), (0, 32, 40, 40, 64)])
        random = np.random.RandomState(0)
        outputs = dict(centre=jnp.float32(random.randn(1, 8, 8, 1)), box=jnp.float32(random.rand(1, 8, 8, 4)))
        gradient = jax.grad(tasks.objective(config).hard)(outputs, targets)
        zero = np.asarray(gradient["centre"])[0, ..., 0] == 0
        expected = np.zeros((8, 8), bool)
        expected[0:3, 4:7] = expected[5:8, 4] = True
        np.testing.assert_array_equal(zero, expected)
        self.assertTrue((np.asarray(gradient["box"])[0][expected] == 0).all())
        self.assertTrue((np.asarray(gradient["box"])[0, 1, 1] != 0).any())

    def test_a_box_within_an_ignored_one_counts(self):
        targets = targets_of([(0, 16, 16, 40, 40), (IGNORED, 0, 0, 64, 64)])
        outputs = dict(centre=jnp.zeros((1, 8, 8, 1)), box=jnp.ones((1, 8, 8, 4)))
        gradient = jax.grad(tasks.objective(config_of()).hard)(outputs, targets)
        np.testing.assert_array_equal(np.argwhere(gradient["centre"][0, ..., 0]), [[3, 3]])
        np.testing.assert_array_equal(np.argwhere(np.any(gradient["box"][0], -1)), [[3, 3]])

    def test_images_without_targets_do_not_count(self):
        config, targets = config_of(), targets_of([(0, 0, 0, 16, 16)])
        task, hard = tasks.of(config), tasks.objective(config).hard
        both = jax.tree.map(lambda *x: np.concatenate(x), targets, task.absent(targets, 3))
        moved = task.move(both, jnp.tile(jnp.float32([[0.7, 0.1, 3], [-0.1, 0.7, 2]]), (4, 1, 1)), (64, 64), config)
        outputs = dict(centre=jnp.zeros((4, 8, 8, 1)), box=jnp.ones((4, 8, 8, 4)))
        for some in (both, moved):
            alone = jax.tree.map(lambda x: x[:1], (outputs, some))
            self.assertAlmostEqual(float(hard(outputs, some)), float(hard(*alone)), places=6)
            gradient = jax.grad(hard)(outputs, some)
            self.assertEqual(max(float(jnp.abs(g[1:]).max()) for g in gradient.values()), 0)

    def test_a_teacher_is_followed_where_it_is_sure(self):
        config = config_of(threshold=0.5)
        taught = dict(centre=jnp.full((2, 4, 4, 1), -6.0).at[0, 1, 2].set(3.0), box=jnp.full((2, 4, 4, 4), 2.0))
        soft = tasks.objective(config).soft
        self.assertAlmostEqual(float(soft(taught, taught, None)), 0, places=6)
        outputs = dict(centre=jnp.zeros((2, 4, 4, 1)), box=jnp.ones((2, 4, 4, 4)))
        gradient = jax.grad(soft)(outputs, taught, None)
        self.assertTrue((np.asarray(gradient["centre"]) != 0).all())
        np.testing.assert_array_equal(np.argwhere(np.any(gradient["box"], -1)), [[0, 1, 2]])
        other = jax.grad(soft, 1)(outputs, taught, None)
        self.assertEqual(max(float(jnp.abs(g).max()) for g in other.values()), 0)  # the teacher does not learn
        with self.assertRaisesRegex(UserError, "teacher's centre map is 4x4x1, the student's 2x4x1"):
            soft(jax.tree.map(lambda x: x[:, :2], outputs), taught, None)

    def test_progress_by_hand(self):
        task, targets = tasks.of(config_of(threshold=0.5)), targets_of([(0, 0, 0, 16, 16), (0, 32, 32, 48, 48)])
        outputs = perfect_heads(targets, (8, 8, 1), 8)
        outputs["centre"][0, 1, 1] = -1
        outputs["box"][0, 1, 1] *= 2
        found = task.progress(outputs, targets)
        self.assertEqual(tuple(map(int, found["centre_recall"])), (1, 2))
        total, count = map(float, found["centre_iou"])
        self.assertAlmostEqual(total / count, (1 / 4 + 1) / 2, places=5)


class MoveTest(parameterized.TestCase):
    def move(self, targets, moves, size=(40, 60), **fields):
        config = config_of(**fields)
        moves = jnp.tile(jnp.float32(moves), (len(targets["boxes"]), 1, 1))
        return jax.tree.map(np.asarray, tasks.of(config).move(targets, moves, size, config))

    def test_flip_and_shift_by_hand(self):
        targets = targets_of([(1, 10, 5, 20, 25)])
        flipped = self.move(targets, [[-1, 0, 59], [0, 1, 0]])
        np.testing.assert_allclose(flipped["boxes"][0, 0], [40, 5, 50, 25])
        shifted = self.move(targets, [[1, 0, -14], [0, 1, 3]])
        np.testing.assert_allclose(shifted["boxes"][0, 0], [0, 8, 6, 28])
        np.testing.assert_array_equal(shifted["classes"][0], [1, -1, -1, -1])

    def test_what_is_left_of_a_box_says_whether_it_counts(self):
        targets = targets_of([(1, 10, 5, 20, 25), (0, 0, 5, 9, 25), (IGNORED, 10, 5, 20, 25)])
        found = self.move(targets, [[1, 0, -15.5], [0, 1, 0]], visible=0.5)  # 45 % of the first is left
        np.testing.assert_array_equal(found["classes"][0], [IGNORED, NO_BOX, IGNORED, NO_BOX])
        found = self.move(targets, [[1, 0, -15.5], [0, 1, 0]], visible=0.4)
        np.testing.assert_array_equal(found["classes"][0], [1, NO_BOX, IGNORED, NO_BOX])

    def test_a_turned_box_has_the_hull_of_its_corners(self):
        """Turned by 45 degrees around its middle, a square becomes wider by the square root of 2."""
        targets, half = targets_of([(0, 20, 10, 30, 20)]), math.sqrt(0.5)
        x, y = 24.5, 14.5  # its middle in indices of pixels
        found = self.move(targets, [[half, half, x - half * (x + y)], [-half, half, y + half * (x - y)]])
        side = 5 * math.sqrt(2)
        np.testing.assert_allclose(found["boxes"][0, 0], [25 - side, 15 - side, 25 + side, 15 + side], rtol=1e-5)

    @parameterized.parameters("flip", "rotate", "scale", "translate", "pad_crop")
    def test_the_box_goes_where_its_pixels_go(self, name):
        """A bright rectangle lies in its moved box, and touches its four sides unless it is turned."""
        random, n = np.random.RandomState(0), 48
        images = np.zeros((n, 40, 60, 1), np.float32)
        corners = np.stack([random.randint(8, 30, n), random.randint(8, 20, n)], 1)
        rows = np.concatenate([corners, corners + random.randint(8, 14, (n, 2))], 1)
        for image, (x0, y0, x1, y1) in zip(images, rows, strict=True):
            image[y0:y1, x0:x1] = 1
        config = config_of(visible=0.0)
        config.augment[name] = dict(flip=True, rotate=30.0, scale=0.3, translate=0.1, pad_crop=6)[name]
        out, moves = augment.augment(jax.random.key(2), jnp.array(images), config.augment)
        targets = targets_of(*([(0, *row)] for row in rows), most=1)
        moved = np.asarray(tasks.of(config).move(targets, moves, (40, 60), config)["boxes"])[:, 0]
        self.assertGreater(np.abs(moved - rows).max(), 3)
        for image, (x0, y0, x1, y1) in zip(np.asarray(out), moved, strict=True):
            y, x = np.nonzero(image[..., 0] > 0.5)
            seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            self.assertTrue((np.abs(seen - [x0, y0, x1, y1]) < (3 if name == "rotate" else 1)).all())
            self.assertTrue((seen[:2] > [x0 - 1, y0 - 1]).all() and (seen[2:] < [x1 + 1, y1 + 1]).all())


def coco_precision(found, targets, classes):
    """pycocotools' precision at each of its ten thresholds, the mean over 101 recalls and the classes, `[10]`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def box(row):
        return [float(row[0]), float(row[1]), float(row[2] - row[0]), float(row[3] - row[1])]

    true = []
    for i, j in np.argwhere(targets["classes"] != NO_BOX):
        kind, row = int(targets["classes"][i, j]), box(targets["boxes"][i, j])
        for category in range(classes) if kind == IGNORED else [kind]:
            crowd = int(kind == IGNORED)
            one = dict(id=len(true) + 1, image_id=int(i), category_id=category, bbox=row)
            true.append(one | dict(area=row[2] * row[3], iscrowd=crowd))
    answers = [
        dict(image_id=int(i), category_id=int(found.classes[i, j]), bbox=box(found.boxes[i, j]), score=s)
        for (i, j), s in ((ij, float(found.scores[tuple(ij)])) for ij in np.argwhere(found.classes >= 0))
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [dict(id=i) for i in range(len(targets["classes"]))]
        coco.dataset = dict(images=images, annotations=true, categories=[dict(id=c) for c in range(classes)])
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(answers), "bbox")
        judge.params.maxDets, judge.params.areaRng, judge.params.areaRngLbl = [100], [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][..., 0, 0].mean((1, 2))


class MetricsTest(parameterized.TestCase):
    @parameterized.parameters((1, 0), (3, 1), (2, 2))
    def test_average_precision_is_coco_s(self, classes, seed):
        """True boxes moved by noise, some lost and others made up: figures far from 0 and 1."""
        random, n, stride = np.random.RandomState(seed), 60, 8
        task, targets = tasks.of(config_of(most=12)), random_targets(random, n, 96, classes)
        outputs = perfect_heads(targets, (12, 12, classes), stride)
        outputs["centre"] = outputs["centre"] + random.randn(*outputs["centre"].shape) * 4
        outputs["box"] = np.abs(outputs["box"] + random.randn(*outputs["box"].shape) * 0.15)
        outputs["centre"] = np.round(outputs["centre"])  # scores that are equal
        found, expected = task._found(outputs), task.metrics(outputs, targets)
        precision = coco_precision(found, targets, classes)
        self.assertBetween(precision[0], 0.2, 0.95)
        self.assertLess(precision[-1], precision[0] - 0.05)
        self.assertAlmostEqual(expected["ap"], precision[0], places=9)
        self.assertAlmostEqual(expected["ap_50_95"], precision.mean(), places=9)
        rows = task.details(outputs, targets, [f"class {i}" for i in range(classes)])
        self.assertAlmostEqual(np.mean([row["AP"] for row in rows]), precision[0], places=9)
        self.assertEqual(
            [row["boxes"] for row in rows], np.bincount(targets["classes"][targets["classes"] >= 0]).tolist()
        )

    def test_perfect_and_empty_answers(self):
        task, targets = tasks.of(config_of()), targets_of([(0, 10, 10, 40, 42), (1, 50, 8, 62, 30)], [])
        found = task.metrics(perfect_heads(targets, (8, 8, 2), 8), targets)
        score = found.pop("f1_threshold")
        self.assertEqual(set(found.values()), {1.0})
        self.assertAlmostEqual(score, 1 / (1 + math.exp(-6)), places=6)
        self.assertEqual(set(found) | {"f1_threshold"}, set(task.METRICS))
        nothing = targets_of([], [])
        found = task.metrics(perfect_heads(targets, (8, 8, 2), 8), nothing)
        self.assertEqual((found["ap"], found["recall_1"], found["f1"]), (0, 0, 0))

    def test_recall_and_f1_by_hand(self):
        """Right, wrong, right, right and wrong of one score, wrong; 5 true boxes."""
        right = np.array([[True, False, True, True, False, False]])
        scores = np.array([[6.0, 5, 4, 3, 3, 2]])
        curve = boxes.curve(scores, right, np.zeros_like(right), np.ones_like(right), 5)
        found = [boxes.recall_at(curve, wrong) for wrong in (0, 1, 2, 3)]
        np.testing.assert_allclose(found, [1 / 5, 2 / 5, 3 / 5, 3 / 5])  # with one wrong box, the fourth cannot be cut
        self.assertEqual(boxes.best_f1(curve), (2 * 3 / (5 + 5), 3.0))

    def test_what_is_found_on_an_ignored_box_is_no_mistake(self):
        found = np.array([[[0, 0, 10, 10], [20, 20, 30, 30.0]]])
        true, kinds = np.array([[[0, 0, 50, 12.0]]]), np.array([[IGNORED]])
        judged = boxes.judge(np.array([[0, 0]]), found, kinds, true)
        self.assertFalse(judged.right.any())
        np.testing.assert_array_equal(judged.ignored, [[[True, False]]] * 10)

    def test_a_second_answer_to_one_box_is_wrong(self):
        found, true = np.array([[[0, 0, 10, 10], [0, 0, 10, 11.0]]]), np.array([[[0, 0, 10, 10.0]]])
        judged = boxes.judge(np.array([[0, 0]]), found, np.array([[0]]), true, np.array([0.5]))
        np.testing.assert_array_equal(judged.right, [[[True, False]]])

    def test_narrow_boxes_need_not_be_found(self):
        targets = targets_of([(0, 10, 10, 40, 42), (0, 50, 8, 58, 30)])
        outputs = perfect_heads(targets, (8, 8, 1), 8)
        outputs["centre"][0, 2, 6] = -6
        self.assertEqual(tasks.of(config_of(ignore_below=12)).metrics(outputs, targets)["recall_1"], 1)
        self.assertEqual(tasks.of(config_of()).metrics(outputs, targets)["recall_1"], 0.5)

    def test_agreement_is_of_whole_images(self):
        task, targets = tasks.of(config_of()), targets_of([(0, 10, 10, 40, 42)], [(0, 8, 8, 30, 30)], [])
        a = perfect_heads(targets, (8, 8, 1), 8)
        self.assertEqual(task.agree(a, a), 1)
        b = dict(centre=a["centre"].copy(), box=a["box"] + 0.1)
        b["centre"][1, 6, 6] = 6  # one more
        self.assertAlmostEqual(task.agree(a, b), 2 / 3)
        self.assertAlmostEqual(task.agree(b, a), 2 / 3)

    def test_pictures_are_written(self):
        folder = Path(self.create_tempdir().full_path)
        task, targets = tasks.of(config_of()), targets_of([(0, 10, 10, 40, 42)], [])
        outputs, images = perfect_heads(targets, (8, 8, 2), 8), np.full((2, 64, 64, 1), 90, np.uint8)
        rows = task.pictures(images, outputs, targets, ("face", "hand"), "made up", folder.joinpath)
        for row in rows:
            self.assertEqual((folder / row["file"]).read_bytes()[:4], b"\x89PNG")
        self.assertEqual([row["file"] for row in rows], ["precision.png", "samples.png"])


class Shape(ctypes.Structure):
    """detect_shape of mcu/answers/detect.c."""

    names = ("height", "width", "classes", "stride", "most", "threshold", "overlap", "zero_point", "step")
    _fields_ = tuple((name, ctypes.c_int32) for name in names)


@functools.cache
def compiled(folder):
    """`run` of a library with detect() in it, which stops at what C leaves undefined."""
    source = Path(folder) / "run.c"
    source.write_text(
        '#include <stdint.h>\n#include "detect.c"\n'
        "void run(const int8_t *centre, const int8_t *box, const detect_shape *s, int32_t *answer)\n"
        "{\n    detect(centre, box, s, answer);\n}\n"
    )
    flags = "-std=c99 -O1 -Wall -Wextra -Werror -fsanitize=undefined"
    command = ["gcc", *flags.split(), "-fsanitize-undefined-trap-on-error", "-shared", "-fPIC"]
    subprocess.run([*command, "-I", ROOT / "mcu" / "answers", "-o", source.with_suffix(".so"), source], check=True)
    return ctypes.CDLL(str(source.with_suffix(".so"))).run


class DecodeTest(parameterized.TestCase):
    SCALE, ZERO = dict(centre=0.1, box=0.03), dict(centre=20, box=-100)

    def in_c(self, centre, box, constants):
        run = compiled(self.create_tempdir().full_path)
        found = np.empty((len(centre), constants.most * peaks.VALUES), np.int32)
        fields = dict(zip(("height", "width", "classes"), centre.shape[1:], strict=True)) | constants._asdict()
        for one_centre, one_box, answer in zip(centre, box, found, strict=True):
            arrays = (np.ascontiguousarray(x).ctypes.data_as(ctypes.c_void_p) for x in (one_centre, one_box))
            run(*arrays, ctypes.byref(Shape(**fields)), answer.ctypes.data_as(ctypes.c_void_p))
        return found

    @parameterized.parameters(
        (6, 7, 1, dict()),
        (15, 20, 3, dict(most=50, threshold=0.05, overlap=0.1)),
        (1, 1, 2, dict(most=9)),
        (3, 1, 1, dict(most=1, threshold=0.001, overlap=0.999)),
        (5, 5, 2, dict(stride=4, threshold=0.999999)),
    )
    def test_c_gives_the_same(self, height, width, classes, fields):
        random, config = np.random.RandomState(height), config_of(**fields)
        n, maps = 200, (height, width)
        centre = random.randint(-128, 128, (n, *maps, classes))
        centre[50:100] //= 40  # many ties
        centre[100:130] = random.randint(-128, 128, (30, 1, 1, 1))  # all equal
        centre[130] = centre[131, :1] = -128
        box = random.randint(-128, 128, (n, *maps, 4))
        box[::3] = np.clip(box[::3] // 8 - 80, -128, 127)  # small ones, which overlap in part
        box[150:160], box[160:170] = 127, -128
        heads = dict(centre=np.int8(centre), box=np.int8(box))
        coarse = dict(centre=0.02, box=7.9 / config.detect.stride), dict(centre=-128, box=127)
        for scale, zero in ((self.SCALE, self.ZERO), coarse):
            found = tasks.of(config).decode(heads, scale, zero)
            constants = peaks.constants(scale, zero, config.detect)
            np.testing.assert_array_equal(self.in_c(**heads, constants=constants), found)
            self.assertEqual((found.dtype, found.shape), (np.int32, (n, 6 * config.detect.most)))

    def test_random_maps_have_boxes_and_lose_some_by_overlap(self):
        """So that the comparison with C is of something."""
        random, config = np.random.RandomState(0), config_of(most=50, threshold=0.05, overlap=0.1)
        heads = dict(centre=np.int8(random.randint(-128, 128, (50, 15, 20, 1))))
        heads["box"] = np.int8(random.randint(-128, -50, (50, 15, 20, 4)))
        kept = (tasks.of(config).decode(heads, self.SCALE, self.ZERO).reshape(50, 50, 6)[..., 0] >= 0).sum(1)
        self.assertBetween(kept.mean(), 5, 45)

    @parameterized.parameters(0, 1)
    def test_perfect_maps_give_their_boxes_back(self, seed):
        """Within half a step of the box head's scale, and half of 1/16 of a pixel."""
        random, stride = np.random.RandomState(seed), 8
        rows = [
            [(int(random.randint(2)), *np.r_[xy, xy + random.randint(128, 400, 2) / 16])]
            for xy in random.randint(0, 600, (40, 2)) / 16
        ]
        targets = targets_of(*rows, most=1)
        real = perfect_heads(targets, (8, 8, 2), stride)
        heads = {
            name: np.int8(np.clip(np.round(real[name] / self.SCALE[name]) + self.ZERO[name], -128, 127))
            for name in real
        }
        found = tasks.of(config_of()).decode(heads, self.SCALE, self.ZERO).reshape(40, -1, 6)
        np.testing.assert_array_equal(found[:, 0, 0], targets["classes"][:, 0])
        np.testing.assert_array_equal(found[:, 1:, 0], -1)
        expected = targets["boxes"][:, 0]
        np.testing.assert_allclose(found[:, 0, 2:] / 16, expected, atol=self.SCALE["box"] * stride / 2 + 1 / 32 + 1e-3)

    def test_real_and_integer_heads_find_the_same(self):
        random, config = np.random.RandomState(3), config_of(most=30, threshold=0.2)
        heads = dict(centre=np.int8(random.randint(-128, 128, (20, 6, 6, 2))))
        heads["box"] = np.int8(random.randint(-128, 0, (20, 6, 6, 4)))
        rows = tasks.of(config).decode(heads, self.SCALE, self.ZERO).reshape(20, -1, 6)
        real = {k: (heads[k].astype(np.float64) - self.ZERO[k]) * self.SCALE[k] for k in heads}
        found = peaks.find_real(real["centre"], real["box"], peaks.logit(0.2), config.detect)
        np.testing.assert_array_equal(rows[..., 0], found.classes)
        there = found.classes >= 0
        np.testing.assert_allclose(rows[there][:, 2:], found.boxes[there], atol=0.6)

    def test_of_equal_neighbours_the_first_wins(self):
        centre = np.full((1, 3, 4, 1), -50, np.int8)
        centre[0, 1, 1:3] = 90
        box = np.full((1, 3, 4, 4), -67, np.int8)  # 33 * 0.03 cells to each side
        found = tasks.of(config_of()).decode(dict(centre=centre, box=box), self.SCALE, self.ZERO).reshape(-1, 6)
        side = round(33 * 0.03 * 8 * 16)
        np.testing.assert_array_equal(found[0], [0, 90, 192 - side, 192 - side, 192 + side, 192 + side])
        np.testing.assert_array_equal(found[1:, 0], -1)

    def test_the_threshold_is_the_first_code_that_is_not_below_it(self):
        for probability in (0.1, 0.3, 0.5, 0.77):
            code = peaks.constants(self.SCALE, self.ZERO, config_of(threshold=probability).detect).threshold
            of = [1 / (1 + math.exp(-(q - 20) * 0.1)) for q in (code - 1, code)]
            self.assertLess(of[0], probability)
            self.assertGreaterEqual(of[1], probability - 1e-12)

    def test_a_scale_that_needs_more_than_32_bits(self):
        with self.assertRaisesRegex(UserError, "box head's scale 2 has no answer in 32 bits"):
            peaks.constants(dict(centre=0.1, box=2.0), self.ZERO, config_of().detect)


class ConfigTest(parameterized.TestCase):
    def dataset(self, targets, size=64, names=("face",)):
        split = data.Split(np.zeros((len(targets["classes"]), size, size, 1), np.uint8), targets)
        return data.Dataset("made up", split, split, split, names, split.images[:0])

    @parameterized.parameters(
        ("threshold", 0.0, "must be between 0 and 1"),
        ("overlap", 1.0, "must be between 0 and 1"),
        ("visible", 1.5, r"must be in \[0, 1\]"),
        ("stride", 0, "must be at least 1"),
        ("most", 0, "must be at least 1"),
        ("ignore_below", -1.0, "must be at least 0"),
        ("box_weight", -0.5, "must be at least 0"),
    )
    def test_wrong_fields(self, field, value, said):
        tasks.validate(config_of())
        with self.assertRaisesRegex(UserError, f"detect.{field}.*{said}"):
            tasks.validate(config_of(**{field: value}))

    def test_classes_of_the_data_are_the_outputs(self):
        targets = targets_of([(1, 0, 0, 16, 16)], [(IGNORED, 0, 0, 2, 2)])
        config = config_of()
        self.assertEqual(tasks.of(config).outputs(self.dataset(targets, names=("face", "hand")), config), 2)

    @parameterized.named_parameters(
        ("class", [(1, 0, 0, 16, 16)], {}, "other classes than 0 to 0"),
        ("empty", [(0, 8, 8, 8, 16)], {}, r"box 0 of image 0 is \[8.0, 8.0, 8.0, 16.0\]"),
        ("nan", [(0, 8, math.nan, 16, 16)], {}, "box 0 of image 0 is .*nan"),
        ("nothing", [], {}, "has no box to learn from"),
        ("size", [(0, 0, 0, 16, 16)], dict(size=60), "60x60 have no whole number of cells.*data.size = 56,56"),
    )
    def test_wrong_data(self, rows, fields, said):
        config = config_of()
        with self.assertRaisesRegex(UserError, said):
            tasks.of(config).outputs(self.dataset(targets_of(rows), **fields), config)

    def test_other_targets_and_networks(self):
        config, good = config_of(), targets_of([(0, 0, 0, 16, 16)])
        labels = data.Split(np.zeros((2, 64, 64, 1), np.uint8), np.zeros(2, np.int32))
        with self.assertRaisesRegex(UserError, "task detect needs boxes.*try classify"):
            tasks.of(config).outputs(data.Dataset("x", labels, labels, labels, ("a", "b"), labels.images), config)
        config.model = "resnet8"
        with self.assertRaisesRegex(UserError, "heads centre and box.*this has one array"):
            tasks.of(config).outputs(self.dataset(good), config)
        config = config_of(stride=16)
        with self.assertRaisesRegex(UserError, r"detector_small gives maps of \(8, 8, 1\).*set detect.stride"):
            tasks.of(config).outputs(self.dataset(good), config)


class DetectorTest(parameterized.TestCase):
    @parameterized.parameters(
        ("detector_small", (21_164, 3_435_264, 7_156_800)),
        ("detector", (54_564, 11_381_760, 23_712_000)),
        ("detector_sparse", (42_756, 6_225_408, 12_969_600)),
        ("detector_large", (217_300, 45_545_472, 94_886_400)),
    )
    def test_sizes_that_the_docstring_says(self, name, expected):
        model, macs = models.create(name, 1), []
        for shape in ((96, 96, 1), (120, 160, 1)):
            variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
            macs.append(sum(row["macs"] for row in layers.summary(model, variables, shape)[0]))
            int8_layers.require_int8(model, shape)
        linear = [layers.subtree(variables["params"], path) for path in quantize.linear_paths(model)]
        size = sum(math.prod(p["kernel"].shape) + 4 * p["bias"].size for p in linear)
        self.assertEqual((size, *macs), expected)
        lines = models.detector.__doc__.splitlines()
        row = next(line for line in lines if line.startswith((f"| {name} ", f"| {name},")))
        self.assertEqual([cell.strip() for cell in row.split("|")[3:6]], [f"{figure:,}" for figure in expected])

    def test_a_new_network_is_sure_of_nothing(self):
        model = models.create("detector_small", 2)
        images = jax.random.uniform(jax.random.key(1), (4, 96, 96, 1))
        outputs = jax.jit(model.init_with_output)(jax.random.key(0), images)[0]
        self.assertEqual({k: v.shape for k, v in outputs.items()}, dict(centre=(4, 12, 12, 2), box=(4, 12, 12, 4)))
        self.assertLess(abs(float(jax.nn.sigmoid(outputs["centre"]).mean()) - 0.01), 0.01)


class TrainTest(absltest.TestCase):
    DATA = """
        import numpy as np

        def load():
            random = np.random.RandomState(0)
            n, size = 640, 32
            images = random.randint(0, 90, (n, size, size)).astype(np.uint8)
            boxes, classes = np.zeros((n, 2, 4), np.float32), np.full((n, 2), -1, np.int32)
            for image, box, kind in zip(images, boxes, classes):
                for i in range(random.randint(0, 3)):
                    side = random.randint(7, 13)
                    x, y = random.randint(0, size // 2 - side // 2), random.randint(0, size - side)
                    x += i * size // 2 - (i * side) // 2  # the second on the other half
                    image[y : y + side, x : x + side] = random.randint(150, 256)
                    box[i], kind[i] = (x, y, x + side, y + side), 0
            return images, dict(boxes=boxes, classes=classes), ("square",)
    """

    def test_drawn_squares_are_found(self):
        folder = Path(self.create_tempdir().full_path)
        (folder / "squares.py").write_text(textwrap.dedent(self.DATA))
        config = config_of(ignore_below=5.0)
        config.model, config.data.name = "tiny_detector", f"{folder}/squares.py:load"
        config.batch_size, config.data.validation, config.eval_epochs = 32, 0.2, 20.0
        config.augment.flip, config.augment.translate, config.augment.noise = True, 0.1, 0.02
        config.dense.update(dict(epochs=0.0, steps=200, optimizer="adam", learning_rate=0.01, weight_decay=0.0))
        config.quantize.update(dict(epochs=0.0, steps=40, optimizer="adam", learning_rate=0.001))
        config.stages = ("dense", "quantize")
        tiny = functools.partial(Detector, widths=(8, 16, 24), depths=(0, 0, 1), dilations=(2,))
        self.enter_context(absltest.mock.patch.dict(models.MODELS, tiny_detector=tiny))
        found = train.train_and_evaluate(config, folder / "run", folder)["validation"]
        self.assertGreater(found["ap"], 0.7)
        self.assertEqual(found["score"], found["ap"])
        self.assertGreater(found["recall_0_1"], 0.6)
        self.from_the_run_to_its_report(config, folder)

    def from_the_run_to_its_report(self, config, folder):
        """What runs is what was trained: all bytes of both heads, and the boxes of the C."""
        run, dataset = folder / "run", data.load(config.data, folder)
        content = export.export(run, folder).read_bytes()
        scores = evaluate.evaluate(config, dataset, ["jax", "jax_int", "tflm"], run, content)
        self.assertGreater(scores["tflm"]["ap"], 0.65)
        self.assertEqual(scores["tflm"], scores["jax_int"])
        details = json.loads((run / "evaluation_details.json").read_text())
        (pair,) = (row for row in details["agreement"] if row["engines"] == ["jax_int", "tflm"])
        self.assertEqual((pair["predictions"], pair["bytes"]), (1.0, 1.0))
        self.assertIn("| tflm |", (api.report(run).parent / "summary.md").read_text())
        self.assertIn("Precision against recall", (run / "report.html").read_text())
        images = dataset.test.images[:8]
        made = codegen.generate(content, folder / "c", images, 8, task="detect", fields=config.detect)
        model = models.create(config.model, 1)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *images.shape[1:])))
        rows, _ = layers.summary(model, variables, images.shape[1:])
        self.assertEqual(made["macs"], sum(row["macs"] for row in rows))  # of a dilated convolution too
        found = boards.run(folder / "c", "host")
        self.assertEqual((found["equal"], found["answers_equal"]), (8, 8))


if __name__ == "__main__":
    absltest.main()

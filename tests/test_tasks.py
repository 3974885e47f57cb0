"""Tasks: figures worked out by hand, targets that follow moved pixels, fields that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sk

from atalaia import augment, data, losses, tasks
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.tasks import classify, regress

LABELS = np.array([0, 0, 1, 1, 2])
PREDICTED = np.array([0, 1, 1, 1, 0])
NAMES = ("cat", "dog", "cow")


def logits(predicted, classes=3):
    return np.eye(classes, dtype=np.float32)[predicted]


def dataset(targets, names=("a", "b")):
    split = data.Split(np.zeros((len(targets), 2, 2, 1), np.uint8), targets)
    return data.Dataset("made up", split, split, split, names, split.images[:0])


class ClassifyTest(absltest.TestCase):
    def test_accuracy_and_macro_f1(self):
        found = classify.metrics(logits(PREDICTED), LABELS)
        # F1 = 2 tp / (2 tp + fp + fn): 2 / 4, 4 / 5 and 0.
        self.assertAlmostEqual(found["f1_macro"], (0.5 + 0.8 + 0) / 3)
        self.assertAlmostEqual(found["accuracy"], 3 / 5)

    def test_metrics_are_scikit_learns(self):
        random = np.random.RandomState(1)
        for classes in (3, 7, 12):  # of which some are neither true nor answered
            labels, predicted = random.randint(0, 7, (2, 9))
            labels, predicted = labels % classes, predicted % classes
            found = classify.metrics(logits(predicted, classes), labels)
            self.assertAlmostEqual(found["f1_macro"], sk.f1_score(labels, predicted, average="macro", zero_division=0))
            self.assertAlmostEqual(found["accuracy"], sk.accuracy_score(labels, predicted))

    def test_all_right_and_all_wrong(self):
        self.assertEqual(classify.metrics(logits(LABELS), LABELS), dict(accuracy=1.0, f1_macro=1.0))
        self.assertEqual(classify.metrics(logits(LABELS), (LABELS + 1) % 3), dict(accuracy=0.0, f1_macro=0.0))

    def test_details_by_hand(self):
        found = classify.details(logits(PREDICTED), LABELS, NAMES)
        self.assertEqual([row["class"] for row in found], list(NAMES))
        figures = [[row[k] for k in ("precision", "recall", "F1", "images")] for row in found]
        np.testing.assert_allclose(figures, [[1 / 2, 1 / 2, 0.5, 2], [2 / 3, 1, 0.8, 2], [0, 0, 0, 1]])

    def test_a_class_without_images_has_a_row(self):
        found = classify.details(logits(PREDICTED, 4), LABELS, (*NAMES, "owl"))
        self.assertEqual(found[3], {"class": "owl", "precision": 0, "recall": 0, "F1": 0, "images": 0})

    def test_progress_counts_labelled_images_alone(self):
        correct, counted = classify.progress(jnp.float32(logits([0, 1, 2])), jnp.array([0, 2, -1]))["accuracy"]
        self.assertEqual((int(correct), int(counted)), (1, 2))

    def test_the_answer_is_the_first_of_the_largest(self):
        found = classify.decode(np.int8([[1, 5, 5], [-128, -128, -128]]), 0.1, 3)
        np.testing.assert_array_equal(found, [[1], [0]])
        self.assertEqual(found.dtype, np.int32)

    def test_numbers_are_refused(self):
        with self.assertRaisesRegex(UserError, "task classify needs a label an image.*try regress"):
            classify.outputs(dataset(np.zeros((4, 2), np.float32)), configs.base())

    def test_class_weights_count_images_of_a_class_more(self):
        config, given = configs.base(), jnp.float32([[0.0, 2.0], [1.0, 0.0]])
        labels, weights = jnp.array([0, 1]), jnp.float32([0.5, 1.5])
        each = [losses.cross_entropy(given[i : i + 1], labels[i : i + 1], config.loss) for i in (0, 1)]
        found = tasks.objective(config, weights).hard(given, labels)
        self.assertAlmostEqual(float(found), (0.5 * float(each[0]) + 1.5 * float(each[1])) / 2, places=6)


class OwnLossTest(absltest.TestCase):
    def test_one_number_is_needed(self):
        folder = self.create_tempdir()
        folder.create_file("own.py", "def each(outputs, targets):\n    return (outputs - targets) ** 2\n")
        config = configs.base()
        config.loss.name = f"{folder.full_path}/own.py:each"
        with self.assertRaisesRegex(UserError, r"own.py:each gives shape \(3,\): return one number"):
            jax.jit(tasks.objective(config).hard)(jnp.zeros(3), jnp.zeros(3))


class RegressTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.config = configs.base()
        self.config.task, self.config.loss.name = "regress", "mse"

    def test_losses_by_hand_skip_what_is_not_known(self):
        outputs, targets = jnp.float32([[1.0, 5.0], [2.0, 9.0]]), jnp.float32([[0.0, 2.0], [2.5, np.nan]])
        self.assertAlmostEqual(float(losses.mse(outputs, targets, self.config.loss)), (1 + 9 + 0.25) / 3, places=5)
        # Huber, delta 1: 1/2 * 1, 3 - 1/2, 1/2 * 0.25.
        found = float(losses.huber(outputs, targets, self.config.loss))
        self.assertAlmostEqual(found, (0.5 + 2.5 + 0.125) / 3, places=5)
        nothing = jnp.full((2, 2), jnp.nan)
        self.assertEqual(float(losses.mse(outputs, nothing, self.config.loss)), 0.0)
        gradient = jax.grad(lambda x: losses.mse(x, targets, self.config.loss))(outputs)
        np.testing.assert_allclose(gradient, [[2 / 3, 2.0], [-1 / 3, 0.0]], rtol=1e-5)

    def test_metrics_are_scikit_learns(self):
        random = np.random.RandomState(0)
        targets, outputs = random.randn(50, 3).astype(np.float32), random.randn(50, 3).astype(np.float32)
        found = regress.metrics(outputs, targets)
        self.assertAlmostEqual(found["r2"], sk.r2_score(targets, outputs), places=5)
        self.assertAlmostEqual(found["mae"], sk.mean_absolute_error(targets, outputs), places=5)
        rows = regress.details(outputs, targets, ("x", "y", "z"))
        expected = sk.r2_score(targets, outputs, multioutput="raw_values")
        np.testing.assert_allclose([row["R2"] for row in rows], expected, rtol=1e-4)

    def test_a_number_that_never_varies_explains_nothing(self):
        self.assertEqual(regress.metrics(np.float32([[1], [2]]), np.float32([[1], [1]]))["r2"], 0.0)

    def test_answers_are_in_parts_of_65536(self):
        found = regress.decode(np.int8([[-128, 0, 127]]), 0.25, -1)
        np.testing.assert_array_equal(found, [[-127 * 16384, 16384, 128 * 16384]])
        self.assertEqual(found.dtype, np.int32)

    def test_numbers_stay_where_pixels_move(self):
        _, moves = augment.flip(jax.random.key(0), jnp.zeros((8, 4, 6, 1)))
        targets = jnp.arange(16.0).reshape(8, 2)
        self.assertIs(regress.move(targets, moves, (4, 6), self.config), targets)

    @parameterized.parameters(30.0, -75.0, 160.0)
    def test_a_direction_turns_with_the_picture(self, degrees):
        self.config.regress.kind = "direction"
        images, angle = jnp.zeros((2, 5, 7, 1)), np.deg2rad(20.0)
        with absltest.mock.patch.object(jax.random, "uniform", return_value=jnp.full((2,), degrees)):
            _, moves = augment.rotate(jax.random.key(0), images, 180.0)
        targets = jnp.float32([[np.cos(angle), np.sin(angle)]] * 2)
        found = regress.move(targets, moves, (5, 7), self.config)
        turned = angle + np.deg2rad(degrees)
        np.testing.assert_allclose(found, [[np.cos(turned), np.sin(turned)]] * 2, atol=1e-5)

    def test_a_mirrored_direction_points_to_the_other_side(self):
        self.config.regress.kind = "direction"
        moves = jnp.float32([[[-1, 0, 6], [0, 1, 0]]])
        found = regress.move(jnp.float32([[0.6, 0.8]]), moves, (5, 7), self.config)
        np.testing.assert_allclose(found, [[-0.6, 0.8]], atol=1e-6)

    def test_a_point_moves_with_its_pixel(self):
        self.config.regress.kind = "point"
        flipped = jnp.float32([[[-1, 0, 9], [0, 1, 0]]])  # 10 pixels wide
        found = regress.move(jnp.float32([[0.2, 0.75]]), flipped, (4, 10), self.config)
        np.testing.assert_allclose(found, [[0.8, 0.75]], atol=1e-6)
        shifted = jnp.float32([[[1, 0, 2], [0, 1, -1]]])
        found = regress.move(jnp.float32([[0.2, 0.75]]), shifted, (4, 10), self.config)
        np.testing.assert_allclose(found, [[0.4, 0.5]], atol=1e-6)

    def test_wrong_data_and_fields_are_named(self):
        numbers = dataset(np.zeros((4, 3), np.float32))
        self.assertEqual(regress.outputs(numbers, self.config), 3)
        self.config.regress.kind = "point"
        with self.assertRaisesRegex(UserError, "pairs.*3 numbers"):
            regress.outputs(numbers, self.config)
        with self.assertRaisesRegex(UserError, "task regress needs numbers.*try classify"):
            regress.outputs(dataset(np.zeros(4, np.int32)), self.config)
        for field, value, said in (
            ("task", "detct", "task: there is no 'detct', only classify"),
            ("loss.name", "cross_entropy", "loss.name: of task regress: there is no 'cross_entropy', only huber, mse"),
            ("regress.kind", "angle", "regress.kind: there is no 'angle', only direction, numbers, point"),
            ("loss.huber_delta", 0.0, "loss.huber_delta must be above 0"),
            ("loss.label_smoothing", 0.1, "loss.label_smoothing is for classes"),
        ):
            config = self.config.copy_and_resolve_references()
            config.regress.kind = "numbers"
            config.update_from_flattened_dict({field: value})
            with self.subTest(field), self.assertRaisesRegex(UserError, said):
                tasks.validate(config)

    def test_a_teacher_needs_a_soft_loss_of_the_task(self):
        self.config.stages = ("prune",)
        self.config.prune.teacher = "self"
        with self.assertRaisesRegex(UserError, "distillation.loss: of task regress: there is no 'kd', only mse"):
            tasks.validate(self.config)
        self.config.distillation.loss = "mse"
        soft = tasks.objective(self.config).soft
        self.assertAlmostEqual(float(soft(jnp.float32([[1, 2]]), jnp.float32([[0, 4]]), None)), (1 + 4) / 2)
        gradients = jax.grad(soft, (0, 1))(jnp.float32([[1, 2]]), jnp.float32([[0, 4]]), None)
        np.testing.assert_array_equal(gradients[1], [[0, 0]])


class AbsentTest(absltest.TestCase):
    def test_images_without_target_do_not_count(self):
        for name, targets, outputs in (
            ("classify", np.array([1, 0], np.int32), logits([0, 0, 1, 1], 2)),
            ("regress", np.float32([[1, 2], [3, 4]]), np.float32(np.arange(8).reshape(4, 2))),
        ):
            config = configs.base()
            config.task, config.loss.name = name, next(iter(tasks.TASKS[name].LOSSES))
            both = np.concatenate([targets, tasks.of(config).absent(targets, 2)])
            hard = tasks.objective(config).hard
            self.assertEqual(float(hard(outputs, both)), float(hard(outputs[:2], targets)), name)


if __name__ == "__main__":
    absltest.main()

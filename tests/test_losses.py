"""Losses against float64 NumPy: values, gradients and extreme logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from atalaia import losses
from atalaia.tasks import classify

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
LABELS = np.array([0, 2])


def _loss(logits, labels, label_smoothing):
    config = ConfigDict({"label_smoothing": label_smoothing})
    return losses.cross_entropy(jnp.float32(logits), jnp.int32(labels), config)


def _targets(smoothing):
    """By hand for three classes: the label's 1 - s + s/3, the others' s/3."""
    return np.array(
        [[1 - smoothing + smoothing / 3 if i == label else smoothing / 3 for i in range(3)] for label in LABELS]
    )


def _softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum(1, keepdims=True)


class CrossEntropyTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 0.1, 0.3)
    def test_value(self, smoothing):
        expected = np.mean(np.sum(-_targets(smoothing) * np.log(_softmax(LOGITS)), 1))
        np.testing.assert_allclose(_loss(LOGITS, LABELS, smoothing), expected, rtol=1e-6)

    def test_equal_logits_cost_log_n_whatever_the_smoothing(self):
        for smoothing in (0.0, 0.5):
            np.testing.assert_allclose(_loss(np.full((4, 10), 7.0), [0, 3, 6, 9], smoothing), np.log(10), rtol=1e-6)

    @parameterized.parameters(0.0, 0.1)
    def test_gradient_is_softmax_less_target(self, smoothing):
        gradient = jax.grad(_loss)(jnp.float32(LOGITS), LABELS, smoothing)
        np.testing.assert_allclose(gradient, (_softmax(LOGITS) - _targets(smoothing)) / 2, atol=1e-7)

    @parameterized.parameters((0, 0.0), (1, 2e30))
    def test_extreme_logits_stay_finite(self, label, expected):
        value, gradient = jax.value_and_grad(_loss)(jnp.float32([[1e30, -1e30]]), [label], 0.0)
        np.testing.assert_allclose(value, expected)
        np.testing.assert_array_equal(gradient, [[1 - (label == 0), -(label == 1)]])


STUDENT = np.array([[1.0, 0.0, -2.0, 0.5], [0.3, -0.4, 2.0, 0.1], [0.0, 0.2, -0.7, 3.0]])
TEACHER = np.array([[2.5, 0.5, -1.0, 0.0], [0.0, 1.5, 1.0, -2.0], [-1.0, 0.0, 0.4, 2.0]])
CLASSES = np.array([0, 1, 3])


def _kl(p, q):
    return np.sum(p * np.log(p / q), -1)


def _kd(student, teacher, temperature):
    return temperature**2 * _kl(_softmax(teacher / temperature), _softmax(student / temperature))


def _dkd(student, teacher, labels, temperature, alpha, beta):
    """The definition, image by image: the label against the rest, and the rest among themselves."""
    losses = []
    for s, t, label in zip(student / temperature, teacher / temperature, labels, strict=True):
        s, t = _softmax(s[None])[0], _softmax(t[None])[0]
        binary = [np.array([p[label], 1 - p[label]]) for p in (t, s)]
        others = [np.delete(p, label) / (1 - p[label]) for p in (t, s)]
        losses.append(temperature**2 * (alpha * _kl(*binary) + beta * _kl(*others)))
    return np.array(losses)


def _soft(name, temperature=3.0, alpha=0.7, beta=2.0):
    """A loss of the registry as a function of (student, teacher, labels)."""
    config = ConfigDict({"temperature": temperature, "dkd_alpha": alpha, "dkd_beta": beta})
    return functools.partial(classify.SOFT_LOSSES[name], config=config)


def _call(function, student=STUDENT, teacher=TEACHER, labels=CLASSES):
    return function(jnp.float32(student), jnp.float32(teacher), jnp.int32(labels))


class UnlabelledTest(absltest.TestCase):
    def test_images_without_a_label_count_for_nothing(self):
        logits, labels = np.concatenate([LOGITS, 9 * LOGITS]), np.concatenate([LABELS, [-1, -1]])
        value, gradient = jax.value_and_grad(_loss)(jnp.float32(logits), labels, 0.1)
        np.testing.assert_allclose(value, _loss(LOGITS, LABELS, 0.1), rtol=1e-6)
        np.testing.assert_array_equal(gradient[2:], 0)
        np.testing.assert_allclose(gradient[:2], jax.grad(_loss)(jnp.float32(LOGITS), LABELS, 0.1), rtol=1e-6)

    def test_none_labelled(self):
        value, gradient = jax.value_and_grad(_loss)(jnp.float32(LOGITS), np.array([-1, -1]), 0.1)
        self.assertEqual(value, 0)
        np.testing.assert_array_equal(gradient, 0)


class SoftLossTest(parameterized.TestCase):
    def test_kd_by_hand(self):
        """Logits T ln 3 and 0 are 3/4 and 1/4; against halves KL is 3/4 ln 3/2 + 1/4 ln 1/2."""
        value = losses.kd(jnp.zeros((1, 2)), jnp.array([[2 * np.log(3), 0.0]]), 2.0)
        np.testing.assert_allclose(value, [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))], rtol=1e-6)

    def test_dkd_by_hand(self):
        """Teacher 1/2, 3/8, 1/8, student thirds: KL((1/2, 1/2), (1/3, 2/3)) and KL((3/4, 1/4), (1/2, 1/2))."""
        teacher = jnp.log(jnp.array([[0.5, 0.375, 0.125]]))
        tckd = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)
        nckd = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
        value = losses.dkd(jnp.zeros((1, 3)), teacher, jnp.array([0]), 1.0, 10.0, 3.0)
        np.testing.assert_allclose(value, [10 * tckd + 3 * nckd], rtol=1e-5)

    @parameterized.parameters(0.5, 1.0, 4.0, 20.0)
    def test_against_float64(self, temperature):
        def standard(logits):
            return (logits - logits.mean(-1, keepdims=True)) / logits.std(-1, keepdims=True)

        expected = {
            "kd": _kd(STUDENT, TEACHER, temperature),
            "standardised_kd": _kd(standard(STUDENT), standard(TEACHER), temperature),
            "dkd": _dkd(STUDENT, TEACHER, CLASSES, temperature, 0.7, 2.0),
        }
        self.assertEqual(set(expected), set(classify.SOFT_LOSSES))
        for name, values in expected.items():
            found = jax.jit(functools.partial(_call, _soft(name, temperature)))()
            np.testing.assert_allclose(found, values, rtol=2e-4, atol=1e-5, err_msg=name)

    @parameterized.parameters(1.0, 5.0)
    def test_gradient_of_kd_is_t_times_the_difference_of_probabilities(self, temperature):
        gradient = jax.grad(lambda s: losses.kd(s, jnp.float32(TEACHER), temperature).sum())(jnp.float32(STUDENT))
        expected = temperature * (_softmax(STUDENT / temperature) - _softmax(TEACHER / temperature))
        np.testing.assert_allclose(gradient, expected, atol=1e-6)

    @parameterized.parameters(*classify.SOFT_LOSSES)
    def test_gradients_are_finite_differences_and_none_reaches_the_teacher(self, name):
        function = _soft(name)
        # In float64, a labelled and an unlabelled image among them; in float32 the differences would be noise.
        with jax.enable_x64(True):
            labels = np.array([0, -1, 3])

            def total(student, teacher):
                return function(student, teacher, labels).sum()

            student, teacher = jax.grad(total, (0, 1))(jnp.array(STUDENT), jnp.array(TEACHER))
            for at in np.ndindex(STUDENT.shape):
                nudge = np.zeros(STUDENT.shape)
                nudge[at] = 1e-5
                slope = (total(STUDENT + nudge, TEACHER) - total(STUDENT - nudge, TEACHER)) / 2e-5
                np.testing.assert_allclose(student[at], slope, rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(teacher, 0)

    @parameterized.parameters(*classify.SOFT_LOSSES)
    def test_equal_logits_cost_nothing(self, name):
        value, gradient = jax.value_and_grad(lambda s: _call(_soft(name), s, TEACHER).sum())(jnp.float32(TEACHER))
        np.testing.assert_allclose(value, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)

    def test_a_large_temperature_leaves_half_the_squared_distance_of_centred_logits(self):
        """Hinton et al., 2015, equation 4."""
        centred = [x - x.mean(-1, keepdims=True) for x in (STUDENT, TEACHER)]
        expected = np.square(centred[0] - centred[1]).sum(-1) / (2 * STUDENT.shape[-1])
        with jax.enable_x64(True):
            found = losses.kd(jnp.array(STUDENT), jnp.array(TEACHER), 1e4)
        np.testing.assert_allclose(found, expected, rtol=1e-3)

    def test_standardised_logits_have_neither_offset_nor_scale(self):
        expected = _call(_soft("standardised_kd"))
        found = _call(_soft("standardised_kd"), 5 * STUDENT - 3, 0.1 * TEACHER + 7)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        self.assertGreater(np.abs(_call(_soft("kd"), 5 * STUDENT - 3) / _call(_soft("kd")) - 1).min(), 0.1)

    def test_standardised_rows(self):
        rows = losses.standardise(jnp.float32(STUDENT))
        np.testing.assert_allclose(rows.mean(-1), 0, atol=1e-6)
        np.testing.assert_allclose(jnp.square(rows).mean(-1), 1, rtol=1e-5)

    def test_kd_is_dkd_with_the_parts_coupled(self):
        """Equation 6 of the paper: beta = 1 - the teacher's probability of the label."""
        temperature = 2.0
        sure = _softmax(TEACHER / temperature)[np.arange(3), CLASSES]
        student, teacher, labels = jnp.float32(STUDENT), jnp.float32(TEACHER), jnp.int32(CLASSES)
        found = losses.dkd(student, teacher, labels, temperature, 1.0, jnp.float32(1 - sure))
        np.testing.assert_allclose(found, losses.kd(student, teacher, temperature), rtol=1e-4)

    @parameterized.parameters(*classify.SOFT_LOSSES)
    def test_a_sure_teacher_has_finite_gradients(self, name):
        """exp(20 / 0.2) is more than float32 holds."""
        config = ConfigDict({"temperature": 0.2, "dkd_alpha": 1.0, "dkd_beta": 8.0})
        teacher, labels = jnp.array([[20.0, 0.0, 1.0]]), jnp.array([0])
        for student in (jnp.array([[20.0, 0.5, 1.0]]), jnp.array([[-20.0, 0.5, 1.0]])):
            of = jax.grad(lambda x: classify.SOFT_LOSSES[name](x, teacher, labels, config).sum())
            self.assertTrue(np.isfinite(of(student)).all(), student)

    @parameterized.parameters(*classify.SOFT_LOSSES)
    def test_without_a_label(self, name):
        """Only dkd looks at labels; where there is none it is kd."""
        found = _call(_soft(name), labels=[0, -1, -1])
        same = {"dkd": "kd"}.get(name, name)
        np.testing.assert_allclose(found[1:], _call(_soft(same))[1:], rtol=1e-6)
        np.testing.assert_allclose(found[0], _call(_soft(name))[0], rtol=1e-6)

    @parameterized.product(name=list(classify.SOFT_LOSSES), label=[0, 1, -1])
    def test_extreme_logits_stay_finite(self, name, label):
        for student in ([[1e4, -1e4, 0.0]], [[0.0, 0.0, 0.0]]):
            value, gradient = jax.value_and_grad(
                lambda s: _call(_soft(name, 1.0), s, [[-1e4, 1e4, 1e4]], [label]).sum()
            )(jnp.float32(student))
            self.assertTrue(np.isfinite(value) and np.isfinite(gradient).all(), f"{value} {gradient}")


if __name__ == "__main__":
    absltest.main()

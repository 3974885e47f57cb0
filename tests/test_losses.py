"""Losses against float64 NumPy: values, gradients and extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from atalaia import losses

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


if __name__ == "__main__":
    absltest.main()

"""atalaia.mixing, and the loss of a training step with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from small_net import Linear
from test_train import small_config

from atalaia import config as configs
from atalaia import data, losses, mixing, plan, step
from atalaia.errors import UserError

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 6, 8, 1)), jnp.float32)


def fields(**given):
    config = configs.base()
    config.mix.update(given)
    return config


class ImagesTest(parameterized.TestCase):
    def test_mixup_by_hand(self):
        found, part = mixing.mixup(IMAGES, 0.75)
        np.testing.assert_allclose(found[0], 0.75 * IMAGES[0] + 0.25 * IMAGES[3], rtol=1e-6)
        self.assertEqual(part, 0.75)

    @parameterized.parameters(0.0, 0.3, 0.9, 1.0)
    def test_cutmix_puts_a_box_of_the_partner_and_says_how_much_is_left(self, part):
        for seed in range(5):
            found, left = mixing.cutmix(jax.random.key(seed), IMAGES, part)
            own, other = np.array(found == IMAGES), np.array(found == IMAGES[::-1])
            self.assertTrue((own | other).all())
            self.assertAlmostEqual(own.mean(), float(left), places=6)
            self.assertGreaterEqual(left, part - 0.1)  # a box at the border is smaller, never larger, but for rounding
            rows, columns = ~own[0, :, :, 0].all(1), ~own[0, :, :, 0].all(0)
            self.assertTrue((~own[0, :, :, 0] == rows[:, None] & columns[None]).all())  # a box

    @parameterized.parameters("mixup", "cutmix")
    def test_it_grows_from_none(self, name):
        mix = mixing.make(fields(**{name: 1.0}, ramp=0.5).mix, 100, 300)
        parts = [[float(mix(jax.random.key(seed), at, IMAGES)[1]) for seed in range(40)] for at in (100, 150, 200, 290)]
        self.assertEqual(set(parts[0]), {1.0})
        np.testing.assert_array_equal(mix(jax.random.key(0), 100, IMAGES)[0], IMAGES)
        self.assertEqual(parts[2], parts[3])
        self.assertLess(np.mean(parts[2]), np.mean(parts[1]))
        if name == "mixup":
            np.testing.assert_allclose(np.array(parts[1]), 1 - 0.5 * (1 - np.array(parts[2])), rtol=1e-6)
            self.assertBetween(np.mean(parts[2]), 0.35, 0.65)  # Beta(1, 1) is even


class StepTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.config = small_config(**{"mix.mixup": 1.0, "dense.learning_rate": 0.0, "dense.weight_decay": 0.0})
        self.config.stages, self.config.batch_size, self.config.augment = ("dense",), 4, configs.base().augment
        pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1)).astype(np.uint8)
        self.split = data.Split(pixels, np.array([1, 2, 3, 1]))
        self.model = Linear(outputs=10)

    def loss(self, teacher=None, guide=None):
        """The loss of the first step, and what it was to be made of: logits, part, images."""
        state = step.init_state(self.config, self.model, (8, 8, 1))
        (stage,) = plan.make_plan(self.config, 4)
        optimizer = step.make_optimizer(self.config, stage, state.params)
        state = state._replace(opt_state=optimizer.init(state.params))
        mix, forward = mixing.make(self.config.mix, 0, 10), step.make_forward(self.config, self.model, stage)
        images, part = mix(step.key_of(state.key, "mix", 0), 0, data.to_float(self.split.images))
        logits, _ = forward(step.variables_of(state), images, step.key_of(state.key, "dropout", 0))
        run = step.make_step(self.config, forward, optimizer, teacher, mix=mix)
        more = () if guide is None else (guide,)
        _, figures = run(state, jax.tree.map(jnp.asarray, self.split), jnp.arange(4), 0, *more)
        return float(figures["loss"]), logits, float(part), images

    def test_both_labels_count_by_their_parts(self):
        found, logits, part, _ = self.loss()
        soft = part * jax.nn.one_hot(self.split.targets, 10) + (1 - part) * jax.nn.one_hot(self.split.targets[::-1], 10)
        self.assertAlmostEqual(found, float(optax.softmax_cross_entropy(logits, soft).mean()), places=5)
        self.assertBetween(part, 0.01, 0.99)

    def test_a_teacher_sees_the_mixed_images_and_kept_answers_are_mixed(self):
        self.config.distillation.alpha = 0.0
        temperature = self.config.distillation.temperature

        def teacher(variables, images):
            return images.reshape(len(images), -1)[:, :10] * variables

        found, logits, _, images = self.loss(teacher, dict(variables=jnp.float32(2.0)))
        expected = losses.kd(logits, teacher(2.0, images), temperature).mean()
        self.assertAlmostEqual(found, float(expected), places=4)
        kept = jnp.asarray(np.random.default_rng(2).normal(size=(4, 10)), jnp.float32)
        found, logits, part, _ = self.loss(teacher, dict(outputs=kept, view=0))
        each = [losses.kd(logits, answers, temperature).mean() for answers in (kept, kept[::-1])]
        self.assertAlmostEqual(found, float(part * each[0] + (1 - part) * each[1]), places=4)


class ValidateTest(absltest.TestCase):
    def test_what_cannot_be_is_refused(self):
        for given, said in (
            (dict(mixup=-1.0), "mix.mixup must be at least 0"),
            (dict(mixup=1.0, cutmix=1.0), "give one of them"),
            (dict(ramp=2.0), "mix.ramp is a part of the stage"),
        ):
            with self.subTest(said), self.assertRaisesRegex(UserError, said):
                configs.validate(fields(**given))
        config = fields(cutmix=1.0)
        config.task = "detect"
        with self.assertRaisesRegex(UserError, "task detect cannot mix images"):
            mixing.validate(config)


if __name__ == "__main__":
    absltest.main()

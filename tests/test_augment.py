"""Augmentations by values worked out by hand, and by what must never change."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from atalaia import augment
from atalaia.errors import UserError

OFF = {name: 0.0 for name, _ in augment.OPERATIONS} | {"flip": False, "pad_crop": 0, "cutout": 0}
ALL = {"flip": True, "pad_crop": 2, "cutout": 3, "brightness": 0.3, "contrast": 0.5, "noise": 0.1, "rotate": 20.0}
ALL |= {"scale": 0.2, "translate": 0.1, "blur": 1.0, "grey": 1.0, "gamma": 0.5}

MOVING = ("flip", "pad_crop", "rotate", "scale", "translate")


def _images(batch=64, height=6, width=8):
    return jax.random.uniform(jax.random.key(7), (batch, height, width, 3), minval=0.1)


def _jitted(**fields):
    return jax.jit(lambda key, images: augment.augment(key, images, ConfigDict(OFF | fields))[0])


class AugmentTest(parameterized.TestCase):
    def test_flip_mirrors_about_half(self):
        images = np.asarray(_images(400))
        out = np.asarray(augment.flip(jax.random.key(0), images)[0])
        mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
        np.testing.assert_array_equal(mirrored, ~(out == images).all((1, 2, 3)))
        self.assertBetween(mirrored.sum(), 150, 250)

    def test_pad_crop_is_one_of_all_shifts(self):
        images = np.asarray(_images(200, 4, 5))
        out = np.asarray(augment.pad_crop(jax.random.key(0), images, 1)[0])
        padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = np.stack([padded[:, y : y + 4, x : x + 5] for y in range(3) for x in range(3)])
        equal = (shifts == out).all((2, 3, 4))
        np.testing.assert_array_equal(equal.sum(0), 1)  # exact, and never two shifts at once
        self.assertTrue(equal.any(1).all())  # each of the nine appears

    def test_pad_crop_by_hand(self):
        shapes = {
            tuple(np.asarray(augment.pad_crop(jax.random.key(seed), jnp.array([[[[0.25], [0.5]]]]), 1)[0]).ravel())
            for seed in range(60)
        }
        self.assertEqual(shapes, {(0.25, 0.5), (0.0, 0.25), (0.5, 0.0), (0.0, 0.0)})  # the last: moved up or down

    @parameterized.parameters(1, 2, 3)
    def test_cutout_blackens_a_square_cut_off_at_the_border(self, size):
        images = np.asarray(_images(300))
        black = np.asarray(augment.cutout(jax.random.key(0), images, size)) == 0
        np.testing.assert_array_equal(black.all(-1), black.any(-1))  # all channels alike
        rows, columns = black[..., 0].any(2), black[..., 0].any(1)
        np.testing.assert_array_equal(black[..., 0], rows[:, :, None] & columns[:, None])
        for side in (rows, columns):
            self.assertTrue((np.abs(np.diff(side, axis=1)).sum(1) <= 2).all())  # in one piece
            self.assertEqual(side.sum(1).max(), size)
            self.assertGreaterEqual(side.sum(1).min(), (size + 1) // 2)  # the chosen pixel's side at the least
        self.assertTrue(black[..., 0].any(0).all())  # every pixel is reached

    def test_brightness_adds_one_number_an_image(self):
        images = jnp.full((100, 2, 2, 3), 0.5)
        out = np.asarray(augment.brightness(jax.random.key(0), images, 0.2))
        self.assertLess(np.ptp(out, axis=(1, 2, 3)).max(), 1e-6)
        self.assertBetween(out.min(), 0.3, 0.35)
        self.assertBetween(out.max(), 0.65, 0.7)

    def test_contrast_keeps_the_mean_and_scales_what_differs(self):
        images = jnp.tile(jnp.array([0.4, 0.6]).reshape(1, 1, 2, 1), (100, 2, 1, 3))
        out = np.asarray(augment.contrast(jax.random.key(0), images, 0.5))
        np.testing.assert_allclose(out.mean((1, 2, 3)), 0.5, atol=1e-6)
        factors = np.ptp(out, axis=(1, 2, 3)) / 0.2
        self.assertBetween(factors.min(), 0.5, 0.6)
        self.assertBetween(factors.max(), 1.4, 1.5)

    def test_noise_has_its_standard_deviation(self):
        out = np.asarray(augment.noise(jax.random.key(0), jnp.full((10, 32, 32, 3), 0.5), 0.1))
        self.assertAlmostEqual(out.mean(), 0.5, delta=0.003)
        self.assertAlmostEqual(out.std(), 0.1, delta=0.003)

    def test_all_together(self):
        images, run = _images(), _jitted(**ALL)
        out = run(jax.random.key(0), images)
        self.assertEqual((out.shape, out.dtype), (images.shape, jnp.float32))
        self.assertTrue(((out >= 0) & (out <= 1)).all())
        np.testing.assert_array_equal(out, run(jax.random.key(0), images))
        self.assertFalse((out == run(jax.random.key(1), images)).all())

    def test_off_changes_nothing(self):
        images = _images()
        found, moves = augment.augment(jax.random.key(0), images, ConfigDict(OFF))
        self.assertIs(found, images)
        np.testing.assert_array_equal(moves, np.tile([[1, 0, 0], [0, 1, 0]], (len(images), 1, 1)))

    def test_one_operation_does_not_move_the_draws_of_another(self):
        key, images = jax.random.key(3), _images()
        alone = _jitted(pad_crop=2)(key, images)
        with_brightness = _jitted(pad_crop=2, brightness=1e-7)(key, images)
        np.testing.assert_allclose(with_brightness, alone, atol=1e-6)
        behind_flip = _jitted(flip=True, pad_crop=2)(key, images)
        flipped, _ = augment.flip(jax.random.fold_in(key, 0), images)
        np.testing.assert_array_equal(behind_flip, augment.pad_crop(jax.random.fold_in(key, 1), flipped, 2)[0])

    def test_rotate_by_a_right_angle_is_a_permutation_of_the_pixels(self):
        images = _images(4, 5, 5)
        with absltest.mock.patch.object(jax.random, "uniform", return_value=jnp.full((4,), 90.0)):
            out, moves = augment.rotate(jax.random.key(0), images, 90.0)
        np.testing.assert_allclose(out, np.rot90(images, 1, (1, 2)), atol=1e-5)  # counter-clockwise as it is seen
        # The point right of the middle, (4, 2), goes to the one above it, (2, 0).
        np.testing.assert_allclose(augment.move_points(jnp.array([[[4.0, 2.0]]] * 4), moves), [[[2, 0]]] * 4, atol=1e-5)

    @parameterized.parameters(1.3, 0.8)
    def test_scale_keeps_a_ramp_a_ramp(self, factor):
        """A pixel of the new image has the value that the old one has at its place: a ramp is exact by linear steps."""
        images = jnp.tile(jnp.arange(20.0)[None, None, :, None] / 20, (3, 10, 1, 1))
        draws = [jnp.full(3, np.log(factor)), jnp.tile(jnp.float32([0.3, 0.6]), (3, 1))]
        with absltest.mock.patch.object(jax.random, "uniform", side_effect=draws):
            out, moves = augment.scale(jax.random.key(0), images, 0.5)
        np.testing.assert_allclose(moves[:, [0, 1], [0, 1]], factor, rtol=1e-6)
        corners = augment.move_points(jnp.float32([[[-0.5, -0.5], [19.5, 9.5]]] * 3), moves) + 0.5
        expected = [[0.6 * 20 * (1 - factor), 0.3 * 10 * (1 - factor)]] * 3
        np.testing.assert_allclose(corners[:, 0], expected, atol=1e-5)
        x = (np.arange(20) - np.asarray(moves)[0, 0, 2]) / factor  # where each new column was
        y = (np.arange(10) - np.asarray(moves)[0, 1, 2]) / factor
        within = (x > 1) & (x < 18)
        for row in np.asarray(out)[0, (y > 0) & (y < 9), :, 0]:
            np.testing.assert_allclose(row[within], x[within] / 20, atol=0.003)
        np.testing.assert_array_equal(np.asarray(out)[0][:, (x < -0.5) | (x > 19.5)], 0)  # black outside

    def test_scale_draws_both_ways_and_covers_or_lies_within(self):
        _, moves = augment.scale(jax.random.key(0), _images(300, 10, 20), 0.5)
        factor = np.asarray(moves)[:, 0, 0]
        self.assertBetween(factor.min(), 1 / 1.5, 0.7)
        self.assertBetween(factor.max(), 1.45, 1.5)
        corners = augment.move_points(jnp.float32([[[-0.5, -0.5], [19.5, 9.5]]] * 300), moves) + 0.5
        low, high = np.asarray(corners)[:, 0], np.asarray(corners)[:, 1] - [20, 10]
        larger = factor[:, None] > 1
        self.assertTrue((np.where(larger, low, -low) <= 1e-4).all())
        self.assertTrue((np.where(larger, high, -high) >= -1e-4).all())

    def test_translate_moves_whole_pixels(self):
        images = np.asarray(_images(200, 10, 20))
        out, moves = (np.asarray(x) for x in augment.translate(jax.random.key(0), images, 0.1))
        across, down = moves[:, 0, 2], moves[:, 1, 2]
        self.assertEqual((set(across), set(down)), ({-2, -1, 0, 1, 2}, {-1, 0, 1}))
        padded = np.pad(images, ((0, 0), (1, 1), (2, 2), (0, 0)))
        for i, (x, y) in enumerate(np.int32(moves[:, :, 2])):
            np.testing.assert_array_equal(out[i], padded[i, 1 - y : 11 - y, 2 - x : 22 - x])

    def test_blur_is_a_gaussian(self):
        image = np.zeros((1, 15, 15, 1), np.float32)
        image[0, 7, 7] = 1
        with absltest.mock.patch.object(jax.random, "uniform", return_value=jnp.full((1, 1, 1, 1), 1.5)):
            out = np.asarray(augment.blur(jax.random.key(0), image, 2.0))[0, :, :, 0]
        line = np.where(np.abs(np.arange(-7, 8)) <= 4, np.exp(-(np.arange(-7, 8) ** 2) / (2 * 1.5**2)), 0)
        np.testing.assert_allclose(out, np.outer(line, line) / line.sum() ** 2, atol=1e-6)
        flat = augment.blur(jax.random.key(0), jnp.full((5, 6, 7, 3), 0.25), 2.0)
        np.testing.assert_allclose(flat, 0.25, rtol=1e-6)  # at the borders too

    def test_grey_keeps_the_luminance(self):
        images, weights = np.asarray(_images(50)), [0.299, 0.587, 0.114]
        out = np.asarray(augment.grey(jax.random.key(0), images, 1.0))
        np.testing.assert_allclose(out @ weights, images @ weights, atol=1e-5)
        left = np.ptp(out, -1).mean((1, 2)) / np.ptp(images, -1).mean((1, 2))
        self.assertBetween(left.min(), 0, 0.1)
        self.assertBetween(left.max(), 0.9, 1)
        self.assertIs(augment.grey(jax.random.key(0), images[..., :1], 1.0).base, images[..., :1].base)

    def test_gamma_keeps_black_and_white(self):
        images = jnp.tile(jnp.float32([0, 0.5, 1])[None, None, :, None], (200, 1, 1, 1))
        out = np.asarray(augment.gamma(jax.random.key(0), images, 1.0))[:, 0, :, 0]
        np.testing.assert_array_equal(out[:, [0, 2]], np.tile([0, 1], (200, 1)))
        self.assertBetween(out[:, 1].min(), 0.25, 0.27)  # squared
        self.assertBetween(out[:, 1].max(), 0.69, 0.7072)  # the square root

    @parameterized.parameters(
        dict(flip=True),
        dict(pad_crop=2),
        dict(rotate=40.0),
        dict(scale=0.4),
        dict(translate=0.2),
        ALL | dict(noise=0.0, cutout=0),
    )
    def test_moves_say_where_a_bright_pixel_went(self, **fields):
        images = np.zeros((64, 21, 25, 1), np.float32)
        places = np.random.RandomState(0).randint(8, 12, (64, 2))  # x, y: far from the border
        for image, (x, y) in zip(images, places, strict=True):
            image[y - 1 : y + 2, x - 1 : x + 2] = 0.5  # wide enough to be found between pixels
        moving = OFF | {k: v for k, v in fields.items() if k in MOVING}
        out, moves = augment.augment(jax.random.key(1), images, ConfigDict(moving))
        weights = np.asarray(out[..., 0]) / np.asarray(out[..., 0]).sum((1, 2), keepdims=True)
        x, y = (weights * np.arange(25)).sum((1, 2)), (weights * np.arange(21)[:, None]).sum((1, 2))
        found = augment.move_points(jnp.float32(places)[:, None], moves)[:, 0]
        np.testing.assert_allclose(np.stack([x, y], 1), found, atol=0.1)

    def test_negative_field(self):
        with self.assertRaisesRegex(UserError, "pad_crop = -1"):
            augment.augment(jax.random.key(0), _images(), ConfigDict(OFF | {"pad_crop": -1}))


if __name__ == "__main__":
    absltest.main()

"""Agreement of engines by hand, evaluations that were stopped, layers that differ."""

import json
from pathlib import Path

import flat_models
import jax
import numpy as np
import test_export
from absl.testing import absltest, parameterized

from atalaia import config as configs
from atalaia import data, engines, evaluate, export, finished, processes, shares, simulate, tasks
from atalaia.errors import UserError


def agreement(**outputs):
    return evaluate.agreement(tasks.TASKS["classify"], {k: evaluate.Outputs(v, v) for k, v in outputs.items()})


class AgreementTest(absltest.TestCase):
    def test_by_hand(self):
        a = np.int8([[1, 2, 0], [5, 4, 3]])
        b = np.int8([[1, 3, 0], [4, 5, 3]])
        real = np.float32([[0.1, 0.9, 0], [0, 0, 1]])
        found = agreement(jax=real, tflite=a, tflm=b)
        self.assertEqual(
            found,
            [
                dict(engines=["jax", "tflite"], predictions=0.5, bytes=None),
                dict(engines=["jax", "tflm"], predictions=0.5, bytes=None),
                dict(engines=["tflite", "tflm"], predictions=0.5, bytes=0.5),
            ],
        )

    def test_one_engine_agrees_with_nobody(self):
        self.assertEmpty(agreement(tflm=np.zeros((2, 3), np.int8)))


class StoppedTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.ran = []

    def evaluate(self, images, file=b"file", fail=""):
        """The names of the engines that ran."""
        self.ran.clear()

        def run(name, content, given):
            self.ran.append(name)
            if name == fail:
                raise KeyboardInterrupt
            return [given.reshape(len(given), -1)[:, :2].astype(np.int8)]

        split = data.Split(images, np.zeros(len(images), np.int32))
        dataset = data.Dataset("two", split, split, split, ("a", "b"), images[:0])
        with (
            absltest.mock.patch.object(engines, "run", run),
            absltest.mock.patch.object(engines, "output_grids", return_value=[(np.float32(0.5), 0)]),
            absltest.mock.patch.object(evaluate, "_refuse_other_outputs"),  # the file is none
        ):
            return evaluate.evaluate(configs.base(), dataset, ["tflite", "tflm"], self.folder, file)

    def test_goes_on_after_the_last_engine_that_ran_through(self):
        images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4, 1)
        expected = self.evaluate(images)
        self.assertEqual(self.ran, ["tflite", "tflm"])
        self.assertEmpty(list(self.folder.glob("outputs*")))
        for damage in (False, True):
            with self.assertRaises(KeyboardInterrupt):
                self.evaluate(images, fail="tflm")
            (kept,) = self.folder.glob("outputs*")
            if damage:
                kept.write_bytes(kept.read_bytes()[:-60])
            else:
                outputs = np.load(kept)["output0"]
                np.savez(kept, output0=outputs, seconds=100.0, peak_bytes=2**50)
            self.assertEqual(self.evaluate(images), expected)
            self.assertEmpty(list(self.folder.glob("outputs*")))
            details = json.loads((self.folder / "evaluation_details.json").read_text())
            self.assertEqual(details["seconds"]["tflite"] == 100.0, not damage)
            self.assertEqual(details["seconds"]["total"] >= 100.0, not damage)
            self.assertEqual(details["peak_memory_bytes"] == 2**50, not damage)
            self.assertEqual(self.ran, ["tflite"] * damage + ["tflm"])

    def test_other_images_or_another_file_run_anew(self):
        images = np.arange(24, dtype=np.uint8).reshape(3, 2, 4, 1)
        for changed, file in ((images, b"another"), (images + np.uint8(1), b"file")):
            with self.assertRaises(KeyboardInterrupt):
                self.evaluate(images, fail="tflm")
            self.evaluate(changed, file)
            self.assertEqual(self.ran, ["tflite", "tflm"])


class OtherModelTest(absltest.TestCase):
    def test_another_number_of_outputs_is_refused_before_an_engine_runs(self):
        folder, images = Path(self.create_tempdir().full_path), np.zeros((2, 8, 8, 1), np.uint8)
        split = data.Split(images, np.zeros(2, np.int32))
        dataset = data.Dataset("two", split, split, split, ("a", "b"), images[:0])
        net = flat_models.Net()
        given = net.given((1, 3), 0.1)
        one, two = (net.op("LOGISTIC", [given], net.tensor((1, 3), 1 / 256, -128)) for _ in range(2))
        with absltest.mock.patch.object(engines, "run", side_effect=AssertionError):
            for file, pattern in (
                (net.file(one), "the model has 3 outputs, data set two needs 2: give the config of this model"),
                (
                    net.file(one, two),
                    "the model has 2 outputs, the config's task needs one: give the config of this model",
                ),
            ):
                with self.assertRaisesRegex(UserError, pattern):
                    evaluate.evaluate(configs.base(), dataset, ["tflite"], folder, file)
        self.assertEmpty(list(folder.iterdir()))


class SharesTest(parameterized.TestCase):
    """Several processes one after the other: the first comes last, and so finds the parts of all."""

    @parameterized.parameters(
        (10, 3, 1, [(0, 3), (3, 6), (6, 10)]),
        (7, 3, 2, [(0, 2), (2, 4), (4, 7)]),  # 4 batches of 2, the last of them of 1
        (3, 4, 2, [(0, 2), (2, 3)]),
        (5, 1, 2, [(0, 5)]),
    )
    def test_bounds_by_hand(self, images, count, unit, expected):
        self.assertEqual(shares.bounds(images, count, unit), expected)

    def setUp(self):
        super().setUp()
        self.stem = Path(self.create_tempdir().full_path) / "outputs"
        self.file, self.images = test_export.converted("splat"), test_export.pixels("splat", 23)
        self.ran = []

    def compute(self, images):
        self.ran.append(len(images))
        return shares.Found(engines.run("tflm", self.file, images), 1.0 + len(self.ran), 100)

    def computed(self, number, count, unit=1, again=False):
        def wait(place):
            if number:
                raise KeyboardInterrupt

        with (
            absltest.mock.patch.object(jax, "process_count", return_value=count),
            absltest.mock.patch.object(jax, "process_index", return_value=number),
            absltest.mock.patch.object(processes, "wait_for_all", wait),
        ):
            return shares.computed("tflm", self.compute, self.images, self.stem, unit, again)

    def parts(self, numbers, count, unit=1):
        for number in numbers:
            with self.assertRaises(KeyboardInterrupt):
                self.computed(number, count, unit)
        return self.computed(0, count, unit)

    def test_parts_that_are_not_equal_give_what_one_process_does(self):
        expected = engines.run("tflm", self.file, self.images)[0]
        found = self.parts((2, 1), 3)
        self.assertEqual(self.ran, [8, 8, 7])
        np.testing.assert_array_equal(found.arrays[0], expected)
        self.assertEqual((found.seconds, found.peak_bytes), (4.0, 300))
        self.assertEqual(self.parts((2, 1), 3).seconds, 4.0)  # as after a kill: nothing runs again
        self.assertLen(self.ran, 3)
        np.testing.assert_array_equal(self.parts((1, 2, 3), 4, unit=10).arrays[0], expected)  # the last has none
        self.assertEqual(self.ran[3:], [10, 3, 10])
        shares.remove(self.stem)
        self.assertEmpty(list(self.stem.parent.iterdir()))

    def test_a_part_that_is_not_there_is_one_line(self):
        with self.assertRaisesRegex(UserError, "give a --workdir on a file system that all machines share"):
            self.computed(0, 2)

    def test_what_may_be_of_something_else_is_computed_again(self):
        for _ in range(2):
            with self.assertRaises(KeyboardInterrupt):
                self.computed(1, 2, again=True)
        self.assertEqual(self.ran, [12, 12])


class LayersTest(absltest.TestCase):
    """compare_layers on a network of test_export."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.model, _, self.network = test_export.network("splat")
        self.file = test_export.converted("splat")

    def compare(self, network):
        run = finished.Trained(self.model, {}, forward=None, stage="dense")
        model = simulate.Model(run, network, {})
        places = export.check(self.file, self.model, self.network)
        with (
            absltest.mock.patch.object(simulate, "load", return_value=model),
            absltest.mock.patch.object(export, "check", return_value=places),
        ):
            images = test_export.pixels("splat")
            evaluate.compare_layers(configs.base(), None, ["tflite", "tflm"], self.folder, self.file, images)
        return json.loads((self.folder / "layers.json").read_text())

    def test_equal_everywhere(self):
        found = self.compare(self.network)
        self.assertIsNone(found["first"]["tflm"])
        self.assertEqual([row["layer"] for row in found["rows"]], ["flatten", "hidden", "logits"])
        self.assertEqual([row["tflm"] for row in found["rows"]], [1.0, 1.0, 1.0])

    def test_the_first_layer_that_differs_is_named(self):
        hidden = self.network["hidden"]
        bias = hidden.bias + np.int32(2**16)
        found = self.compare(self.network | {"hidden": hidden._replace(bias=bias)})
        self.assertEqual(found["first"]["tflm"], "hidden")
        self.assertLess(found["rows"][-1]["tflm"], 1.0)

    def test_a_file_of_another_calibration_is_refused(self):
        hidden = self.network["hidden"]
        grid = hidden.output._replace(scale=np.nextafter(hidden.output.scale, np.float32(9)))
        run, network = (
            finished.Trained(self.model, {}, None, "dense"),
            self.network | {"hidden": hidden._replace(output=grid)},
        )
        with (
            absltest.mock.patch.object(simulate, "load", return_value=simulate.Model(run, network, {})),
            self.assertRaisesRegex(UserError, "another checkpoint or calibration.*'hidden'.*export again"),
        ):
            evaluate.jax_int_outputs(None, self.folder, None, test_export.pixels("splat"), self.file)


if __name__ == "__main__":
    absltest.main()

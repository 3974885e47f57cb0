"""The scripts of tables: what they choose, refuse and write, on figures made up by hand; nothing is trained."""

import contextlib
import io
import json
import re
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

from absl.testing import absltest, flagsaver, parameterized

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "experiments"))

import blocks  # noqa: E402
import early_exit  # noqa: E402
import esp_nn  # noqa: E402
import flat_models  # noqa: E402
import frontier  # noqa: E402
import mirrored  # noqa: E402
import numpy as np  # noqa: E402
import pages  # noqa: E402
import pipeline  # noqa: E402
import search_replay  # noqa: E402
import small_net  # noqa: E402
import table1  # noqa: E402
import table2  # noqa: E402
import table2_variants  # noqa: E402
import tables  # noqa: E402

from atalaia import config as configs  # noqa: E402
from atalaia import executors, runs, search, tflite, train  # noqa: E402
from atalaia import space as spaces  # noqa: E402
from atalaia.errors import UserError  # noqa: E402
from atalaia.space import choice  # noqa: E402

SPACE = {"distillation.alpha": choice(0.1, 0.5), "distillation.temperature": choice(2.0, 5.0)}
WORDS = ["--config=configs/table1.py:rafael_base_distilled", "--config.distill.epochs=4"]


class EspNNTest(absltest.TestCase):
    """Calls of ESP-NN's kernels, which the suite does not have: that they give TFLite Micro's bytes is on the page."""

    def test_scale_of_softmax(self):
        """beta * scale = 1 / 16 is 2^22 in 26 bits, so 2^30 / 2^31 * 2^23; 31 in as many bits is 31 * 2^(26 - 23)."""
        self.assertEqual(esp_nn.softmax_scale(1.0, 1 / 16), (2**30, 23, -248))

    def test_constants_are_those_of_the_file(self):
        content = (esp_nn.public_files.ROOT / "experiments/results/cifar10/model.tflite").read_bytes()
        text, model = esp_nn.program(content), tflite.read(content)
        linear = [op for op in model.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
        convolutions = [op for op in linear if op.kind == "CONV_2D"]
        self.assertEqual(text.count("  esp_nn_conv_s8("), len(convolutions))
        self.assertEqual(text.count("  esp_nn_fully_connected_per_ch_s8("), len(linear) - len(convolutions))
        for name, place in (("weights", 1), ("bias", 2)):
            found = re.findall(rf"_{name}\[\] = {{(.*)}};", text)
            self.assertLen(found, len(linear))
            for values, op in zip(found, linear, strict=True):
                np.testing.assert_array_equal(
                    np.array(values.split(","), int), model.tensors[op.inputs[place]].data.ravel()
                )

    def test_an_operator_without_a_call_is_refused(self):
        net = flat_models.Net()
        a, b = (net.given((1, 2, 2, 3), 0.1) for _ in range(2))
        file = net.file(net.op("MUL", (a, b), net.tensor((1, 2, 2, 3), 0.1)))
        with self.assertRaisesRegex(UserError, "no call of ESP-NN is written here for MUL \\(operator 0\\)"):
            esp_nn.program(file)


class RecordTest(absltest.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.enter_context(mock.patch.object(search_replay, "GRID", self.folder / "grid.json"))

    def search(self, trials, metric="val_accuracy", space=None):
        """A search of the thesis's student whose trials take no time."""

        def objective(point, folder, stop):
            alpha, temperature = point.values()
            if (alpha, temperature) == (0.1, 2.0):
                return dict(value=None)  # training diverged
            return dict(value=alpha + temperature / 100, seconds=1.0, data="made up")

        file, fields = (word.partition("=")[2] for word in WORDS)
        asked = search.Search(file, space or SPACE, metric=metric)
        with mock.patch.object(search, "picture", return_value=b""):
            search.run(asked, self.folder / "search", trials, 1, objective)
        configs.claim(runs.check(file, {"distill.epochs": fields}), self.folder / "search")
        search_replay.record(SPACE, self.folder / "search")

    def test_every_point_in_the_spaces_order_and_the_diverged_as_the_worst(self):
        self.search(4)
        grid = search_replay.recorded(SPACE)
        self.assertEqual([row["point"] for row in grid["rows"]], list(spaces.every_point(SPACE)))
        np.testing.assert_allclose([row["val_accuracy"] for row in grid["rows"]], [0.0, 0.15, 0.52, 0.55])
        self.assertEqual((grid["model"], grid["epochs"], grid["data"]), ("rafael_base", 4.0, "made up"))
        self.assertEqual(grid["arguments"], WORDS)

    def test_what_is_no_whole_search_by_accuracy_is_refused(self):
        with self.assertRaisesRegex(UserError, "has 3 of 4 points: search on with --trials=4"):
            self.search(3)
        other = {"distillation.alpha": choice(0.1, 0.5), "distillation.temperature": choice(2.0, 7.0)}
        for folder, fields, text in (
            ("loss", dict(metric="val_loss"), "another metric than val_accuracy"),
            ("other", dict(space=other), "holds a search with space"),
        ):
            self.folder /= folder
            with self.assertRaisesRegex(UserError, text):
                self.search(4, **fields)
        with self.assertRaisesRegex(UserError, "holds no search"):
            search_replay.record(SPACE, self.folder / "nowhere")
        with self.assertRaisesRegex(UserError, "no .*grid.json"):
            search_replay.recorded(SPACE)


class Table1Test(absltest.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(mock.patch.object(table1, "ROOT", self.folder))
        self.enter_context(mock.patch.object(search_replay, "GRID", self.folder / "grid.json"))
        (self.folder / "runs/table1").mkdir(parents=True)

    def grid(self, words):
        points = list(spaces.every_point(spaces.load(str(ROOT / table1.SPACE))))
        rows = [dict(point=point, val_accuracy=0.5 + 0.01 * (number == 9)) for number, point in enumerate(points)]
        (self.folder / "grid.json").write_text(json.dumps(dict(arguments=words, rows=rows)))
        return points[9]

    def test_the_best_of_the_grid_is_chosen_once_for_all(self):
        best = self.grid(WORDS)
        with mock.patch.object(tables, "step", side_effect=AssertionError):
            self.assertEqual(table1.choose(), best)
            (self.folder / "grid.json").unlink()
            self.assertEqual(table1.choose(), best)

    def test_a_grid_of_other_epochs_and_views_will_do(self):
        best = self.grid([WORDS[0], "--config.distill.epochs=12", "--config.distillation.views=8"])
        with mock.patch.object(tables, "step", side_effect=AssertionError):
            self.assertEqual(table1.choose(), best)

    def test_without_a_grid_of_this_recipe_it_searches(self):
        self.grid([*WORDS, "--config.distill.learning_rate=0.3"])

        values = iter((0.5, 0.6, None))

        def step(name, workdir, *words):
            self.assertEqual((name, workdir), ("search", "--workdir=runs/table1/search"))
            self.assertContainsSubset([*WORDS, "--trials=12"], words)
            asked = search.Search("configs/table1.py", spaces.load(table1.SPACE))
            folder = self.folder / "runs/table1/search"
            step.rows = search.run(asked, folder, 3, 1, lambda *_: dict(value=next(values), data="", seconds=1.0))

        with (
            mock.patch.object(tables, "step", step),
            mock.patch.object(search, "picture", return_value=b""),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            self.assertEqual(table1.choose(), step.rows[1]["point"])

    def row(self, row, seed, accuracy):
        chosen = dict(alpha=0.1, temperature=5.0) if row.endswith(table1.DISTILLED) else {}
        return dict(
            row=row, seed=seed, data="CIFAR-10 upsampled", epochs=2.0, values=59530, chosen=chosen,
            test=dict(accuracy=accuracy),
        )  # fmt: skip

    def test_on_a_board_the_largest_of_several_seeds(self):
        rows = [self.row("rafael_1_distilled", seed, 0.65) for seed in range(3)]
        for row, accuracy, arena in zip(rows, (0.61, 0.64), (66000, 67000), strict=False):
            row |= dict(
                validation=dict(accuracy=0.65), int8=dict(validation=accuracy, weight_bytes=58392, arena_bytes=arena)
            )
        text = table1.table(rows)
        self.assertIn("| rafael_1 | 65.00 (65.00 to 65.00), 62.50 (61.00 to 64.00) | 58,392 | 67,000 | 2 |", text)

    def test_gains_are_those_of_pairs_of_one_seed(self):
        rows = [self.row("teacher", 0, 0.9)]
        for seed, alone, distilled in ((0, 0.60, 0.65), (1, 0.62, 0.63), (2, 0.50, 0.57)):
            rows += [self.row("rafael_2", seed, alone), self.row("rafael_2_distilled", seed, distilled)]
        rows.append(self.row("rafael_2", 3, 0.9))  # its other half is not trained yet
        text = table1.table(rows)
        self.assertIn("on CIFAR-10 upsampled |", text)
        self.assertIn("| rafael_2 | 59,530 | 2 | 61.00 (50.00 to 90.00) | 63.00 (57.00 to 65.00) | +5.00 |", text)
        self.assertIn("| 0.1, 5 (from rafael_base) | 4 / 3 | 74.57, 79.12, +4.55; 0.01, 7 |", text)
        self.assertIn("| teacher | 59,530 | 2 | 90.00 | - | - | - | 1 / 0 | 90.65 |", text)
        self.assertIn("Not comparable", text)
        table1.picture(rows, self.folder / "table1.png")
        self.assertEqual((self.folder / "table1.png").read_bytes()[:4], b"\x89PNG")

    def test_values_are_those_of_the_trained_network_also_once_it_is_exported(self):
        rows = [dict(stage="distill", parameters=59530), dict(stage="int8", parameters=54858)]
        (self.folder / "ledger.json").write_text(json.dumps(dict(rows=rows)))
        with mock.patch.object(tables, "ROOT", self.folder):
            self.assertEqual(table1._values(Path(), "distill"), 59530)

    def test_a_teacher_is_trained_for_its_students_without_a_look_at_the_test_set(self):
        steps = []
        with mock.patch.object(tables, "step", lambda *words: steps.append(words)):
            table1.train_teacher(1)
        head, folder = "runs/table1/teacher_head_seed1", "runs/table1/teacher_seed1"
        tune = ("--config=configs/teacher.py:finetune", f"--config.start_from={head}", "--config.seed=1")
        first = ("train", f"--workdir={head}", "--config=configs/teacher.py", "--config.seed=1")
        self.assertEqual(steps, [first, ("train", f"--workdir={folder}", *tune)])

    def test_what_the_search_found_has_a_page(self):
        results, page = self.folder / "results/table1_search", self.folder / "table1_search.md"
        self.enter_context(mock.patch.multiple(tables, ROOT=self.folder, PAGES=self.folder, RESULTS=results.parent))
        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        table1.publish_search("table1")
        self.assertFalse(results.exists())  # none has run
        page.write_text("older")
        asked = search.Search("configs/table1.py", spaces.load(str(ROOT / table1.SPACE)))
        found = dict(value=0.5, data="cats", seconds=1.0)
        rows = search.run(asked, self.folder / "runs/table1/search", 2, 1, lambda *_: found)
        config = dict(distill=dict(epochs=4.0), distillation=dict(views=16), seed=3)
        (self.folder / "runs/table1/search/config.json").write_text(json.dumps(config))
        table1.publish_search("table1")
        text = search.summary(asked, rows)
        published = "4 epochs a trial, 16 views, seed 3: " + text.removeprefix("# ").strip()
        self.assertIn(published, page.read_text())
        self.assertNotIn("older", page.read_text())
        self.assertEqual(page.with_suffix(".png").read_bytes()[:4], b"\x89PNG")
        self.assertEqual(search.load(results, asked.space)[1], rows)


class RunTest(absltest.TestCase):
    """A row's steps run where what they write is missing, and only there."""

    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(mock.patch.multiple(tables, ROOT=self.folder, step=self.step))
        self.steps = []
        self.row = tables.Row("a", "A", "configs/a.py:b", ("--config.x=1",), {"test": "jax,tflm"})

    def step(self, name, workdir, *words):
        self.steps.append((name, *words))
        run = self.folder / workdir.removeprefix("--workdir=")
        run.mkdir(exist_ok=True)
        made = {
            "train": ("train.json", dict(seconds=2.0, device="cpu", jax="0.1")),
            "export": ("export.json", {}),
            "evaluate": ("evaluation.json", dict(jax=dict(accuracy=0.5), tflm=dict(accuracy=0.4))),
        }
        file, value = made[name]
        (run / file).write_text(json.dumps(value))

    def test_all_steps_of_a_new_row_then_none_but_train_which_goes_on(self):
        found = tables.run(self.row, Path("r"), "--config.seed=3")
        train = ("train", "--config=configs/a.py:b", "--config.x=1", "--config.seed=3")
        evaluate = ("evaluate", "--split=test", "--engines=jax,tflm")
        self.assertEqual(self.steps, [train, ("export",), evaluate])
        command = "python -m atalaia.train --workdir=r --config=configs/a.py:b --config.x=1 --config.seed=3"
        self.assertEqual((found["row"], found["command"], found["test"]["tflm"]["accuracy"]), ("a", command, 0.4))
        self.assertEqual((found["seconds"], found["device"], found["jax"]), (2.0, "cpu", "0.1"))
        self.steps.clear()
        self.assertEqual(tables.run(self.row, Path("r"), "--config.seed=3"), found)
        self.assertEqual(self.steps, [train])

    def test_an_engine_that_is_missing_is_evaluated(self):
        tables.run(self.row, Path("r"))
        (self.folder / "r/evaluation.json").write_text(json.dumps(dict(jax=dict(accuracy=0.5))))
        self.steps.clear()
        tables.run(self.row, Path("r"))
        self.assertEqual([name for name, *_ in self.steps], ["train", "evaluate"])

    def test_what_a_run_does_not_tell_is_not_recorded(self):
        tables.run(self.row, Path("r"))
        (self.folder / "r/train.json").write_text(json.dumps(dict(seconds=2.0)))
        found = tables.trained(Path("r"))
        self.assertEqual((found["device"], found["jax"]), ("not recorded", "not recorded"))


class PublishTest(absltest.TestCase):
    """Rows replace older ones of their kind, and the page shows the table."""

    def setUp(self):
        self.root = Path(self.enter_context(tempfile.TemporaryDirectory()))
        places = dict(ROOT=self.root, RESULTS=self.root / "results", PAGES=self.root / "pages")
        self.enter_context(mock.patch.multiple(tables, **places))
        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.path, self.page = self.root / "results/speed/rows.json", self.root / "pages/speed.md"

    def publish(self, name, value, **more):
        return self.table(**more).add(dict(name=name, value=value))

    def table(self, **more):
        columns = {"name": lambda row: row["name"], "value": lambda row: row["value"]}
        return tables.Table(
            name="speed",
            title="Speed",
            shows="How fast.",
            command="python x.py",
            body=lambda rows: tables.grid(columns, rows),
            headline=lambda rows: f"{len(rows)} rows",
            key=("name",),
            **more,
        )

    def test_a_row_replaces_the_older_one_of_its_kind(self):
        self.publish("b", 1)
        self.publish("a", 2)
        rows = self.publish("b", 3)
        self.assertEqual(rows, [dict(name="b", value=3), dict(name="a", value=2)])
        self.assertEqual(json.loads(self.path.read_text()), rows)
        self.assertIn("| b | 3 |\n| a | 2 |\n", self.page.read_text())
        self.assertNotIn("| b | 1 |", self.page.read_text())

    def test_rows_in_an_order_of_their_own(self):
        self.publish("b", 1)
        rows = self.publish("a", 2, order=lambda r: r["name"])
        self.assertEqual([r["name"] for r in rows], ["a", "b"])

    def test_stale_rows_make_room(self):
        self.publish("b", 1)
        self.publish("a", 2)
        rows = self.publish("c", 3, stale=lambda row: lambda older: older["value"] == 1)
        self.assertEqual([row["name"] for row in rows], ["a", "c"])

    def test_the_whole_page(self):
        self.publish("a", 1, picture="Bars", notes=("Seed 1 only.",))
        parts = (
            "# Speed",
            "How fast.",
            "Make it again:",
            "```\npython x.py\n```",
            "| name | value |\n|---|---:|\n| a | 1 |",
            "![Bars](speed.png)",
            "## Notes",
            "- Seed 1 only.",
            "*Written by a script from the figures in `experiments/results/speed/`.*\n",
        )
        self.assertEqual(self.page.read_text(), "\n\n".join(parts))

    def test_missing_cells_at_the_end_of_a_line_are_empty(self):
        text = tables.grid({"a": str, "b": str, "c": str}, "x", left=2, more=[("*peer*", 7)])
        self.assertEqual(text, "| a | b | c |\n|---|---|---:|\n| x | x | x |\n| *peer* | 7 |  |\n")

    def test_runs_by_device_and_what_is_not_recorded(self):
        rows = [dict(row="a", seed=0, seconds=1200.4, device="cpu", jax="0.9"), dict(row="a", seed=1)]
        rows.append(dict(row="a", seed=2, seconds=7.0, device="cpu", jax="0.9"))
        *_, first, second = tables.provenance(rows, lambda row: row["row"]).splitlines()
        self.assertEqual(first, "| a | 0, 2 | cpu | 0.9 | 1,200, 7 |")
        self.assertEqual(second, "| a | 1 | not recorded | not recorded | not recorded |")


class EachTest(absltest.TestCase):
    def test_a_row_comes_after_those_that_it_needs_and_others_beside_them(self):
        """b is let go by c, which runs at the same time; d needs both, and e, which is there already."""
        done, together = [], threading.Event()

        def function(row):
            if row == "b":
                self.assertTrue(together.wait(20))
            if row == "c":
                together.set()
            done.append(row)

        with flagsaver.flagsaver(workers=3):
            tables.each(function, "abcd", lambda row: "bce" if row == "d" else "")
        self.assertEqual(done[-1], "d")
        self.assertCountEqual(done, "abcd")

    def test_a_step_of_an_executor_and_one_that_fails_ends_the_script(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory())) / "run"
        local = self.enter_context(contextlib.closing(executors.Local(2)))
        self.enter_context(mock.patch.object(tables._Work, "executor", local, create=True))
        with flagsaver.flagsaver(workers=2):
            with mock.patch.object(sys, "executable", "echo"):
                tables.step("train", f"--workdir={folder}")
            self.assertEqual(folder.with_name("run.log").read_text(), f"-m atalaia.train --workdir={folder}\n")
            with mock.patch.object(sys, "executable", "false"), contextlib.redirect_stderr(io.StringIO()) as said:
                self.assertRaises(SystemExit, tables.step, "train", f"--workdir={folder}")
        self.assertIn("error: train of ", said.getvalue())

    def test_rows_of_table_2_need_those_of_their_seed(self):
        self.assertEqual(set(table2.needs(("smallest", 1))), {("pruned", 1), ("dense", 1)})
        self.assertEqual(table2.needs(("dense", 1)), [])
        self.assertEqual(table2_variants.needs(("small", "fewer", 2)), [("pruned", "fewer", 2)])
        self.assertEqual(table1.needs(("rafael_1_distilled", 2)), [("teacher", 0)])


PUBLISHED = [table for group in pages.published().values() for table in group]


class PublishedTest(parameterized.TestCase):
    """What stands in docs/results/ is what the scripts make of the figures."""

    @parameterized.named_parameters((table.name, table) for table in PUBLISHED)
    def test_pages_are_those_of_the_figures(self, table):
        path = tables.PAGES / f"{table.name}.md"
        self.assertEqual(path.read_text(), table.page(table.figures()))
        self.assertEqual(path.with_suffix(".png").is_file(), bool(table.picture))

    def test_the_index_is_that_of_the_figures_and_every_link_has_a_page(self):
        self.assertEqual((tables.PAGES / "index.md").read_text(), pages.index(pages.published()))
        for path in tables.PAGES.glob("*.md"):
            for link in re.findall(r"\]\((?!https://)([^)]+)\)", path.read_text()):
                self.assertTrue((path.parent / link).is_file(), f"{path.name}: {link}")

    def test_no_result_is_left_without_a_page(self):
        self.assertEqual({path.name for path in tables.RESULTS.iterdir()}, {table.name for table in PUBLISHED})
        names = {path.stem for path in tables.PAGES.iterdir()}
        self.assertEqual(names, {"index", *(table.name for table in PUBLISHED)})

    def test_every_integer_network_of_table_2_is_tflms_in_every_byte(self):
        rows = json.loads((tables.RESULTS / "table2/rows.json").read_text())
        found = [r["equal"]["tflm"] for r in rows if r["row"] not in table2.FLOAT_ONLY]
        self.assertEqual(found, [dict(predictions=1.0, bytes=1.0)] * len(found))


def _variant(row, variant, accuracy, size, seed=1):
    validation = dict(accuracy=accuracy, images=2500)
    return dict(row=row, variant=variant, seed=seed, validation=validation, download_bytes=size)


class Table2Test(absltest.TestCase):
    def test_seeds_of_an_older_recipe_are_stale(self):
        stale = tables.older_recipe(dict(row="small", seed=1, epochs=45.0, sparsity=0.9))
        self.assertTrue(stale(dict(row="small", seed=0, epochs=30.0)))
        self.assertTrue(stale(dict(row="small", seed=0, epochs=45.0, sparsity=0.8)))
        self.assertFalse(stale(dict(row="small", seed=0, epochs=45.0, sparsity=0.9)))
        self.assertFalse(stale(dict(row="dense", seed=1, epochs=25.0)))
        kept = dict(row="tiny", seed=0, fields=dict(stages=["distill", "shrink"]))  # as JSON gives it
        self.assertFalse(tables.older_recipe(dict(row="tiny", seed=1, fields=dict(stages=("distill", "shrink"))))(kept))
        stale = tables.older_recipe(dict(row="rafael_1", seed=1, epochs=40.0, teacher_digest="a"))
        self.assertTrue(stale(dict(row="rafael_1", seed=0, epochs=40.0, teacher_digest="b")))
        self.assertFalse(stale(dict(row="rafael_1", seed=0, epochs=40.0)))  # an older run, which does not tell

    def test_a_row_of_another_seed_starts_from_and_follows_runs_of_that_seed(self):
        teachers = [f"--config.{s}.teacher=runs/table2/dense_seed2" for s in ("prune", "quantize")]
        expected = ["--config.start_from=runs/table2/pruned_seed2", *teachers]
        self.assertEqual(table2.sources("smallest", 2), expected)
        self.assertEqual(table2.sources("smallest", 0), [])
        self.assertEqual(table2.sources("dense", 2), [])

    def test_variants_are_recipes_with_these_fields_changed(self):
        self.assertEqual(table2.epochs("small4"), 25 + 16 + 8 + 8)
        self.assertEqual(table2.epochs("small4", {"prune.epochs": 2.0, "quantize.epochs": 3.5}), 25 + 16 + 2 + 3.5)
        for row, variants in table2_variants.VARIANTS.items():
            for _, changes in variants.values():
                config = runs.check(str(tables.ROOT / f"{table2.CONFIG}:{row}"), changes)
                self.assertLessEqual(changes.items(), configs.flat(config).items())
        self.assertEqual(table2_variants.epochs("small", "fewer"), 25 + 16 + 4)
        self.assertEqual(table2_variants.epochs("small_long", "short"), 100 + 10 + 4)

    def test_an_int8_row_is_measured_against_float_networks_of_its_seed(self):
        def row(name, seed, engine, accuracy, size=0):
            test = {engine: dict(accuracy=accuracy)}
            return dict(row=name, seed=seed, epochs=20.0 + seed, test=test, int8_sizes=dict(download_bytes=size))

        found = [row("small", 1, "tflm", 0.905, 1200), row("small", 2, "tflm", 0.91, 1300)]
        found += [row("small", 3, "tflm", 0.95, 9999), row("dense", 1, "jax", 0.9101), row("dense", 2, "jax", 0.9)]
        groups = {name: [r for r in found if r["row"] == name] for name in ("dense", "small")}
        *_, line = table2._differences(groups).splitlines()
        self.assertEqual(
            line,
            "| pruned, int8 trained, large layers of 4 bits | 21 | dense float | 21 | -0.51 (1), +1.00 (2) | 1,300 |",
        )

    def test_variants_stand_beside_the_row_as_it_is(self):
        figures = dict(seed=1, epochs=45.0, sparsity=0.925, download_bytes=130000)
        accuracies = dict(short_dense=0.9, own=0.91, short=0.9)
        made = [
            dict(row="small4", variant=v, validation=dict(accuracy=a, images=2500), **figures)
            for v, a in accuracies.items()
        ]
        text = table2_variants.table(sorted(made, key=table2_variants._order))
        found = re.findall(
            r"^\| pruned more, 4 bits trained \| (.*?) \| 1 \| 45 \| 92.5 \| (.*) \| 130,000 \| 130,000 bytes \|$",
            text,
            re.M,
        )
        quarter = "a quarter of the epochs"
        expected = [("as in Table 2", "**91.00**"), (quarter, "90.00")]
        self.assertEqual(found, [*expected, (f"{quarter}, more zeros in dense0", "90.00")])

    def test_the_best_recipe_is_the_most_accurate_within_the_limit(self):
        rows = [_variant("small4", "own", 0.9, 129_000), _variant("small4", "short", 0.9, 128_000)]
        rows += [_variant("small4", "sparser", 0.89, 100_000), _variant("small4", "short_dense", 0.92, 130_001)]
        rows += [_variant("pruned", "own", 0.92, 300_000), _variant("small4", "sparser", 0.8, 100_000, seed=2)]
        self.assertEqual(table2_variants.best(rows), {("small4", 1): "short", ("small4", 2): "sparser"})

    def test_the_best_recipe_is_the_smallest_that_keeps_an_accuracy(self):
        # 84.36 % of 2,500 images and a standard error of 0.71 points are 85.07 %.
        rows = [_variant("smallest", "own", 0.8508, 48_000), _variant("smallest", "sparser", 0.8506, 40_000)]
        self.assertEqual(table2_variants.best(rows), {("smallest", 1): "own"})
        rows += [_variant("smallest", "other", 0.87, 50_000)]
        self.assertEqual(table2_variants.best(rows), {("smallest", 1): "own"})

    def test_the_rows_recipes_are_those_that_validation_chose(self):
        chosen = table2_variants.best(json.loads((tables.RESULTS / "table2_variants/rows.json").read_text()))
        rows = [*table2_variants.LIMITS, *table2_variants.FLOORS]
        self.assertEqual(chosen, {(row, 1): table2_variants.OWN for row in rows})

    def test_a_variant_starts_from_a_variant_where_it_says_so(self):
        with mock.patch.object(tables, "step", side_effect=SystemExit) as step, self.assertRaises(SystemExit):
            table2_variants.run("small", "fewer", 2)
        starts = [a for a in step.call_args.args if a.startswith("--config.start_from=")]
        self.assertEqual(
            starts[-1], "--config.start_from=runs/table2/variants/pruned_fewer_seed2"
        )  # the last one counts

    def test_the_curve_goes_through_what_no_smaller_model_reaches(self):
        points = [(200, 90.5), (45, 84.0), (130, 90.0), (300, 90.5), (130, 89.0), (2000, 91.0)]
        self.assertEqual(table2.frontier(points), [(45, 84.0), (130, 90.0), (200, 90.5), (2000, 91.0)])


class PipelineTest(absltest.TestCase):
    def test_a_run_of_another_seed_follows_the_teacher_of_that_seed(self):
        from configs import pipeline as recipe

        teacher = recipe.get_config().distill.teacher
        self.assertEqual((str(pipeline.teacher_of(0)), str(pipeline.teacher_of(2))), (teacher, f"{teacher}_seed2"))
        stages = ("distill", "prune", "quantize")
        expected = [f"--config.{stage}.teacher={teacher}_seed2" for stage in stages]
        self.assertEqual(pipeline.taught_by(2), expected)
        with flagsaver.flagsaver(teacher="runs/other"):
            self.assertEqual(pipeline.taught_by(2), [f"--config.{s}.teacher=runs/other" for s in stages])

    def test_the_c_of_a_kept_model_is_counted_again(self):
        def in_c(tflite, out):
            self.assertEqual(tflite.read_bytes()[4:8], b"TFL3")
            return dict(arena_bytes=7)

        with mock.patch.object(pipeline, "in_c", in_c):
            self.assertEqual(
                pipeline.recount(dict(seed=1, epochs=3.0, arena_bytes=9)), dict(seed=1, epochs=3.0, arena_bytes=7)
            )

    def test_of_several_seeds_the_largest_sizes(self):
        def row(seed, accuracy, size, times, epochs=5.0):
            test = {engine: dict(accuracy=accuracy, f1_macro=accuracy) for engine in ("jax", "tflm")}
            sizes = dict(weight_bytes=size, arena_bytes=size + 1, download_bytes=size + 2)
            return dict(
                seed=seed,
                teacher="runs/teacher",
                epochs=epochs,
                sparsity=0.45,
                test=test,
                estimated=dict(esp32=dict(milliseconds=times)),
                **sizes,
            )

        older = row(0, 0.7, 3000, [1.0, 2.0], epochs=3.0)
        text = pipeline.table([row(0, 0.8, 1000, [10.0, 20.0]), row(1, 0.9, 2000, [11.0, 21.0]), older])
        self.assertIn("| 85.00 (80.00 to 90.00) | 85.00 (80.00 to 90.00) |", text)
        self.assertIn("| 2,000 | 2,001 | 2,002 | 10 to 21, *estimated* | 2, by 1 |", text)
        self.assertRegex(
            text, r"ours, 3 epochs, .* \| 70.00 .* \| 3,000 \| 3,001 \| 3,002 \| 1 to 2, \*estimated\* \| 1, by 1 \|"
        )


class EarlyExitTest(absltest.TestCase):
    def test_exits_stand_where_nothing_earlier_is_needed(self):
        """Not within a block, whose input is added at its end, nor after the last convolution; 144 = 9 * 16."""
        found = early_exit.cuts(small_net.Residual(10), (8, 8, 1))
        self.assertEqual(found, {"conv": 64 * 144, "block0": 64 * 144 * (1 + 2 * 16)})

    def test_the_smallest_lead_that_costs_no_right_answer(self):
        """By lead: right as the whole is; wrong where it is right; right where it is wrong; wrong where it is right."""
        lead, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 1, 1])
        found = early_exit.smallest_lead(np.array([1, 0, 1, 0]), lead, np.array([1, 1, 0, 1]), right)
        self.assertEqual(found, 0.7)
        never = early_exit.smallest_lead(np.array([0, 0, 0, 0]), lead, right, right)
        self.assertGreater(never, 1)

    def test_equal_leads_leave_together(self):
        """The right one alone would be fair, but the wrong one leads by as much."""
        found = early_exit.smallest_lead(np.array([1, 0]), np.array([0.5, 0.5]), np.array([1, 1]), np.array([1, 1]))
        self.assertGreater(found, 1)


class BlocksTest(absltest.TestCase):
    def test_a_block_that_is_gone_is_missing_in_its_stack_alone(self):
        self.assertEqual(blocks.without((1, 8)), (tuple(range(9)), tuple(range(8)), tuple(range(9))))

    def test_costs_by_block_and_stack(self):
        rows = [dict(row=f"{i}_{j}", whole=0.9, accuracy=0.9 - j / 100 - i) for i in range(3) for j in range(1, 9)]
        self.assertIn("| 8 | 8.0 | 108.0 | 208.0 |", blocks.table(rows))
        self.assertEqual(blocks.headline(rows), "block 2_8 208.0 points; 0 of 24 less than one")


class MirroredTest(absltest.TestCase):
    def test_plain_beside_mirrored(self):
        def made(size, most):
            return dict(weight_bytes=size, arena_bytes=size + 1, estimated=dict(esp32=dict(milliseconds=[1.0, most])))

        row = dict(row="net", page="table2", sizes=dict(plain=made(5000, 20.0), mirrored=made(5100, 40.0)))
        row |= dict(validation=dict(plain=0.5, mirrored=0.625), test=dict(plain=0.75, mirrored=0.7375))
        line = (
            "| [net](table2.md) | 50.00 / 62.50 | 75.00 / 73.75 | -1.25 | 5,000 / 5,100 | 5,001 / 5,101 "
            "| 1 to 20 / 1 to 40 |"
        )
        self.assertIn(line, mirrored.table([row]))
        self.assertEqual(mirrored.TABLE.headline([row]), "net -1.25 points")


class FrontierTest(absltest.TestCase):
    def test_a_line_a_point_and_each_kind_of_c(self):
        def row(seed, accuracy, size):
            made = dict(weight_bytes=size, arena_bytes=9, macs=7, estimated=dict(esp32=dict(milliseconds=[1.0, size])))
            scores = {
                split: {e: dict(accuracy=accuracy) for e in ("tflm", "jax_int")} for split in ("test", "validation")
            }
            return dict(
                **scores,
                **made,
                row="tiny",
                model="net",
                seed=seed,
                epochs=3.0,
                float_validation=0.5,
                download_bytes=5,
                esp32=made | dict(weight_bytes=size + 1, arena_bytes=11),
                **({} if seed else dict(both_cores=made | dict(weight_bytes=size + 2, arena_bytes=12))),
            )

        rows = [row(0, 0.8, 1000), row(1, 0.9, 2000)]
        line = (
            "| tiny | net | 3 | 85.00 (80.00 to 90.00) | 85.00 (80.00 to 90.00) | 50.00 (50.00 to 50.00) | 2,000 | 9 |"
        )
        self.assertIn(line, frontier.table(rows))
        self.assertIn("| 7 | 1 to 2000 | 5 | 2 |", frontier.table(rows))
        own = frontier.for_an_esp32(rows)
        self.assertIn(
            "| tiny | 85.00 (80.00 to 90.00) | 2,001 | 11 | 1 to 2000 | 1,002 | 12 | 1 to 1000 |", own
        )  # of the rows that have it
        self.assertIn("| tiny | 90.00 | 2,001 | 11 | 1 to 2000 | - | - | - |", frontier.for_an_esp32(rows[1:]))
        self.assertEqual(frontier.TABLE.headline(rows), "85.00 % in 2,000 bytes")
        with tempfile.TemporaryDirectory() as folder:
            frontier.draw(rows, Path(folder) / "a.png")
            self.assertGreater((Path(folder) / "a.png").stat().st_size, 10_000)

    def test_a_row_without_a_model_is_not_counted_again(self):
        told = self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.assertIsNone(frontier.recount(dict(row="tiny_mirrored", seed=77, command="python a.py")))
        self.assertIn("tiny_mirrored of seed 77 has no model here; python a.py trains it", told.getvalue())

    def test_kept_models_are_small(self):
        for path in frontier.TABLE.folder.glob("*.atl"):
            self.assertLessEqual(path.stat().st_size, frontier.KEPT_BYTES)


class RecipesTest(absltest.TestCase):
    def test_teacher_and_students_train_on_the_same_images(self):
        """Else the teacher would have seen the students' validation images."""
        from configs import table1 as students
        from configs import teacher

        for words, row in (("", "rafael_1"), ("stl10", "rafael_1,stl10")):
            ours, theirs = students.get_config(row), teacher.get_config(words)
            for part in ("data", "augment"):
                self.assertEqual(ours[part].to_json(), theirs[part].to_json())
            configs.validate(ours)
        from configs import cifar10_table2
        from configs import pipeline as chain

        self.assertEqual(chain.get_config().data.to_json(), cifar10_table2.get_config("dense").data.to_json())

    def test_the_recipe_of_stl10_trains_from_its_own_files(self):
        """Two steps, from a folder in the official format."""
        from configs import table1 as students

        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        (folder / "stl10_binary").mkdir()
        pixels, labels = np.random.default_rng(0).integers(0, 256, (40, 27648), np.uint8), list(range(1, 11)) * 4
        for name, n in (("train", 40), ("test", 10)):
            (folder / f"stl10_binary/{name}_X.bin").write_bytes(pixels[:n].tobytes())
            (folder / f"stl10_binary/{name}_y.bin").write_bytes(bytes(labels[:n]))
        names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
        (folder / "stl10_binary/class_names.txt").write_text("\n".join(names))
        config = students.get_config("rafael_base,stl10")
        config.batch_size = 8
        config.model, config.dense.epochs, config.dense.steps = "resnet8", 0.0, 2  # a network that is soon compiled
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train.train_and_evaluate(config, folder / "run", folder)
        done = json.loads((folder / "run/train.json").read_text())
        self.assertEqual((done["dataset"], done["image_shape"], done["steps"]), ("STL-10", [96, 96, 3], 2))
        self.assertEqual(done["names"], names)


if __name__ == "__main__":
    absltest.main()

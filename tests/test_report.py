"""Published tables: rows replace older ones of their kind, and between two marks of the README stands the table."""

import json
import tempfile
from pathlib import Path

from absl.testing import absltest

from atalaia import report


def table(rows):
    return "".join(f"| {r['name']} | {r['value']} |\n" for r in rows)


class PublishTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.root = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.path = self.root / "experiments/results/speed.json"
        self.path.parent.mkdir(parents=True)
        self.readme = self.root / "README.md"
        self.readme.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n")

    def publish(self, name, value, **more):
        return report.publish_rows(self.path, dict(name=name, value=value), ("name",), table, **more)

    def test_a_row_replaces_the_older_one_of_its_kind(self):
        self.publish("b", 1)
        self.publish("a", 2)
        rows = self.publish("b", 3)
        self.assertEqual(rows, [dict(name="b", value=3), dict(name="a", value=2)])
        self.assertEqual(json.loads(self.path.read_text()), rows)
        self.assertEqual(self.path.with_suffix(".md").read_text(), "| b | 3 |\n| a | 2 |\n")
        wanted = "before\n<!-- speed -->\n| b | 3 |\n| a | 2 |\n<!-- /speed -->\nafter\n"
        self.assertEqual(self.readme.read_text(), wanted)

    def test_rows_in_an_order_of_their_own(self):
        self.publish("b", 1)
        rows = self.publish("a", 2, order=lambda r: r["name"])
        self.assertEqual([r["name"] for r in rows], ["a", "b"])

    def test_stale_rows_make_room(self):
        self.publish("b", 1)
        self.publish("a", 2)
        rows = self.publish("c", 3, stale=lambda row: row["value"] == 1)
        self.assertEqual([row["name"] for row in rows], ["a", "c"])

    def test_a_readme_without_the_place_is_named(self):
        self.readme.write_text("nothing")
        with self.assertRaisesRegex(ValueError, "no place <!-- speed -->"):
            self.publish("a", 1)


class EvaluationTest(absltest.TestCase):
    def test_100_percent_equal_is_said_only_where_all_is(self):
        details = dict(
            dataset="cats", split="test", engines={}, per_class={"a": []},
            agreement=[
                dict(engines=["a", "b"], predictions=1.0, bytes=0.99996),
                dict(engines=["a", "c"], predictions=0.57, bytes=None),
            ],
        )  # fmt: skip
        text = report.evaluation_table(details)
        self.assertIn("| a and b | 100.00 | 99.99 |", text)
        self.assertIn("| a and c | 57.00 | - |", text)
        text = report.layers_table([dict(layer="conv", training=0.999999)], dict(training="conv"), dict(training=0.0))
        self.assertIn("| conv | 99.999 |", text)


if __name__ == "__main__":
    absltest.main()

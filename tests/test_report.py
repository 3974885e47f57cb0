"""What a report says of an evaluation."""

from absl.testing import absltest

from atalaia import report


class EvaluationTest(absltest.TestCase):
    def test_100_percent_equal_is_said_only_where_all_is(self):
        details = dict(
            dataset="cats", task="classify", split="test", engines={}, seconds={}, details={"a": []},
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

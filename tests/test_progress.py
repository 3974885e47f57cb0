"""Progress under a clock that the tests turn: plain lines in a file, a bar on a terminal."""

import io
import sys
from types import SimpleNamespace
from unittest import mock

from absl.testing import absltest

from atalaia import progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(absltest.TestCase):
    def setUp(self):
        self.now = 1000.0
        self.enter_context(mock.patch.object(progress, "time", SimpleNamespace(monotonic=lambda: self.now)))
        self.stderr = self._stderr(io.StringIO())

    def _stderr(self, stream):
        return self.enter_context(mock.patch.object(sys, "stderr", stream))

    def _lines(self):
        return self.stderr.getvalue().splitlines()

    def test_a_line_now_and_then_and_one_at_the_end(self):
        """10 updates of 8 images, one each 5 seconds: 1.6 images/s, and 35 s left after the first 15."""
        with progress.Progress("train", 10, "images", scale=8) as bar:
            for i in range(10):
                self.now += 5
                bar.update(loss=1 / (i + 1))
        self.assertEqual(
            self._lines(),
            [
                "train: 3/10  1.6 images/s  35 s left  loss 0.3333",
                "train: 6/10  1.6 images/s  20 s left  loss 0.1667",
                "train: 9/10  1.6 images/s  5 s left  loss 0.1111",
                "train: 10/10  1.6 images/s  0 s left  loss 0.1",
            ],
        )

    def test_what_an_earlier_run_did_does_not_count_for_the_rate(self):
        with progress.Progress("train", 100, initial=90) as bar:
            self.now += 20
            bar.update(4)
            self.assertEqual(self._lines(), ["train: 94/100  0.2 it/s  30 s left"])

    def test_figures_stay_until_they_change(self):
        with progress.Progress("train", 4) as bar:
            bar.update(loss=2, val_loss=3)
            self.now += 20
            bar.update(loss=1)
        self.assertEqual(self._lines()[0], "train: 2/4  0.1 it/s  20 s left  loss 1  val_loss 3")

    def test_before_anything_is_done_the_time_left_is_not_known(self):
        with progress.Progress("search", 3) as bar:
            self.now += 20
            bar.update(0)
            self.assertEqual(self._lines(), ["search: 0/3  0 it/s  ? s left"])

    def test_says_on_stdout_above_a_bar(self):
        for stream in (io.StringIO(), _Terminal()):
            self._stderr(stream)
            with mock.patch.object(sys, "stdout", io.StringIO()) as stdout, progress.Progress("search", 3) as bar:
                bar.say("said")
            self.assertEqual(stdout.getvalue(), "said\n")

    def test_no_closing_line_after_an_error(self):
        with self.assertRaises(RuntimeError), progress.Progress("train", 4) as bar:
            bar.update()
            raise RuntimeError
        self.assertEqual(self._lines(), [])

    def test_nothing_to_do_is_no_nonsense(self):
        with progress.Progress("train", 0):
            pass
        self.assertNotIn("nan", self.stderr.getvalue())

    def test_a_bar_on_a_terminal(self):
        self.stderr = self._stderr(_Terminal())
        with progress.Progress("train", 4, "images", scale=1000) as bar:
            for _ in range(4):
                bar.update(loss=0.25)
        last = self.stderr.getvalue().split("\r")[-1]
        self.assertRegex(last, r"^train: 100%\|.*\| 4.00k/4.00k \[.*images/s, loss=0.25\]\n$")


if __name__ == "__main__":
    absltest.main()

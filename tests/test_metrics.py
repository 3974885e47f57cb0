"""A run's figures survive a kill, TensorBoard reads them, and nothing of it imports TensorFlow."""

import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from absl.testing import absltest
from tensorboardX.proto.event_pb2 import Event

from atalaia import metrics


def row(step, **figures):
    return dict(step=step, stage="dense", loss=1 / (1 + step)) | figures


class MetricsTest(absltest.TestCase):
    def setUp(self):
        self.workdir = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.path = self.workdir / "metrics.jsonl"

    def _write(self, step, *rows):
        with metrics.Writer(self.workdir, step) as writer:
            for r in rows:
                writer.write(r)

    def _steps(self):
        return [r["step"] for r in metrics.rows(self.workdir)]


class RowsTest(MetricsTest):
    def test_come_back_as_written(self):
        rows = [row(1), row(2, accuracy=0.5)]
        self._write(0, *rows)
        self.assertEqual(metrics.rows(self.workdir), rows)

    def test_each_row_is_on_the_disk_at_once(self):
        with metrics.Writer(self.workdir, 0) as writer:
            writer.write(row(1))
            self.assertEqual(self._steps(), [1])

    def test_a_resumed_run_cuts_what_lies_past_its_step(self):
        self._write(0, row(10), row(20), row(30))
        self._write(20, row(30, loss=7.0))
        self.assertEqual(self._steps(), [10, 20, 30])
        self.assertEqual(metrics.last(self.workdir, "loss"), 7.0)

    def test_a_line_cut_short_by_a_kill(self):
        self._write(0, row(10), row(20))
        whole = self.path.read_text()
        for missing in range(2, len(whole.splitlines()[-1]) + 1):  # 1 is the line's end alone
            self.path.write_text(whole[:-missing])
            self.assertEqual(self._steps(), [10])
        self._write(20, row(30))
        self.assertEqual(self._steps(), [10, 30])

    def test_a_line_without_its_end_is_whole(self):
        self._write(0, row(10), row(20))
        self.path.write_text(self.path.read_text()[:-1])
        self._write(20, row(30))
        self.assertEqual(self._steps(), [10, 20, 30])

    def test_last(self):
        self._write(0, row(1, accuracy=0.25), row(2))
        self.assertEqual(metrics.last(self.workdir, "accuracy"), 0.25)
        self.assertEqual(metrics.last(self.workdir, "loss"), 1 / 3)
        self.assertIsNone(metrics.last(self.workdir, "f1"))

    def test_no_file_yet(self):
        self.assertEmpty(metrics.rows(self.workdir))


def events(folder):
    """The events of TensorBoard's files: records of length (8 bytes), its CRC (4), the event, its CRC (4)."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


class TensorBoardTest(MetricsTest):
    def _scalars(self):
        found = [(e.step, v.tag, v.simple_value) for e in events(self.workdir / "tensorboard") for v in e.summary.value]
        return sorted((step, tag, round(value, 4)) for step, tag, value in found)

    def test_figures_stand_under_their_stage(self):
        self._write(0, row(1, loss=0.5, accuracy=0.25), row(2, stage="prune", loss=0.125))
        expected = [(1, "dense/accuracy", 0.25), (1, "dense/loss", 0.5), (2, "prune/loss", 0.125)]
        self.assertEqual(self._scalars(), expected)

    def test_a_resumed_run_tells_tensorboard_what_to_forget(self):
        self._write(0, row(10), row(20))
        self._write(10, row(20))
        starts = [e.step for e in events(self.workdir / "tensorboard") if e.session_log.status == e.session_log.START]
        self.assertIn(11, starts)


class ProcessTest(absltest.TestCase):
    def test_training_does_not_import_tensorflow(self):
        code = "import sys; from atalaia import train; print({'tensorflow', 'tf_keras', 'keras'} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.strip(), "set()")

    def test_peak_memory_grows_and_stays(self):
        # In a process of its own: this one's peak may be higher already.
        code = (
            "from atalaia import metrics; before = metrics.peak_memory_bytes(); block = b'x' * 200_000_000; del block;"
            "print(metrics.peak_memory_bytes() - before)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertBetween(int(done.stdout), 100_000_000, 250_000_000)


if __name__ == "__main__":
    absltest.main()

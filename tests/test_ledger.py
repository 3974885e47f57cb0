"""Sizes against files and counts worked out by hand."""

import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import test_export
from absl.testing import absltest, parameterized

from atalaia import ledger, tflite
from atalaia.errors import UserError

VARIABLES = dict(
    params=dict(conv=dict(kernel=np.float32([[1, 0, 2], [0, 0, 3]]), bias=np.float32([0, 5]))),
    batch_stats=dict(conv=dict(mean=np.float32([0, 0]), var=np.float32([1, 1]))),
)


class LedgerTest(parameterized.TestCase):
    def setUp(self):
        self.workdir = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def _stage(self, name, checkpoint_bytes=1):
        ledger.add_stage(self.workdir, name, VARIABLES, checkpoint_bytes)

    def test_counts_by_hand(self):
        self._stage("dense", 1234)
        (row,) = ledger.read(self.workdir)
        self.assertEqual((row["stage"], row["parameters"], row["nonzeros"]), ("dense", 12, 6))
        self.assertEqual((row["float32_bytes"], row["checkpoint_bytes"]), (48, 1234))
        self.assertEqual((row["tflite_bytes"], row["tflm_arena_bytes"]), (None, None))

    def test_stages_keep_their_order_and_their_place(self):
        for name in ("dense", "prune", "finetune"):
            self._stage(name)
        self._stage("prune", 77)
        self.assertEqual(ledger.stages(self.workdir), ["dense", "prune", "finetune"])
        self.assertEqual([row["checkpoint_bytes"] for row in ledger.read(self.workdir)], [1, 77, 1])

    def test_each_columns_meaning_is_in_the_file(self):
        self._stage("dense")
        contents = json.loads((self.workdir / "ledger.json").read_text())
        self.assertEqual(set(contents["columns"]) | {"stage"}, set(contents["rows"][0]))

    @parameterized.parameters("mini", "thesis")  # the second has a RESHAPE, whose shape is no value of the network
    def test_int8_file(self, name):
        data = test_export.converted(name)
        ledger.add_tflite(self.workdir, data, 321)
        (row,) = ledger.read(self.workdir)
        layers = [q for q in test_export.network(name)[2].values() if hasattr(q, "kernel")]
        values = [v for q in layers for v in (q.kernel, q.bias)]
        # Layers with BatchNorm behind their ReLU have a lower and an upper bound a channel.
        bounds = [v for q in layers if q.lower is not None for v in (q.lower, q.upper)]
        self.assertLen(bounds, dict(mini=2, thesis=12)[name])
        self.assertEqual(row["parameters"], sum(v.size for v in values + bounds))
        self.assertEqual(row["nonzeros"], sum(np.count_nonzero(v) for v in values + bounds))
        self.assertEqual((row["stage"], row["tflite_bytes"]), ("int8", len(data)))
        self.assertEqual((row["gzip_bytes"], row["download_bytes"]), (ledger.gzip_bytes(data), 321))

    def test_flash_joins_the_int8_row(self):
        self._stage("dense")
        ledger.add_tflite(self.workdir, test_export.converted("mini"), 321)
        before = ledger.read(self.workdir)
        ledger.add_flash(self.workdir, 4321)
        self.assertEqual(ledger.read(self.workdir), [before[0], before[1] | dict(flash_bytes=4321)])

    def test_damaged_int8_file_is_not_entered(self):
        with self.assertRaises(UserError):
            ledger.add_tflite(self.workdir, b"TFL3", 321)
        self.assertEmpty(ledger.stages(self.workdir))

    def test_no_ledger_yet(self):
        self.assertEmpty(ledger.stages(self.workdir))
        with self.assertRaisesRegex(UserError, "has no ledger.json: train it first"):
            ledger.read(self.workdir)

    def test_table(self):
        self._stage("dense", 1234567)
        header, line, row = ledger.table(ledger.read(self.workdir)).splitlines()
        cells = [c.strip() for c in header.split("|")[1:-1]]
        self.assertEqual(cells, ["stage", *ledger.COLUMNS])
        self.assertEqual(line.count("|"), header.count("|"))
        values = dict(zip(cells, (c.strip() for c in row.split("|")[1:-1]), strict=True))
        self.assertEqual((values["stage"], values["parameters"]), ("dense", "12"))
        self.assertEqual((values["checkpoint_bytes"], values["tflite_bytes"]), ("1,234,567", "-"))


class SizesTest(absltest.TestCase):
    def test_gzip_is_gzips_own_size(self):
        data = np.random.default_rng(0).integers(0, 4, 10_000, np.uint8).tobytes()
        packed = gzip.compress(data, 9)
        self.assertEqual(gzip.decompress(packed), data)
        self.assertEqual(ledger.gzip_bytes(data), len(packed))
        self.assertLess(ledger.gzip_bytes(data), 4000)  # 2 bits a byte: 2500 and a little

    def test_arena_holds_the_largest_layer(self):
        data = test_export.converted("thesis")
        sizes = [int(np.prod(t.shape)) for t in tflite.read(data).tensors if t.data is None]
        found = ledger.tflm_arena_bytes(data)
        self.assertGreater(found, sum(sorted(sizes)[-2:]))  # an input and an output at once
        self.assertLess(found, 100_000)

    def test_arena_of_what_it_cannot_run(self):
        self.assertIsNone(ledger.tflm_arena_bytes(b"TFL3" * 100))


if __name__ == "__main__":
    absltest.main()

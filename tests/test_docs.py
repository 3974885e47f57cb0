"""README and documentation: figures are those of the results, links lead somewhere, the picture is the script's."""

import json
import re
import statistics
import sys
from pathlib import Path

from absl.testing import absltest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))

import flow  # noqa: E402
import frontier  # noqa: E402
import tables  # noqa: E402

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mcu/README.md")]


class ReadmeTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.text = (ROOT / "README.md").read_text()

    def test_it_stays_short(self):
        self.assertLessEqual(len(self.text.splitlines()), 200)

    def test_its_figures_are_those_of_the_results(self):
        found = flow.figures()
        for name in (
            "table2_accuracy",
            "table2_download",
            "accuracy",
            "flash",
            "arena",
            "milliseconds",
            "equal_images",
        ):
            self.assertIn(found[name], self.text, name)
        for name in ("instructions", "instructions_milliseconds", "esp_nn_instructions"):
            self.assertRegex(self.text, rf"\b{re.escape(found[name])}\b", name)

    def test_how_many_bytes_of_xnnpack_differ(self):
        """Of all int8 rows of Table 2, the largest part."""
        equal = min(row["equal"]["xnnpack"]["bytes"] for row in flow.read("table2") if row.get("equal"))
        self.assertIn(f"up to {100 * (1 - equal):.0f} % of the bytes differ", self.text)

    def line(self, start):
        (line,) = (line for line in self.text.splitlines() if line.startswith(start))
        return line

    def test_the_rows_of_mac16_and_of_public_files(self):
        found = {row["row"]: row["targets"] for row in flow.read("mcu_esp32")}["ResNet-8, zeros filled"]
        line = self.line("| **Faster**: by the ESP32's own")
        for target in ("esp32", "any"):
            self.assertIn(f" {found[target]['boards']['esp32isa']['instructions_per_mac']:.2f} ", line)
        fomo = json.loads((flow.RESULTS / "public_files/openmv_fomo.json").read_text())["balanced"]["report"]
        line = self.line("| **Any int8 file**")
        self.assertIn(f"{fomo['arena_bytes']:,} bytes of RAM", line)
        self.assertIn(f"{fomo['tflm']['arena_bytes']:,}", line)

    def test_the_row_of_the_frontier(self):
        """Of several seeds the median accuracy and the largest sizes."""
        line, rows = self.line("| **Smaller**: of equal"), [r for r in flow.read("frontier") if r["row"] == "tiny"]
        accuracy = statistics.median(row["test"]["tflm"]["accuracy"] for row in rows)
        size, arena = (max(row[key] for row in rows) for key in ("weight_bytes", "arena_bytes"))
        self.assertIn(f"{100 * accuracy:.2f} % in {size:,} bytes of weights and tables, {arena:,} of RAM", line)
        (peer,) = (peer for peer in frontier.PUBLIC if peer.name == "ResNet-8, MLPerf Tiny")
        self.assertIn(f"{peer.accuracy:.2f} % in {peer.bytes:,}", line)
        report = json.loads((flow.RESULTS / "public_files/mlperf_resnet8.json").read_text())["balanced"]["report"]
        for start in ("of equal", "made for an ESP32"):
            arena = f"{report['tflm']['arena_bytes']:,} of RAM (MLPerf Tiny's ResNet-8"
            self.assertIn(arena, self.line(f"| **Smaller**: {start}"))

    def test_the_row_of_both_cores(self):
        line = self.line("| **Faster**: by both cores")
        rows = [row for row in flow.read("frontier") if row["row"] == "silva"]
        accuracy = tables.percent(rows, lambda row: row["test"]["tflm"]["accuracy"]).split()[0]
        self.assertIn(f" {accuracy} % on CIFAR-10", line)
        for kind, words in (("both_cores", " %.0f to %.0f ms, estimated"), ("esp32", "one core %.0f to %.0f |")):
            low, high = zip(*(row[kind]["estimated"]["esp32"]["milliseconds"] for row in rows), strict=True)
            self.assertIn(words % (min(low), max(high)), line)

    def test_the_row_of_faces(self):
        rows = {row["row"]: row for row in flow.read("faces")}
        peers = [rows[name] for name in ("blazeface_short", "blazeface_full")]
        (ap, size, ms), (less, smaller, sooner) = (
            (
                f"{100 * row['scores']['int8']['ap']:.1f} %",
                f"{row['weight_bytes']:,} bytes",
                " to ".join(f"{ms:.0f}" for ms in row["estimated"]["esp32"]["milliseconds"]),
            )
            for row in (rows["faces_full"], rows["faces_smallest"])
        )
        said = [
            f"{ap} AP in {size} of constants, {ms} ms, estimated; {less} in {smaller}, {sooner} ms",
            *(f"{100 * row['scores']['ap']:.1f} %" for row in peers),
            *(f"{row['bytes']:,}" for row in peers),
        ]
        line = self.line("| **Faces**")
        for words in said:
            self.assertIn(words, line)

    def test_links_lead_to_files(self):
        for page in PAGES:
            for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
                if "://" not in link:
                    self.assertTrue((page.parent / link).exists(), f"{page.name}: {link}")


class FlowTest(absltest.TestCase):
    def test_the_picture_is_what_the_script_makes_of_the_results(self):
        self.assertEqual(flow.PICTURE.read_text(), flow.picture(flow.figures()))

    def test_bars_are_as_long_as_the_bytes(self):
        """A large network of 1,000 bytes and a small one of 250: a bar of four times the length."""
        given = flow.figures() | dict(large_bytes="1,000", download="250")
        lengths = [
            float(w) for w in re.findall(rf'width="([\d.]+)" height="12" fill="{flow.BLUE}"', flow.picture(given))
        ]
        self.assertEqual(len(lengths), 2)
        self.assertAlmostEqual(lengths[0], 4 * lengths[1], delta=0.1)
        self.assertIn("4 times fewer bytes", flow.picture(given))


if __name__ == "__main__":
    absltest.main()

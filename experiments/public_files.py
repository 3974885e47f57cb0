"""int8 .tflite files that others published, as they are, through code generation: bytes, instructions and parity.

python experiments/public_files.py [mlperf_vww openmv_fomo ...] [--files=FOLDER]
python experiments/public_files.py --pages        # only writes the page, from the figures

The files are those of third_party/manifest.toml, downloaded where they are not yet; --files names a folder that has
them under the manifest's names. A few minutes for all. Figures go to experiments/results/public_files, a JSON a file: a
file whose C is still the same, on the same boards, is not measured again. TFLite Micro's answers, which take the most
time, are kept in runs/public_files. Needs the Debian packages that `make -C mcu run` names.
"""

import ctypes
import hashlib
import json
import tempfile
from pathlib import Path

import compiled
import numpy as np
import tables
from absl import flags
from tables import DATA, ROOT, Table, grid

CACHE = ROOT / "runs/public_files"
# Names of the manifest, in the order of the page.
FILES = (
    *("mlperf_vww", "mlperf_resnet8", "mlperf_kws", "mlperf_streaming", "mlperf_ad"),
    *("openmv_fomo", "openmv_blazeface", "openmv_landmarks", "openmv_yolo"),
    *("meter_hands", "meter_digits", "meter_digits_100", "meter_digits_continuous"),
    *("tflm_person", "tflm_micro_speech", "tflm_keyword"),
)
SAMPLES = 100  # random inputs on the host
COUNTED = 2  # of them on the emulators, whose counts hardly differ from one to the next
PREFERENCES = ("balanced", "speed")  # of codegen: the first is its default
BOARDS = ("rv32", "lx106", "esp32isa")  # emulators of mcu/, in the order of the columns


def define_files() -> None:
    """Defines --files."""
    flags.DEFINE_string("files", None, "A folder with the files, where they are not to be downloaded.")


def main():
    for name in tables.chosen(FILES):
        if row := measure(name, TABLE.kept(name)):
            TABLE.keep(name, row)
    TABLE.write()


def measure(name: str, before: dict | None) -> dict | None:
    """The figures of a file of the manifest, at both of PREFERENCES; None where those of `before` still hold."""
    from atalaia.errors import UserError

    data, found, before = content(name), {}, before or {}
    for prefer in PREFERENCES:
        try:
            found[prefer] = _measured(name, data, prefer, before.get(prefer, {}))
        except UserError as error:
            return dict(name=name, file_bytes=len(data), refused=str(error))
    if all(found[prefer] == before.get(prefer) for prefer in PREFERENCES):
        return None
    return dict(name=name, file_bytes=len(data), zeros=_zeros(data)) | found


def _measured(name, content, prefer, before):
    """Equality, counts and report of the C by a preference; `before` where it is of the same C."""
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import boards

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / name
        codegen.generate(content, model, samples=COUNTED, prefer=prefer)
        digest = hashlib.sha256((model / "model.c").read_bytes()).hexdigest()
        if before.get("c_sha256") == digest and list(before["boards"]) == list(BOARDS):
            print(f"{name}, {prefer}: its C is that of the figures", flush=True)
            return before
        print(f"{name}, {prefer}: comparing {SAMPLES} outputs on this computer, counting instructions", flush=True)
        equal = _equal_on_host(name, content, model)
        counted = codegen.count(model)
        found = {board: counted.get(board) or boards.run(model, board) for board in BOARDS}
        report = json.loads((model / "report.json").read_text())
    report = {k: v for k, v in report.items() if k not in ("layers", "published", "model")}
    return dict(c_sha256=digest, samples=SAMPLES, equal=equal, boards=found, report=report)


def content(name: str) -> bytes:
    """A file's bytes, which are the manifest's, from --files where that is given.

    Raises:
      UserError: it is not there, or another one.
    """
    from atalaia import data, fetch
    from atalaia.errors import UserError

    if flags.FLAGS.files is None:
        return fetch.fetch(name, data.cache_dir(DATA.value)).read_bytes()
    artefact = fetch.manifest()[name]
    path = Path(flags.FLAGS.files) / artefact.file
    if not path.is_file():
        raise UserError(f"there is no {path}: put the file of {artefact.url} there, or leave --files out")
    found = path.read_bytes()
    if hashlib.sha256(found).hexdigest() != artefact.sha256:
        raise UserError(f"{path} is another file than {artefact.url}: its sha256 is not the manifest's")
    return found


def _zeros(content):
    """The part of zeros among the weights of convolutions and matrix products."""
    from atalaia import tflite

    model = tflite.read(content)
    kinds = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    weights = [model.tensors[op.inputs[1]] for op in model.operators if op.kind in kinds]
    zeros = sum(int(np.sum(w.data == (w.zero_point[0] if len(w.zero_point) else 0))) for w in weights)
    return zeros / sum(w.data.size for w in weights)


def _equal_on_host(name, content, folder):
    """Of SAMPLES random inputs, those whose every output byte of the C, compiled here, is TFLite Micro's."""
    from atalaia import tflite
    from atalaia.codegen import golden, lowering

    model = tflite.read(content)
    lowered = lowering.lower(model)
    given = golden.random_inputs(model, lowered, SAMPLES)
    wanted = _tflm(name, content, model, lowered, given)
    invoke = compiled.library(folder).model_invoke
    arena = (ctypes.c_int32 * (json.loads((folder / "report.json").read_text())["arena_bytes"] // 4 + 1))()
    found = ~wanted
    for row_in, row_out in zip(given, found, strict=True):
        invoke(_pointers(row_in, lowered.inputs, lowered), _pointers(row_out, lowered.outputs, lowered), arena)
    return int(np.sum(np.all(found == wanted, 1)))


def _pointers(row, tensors, lowered):
    """Where each tensor of a row of bytes begins, as model_invoke() takes it."""
    starts = np.cumsum([0, *(lowered.sizes[i] for i in tensors)])[:-1]
    return (ctypes.c_void_p * len(tensors))(*(row.ctypes.data + int(start) for start in starts))


def _tflm(name, content, model, lowered, given):
    """TFLite Micro's outputs, int8 `[samples, bytes]`, kept in runs/public_files."""
    from atalaia.codegen import golden

    path = CACHE / f"{name}_{hashlib.sha256(content + given.tobytes()).hexdigest()[:16]}.npy"
    return compiled.kept(path, lambda: golden.golden_outputs(content, model, lowered, given)[0])


class Published(Table):
    """A table whose figures are a JSON a file, of those that were measured."""

    def there(self) -> bool:
        return any(self.kept(name) for name in FILES)

    def kept(self, name: str) -> dict | None:
        """The figures of a file, None where there are none."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def keep(self, name: str, row: dict) -> None:
        """Keeps the figures of a file."""
        from atalaia.files import write_json

        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / f"{name}.json", row)

    def figures(self) -> list[dict]:
        return [row for name in FILES if (row := self.kept(name))]


def table(rows: list[dict]) -> str:
    """The rows in Markdown by each preference, and under them the files that are refused."""
    from atalaia import fetch

    artefacts = fetch.manifest()
    done = [row for row in rows if "refused" not in row]

    def title(row):
        return artefacts[row["name"]].what

    refused = [f"- {title(row)}: {row['refused']}" for row in rows if "refused" in row]
    sources = {
        "file": title,
        "from": lambda row: f"[{artefacts[row['name']].file}]({artefacts[row['name']].url})",
        "licence": lambda row: artefacts[row["name"]].licence,
        "first half of its sha256": lambda row: artefacts[row["name"]].sha256[:32],
    }
    first = [f"**{_found_zeros(row)}.**\n" for row in done if row["name"] == "mlperf_vww"]
    parts = [f"## `--prefer={prefer}`\n\n{_by(prefer, done, title)}" for prefer in PREFERENCES]
    parts += ["## Refused, with these words\n", *refused] if refused else []
    return "\n".join([*first, *parts, "", "## The files\n", grid(sources, rows, left=4)])


def _by(prefer, rows, title):
    """The table of one preference."""
    from atalaia.codegen import estimates

    def both(cell):
        return lambda row: " / ".join(cell(found) for found in row[prefer]["boards"].values())

    def milliseconds(row):
        times = (row[prefer]["report"]["estimated"][chip]["milliseconds"] for chip in estimates.CHIPS)
        return " / ".join(" to ".join(f"{ms:.{int(ms < 10)}f}" for ms in both) for both in times)

    def arena(row):
        ours, theirs = row[prefer]["report"]["arena_bytes"], row[prefer]["report"]["tflm"]["arena_bytes"]
        return f"{ours:,} / {theirs:,} ({ours / theirs:.2f}x)"

    def equal(row):
        found = row[prefer]
        counted = (f"{board['equal']} of {board['samples']}" for board in found["boards"].values())
        return " / ".join([f"{found['equal']} of {found['samples']}", *counted])

    names = " / ".join(BOARDS)
    columns = {
        "file": title,
        "bytes": lambda row: f"{row['file_bytes']:,}",
        "constants, bytes": lambda row: f"{row[prefer]['report']['weight_bytes']:,}",
        "zeros %": lambda row: f"{100 * row['zeros']:.1f}",
        "arena, bytes, ours / TFLM's": arena,
        "MACs": lambda row: f"{row[prefer]['report']['macs']:,}",
        f"instructions, millions, {names}": both(lambda found: f"{found['instructions'] / 1e6:.1f}"),
        f"instructions a MAC, {names}": both(lambda found: f"{found['instructions_per_mac']:.2f}"),
        f"{' / '.join(estimates.CHIPS)}, ms, *estimated*": milliseconds,
        f"equal to TFLM: host / {names}": equal,
    }
    return grid(columns, rows)


def _headline(rows):
    done = [row for row in rows if "refused" not in row]
    equal = sum(all(row[p]["equal"] == row[p]["samples"] for p in PREFERENCES) for row in done)
    text = f"{equal} of {len(done)} files of others: every output byte equals TFLite Micro's"
    vww = next((row for row in done if row["name"] == "mlperf_vww"), None)
    return f"{text}; {_found_zeros(vww)}" if vww else text


def _found_zeros(row):
    return (
        f"MLPerf Tiny's visual wake words has {100 * row['zeros']:.1f} % zeros: {row['file_bytes']:,} bytes of file "
        f"become {row[PREFERENCES[0]]['report']['weight_bytes']:,} bytes of constants"
    )


TABLE = Published(
    name="public_files",
    title="int8 files that others published",
    shows="`.tflite` files of MLPerf Tiny, OpenMV, a meter reader and TFLite Micro (TFLM), as they are: nothing is "
    "trained, pruned or calibrated again. C is made of each by `atalaia.codegen`, and must give TFLM's bytes.",
    command="python experiments/public_files.py    # a few minutes; downloads 4 MB once",
    body=table,
    headline=_headline,
    notes=(
        "Inputs are random bytes of a fixed seed: they show equality, not accuracy.",
        "Zeros are those that the file has, among the weights of convolutions and matrix products. Nobody has to ask "
        "for them: where it pays, codegen leaves them out.",
        "Constants are what the C keeps in flash beside its code; the file's bytes are what TFLM keeps there.",
        "`rv32` is the instruction set of the ESP32-C3, `lx106` the nearest Xtensa to the ESP32 that Debian compiles "
        "for. QEMU counts. **No board was run**: milliseconds are estimated ([how](../guide/boards.md)).",
    ),
)


if __name__ == "__main__":
    tables.define_rows()
    define_files()
    tables.start(main, TABLE)

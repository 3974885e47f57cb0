"""Our face detector beside those of others, on the same photos by the same rules.

python experiments/faces.py --photos=FOLDER [--workdir=runs/faces_full] [ROW...]
python experiments/faces.py --photos=FOLDER --speed     # then times all detectors on this computer, which must be quiet
python experiments/faces.py --pages                     # only writes the page, from the figures

FOLDER holds the test photos: images/ and annotations.json (COCO), or what else data.name="boxes" reads. ROW is the name
of our run's folder, such as `faces_full`, or a detector of others (face_peers.py), which needs the packages of
requirements-faces.txt, and FOMO --fomo=FILE. Without ROW: our run, and those of others that are not in the table yet.
Our run must be trained and exported; its C goes to c/ in its folder, and a picture of test photos to faces_test.png.
"""

import os
import sys
from pathlib import Path

import face_peers
import face_runs
import faces_test
import numpy as np
import tables
from absl import flags, logging
from face_peers import PEERS
from faces_test import Photos
from tables import DATA, ROOT, Table, grid

ENGINES = {"float": "float, JAX", "int8": "int8, TFLite Micro", "c": "int8, generated C"}
SPREAD = (25, 50, 75)  # percentiles of times
SHOWN = ("faces_full", "faces_bits4")  # rows of the index: the recipe of all photos, and the fewest bytes

_PHOTOS = flags.DEFINE_string("photos", None, "The test photos with their boxes.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/faces_full", "Our run, trained and exported.")
_FOMO = flags.DEFINE_string("fomo", None, f"FOMO's file: {face_peers.FOMO_FILE} of the repository openmv/openmv.")
_PREFER = flags.DEFINE_enum("prefer", "speed", ["speed", "size"], "Kernels of our C: flash is plentiful, or scarce.")
_SPEED = flags.DEFINE_bool("speed", False, "Time the detectors on this computer, when all else is done.")


def main():
    from atalaia.errors import UserError

    logging.set_verbosity(logging.WARNING)  # checkpoints have much to say
    workdir, known = ROOT / _WORKDIR.value, {row["row"]: row for row in (TABLE.figures() if TABLE.there() else [])}
    test, all_rows = photos(), [workdir.name, *PEERS]
    for name in tables.chosen(all_rows):
        wanted = name in (flags.FLAGS.rows or ())
        if name in PEERS and not wanted and known.get(name, {}).get("photos") == test.named:
            continue
        try:
            row = peer(name, test) if name in PEERS else mine(workdir, test)
        except UserError as error:
            if wanted or name not in PEERS:
                raise
            print(f"left out: {error}", file=sys.stderr)
            continue
        older = {"speed": known[name]["speed"]} if "speed" in known.get(name, {}) else {}
        TABLE.add(older | row)
    if _SPEED.value:
        TABLE.save(speed(TABLE.figures(), workdir, test))


# ---- the test photos


def photos() -> Photos:
    """Those of --photos.

    Raises:
      UserError: it is not given, or is no such folder.
    """
    from atalaia.errors import UserError

    needed = "--photos=FOLDER: a folder with photos in images/ and their faces in annotations.json (COCO) is needed"
    if not _PHOTOS.value:
        raise UserError(needed)
    try:
        return faces_test.photos(Path(_PHOTOS.value).expanduser())
    except UserError as error:
        raise UserError(f"{needed}; {error}") from None


# ---- rows


def mine(workdir: Path, test: Photos) -> dict:
    """The figures of our run, whose model is kept beside them."""
    return face_runs.measure(workdir, test, _cache(), TABLE.folder, _PREFER.value)


def peer(name: str, test: Photos) -> dict:
    """The figures of a detector of others."""
    detector = face_peers.load(name, _cache(), _fomo())
    print(f"{name}: {len(test.grey)} photos", flush=True)
    found = face_peers.find_all(detector.find, test.colour)
    scores = faces_test.finite(faces_test.figures(*found, test.targets))
    command = f"python experiments/faces.py --photos=FOLDER{' --fomo=FILE' * (name == 'fomo')} {name}"
    versions = PEERS[name].versions()
    more = dict(bytes=detector.size, versions=versions, photos=test.named, **detector.more)
    return dict(row=name, command=command, scores=scores, **more)


def _cache():
    from atalaia import data

    return data.cache_dir(DATA.value)


def _fomo():
    return Path(_FOMO.value) if _FOMO.value else None


def speed(rows: list[dict], workdir: Path, test: Photos) -> list[dict]:
    """The rows with milliseconds a photo on one core of this computer: ours is the generated C, boxes included.

    Raises:
      UserError: our row or its C is missing, or what a detector of others needs.
    """
    from atalaia import engines, tflite
    from atalaia.errors import UserError

    mine = next((row for row in rows if row["row"] == workdir.name), None)
    if mine is None or not (workdir / "c/model.c").is_file():
        raise UserError(f"--speed compares with our run, which is not measured yet: give the row {workdir.name} first")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before packages count the cores
    content = tflite.load(workdir / "model.tflite")
    channels = tflite.read(content).tensors[tflite.read(content).inputs[0]].shape[3]
    run, pixels = face_runs.function(workdir / "c"), engines.quantize_input(content, test.images(channels))
    finds = {workdir.name: lambda i: run(pixels[i])}
    for name in (row["row"] for row in rows if row["row"] in PEERS):
        find = face_peers.load(name, _cache(), _fomo()).find
        finds[name] = lambda i, find=find: find(test.colour[i])
    spent = face_peers.timed(finds, len(pixels))

    def found(name):
        low, middle, high = np.percentile(spent[name], SPREAD)
        ratio = float(np.median(spent[name] / spent[workdir.name]))
        return dict(ms=middle, low=low, high=high, ratio=ratio, against=mine["sha256"], device=_device())

    rows = [row | dict(speed=found(row["row"])) if row["row"] in spent else row for row in rows]
    return [row if row["row"] in PEERS else row | in_browser(ROOT / "runs" / row["row"]) for row in rows]


def in_browser(workdir: Path) -> dict:
    """The milliseconds of a run's C as WebAssembly, where its C is there."""
    from atalaia.codegen import boards

    made = workdir / "c"
    return dict(browser_ms=boards.run(made, boards.WASM)["milliseconds"]) if (made / "model.c").is_file() else {}


def _device():
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


# ---- the page


def table(rows: list[dict]) -> str:
    """All detectors in Markdown, ours in a line for each engine."""

    def score(name):
        return lambda line: f"{100 * line[1][name]:.1f}" if name in line[1] else "-"

    lines = [(row, scores, label) for row in rows for scores, label in _lines(row)]
    columns = {
        "detector": lambda line: line[2],
        "sees": lambda line: line[0].get("sees") or PEERS[line[0]["row"]].sees,
        "file, bytes": lambda line: f"{line[0]['bytes']:,}",
        "AP %": score("ap"),
        "AP 50:95 %": score("ap_50_95"),
        "recall % at 0.1": score("recall_0_1"),
        "at 1": score("recall_1"),
        "best F1 %": score("f1"),
        "F1 % at the threshold of validation": score("f1_chosen"),
        "F1 % of centres": score("f1_centres"),
    }
    return grid(columns, lines, left=2)


def _lines(row):
    if row["row"] in PEERS:
        return [(row["scores"], f"*{PEERS[row['row']].title}*")]
    return [
        (row["scores"][engine], f"{_title(row)}: {said}") for engine, said in ENGINES.items() if engine in row["scores"]
    ]


def _title(row):
    return f"ours, {row['model']} ({row['row']})"


def board(rows: list[dict]) -> str:
    """What our C needs, in Markdown."""

    def both(name):
        return lambda row: " / ".join(f"{row[name][b]:,}" for b in ("rv32", "lx106"))

    columns = {
        "network": _title,
        "stages": lambda row: ", ".join(row["stages"]),
        "kernels for": lambda row: row.get("prefer", "speed"),
        "flash: constants, bytes": lambda row: f"{row['weight_bytes']:,}",
        "code, bytes, rv32 / lx106": both("code_bytes"),
        "arena, bytes": lambda row: f"{row['arena_bytes']:,}",
        "MACs": lambda row: f"{row['macs']:,}",
        "instructions, rv32 / lx106": both("counted_instructions"),
        "ESP32, ms, *estimated*": lambda row: tables.milliseconds([row]),
        "by its own instructions: flash, arena, bytes": _own_bytes,
        "ms, *estimated*": lambda row: tables.milliseconds([row["esp32"]]) if "esp32" in row else "-",
        "browser, ms": lambda row: f"{row['browser_ms']:.2f}",
        "bytes of heads equal to TFLM's %: integer JAX / C": _equal,
        "photos whose boxes in C are Python's": _boxes_equal,
    }
    return grid(columns, rows, left=3)


def _own_bytes(row):
    return f"{row['esp32']['weight_bytes']:,}, {row['esp32']['arena_bytes']:,}" if "esp32" in row else "-"


def _equal(row):
    jax = " and ".join(f"{100 * part:g} ({head})" for head, part in row["heads_equal"].items())
    return f"{jax} / {100 * row['heads_equal_c']:g}"


def _boxes_equal(row):
    return f"{row['frames_equal']} of {row['photos']['photos']} ({row['boxes_in_c']:,} boxes)"


def times(rows: list[dict], sha256: str) -> str:
    """Milliseconds of the rows that were timed beside our file of that SHA-256, in Markdown."""
    timed = [row for row in rows if row.get("speed", {}).get("against") == sha256]
    columns = {
        "detector": lambda row: PEERS[row["row"]].title if row["row"] in PEERS else _title(row),
        "ms a photo, median": lambda row: f"{row['speed']['ms']:.2f}",
        "middle half": lambda row: f"{row['speed']['low']:.2f} to {row['speed']['high']:.2f}",
        "of ours": lambda row: f"{row['speed']['ratio']:.1f}x",
        "on": lambda row: row["speed"]["device"],
    }
    return grid(columns, timed) if timed else ""


def _body(rows):
    mine = [row for row in rows if row["row"] not in PEERS]
    seen = "{photos:,} photos with {faces:,} faces, of which {counted:,} count.\n".format(**rows[0]["photos"])
    parts = [seen, table(rows)]
    if mine:
        parts += ["## Ours on a board", board(mine), "## Runs", tables.provenance(mine, _title)]
    for row in mine:
        if text := times(rows, row["sha256"]):
            parts += ["## Time on a computer, one core", text]
    versions = {name: version for row in rows for name, version in row.get("versions", {}).items()}
    said = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return "\n".join([*parts, *([f"Packages of the others: {said}."] if said else [])])


def _headline(rows):
    mine = [row for row in rows if row["row"] not in PEERS]
    best = max((row for row in rows if row["row"] in PEERS), key=lambda row: row["scores"]["ap"], default=None)
    shown = [row for row in mine if row["row"] in SHOWN] or mine[:1]
    said = [
        f"AP {100 * row['scores']['int8']['ap']:.1f} % in {row['weight_bytes']:,} bytes of constants" for row in shown
    ]
    if best:
        ap = f"{100 * best['scores']['ap']:.1f} %"
        said.append(f"{PEERS[best['row']].title}: {ap} in {best['bytes']:,} bytes")
    return "; ".join(said)


def _order(row):
    return ([*PEERS].index(row["row"]) + 1 if row["row"] in PEERS else 0, row["row"])


TABLE = Table(
    name="faces",
    title="Face detectors on photos",
    shows="Face detectors on the same photos with boxes drawn by people, brought to 160x120. Most faces wear masks. "
    "Nothing was trained or chosen on these photos.",
    command="python experiments/faces.py --photos=FOLDER --fomo=FILE    # our run must be trained and exported before",
    body=_body,
    headline=_headline,
    notes=(
        "The photos are every second one of the set published as *Face Mask Detection* and are not part of this "
        "repository. A face narrower than 12 pixels is neither counted nor a mistake to find. Nor is a found box that "
        "is narrower itself, unless it is right.",
        "Ours: `faces` is what `./run.sh faces` makes, of photos from packages alone; `faces_full` is `--full`, with "
        "photos from the web; `faces_unpruned` is the same network without zeros, after 14 epochs; `faces_smallest` "
        "goes on from `faces_full`, which teaches it; `faces_bits4` is that with most weights in 4 bits.",
        "AP is COCO's average precision at an overlap (IoU) of 0.5, AP 50:95 its mean at ten overlaps. Recall is that "
        "with at most 0.1 and 1 wrong boxes a photo.",
        "The best F1 is that of the threshold that is best *on these photos*. Beside it, ours has the F1 at the "
        "threshold that is best on the validation split; this one is in the C.",
        "*F1 of centres* asks no more than that the middle of a box lies in a face. FOMO finds middles, not sizes: its "
        "other figures are those of the boxes of one size that OpenMV gives it.",
        "All see the same frame of 160x120, which each brings to its own size as its package does. CenterFace and FOMO "
        "give boxes from a probability of 0.05 on, BlazeFace from 0.1, since it merges boxes and lower ones harm it.",
        "Another filter to bring the photos to 160x120 moves the AP of the others by up to a point.",
        "By its own instructions: C made with `--target=esp32`, counted in the emulator of the ESP32.",
        "No board was run: milliseconds of the ESP32 are estimated from counted instructions. Those of the browser are "
        "WebAssembly's in node, the median of several runs. Both are of the network without the choice of boxes.",
    ),
    key=("row",),
    order=_order,
    stale=lambda row: lambda older: older["photos"] != row["photos"],
)


tables.define_rows()

if __name__ == "__main__":
    tables.start(main, TABLE)

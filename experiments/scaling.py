"""What grows with trials and with images: time of a proposal, memory of a training, images a second from the disk.

python experiments/scaling.py [--folder=FOLDER] [proposals memory limit loaders]
python experiments/scaling.py --pages              # only writes the page, from the figures

Made-up images of 96x96x3 are written to FOLDER (3.3 GB, removed at the end). About two minutes on a quiet machine. The
row of grain is measured where that package is installed.
"""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent))
import tables
from tables import ROOT, Table, grid

SHAPE = (96, 96, 3)
TRIALS = (30, 100, 300, 1000, 2000)
IMAGES = (2_000, 16_000)  # of the memory's slope
LARGE = 120_000  # images that do not fit
LIMIT = 3 << 30  # bytes that a process may allocate for them
BATCH, BATCHES, REPEATS = 128, 40, 3  # of the loaders
MIB, GIB = 2**20, 2**30


def main():
    from atalaia.files import write_json

    for part in tables.chosen(PARTS):
        with tempfile.TemporaryDirectory(dir=flags.FLAGS.folder) as temporary:
            before = os.getloadavg()[0]
            found = dict(rows=PARTS[part](Path(temporary)), cores=os.cpu_count(), load=[before, os.getloadavg()[0]])
        TABLE.folder.mkdir(parents=True, exist_ok=True)
        write_json(TABLE.folder / f"{part}.json", found)
    if TABLE.there():
        TABLE.write()


# ---- trials


def proposals(folder: Path) -> list[dict]:
    """A proposal after each number of trials."""
    return [proposal(count) for count in TRIALS if count <= flags.FLAGS.most]


def proposal(count: int) -> dict:
    """CPU seconds of one proposal after so many trials of four fields; it runs on one thread."""
    from atalaia import space as spaces

    fields = {name: spaces.uniform(0.0, 1.0) for name in ("a", "b", "c", "d")}
    rng = np.random.default_rng(count)
    points = [{name: round(float(u), 4) for name, u in zip(fields, row, strict=True)} for row in rng.random((count, 4))]
    results = [spaces.Result(p, -sum((v - 0.3) ** 2 for v in p.values()) + 0.01 * rng.normal()) for p in points]
    seconds = []
    for _ in range(REPEATS if count <= 300 else 1):
        begin = time.process_time()
        spaces.propose(fields, 0, results)
        seconds.append(time.process_time() - begin)
    print(f"{count} trials: {statistics.median(seconds):.2f} s", flush=True)
    return dict(trials=count, seconds=statistics.median(seconds))


# ---- images


def write_set(folder: Path, count: int) -> None:
    """A data set of so many made-up images of ten classes, as .npy files."""
    from atalaia.datasets import disk

    folder.mkdir()
    images = disk.create(folder / "train_images.npy", (count, *SHAPE))
    block = np.random.default_rng(0).integers(0, 256, (2_000, *SHAPE), np.uint8)
    for start in range(0, count, len(block)):
        images[start : start + len(block)] = np.roll(block, start // len(block), 2)[: count - start]
    images.flush()
    np.save(folder / "train_targets.npy", np.arange(count) % 10)


def training(folder: Path, name: str, data: Path, in_memory: bool, limit: int | None = None):
    """A short training in a process of its own: its run folder, and how it ended."""
    workdir = folder / f"run_{name}_{'memory' if in_memory else 'disk'}"
    fields = {
        "model": "experiments/scaling_net.py:Net",
        "stages": "('dense',)",
        "augment.pad_crop": 0,
        "batch_size": BATCH,
        "dense.epochs": 0,
        "dense.steps": 30,
        "data.name": "arrays",
        "data.path": data,
        "data.validation": 0.02,
        "data.in_memory": in_memory,
    }

    def limits():
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    words = [f"--config.{field}={value}" for field, value in fields.items()]
    command = [sys.executable, "-m", "atalaia.train", "--config=configs/digits.py", f"--workdir={workdir}", *words]
    begin = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limits, capture_output=True, text=True)
    return workdir, dict(code=done.returncode, said=done.stderr.strip().splitlines()[-1:], s=time.monotonic() - begin)


def memory(folder: Path) -> list[dict]:
    """A training of each number of images, in memory and from the disk."""
    for count in IMAGES:
        write_set(folder / f"set_{count}", count)
    return [peak(folder, count, where) for count in IMAGES for where in (True, False)]


def peak(folder: Path, count: int, in_memory: bool) -> dict:
    """The most memory that a training of so many images held, and what its run folder holds."""
    data = folder / f"set_{count}"
    workdir, ended = training(folder, str(count), data, in_memory)
    assert ended["code"] == 0, ended
    most = json.loads((workdir / "train.json").read_text())["peak_memory_bytes"]
    print(f"{count} images, in_memory={in_memory}: {most / MIB:.0f} MiB", flush=True)
    files = [path.stat().st_size for path in workdir.rglob("*") if path.is_file()]
    held = dict(files=len(files), folder=sum(files))
    return dict(images=count, in_memory=in_memory, bytes=count * int(np.prod(SHAPE)), peak=most, **held)


def limit(folder: Path) -> dict:
    """A set that is larger than the memory that a process may take: in memory, and from the disk."""
    write_set(folder / "large", LARGE)
    found = {}
    for in_memory in (True, False):
        _, found["memory" if in_memory else "disk"] = training(folder, "large", folder / "large", in_memory, LIMIT)
        print(found, flush=True)
    return found | dict(limit=LIMIT, images=LARGE, bytes=LARGE * int(np.prod(SHAPE)))


def loaders(folder: Path) -> list[dict]:
    """Images a second of batches in a random order, by each way; cold: none of the file is in the system's cache."""
    write_set(folder / "set", LARGE)
    path, ways = folder / "set/train_images.npy", {"one thread": one_thread, "read ahead (ours)": ours}
    if importlib.util.find_spec("grain"):
        ways["grain, 2 threads"] = grains
    rows = []
    for name, way in ways.items():
        for cold in (True, False):
            rates = []
            for repeat in range(REPEATS):
                order = np.random.default_rng(repeat).permutation(LARGE)[: BATCH * BATCHES].astype(np.int32)
                if cold:
                    forget(path)
                else:
                    np.load(path, mmap_mode="r")[np.sort(order)]
                begin = time.monotonic()
                way(np.load(path, mmap_mode="r"), order)
                rates.append(len(order) / (time.monotonic() - begin))
            rows.append(dict(way=name, cold=cold, rate=statistics.median(rates), least=min(rates), most=max(rates)))
            print(rows[-1], flush=True)
    return rows


def forget(path: Path) -> None:
    """Takes a file out of the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_thread(images, order):
    for start in range(0, len(order), BATCH):
        _ = images[order[start : start + BATCH]]


def ours(images, order):
    import jax

    from atalaia import data, feed
    from atalaia.datasets.disk import Rows

    split = data.Split(Rows(images), np.zeros(len(images), np.int32))
    batches, order = feed.make_feed(split, BATCH), jax.device_put(order)
    for start in range(0, len(order), BATCH):
        jax.block_until_ready(batches.of(order, start).images)


def grains(images, order):
    import grain

    places = grain.MapDataset.source(order).map(lambda place: images[place])
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2 * BATCH)
    for batch in places.to_iter_dataset(options).batch(BATCH):
        assert len(batch) == BATCH


# ---- the page


def slope(rows: list[dict], x: str, y: str) -> float:
    """By which power `y` grows with `x`, over the upper half of the rows."""
    upper = rows[len(rows) // 2 :]
    return float(np.polyfit(np.log([row[x] for row in upper]), np.log([row[y] for row in upper]), 1)[0])


def per_byte(rows: list[dict], in_memory: bool) -> float:
    """Bytes of memory for each byte of images."""
    chosen = [row for row in rows if row["in_memory"] == in_memory]
    return float(np.polyfit([row["bytes"] for row in chosen], [row["peak"] for row in chosen], 1)[0])


def body(found: dict) -> str:
    proposals = {"trials before it": lambda r: f"{r['trials']:,}", "CPU s": lambda r: f"{r['seconds']:.2f}"}
    peaks = {
        "images": lambda r: f"{r['images']:,}",
        "kept": lambda r: "in memory" if r["in_memory"] else "on the disk",
        "bytes of images, MiB": lambda r: f"{r['bytes'] / MIB:,.0f}",
        "peak memory, MiB": lambda r: f"{r['peak'] / MIB:,.0f}",
    }
    rates = {
        "way": lambda r: r["way"],
        "file": lambda r: "not in the cache" if r["cold"] else "in the cache",
        "images/s": lambda r: f"{r['rate']:,.0f} ({r['least']:,.0f} to {r['most']:,.0f})",
    }
    limit, trial = found["limit"]["rows"], found["memory"]["rows"][0]
    loads = ", ".join(f"{part} {found[part]['load'][0]:.0f} to {found[part]['load'][1]:.0f}" for part in PARTS)
    rows = {part: found[part]["rows"] for part in PARTS}
    ends = "\n".join(
        f"- {way}: exit code {limit[key]['code']}, {' '.join(limit[key]['said']) if limit[key]['code'] else 'trained'}"
        for way, key in (("in memory", "memory"), ("on the disk", "disk"))
    )
    return (
        f"Images are {'x'.join(map(str, SHAPE))}. {found['memory']['cores']} cores; load average from beginning to "
        f"end: {loads}.\n\n"
        f"## One proposal of a search\n\n{grid(proposals, rows['proposals'], left=0)}\n"
        f"It grows with the power {slope(rows['proposals'], 'trials', 'seconds'):.1f} of the trials.\n\n"
        f"## Memory of a training\n\n{grid(peaks, rows['memory'], left=0)}\n"
        f"A byte of images takes {per_byte(rows['memory'], True):.2f} bytes of memory when they are kept in memory, "
        f"{per_byte(rows['memory'], False):.2f} when they stay on the disk (what the system keeps of the file counts, "
        "and gives way).\n\n"
        f"## A set that does not fit\n\n{limit['images']:,} images, {limit['bytes'] / GIB:.1f} GiB, in a process that "
        f"may allocate {limit['limit'] / GIB:.1f} GiB (`setrlimit` on data):\n\n{ends}\n\n"
        f"## Images from the disk\n\nBatches of {BATCH} in a random order.\n\n{grid(rates, rows['loaders'], left=2)}"
        f"\n## A run folder\n\n{trial['files']} files, {trial['folder'] / 1024:,.0f} KiB for this small network.\n"
    )


def draw(found: dict, path: Path) -> None:
    """Proposal time and memory, both against what grows."""
    from matplotlib.figure import Figure

    from atalaia import pictures

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = found["proposals"]["rows"]
    left.loglog([r["trials"] for r in rows], [r["seconds"] for r in rows], "o-")
    left.set(xlabel="trials", ylabel="CPU seconds of the next proposal")
    left.grid(alpha=0.3)
    for kept, label in ((True, "in memory"), (False, "on the disk")):
        rows = [r for r in found["memory"]["rows"] if r["in_memory"] == kept]
        right.plot([r["bytes"] / MIB for r in rows], [r["peak"] / MIB for r in rows], "o-", label=label)
    right.set(xlabel="images, MiB", ylabel="peak memory of a training, MiB", ylim=0)
    right.grid(alpha=0.3)
    right.legend()
    pictures.save_figure(figure, path)


PARTS = dict(proposals=proposals, memory=memory, limit=limit, loaders=loaders)
TABLE = Table(
    name="scaling",
    title="What grows with trials and images",
    shows="Slopes behind the [plan for larger work](../scaling.md): the time of a proposal against trials, memory "
    "against images, and how fast images come from the disk.",
    command="python experiments/scaling.py",
    body=body,
    headline=lambda found: (
        f"a proposal's time grows with the power {slope(found['proposals']['rows'], 'trials', 'seconds'):.1f} of the "
        f"trials; a byte of images takes {per_byte(found['memory']['rows'], True):.1f} bytes of memory"
    ),
    picture="Time of a proposal, and peak memory",
    draw=draw,
    files=tuple(f"{part}.json" for part in PARTS),
    notes=(
        "The slopes count. A machine that does other work (see the load average) gives lower rates than a quiet one.",
        "Proposals are CPU time on one thread, of four fields with numbers as values.",
        "Loaders: the median, in brackets the least and the most of three; reading alone, without training.",
    ),
)


if __name__ == "__main__":
    tables.define_rows()
    flags.DEFINE_integer("most", TRIALS[-1], "Trials before the last proposal; that after 2,000 takes minutes.")
    flags.DEFINE_string("folder", None, "Where the made-up images are written (else the system's temporary folder).")
    tables.start(main, TABLE)

"""Where the time of a training step goes, from XLA's own trace of it.

python experiments/train_profile.py [--networks=... --batches=...]        # rows as in train_speed.py
python experiments/train_profile.py --pages        # only writes the page, from the figures

Every operation's time, less that of what it encloses, is counted for the part of the step that its name comes from, on
all cores together. Run it on a quiet machine.
"""

import collections
import gzip
import json
import os
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tables
import train_speed
from tables import Table, grid

SECONDS = 3.0  # of a trace, about

# First match counts; the names are those of the network's layers and of jax.named_scope in train.py and ops.py.
PARTS = (
    ("images and augmentation", r"images"),
    ("optimiser", r"optimizer"),
    ("BatchNorm", r"/norm/"),
    ("max-pool", r"/pool\d"),
    ("convolution, weight gradient", r"weight_gradient"),
    ("convolution, input gradient", r"convolution_gradients|input_gradient"),
    ("convolution, forward", r"conv_general_dilated|depthwise"),
    ("dense layers", r"dense|logits"),
    ("bias, ReLU and addition", r"conv\d?|block|pointwise|add|relu"),
)


def main():
    with tempfile.TemporaryDirectory() as dump:
        # XLA's own text of every program it compiles: the only place that ties a traced operation to its layer.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump} --xla_dump_hlo_as_text"
        for text in train_speed.rows():
            row = dict(row=text, vectors=train_speed.vectors(), **profile(train_speed.Row(text), Path(dump)))
            print(json.dumps(row), flush=True)
            TABLE.add(row)


def profile(row, dump: Path) -> dict:
    """Milliseconds of one step, or of the evaluation of 2000 images, and of its parts, summed over the cores."""
    import jax

    for path in dump.glob("*.txt"):
        path.unlink()
    run, _ = train_speed.our_step(row)
    run(1)
    calls = max(1, round(SECONDS / train_speed.timed(run, 1)))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            wall = train_speed.timed(run, calls) / calls
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        trace = json.loads(gzip.decompress(path.read_bytes()))
    names = {}
    for path in dump.glob("*after_optimizations.txt"):
        found = re.findall(r"%?([\w.-]+) = [^\n]*op_name=\"([^\"]+)\"", path.read_text())
        names |= {(path.name.split(".")[1], operation): place for operation, place in found}
    parts = collections.Counter()
    for module, operation, microseconds in own_times(trace["traceEvents"] if isinstance(trace, dict) else trace):
        place = names.get((module, operation), "")
        part = next((part for part, pattern in PARTS if re.search(pattern, place)), "other")
        parts[part] += microseconds / 1000 / calls
    return dict(milliseconds=1000 * wall, parts=dict(parts.most_common()))


def own_times(events: list[dict]):
    """(module, operation, its microseconds less those of the operations inside it) of XLA's events in a trace."""
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        open_events = []  # [end, module, operation, own]
        for event in sorted(thread, key=lambda e: (e["ts"], -e["dur"])):
            while open_events and open_events[-1][0] <= event["ts"]:
                yield open_events.pop()[1:]
            if open_events:
                open_events[-1][3] -= event["dur"]
            end, args = event["ts"] + event["dur"], event["args"]
            open_events.append([end, args["hlo_module"], args["hlo_op"], event["dur"]])
        yield from (e[1:] for e in open_events)


def order(row: dict) -> tuple:
    """As in the table of the speed."""
    network, _, batch, *evaluate = row["row"].split(":")
    return row["vectors"], evaluate, int(batch), list(train_speed.NETWORKS).index(network)


def table(rows: list[dict]) -> str:
    """Parts of the step in percent of all operations' time, in Markdown."""

    def share(part):
        return lambda row: f"{100 * row['parts'].get(part, 0) / sum(row['parts'].values()):.1f}"

    columns = {
        "network, images, batch": lambda row: row["row"].replace(":", ", "),
        "ms": lambda row: f"{row['milliseconds']:.0f}",
        **{f"{part}, %": share(part) for part in dict.fromkeys(part for row in rows for part in row["parts"])},
    }
    return grid(columns, rows)


def _headline(rows):
    shares = []
    for row in (row for row in rows if not row["row"].endswith("evaluate")):
        convolutions = sum(ms for part, ms in row["parts"].items() if part.startswith("convolution"))
        shares.append(100 * convolutions / sum(row["parts"].values()))
    return f"convolutions take {min(shares):.0f} to {max(shares):.0f} % of a training step"


TABLE = Table(
    name="train_profile",
    title="Where the time of a training step goes",
    shows="The parts of a training step on a CPU, in percent of the time of all operations, from XLA's own trace. The "
    "last row is evaluation.",
    command="python experiments/train_profile.py    # on a quiet machine",
    body=table,
    headline=_headline,
    notes=("The rows are those of [training speed](train_speed.md) on the AVX-512 machine.",),
    key=("row", "vectors"),
    order=order,
)


if __name__ == "__main__":
    tables.start(main, TABLE)

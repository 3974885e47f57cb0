"""Where the time of a training step goes, from XLA's own trace of it.

python experiments/train_profile.py        # rows: thesis, resnet8 and mobilenetv1 at batch 128

Every operation's time, less that of what it encloses, is counted for the part of the step that its name comes from, on
all cores together. Writes experiments/results/train_profile.json and .md, and the table in README.md.
"""

import collections
import gzip
import json
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]
RESULTS = ROOT / "experiments/results"
ROWS = ("thesis:32:128", "resnet8:32:128", "mobilenetv1:96:128")
STEPS = 10

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


def main() -> None:
    from train_speed import Row

    from atalaia import report
    from atalaia.files import write_json, write_whole

    profiles = {text: profile(Row(text)) for text in ROWS}
    text = table(profiles)
    write_json(RESULTS / "train_profile.json", profiles)
    write_whole(RESULTS / "train_profile.md", text)
    report.insert(ROOT / "README.md", "train_profile", text)
    print(text)


def profile(row) -> dict[str, float]:
    """Milliseconds of one step by part, summed over the cores."""
    import jax
    from train_speed import our_step

    run, _, hlo = our_step(row)
    run(3)
    names = dict(re.findall(r"%?([\w.-]+) = [^\n]*op_name=\"([^\"]+)\"", hlo()))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            run(STEPS)
        (path,) = Path(folder).rglob("perfetto_trace.json.gz")
        trace = json.loads(gzip.decompress(path.read_bytes()))
    events = trace["traceEvents"] if isinstance(trace, dict) else trace
    parts = collections.Counter()
    for name, microseconds in own_times(events):
        place = names.get(name, "")
        part = next((part for part, pattern in PARTS if re.search(pattern, place)), "other")
        parts[part] += microseconds / 1000 / STEPS
    return dict(parts.most_common())


def own_times(events: list[dict]):
    """(operation, its microseconds less those of the operations inside it) of XLA's events in a trace."""
    threads = collections.defaultdict(list)
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            threads[event["pid"], event["tid"]].append(event)
    for thread in threads.values():
        open_events = []  # [end, name, own]
        for event in sorted(thread, key=lambda e: (e["ts"], -e["dur"])):
            while open_events and open_events[-1][0] <= event["ts"]:
                yield open_events.pop()[1:]
            if open_events:
                open_events[-1][2] -= event["dur"]
            open_events.append([event["ts"] + event["dur"], event["args"]["hlo_op"], event["dur"]])
        yield from (e[1:] for e in open_events)


def table(profiles: dict[str, dict[str, float]]) -> str:
    """Parts of the step in percent of all operations' time, in Markdown."""
    parts = list(dict.fromkeys(part for p in profiles.values() for part in p))
    lines = ["| % of a step's operations | " + " | ".join(profiles) + " |", "|---|" + "---:|" * len(profiles)]
    for part in parts:
        shares = [100 * p.get(part, 0) / sum(p.values()) for p in profiles.values()]
        lines.append(f"| {part} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

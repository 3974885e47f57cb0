"""Early exit: how much work a network saves where a small head inside it is already sure.

python experiments/early_exit.py [POINT...]    # points of configs/frontier.py whose runs are there
python experiments/early_exit.py --pages       # only writes the page, from the figures

A head is one Dense layer on the channels' means of a layer's int8 output (Teerapittayanon et al., 2016, BranchyNet,
arXiv:1709.01686). It may stand where nothing else is still needed of what came before. If its first answer leads the
second by enough, the rest of the network is not run. The exit and the lead are those that save most on the validation
split and lose none of its right answers there; the test set is looked at once.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import tables
from tables import Table, grid

IMAGES = 10_000  # of training, that a head learns from
BOARD = "esp32isa"  # whose instructions are counted, of the C that experiments/frontier.py wrote


def main():
    from configs import frontier

    for point in tables.chosen(frontier.POINTS):
        workdir = tables.ROOT / "runs/frontier" / point
        if (workdir / "c_esp32/report.json").is_file():
            TABLE.add(dict(row=point, **measure(workdir)))
        else:
            print(f"left out: {point} has not run yet (./run.sh frontier {point})", flush=True)


def measure(workdir: Path) -> dict:
    """The exit of a run that saves most on the validation split, and what it does on the test set."""
    from atalaia import config as configs
    from atalaia import data, simulate

    config = configs.load(workdir)
    dataset = data.load(config.data, data.cache_dir(tables.DATA.value))
    network = simulate.load(config, workdir, dataset)
    places = cuts(network.code, dataset.test.images.shape[1:])
    whole, until = spent(workdir), {place: spent(workdir, macs) for place, macs in places.items()}
    splits = dataset.train, dataset.validation, dataset.test
    learns, chooses, counts = (means(network, split.images[:IMAGES], places) for split in splits)
    full = [simulate.run(network.code, network.network, split.images)[0].argmax(-1) for split in splits[1:]]

    heads, leads, saves = {}, {}, {}
    for place in places:
        heads[place] = taught(learns[place], dataset.train.targets[:IMAGES])
        early, lead = decide(heads[place], chooses[place])
        leads[place] = smallest_lead(early, lead, full[0], dataset.validation.targets)
        saves[place] = float(np.mean(lead >= leads[place]) * (1 - until[place] / whole))
    place = max(places, key=lambda place: saves[place])
    early, lead = decide(heads[place], counts[place])
    leave, right = lead >= leads[place], dataset.test.targets
    accuracies = dict(whole=full[1] == right, exit=np.where(leave, early, full[1]) == right)
    return dict(
        place=place,
        lead=float(leads[place]),
        test={name: float(np.mean(found)) for name, found in accuracies.items()},
        leave=float(np.mean(leave)),
        instructions=dict(whole=whole, mean=float(whole - np.mean(leave) * (whole - until[place]))),
        saved_on_validation=saves,
    )


def taught(pooled: np.ndarray, targets: np.ndarray) -> Any:
    """A Dense layer as scikit-learn fits it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(pooled, targets)


def cuts(model, shape: tuple[int, ...]) -> dict[str, int]:
    """MACs up to each layer whose output, a map of channels, is all that the layers after it need."""
    from atalaia import layers

    order, macs, reads = [], [], []

    def rule(path, layer, *inputs):
        reads.append([order.index(name) if name in order else -1 for name, _ in inputs])
        shapes = [x for _, x in inputs]
        out = layers.output_spec(layer, *shapes)
        order.append(path)
        macs.append(layer.macs([x.shape for x in shapes], out.shape))
        return path, out

    layers.interpret(model, rule, ("", layers.spec((1, *shape))))
    ends = {i for i in range(len(order)) if all(min(after) >= i for after in reads[i + 1 :])}
    last = max(i for i, path in enumerate(order) if macs[i] and i < len(order) - 1)
    until = list(itertools.accumulate(macs))
    return {order[i]: until[i] for i in sorted(ends) if until[i] > 0 and i < last}


def means(network, images: np.ndarray, places: dict[str, int]) -> dict[str, np.ndarray]:
    """The channels' means of int8 outputs, float32 `[n, channels]`, by layer."""
    import jax
    import jax.numpy as jnp

    from atalaia import simulate

    @jax.jit
    def pooled(x):
        seen = simulate.outputs(network.code, network.network, x)[1]
        return {place: seen[place].astype(jnp.float32).mean((1, 2)) / 128 for place in places}

    with jax.enable_x64(True):
        parts = [jax.device_get(pooled(images[i : i + simulate.BATCH])) for i in range(0, len(images), simulate.BATCH)]
    return {place: np.concatenate([part[place] for part in parts]) for place in places}


def decide(head, pooled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The head's answers, and by how much of the probability each leads the next."""
    chances = head.predict_proba(pooled)
    second, first = np.sort(chances, 1)[:, -2:].T
    return chances.argmax(1), first - second


def smallest_lead(early: np.ndarray, lead: np.ndarray, full: np.ndarray, right: np.ndarray) -> float:
    """The smallest lead with which those that leave early cost no right answer of all; above 1 if there is none.

    Args:
      early, lead: of the head; full: the whole network's answers; right: the targets. All `[n]`.
    """
    order = np.argsort(-lead, kind="stable")
    won = np.cumsum((early == right)[order].astype(int) - (full == right)[order].astype(int))
    fair = np.flatnonzero((won >= 0) & np.append(np.diff(lead[order]) < 0, True))
    return lead[order][fair[-1]] if len(fair) else 2.0


def spent(workdir: Path, macs: int | None = None) -> int:
    """Instructions of the generated C, as estimated by layer, until so many MACs are done; of all without."""
    total, done = 0, 0
    for step in tables.read(workdir, "c_esp32/report.json")["layers"]:
        if macs is not None and done >= macs and step["macs"]:
            break
        total, done = total + step["instructions"][BOARD], done + step["macs"]
    return total


def table(rows: list[dict]) -> str:
    """In Markdown."""
    columns = {
        "point": lambda row: row["row"],
        "exit after": lambda row: row["place"],
        "exits tried": lambda row: len(row["saved_on_validation"]),
        "lead that is enough": lambda row: f"{row['lead']:.3f}",
        "test set: whole network %": lambda row: f"{100 * row['test']['whole']:.2f}",
        "with the exit %": lambda row: f"{100 * row['test']['exit']:.2f}",
        "leave early %": lambda row: f"{100 * row['leave']:.1f}",
        "instructions, whole": lambda row: f"{row['instructions']['whole']:,}",
        "mean with the exit": lambda row: f"{row['instructions']['mean']:,.0f}",
        "saved on validation %": lambda row: f"{100 * row['saved_on_validation'][row['place']]:.1f}",
        "saved on the test set %": lambda row: f"{100 * saved(row):.1f}",
    }
    return grid(columns, rows, left=2)


def saved(row: dict) -> float:
    """Part of the instructions that a mean image does without."""
    return 1 - row["instructions"]["mean"] / row["instructions"]["whole"]


TABLE = Table(
    name="early_exit",
    title="Early exit",
    shows="A head inside the network answers where it is sure, and the rest is not run. How much does that save at "
    "equal accuracy?",
    command="./run.sh frontier\npython experiments/early_exit.py",
    body=table,
    headline=lambda rows: "; ".join(f"{row['row']}: {100 * saved(row):.0f} % of instructions saved" for row in rows),
    notes=(
        "This is an experiment in Python's integers, not in C: the head is a logistic regression in floating point on "
        "the channels' means, and its own work, less than a thousandth, is left out.",
        "The exit and the lead were chosen on the validation split, so that no right answer is lost there. The worst "
        "case is the whole network and the head.",
        "The head learns from a finished network, which does not change. Training both together was not tried.",
        f"Instructions are those that codegen estimates for the ESP32's own instruction set ({BOARD}), layer by layer.",
    ),
    key=("row",),
)


tables.define_rows()

if __name__ == "__main__":
    tables.start(main, TABLE)

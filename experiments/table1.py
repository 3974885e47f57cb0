"""The thesis's Table 1 again: ResNet-50 and five students, each trained by itself and distilled, at 96x96.

python experiments/table1.py [--rows=teacher,rafael_base,rafael_base_distilled,...] [--seeds=0,1,2] [--stl10]
    [--trials=12] [--data_dir=FOLDER]
python experiments/table1.py --pages        # only writes the pages, from the figures

By default on CIFAR-10 upsampled to 96x96, 500 images a class to train and 800 to test, since STL-10 is in no package
registry; --stl10 is the same on STL-10 itself, where its binary files are at hand. Alpha and temperature come from a
search on the student SEARCHED, by the validation split, which all others, and all seeds, take over: they stand in
chosen.json from then on. Where experiments/results/search_replay/grid.json has every point of the space for that
student, the best of them is taken, whatever teacher, views and epochs they had; else atalaia.search runs for --trials.
What a search in runs/table1/search found is published too.
The teacher of seed 0 teaches every seed, by VIEWS of configs/table1.py of each image; students by themselves see new
ones in every epoch. Trains what is not trained yet in runs/table1 (each row goes on where it was) and evaluates the
test set once a row; of the students for a board (rafael_*, distilled) the int8 network is exported, compared on the
validation split and compiled.
"""

import dataclasses
import json
import statistics
from pathlib import Path

import tables
from absl import flags
from tables import ROOT, SEEDS, Row, Table, evaluated, exported, grid, percent, read, seeded

CONFIG, TEACHER = "configs/table1.py", "configs/teacher.py"
SEARCHED, SEARCH_EPOCHS = "rafael_base", 4.0
SPACE = "configs/search_kd.py"
CHOSEN = "chosen.json"
# What a grid's recipe may have differently: a search for Table 1 itself has SEARCH_EPOCHS and the config's own.
GRIDS_OWN = ("--config.distill.epochs=", "--config.distillation.views=", "--config.distill.teacher=")
# Accuracy % on STL-10 in the thesis: by itself, distilled; alpha and temperature, searched for each.
THESIS = {
    "teacher": (90.65, None, None),
    "student": (76.80, 83.79, (0.1, 5)),
    "rafael_base": (71.38, 74.21, (0.1, 10)),
    "rafael_1": (67.08, 69.70, (0.01, 20)),
    "rafael_2": (74.57, 79.12, (0.01, 7)),
    "rafael_3": (71.01, 76.55, (0.01, 5)),
}
DISTILLED = "_distilled"
STUDENTS = ("rafael_base", "rafael_1", "rafael_2", "rafael_3", "student")  # small ones first
JAX = {"validation": "jax", "test": "jax"}
# The teacher before what it teaches.
ROWS = tables.by_name(
    (
        Row("teacher", "teacher", f"{TEACHER}:finetune", int8=False, engines=JAX),
        *(
            Row(name + way, name, f"{CONFIG}:{name}{way}", int8=False, engines=JAX)
            for name in STUDENTS
            for way in ("", DISTILLED)
        ),
    )
)
ON_BOARD = tuple(row for row in ROWS if row.startswith("rafael_") and row.endswith(DISTILLED))

tables.define_rows()
_STL10 = flags.DEFINE_bool("stl10", False, "On STL-10 itself.")
_TRIALS = flags.DEFINE_integer("trials", 12, "Of the search for alpha and temperature, of 32 points.", lower_bound=1)


def main():
    table = (
        dataclasses.replace(TABLE, name="table1_stl10", title=f"{TABLE.title}, on STL-10") if _STL10.value else TABLE
    )
    wanted = [(row, seed) for seed in map(int, SEEDS.value) for row in tables.chosen(ROWS)]
    tables.each(lambda item: table.add(run(*item)), wanted, needs)
    publish_search(table.name)


def needs(item: tuple[str, int]) -> list[tuple[str, int]]:
    """What a student that is taught needs: the teacher of seed 0, which teaches all."""
    return [("teacher", 0)] if item[0].endswith(DISTILLED) else []


def _order(row):
    return list(ROWS).index(row["row"]), row["seed"]


def folder(name: str, seed: int = 0) -> Path:
    """The run folder of a row."""
    return seeded(Path("runs/table1_stl10" if _STL10.value else "runs/table1") / name, seed)


def run(row: str, seed: int) -> dict:
    """Trains and evaluates a row where that is not done, what it needs first, and returns its figures."""
    workdir, chosen, parts, more = folder(row, seed), {}, [], [f"--config.seed={seed}"]
    if row == "teacher":
        parts.append(train_head(seed))
        more.insert(0, f"--config.start_from={parts[0]}")
    elif row.endswith(DISTILLED):
        if not (ROOT / folder("teacher") / "train.json").is_file():
            train_teacher(0)
        chosen = choose()
        taught = [f"--config.{field}={value}" for field, value in chosen.items()]
        more = [*taught, f"--config.distill.teacher={folder('teacher')}", *more]
    made = dataclasses.replace(ROWS[row], config=_config(*ROWS[row].config.split(":")))
    found = tables.run(made, workdir, *more)
    found |= {split: found[split]["jax"] for split in made.engines}
    parts.append(workdir)
    recipes = [read(part, "config.json") for part in parts]
    return found | dict(
        seed=seed,
        data=read(workdir, "evaluation_details.json")["dataset"],
        epochs=sum(config[stage]["epochs"] for config in recipes for stage in config["stages"]),
        values=_values(workdir, recipes[-1]["stages"][-1]),
        seconds=sum(tables.trained(part)["seconds"] for part in parts),
        chosen=chosen,
        views=recipes[-1]["distillation"]["views"] if chosen else 0,
        **_teacher_digest(workdir),
        **(int8(workdir) if row in ON_BOARD else {}),
    )


def train_head(seed: int) -> Path:
    """Trains the teacher's last layer alone, and returns that run's folder."""
    head = folder("teacher_head", seed)
    tables.step("train", f"--workdir={head}", f"--config={_config(TEACHER)}", f"--config.seed={seed}")
    return head


def train_teacher(seed: int) -> None:
    """Trains the last layer alone, then the body's last stages too, without a look at the test set."""
    tune = [f"--config={_config(TEACHER, 'finetune')}", f"--config.start_from={train_head(seed)}"]
    tables.step("train", f"--workdir={folder('teacher', seed)}", *tune, f"--config.seed={seed}")


def _values(workdir, stage):
    """Those of the trained network, not of the int8 one, whose BatchNorms are folded."""
    return next(r["parameters"] for r in read(workdir, "ledger.json")["rows"] if r["stage"] == stage)


def _teacher_digest(workdir):
    """That of the teacher's weights, of runs that tell it."""
    found = read(workdir, "train.json").get("sources", {}).get(f"weights of the teacher in {folder('teacher')}")
    return dict(teacher_digest=found) if found else {}


def int8(workdir: Path) -> dict:
    """The int8 network of a run and the C made of it: its validation accuracy, bytes of constants and of the arena."""
    from atalaia.codegen import __main__ as codegen

    accuracy = evaluated(exported(workdir), "validation", "jax,jax_int")["jax_int"]["accuracy"]
    made = codegen.report((ROOT / workdir / "model.tflite").read_bytes(), prefer="size")
    return dict(int8=dict(validation=accuracy, **{n: made[n] for n in ("weight_bytes", "arena_bytes")}))


def choose() -> dict:
    """The fields of alpha and temperature for every student and seed: searched once, then kept."""
    from atalaia.files import write_json

    path = ROOT / folder(CHOSEN)
    if not path.is_file():
        write_json(path, search())
    return json.loads(path.read_text())


def search() -> dict:
    """The fields of the search's best trial; goes on with the search where it is not done.

    Where search_replay's grid has every point of the space for this student, whatever GRIDS_OWN are, the best of them.
    """
    import search_replay

    from atalaia import search as searches
    from atalaia import space as spaces
    from atalaia.errors import UserError

    config = _config(CONFIG, SEARCHED + DISTILLED)
    words = [f"--config={config}", f"--config.distill.epochs={SEARCH_EPOCHS:g}"]
    space = spaces.load(str(Path(__file__).parents[1] / SPACE))
    try:
        grid = search_replay.recorded(space)
    except UserError:  # there is none
        grid = dict(arguments=[])
    if [a for a in grid["arguments"] if not a.startswith(GRIDS_OWN)] == words[:1]:
        print(f"alpha and temperature: the best of {search_replay.GRID}", flush=True)
        return max(grid["rows"], key=lambda row: row["val_accuracy"])["point"]
    workdir = folder("search")
    print(f"alpha and temperature: by a search in {workdir}", flush=True)
    tables.step("search", f"--workdir={workdir}", *words, f"--space={SPACE}", f"--trials={_TRIALS.value}")
    return searches.best(*searches.load(ROOT / workdir, space))["point"]


def publish_search(name: str) -> None:
    """Publishes what the search for alpha and temperature found, where one has run, as NAME_search."""
    found = folder("search")
    if (ROOT / found / "search.json").is_file():
        table = search_table(f"{name}_search")
        table.save(*(read(found, file) for file in table.files))


def _config(file, *words):
    words = [w for w in words if w] + ["stl10"] * _STL10.value
    return file + (f":{','.join(words)}" if words else "")


def table(rows: list[dict]) -> str:
    """By itself and distilled, and the gain, beside the thesis's figures, in Markdown."""
    found = {name: tuple([r for r in rows if r["row"] == name + way] for way in ("", DISTILLED)) for name in THESIS}
    data = rows[0]["data"]

    def first(name):
        alone, distilled = found[name]
        return (*distilled, *alone)[0]

    def gain(name):
        pairs = [(a, b) for a in found[name][0] for b in found[name][1] if a["seed"] == b["seed"]]
        gains = [100 * (b["test"]["accuracy"] - a["test"]["accuracy"]) for a, b in pairs]
        return f"{statistics.median(gains):+.2f}" if gains else "-"

    def searched(name):
        source = "searched" if name == SEARCHED else f"from {SEARCHED}"
        values = first(name)["chosen"].values()
        return f"{', '.join(f'{v:g}' for v in values)} ({source})" if values else "-"

    def thesis(name):
        alone, distilled, theirs = THESIS[name]
        if not distilled:
            return f"{alone:.2f}"
        return f"{alone:.2f}, {distilled:.2f}, {distilled - alone:+.2f}; {theirs[0]:g}, {theirs[1]:g}"

    columns = {
        f"network, on {data}": str,
        "values": lambda name: f"{first(name)['values']:,}",
        "epochs": lambda name: f"{first(name)['epochs']:g}",
        "accuracy %": lambda name: _accuracy(found[name][0]),
        "distilled %": lambda name: _accuracy(found[name][1]),
        "gain": gain,
        "alpha, T": searched,
        "seeds": lambda name: " / ".join(str(len(part)) for part in found[name]),
        "*thesis, STL-10: accuracy, distilled, gain; alpha, T*": thesis,
    }
    parts = [grid(columns, [name for name in THESIS if any(found[name])])]
    if any("int8" in r for r in rows):
        parts.append(_on_board(rows))
    if "STL-10" not in data:
        parts.append(f"Not comparable with the thesis but for the gains: ours is {data}, its was STL-10.\n")
    return "\n".join(parts)


def _on_board(rows):
    def largest(size):
        return lambda found: f"{max(r['int8'][size] for r in found):,}"

    def accuracies(found):
        pair = (
            percent(found, lambda row: row["validation"]["accuracy"]),
            percent(found, lambda r: r["int8"]["validation"]),
        )
        return ", ".join(pair)

    columns = {
        f"distilled, int8 calibrated, on {rows[0]['data']}": lambda found: ROWS[found[0]["row"]].title,
        "validation accuracy: float, int8 in integer JAX %": accuracies,
        "smallest C: constants, bytes": largest("weight_bytes"),
        "arena, bytes": largest("arena_bytes"),
        "seeds": len,
    }
    return grid(columns, filter(None, ([r for r in rows if r["row"] == name and "int8" in r] for name in ON_BOARD)))


def _accuracy(rows):
    return percent(rows, lambda row: row["test"]["accuracy"])


def picture(rows: list[dict], path: Path) -> None:
    """Accuracy of each network by itself and distilled, medians over seeds."""
    from matplotlib.figure import Figure

    from atalaia import pictures

    names = [name for name in THESIS if any(r["row"].startswith(name) for r in rows)]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for shift, suffix, label in ((-0.2, "", "by itself"), (0.2, DISTILLED, "distilled")):
        values = {n: [100 * r["test"]["accuracy"] for r in rows if r["row"] == n + suffix] for n in names}
        places = [(i + shift, statistics.median(v)) for i, v in enumerate(values.values()) if v]
        axes.bar(*zip(*places, strict=True), width=0.4, label=label) if places else None
    axes.set_xticks(range(len(names)), names, rotation=20)
    axes.set(ylabel="test accuracy, %", title=rows[0]["data"])
    axes.set_ylim(bottom=max(0, min(100 * r["test"]["accuracy"] for r in rows) - 5))
    axes.legend()
    pictures.save_figure(figure, path)


def _body(rows):
    runs = tables.provenance(rows, lambda row: row["row"].replace(DISTILLED, ", distilled"))
    return f"{table(rows)}\n## Runs\n\n{runs}"


def _headline(rows):
    alone, distilled = ([r for r in rows if r["row"] == SEARCHED + way] for way in ("", DISTILLED))
    before, after = (tables.median(part, lambda row: row["test"]["accuracy"]) for part in (alone, distilled))
    return f"{SEARCHED}: {before} by itself, {after} with a teacher ({len(distilled)} seeds)"


TABLE = Table(
    name="table1",
    title="Table 1: students with and without a teacher",
    shows="A large network (ResNet-50) teaches five small ones for images of 96x96. Each student is trained by itself "
    "and with the teacher, for as many epochs. Every student gains.",
    command="./run.sh table1 [--seeds=0,1,2] [--rows=rafael_2,rafael_2_distilled]    # many hours on 2 CPU cores\n"
    "./run.sh table1 --stl10    # on STL-10, where its files are at hand",
    body=_body,
    headline=_headline,
    picture="Accuracy by itself and distilled",
    draw=lambda rows, path: picture(rows, path),
    notes=(
        "Of two seeds the accuracy is the mean, of three the median, in brackets the smallest and the largest. *gain* "
        "is of the seeds that ran both ways. *seeds*: by itself / distilled. One teacher (seed 0) teaches all.",
        "`rafael_*` are our reconstructions: the thesis names these networks (Silva, 2022) but does not print them. "
        "`student` (the thesis's Code 2) never fits an ESP32 at 96x96: its first map has 294,912 bytes.",
        "Alone, a student sees newly augmented images in each epoch. With the teacher it sees 16 fixed augmented "
        "views of each image, whose logits are kept on the disk.",
        "Alpha and temperature are those of the best of 32 points for `rafael_base`, trained for 4 epochs with an "
        "older teacher ([search](search_replay.md)). The other students take them over.",
        "The teacher sees images enlarged to 160x160. Its last layer is trained for 6 epochs, then its last two "
        "stages too for 15. The thesis's teacher is frozen but for its last layer.",
        "`student` learns by Adam, the others by Muon.",
        '*Runs*: "not recorded" means that the run did not tell its device. Our notes say: an NVIDIA H200 for all of '
        "them but `rafael_base` distilled, seed 2, which ran on 2 CPU cores. The teacher, the students by themselves "
        "and `student` distilled were evaluated on the H200 too.",
        "The rows were trained one by one, by the commands in the figures, not by one `./run.sh table1`. An older "
        "recipe (20 epochs) was made longer when its test figures were known. The teacher's recipe was run twice: the "
        "first weights were lost before a student had learned from them.",
        "STL-10 itself was never at hand. There 450 images of a class train and 50 choose; here 500 train and 500 "
        "others choose.",
    ),
    key=("row", "seed"),
    order=_order,
    stale=tables.older_recipe,
)


def search_table(name: str) -> Table:
    """The table of what the search for alpha and temperature found."""

    def body(figures):
        from atalaia import search as searches

        config, found = figures["config"], _found(name)
        recipe = f"{config['distill']['epochs']:g} epochs a trial, {config['distillation']['views']} views"
        return f"{recipe}, seed {config['seed']}: {searches.summary(*found).removeprefix('# ')}"

    def headline(figures):
        from atalaia import search as searches

        best = searches.best(*_found(name))["point"]
        point = ", ".join(f"{field.removeprefix('distillation.')} {value:g}" for field, value in best.items())
        return f"best of {len(figures['search']['trials'])} trials: {point}"

    def draw(figures, path):
        from atalaia import search as searches

        del figures
        searches.picture(*_found(name), path)

    return Table(
        name=name,
        title="Search for Table 1's alpha and temperature",
        shows="The first steps of a search by `atalaia.search`, over the weight of the labels (alpha) and the "
        "temperature of distillation. Its best point is the one that [the grid](search_replay.md) had chosen, which "
        "all of [Table 1](table1.md) uses.",
        command="./run.sh table1    # searches where there is no grid",
        body=body,
        headline=headline,
        picture="Trials of the search, and where they lie",
        draw=draw,
        files=("config.json", "search.json"),
        notes=(
            "The search was killed (SIGKILL) in its fourth trial and started again. It went on with that trial.",
            "Seed 0 only. Its device was not recorded.",
        ),
    )


def _found(name):
    """The search that is published under this name, and its trials."""
    from atalaia import search as searches
    from atalaia import space as spaces

    return searches.load(tables.RESULTS / name, spaces.load(str(Path(__file__).parents[1] / SPACE)))


STL10 = dataclasses.replace(TABLE, name="table1_stl10", title=f"{TABLE.title}, on STL-10", notes=TABLE.notes[:2])
TABLES = (TABLE, search_table("table1_search"), STL10, search_table("table1_stl10_search"))


if __name__ == "__main__":
    tables.start(main, *TABLES)

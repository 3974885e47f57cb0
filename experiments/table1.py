"""The thesis's Table 1 again: ResNet-50 and five students, each trained by itself and distilled, at 96x96.

python experiments/table1.py [--rows=teacher,rafael_base,rafael_base_distilled,...] [--seeds=0,1,2] [--stl10]
    [--trials=12] [--data_dir=FOLDER]

By default on CIFAR-10 upsampled to 96x96, 500 images a class to train and 800 to test, since STL-10 is in no package
registry; --stl10 is the same on STL-10 itself, where its binary files are at hand. Alpha and temperature come from a
search on the student SEARCHED, by the validation split, which all others, and all seeds, take over: they stand in
chosen.json from then on. Where experiments/results/search_grid.json has every point of the space for that student, the
best of them is taken, whatever teacher, views and epochs they had; else atalaia.search runs for --trials. What a search
in runs/table1/search found is published beside the tables.
The teacher of seed 0 teaches every seed, by VIEWS of configs/table1.py of each image; students by themselves see new
ones in every epoch. Trains what is not trained yet in runs/table1 (each row goes on where it was) and evaluates the
test set once a row; of the students for a board (rafael_*, distilled) the int8 network is exported, compared on the
validation split and compiled. Writes experiments/results/table1.json, .md and .png, and the table in README.md.
"""

import json
import statistics
from pathlib import Path

import tables
from absl import app, flags
from tables import RESULTS, ROOT, SEEDS, evaluated, exported, percent, read, seeded, step

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
# Small students first; the teacher before what it teaches.
ROWS = (
    "teacher",
    *(s + d for s in ("rafael_base", "rafael_1", "rafael_2", "rafael_3", "student") for d in ("", DISTILLED)),
)
ON_BOARD = tuple(row for row in ROWS if row.startswith("rafael_") and row.endswith(DISTILLED))

tables.define_rows()
_STL10 = flags.DEFINE_bool("stl10", False, "On STL-10 itself.")
_TRIALS = flags.DEFINE_integer("trials", 12, "Of the search for alpha and temperature, of 32 points.", lower_bound=1)


def main(argv):
    del argv
    from atalaia import report

    wanted, path = tables.chosen(ROWS), RESULTS / ("table1_stl10.json" if _STL10.value else "table1.json")
    for seed in map(int, SEEDS.value):
        for row in wanted:
            found = run(row, seed)
            rows = report.publish_rows(path, found, ("row", "seed"), table, _order, tables.older_recipe(found))
            picture(rows, path.with_suffix(".png"))
    publish_search(path.with_name(f"{path.stem}_search"))


def _order(row):
    return ROWS.index(row["row"]), row["seed"]


def folder(name: str, seed: int = 0) -> Path:
    """The run folder of a row."""
    return seeded(Path("runs/table1_stl10" if _STL10.value else "runs/table1") / name, seed)


def run(row: str, seed: int) -> dict:
    """Trains and evaluates a row where that is not done, what it needs first, and returns its figures."""
    workdir, chosen, first = folder(row, seed), {}, ()
    if row == "teacher":
        first, arguments = (folder("teacher_head", seed),), train_teacher(seed)
    else:
        arguments = [_config(CONFIG, row)]
        if row.endswith(DISTILLED):
            if not (ROOT / folder("teacher") / "train.json").is_file():
                train_teacher(0)
            chosen = choose()
            arguments += [f"--config.{field}={value}" for field, value in chosen.items()]
            arguments.append(f"--config.distill.teacher={folder('teacher')}")
        arguments.append(f"--config.seed={seed}")
        step("train", f"--workdir={workdir}", *arguments)
    scores = {split: evaluated(workdir, split, "jax")["jax"] for split in ("validation", "test")}
    parts = [read(part, "config.json") for part in (*first, workdir)]
    return dict(
        row=row,
        seed=seed,
        data=read(workdir, "evaluation_details.json")["dataset"],
        command=f"python -m atalaia.train --workdir={workdir} {' '.join(arguments)}",
        epochs=sum(config[stage]["epochs"] for config in parts for stage in config["stages"]),
        values=_values(workdir, parts[-1]["stages"][-1]),
        **tables.trained(workdir) | dict(seconds=sum(tables.trained(part)["seconds"] for part in (*first, workdir))),
        chosen=chosen,
        views=parts[-1]["distillation"]["views"] if chosen else 0,
        **_teacher_digest(workdir),
        **scores,
        **(int8(workdir) if row in ON_BOARD else {}),
    )


def train_teacher(seed: int) -> list[str]:
    """Trains the last layer alone, then the body's last stages too, and returns the flags of the second run."""
    head = folder("teacher_head", seed)
    step("train", f"--workdir={head}", _config(TEACHER), f"--config.seed={seed}")
    arguments = [_config(TEACHER, "finetune"), f"--config.start_from={head}", f"--config.seed={seed}"]
    step("train", f"--workdir={folder('teacher', seed)}", *arguments)
    return arguments


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

    Where search_grid.json has every point of the space for this student, whatever GRIDS_OWN are, the best of them.
    """
    import search_replay

    from atalaia import search as searches
    from atalaia import space as spaces
    from atalaia.errors import UserError

    words = [_config(CONFIG, SEARCHED + DISTILLED), f"--config.distill.epochs={SEARCH_EPOCHS:g}"]
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
    step("search", f"--workdir={workdir}", *words, f"--space={SPACE}", f"--trials={_TRIALS.value}")
    return searches.best(*searches.load(ROOT / workdir, space))["point"]


def publish_search(path: Path) -> None:
    """Puts what the search for alpha and temperature found, where one has run, into this folder and into README.md."""
    from atalaia import report
    from atalaia import search as searches
    from atalaia import space as spaces
    from atalaia.files import write_whole

    found = ROOT / folder("search")
    if not (found / "search.json").is_file():
        return
    search, rows = searches.load(found, spaces.load(str(Path(__file__).parents[1] / SPACE)))
    config, text = read(found, "config.json"), searches.summary(search, rows)
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "search.json"):
        write_whole(path / name, (found / name).read_bytes())
    write_whole(path / "search.md", text)
    searches.picture(search, rows, path / "search.png")
    recipe = f"{config['distill']['epochs']:g} epochs a trial, {config['distillation']['views']} views"
    report.insert(ROOT / "README.md", path.name, f"{recipe}, seed {config['seed']}: {text.removeprefix('# ')}")
    print(f"written: {path}/search.json, .md, .png and README.md", flush=True)


def _config(file, *words):
    words = [w for w in words if w] + ["stl10"] * _STL10.value
    return f"--config={file}" + (f":{','.join(words)}" if words else "")


def table(rows: list[dict]) -> str:
    """By itself and distilled, and the gain, beside the thesis's figures, in Markdown."""
    data = rows[0]["data"]
    lines = [
        f"| network, on {data} | values | epochs | accuracy % | distilled % | gain | alpha, T | seeds "
        "| *thesis, STL-10: accuracy, distilled, gain; alpha, T* |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, (alone, distilled, theirs) in THESIS.items():
        found = {d: [r for r in rows if r["row"] == name + d] for d in ("", DISTILLED)}
        first = next((r for r in (*found[DISTILLED], *found[""])), None)
        if first is None:
            continue
        cells = [f"{first['values']:,}", f"{first['epochs']:g}", *(_accuracy(found[d]) for d in ("", DISTILLED))]
        pairs = [(a, b) for a in found[""] for b in found[DISTILLED] if a["seed"] == b["seed"]]
        gains = [100 * (b["test"]["accuracy"] - a["test"]["accuracy"]) for a, b in pairs]
        cells.append(f"{statistics.median(gains):+.2f}" if gains else "-")
        chosen = first["chosen"].values()
        source = "searched" if name == SEARCHED else f"from {SEARCHED}"
        cells.append(f"{', '.join(f'{v:g}' for v in chosen)} ({source})" if chosen else "-")
        cells.append(" / ".join(str(len(found[d])) for d in ("", DISTILLED)))
        cells.append(f"{alone:.2f}")
        if distilled:
            cells[-1] += f", {distilled:.2f}, {distilled - alone:+.2f}; {theirs[0]:g}, {theirs[1]:g}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if any("int8" in r for r in rows):
        lines += ["", *_on_board(rows)]
    if "STL-10" not in data:
        lines += ["", f"Not comparable with the thesis but for the gains: ours is {data}, its was STL-10."]
    return "\n".join(lines) + "\n"


def _on_board(rows):
    yield (
        f"| distilled, int8 calibrated, on {rows[0]['data']} | validation accuracy: float, int8 in integer JAX % "
        "| smallest C: constants, bytes | arena, bytes | seeds |"
    )
    yield "|---|---:|---:|---:|---:|"
    for name in ON_BOARD:
        if not (found := [r for r in rows if r["row"] == name and "int8" in r]):
            continue
        pairs = [percent(found, lambda row: row["validation"]["accuracy"])]
        pairs.append(percent(found, lambda row: row["int8"]["validation"]))
        sizes = [max(r["int8"][size] for r in found) for size in ("weight_bytes", "arena_bytes")]
        cells = [", ".join(pairs), *(f"{size:,}" for size in sizes), str(len(found))]
        yield f"| {name.removesuffix(DISTILLED)} | {' | '.join(cells)} |"


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


if __name__ == "__main__":
    app.run(main)

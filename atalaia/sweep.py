"""Every combination of some fields' values, one run folder each, one table.

python -m atalaia.sweep configs/cifar10.py --config.prune.sparsity=0.5,0.8,0.9 [--config.seed=0,1] [--workdir=runs/s]
    [--executor=local|dask|slurm --workers=2]

Each combination is trained, exported and looked at on the validation split; the test set is for the one that is chosen:
python -m atalaia.evaluate --workdir=RUN. A sweep that was stopped goes on when it is called again.
"""

import itertools
import json
from functools import partial
from pathlib import Path

from absl import flags

from atalaia import cli, executors, ledger, runs, tasks
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.files import write_json, write_whole


def main(arguments: list[str]) -> None:
    file, grid = parse(arguments)
    root = Path(flags.FLAGS.workdir or f"runs/sweep_{Path(file).stem}")
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for overrides in combinations:
        runs.check(file, overrides)
    executors.validate()
    with executors.opened(root) as executor:
        row = partial(_row, executor, file, root, len(combinations))
        rows = executors.each(row, enumerate(combinations, 1), flags.FLAGS.workers)
    root.mkdir(parents=True, exist_ok=True)  # where every run failed before it made its folder
    write_json(root / "sweep.json", rows)
    write_whole(root / "sweep.md", runs.table(rows))
    print(runs.table(rows))
    print(f"written: {root}/sweep.md, sweep.json")
    if not all(row["finished"] for row in rows):
        raise UserError("not every run finished; the table says which, their messages are above")


def parse(arguments: list[str]) -> tuple[str, dict[str, list[str]]]:
    """The config file, and the values of each field to combine.

    Raises:
      UserError: no file, or an argument that is no flag.
    """
    fields = [a for a in arguments if a.startswith("--config.")]
    files = [a for a in arguments if not a.startswith("--")]
    if unknown := [a for a in arguments if a.startswith("--") and a not in fields]:
        raise UserError(
            f"a sweep has no {unknown[0]}: only --config.FIELD=A,B, --workdir=, --data_dir=, --executor= and --workers="
        )
    if len(files) != 1:
        raise UserError("a sweep takes one config file and --config.FIELD=A,B flags, such as configs/cifar10.py")
    grid = {}
    for field in fields:
        name, equals, values = field.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{field} has no values: write {field}=A,B")
        grid[name] = split_values(values)
    return files[0], grid


def split_values(text: str) -> list[str]:
    """Parts of a text between commas, but not between those inside brackets: "1,(2,3)" is "1" and "(2,3)"."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _row(executor, file, root, total, item, stop):
    """One combination's run, and its row of the table."""
    number, overrides = item
    name = ",".join(f"{field}={value}" for field, value in overrides.items()) or "base"
    workdir = root / name.replace("/", "_")
    print(f"run {number} of {total}: {name}", flush=True)
    step = runs.run if executors.plain() else partial(runs.submitted, executor, stop)
    return overrides | _figures(workdir, _run(step, file, overrides, workdir))


def _run(step, file, overrides, workdir):
    """Train, export, evaluate, each as a user would call it; True where all went well."""
    common = [f"--data_dir={flags.FLAGS.data_dir}"] if flags.FLAGS.data_dir else []
    return (
        step("train", workdir, [f"--config={file}", *runs.override_flags(overrides), *common])
        and step("export", workdir, common)
        and step("evaluate", workdir, ["--split=validation", "--engines=jax,tflm", *common])
    )


def _figures(workdir, done):
    if not done:
        return dict(finished=False)
    scores = json.loads((workdir / "evaluation_validation.json").read_text())
    score = next(iter(tasks.of(configs.load(workdir)).METRICS))
    sizes = ledger.read(workdir)[-1]
    return dict(
        finished=True,
        **{f"val_{score}_{engine}": scores[engine][score] for engine in ("jax", "tflm")},
        nonzeros=sizes["nonzeros"],
        tflite_bytes=sizes["tflite_bytes"],
        gzip_bytes=sizes["gzip_bytes"],
        workdir=str(workdir),
    )


if __name__ == "__main__":
    cli.common_flags()
    executors.define_flags()
    cli.run(main, known_only=True, goes_on=True)

"""What the scripts of tables share: a row is run where it is missing, its figures are kept, and a page shows them.

A script declares its rows (`Row`) and what its page says (`Table`), and ends with `tables.start(main, TABLE)`. `run`
trains, exports and evaluates a row; `Table.add` puts its figures into experiments/results/NAME/ and writes the whole
page docs/results/NAME.md, and its picture, from the figures alone. `--pages` only writes the page.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from atalaia import executors  # noqa: E402

RESULTS = ROOT / "experiments/results"
PAGES = ROOT / "docs/results"
NOT_RECORDED = "not recorded"

SEEDS = flags.DEFINE_list("seeds", ["0"], "One run each.")
DATA = flags.DEFINE_string("data_dir", None, "Where data sets are kept.")
RECOUNT = flags.DEFINE_bool(
    "recount", False, "Only the C of the models kept beside the figures, made and counted anew."
)
_ONLY_PAGES = flags.DEFINE_bool("pages", False, "Run nothing: write the page from the figures that are there.")
executors.define_flags()


class _Work:
    """Where this script's steps run, from `start` on, and the wish that they end."""

    executor: executors.Executor
    stop = threading.Event()


# ---- rows: a network, run where it is missing


@dataclasses.dataclass(frozen=True)
class Row:
    """A network of a table, and how it is made.

    Attributes:
      name: in the figures, and of its run folder. title: in the page.
      config: FILE or FILE:WORDS of atalaia.train. overrides: more of its flags.
      engines: those that score it, by split. The test set is looked at once a row.
      int8: whether it is exported.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...] = ()
    engines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    int8: bool = True


def run(row: Row, workdir: Path, *more: str) -> dict:
    """Trains, exports and evaluates a row where that is not done, and returns the figures that every table has.

    Args:
      row: the network. workdir: its run folder.
      more: flags of atalaia.train beside the row's own, such as its seed and the run that it starts from.
    """
    arguments = [f"--config={row.config}", *row.overrides, *more]
    step("train", f"--workdir={workdir}", *arguments)
    if row.int8:
        exported(workdir)
    scores = {split: evaluated(workdir, split, engines) for split, engines in row.engines.items()}
    command = f"python -m atalaia.train --workdir={workdir} {' '.join(arguments)}"
    return dict(row=row.name, command=command, **trained(workdir), **scores)


def by_name(rows: Iterable[Row]) -> dict[str, Row]:
    """Rows by their names, in order."""
    return {row.name: row for row in rows}


def define_rows() -> None:
    """Defines --rows, for a script whose table has rows to choose from; they may stand without the flag too."""
    if "rows" not in flags.FLAGS:  # two scripts in one process
        flags.DEFINE_list("rows", None, "The rows to run, by default all; those that ran before stay in the tables.")


def chosen(rows: Iterable[str]) -> list[str]:
    """Those of a table's rows that --rows names, in the table's order; all without that flag.

    Raises:
      app.UsageError: it names another.
    """
    wanted = flags.FLAGS.rows or list(rows)
    if unknown := set(wanted) - set(rows):
        raise app.UsageError(f"no rows {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    return [row for row in rows if row in wanted]


def step(name: str, *arguments: str) -> None:
    """`python -m atalaia.NAME ARGUMENTS`; where it fails, having said why, the script ends with its exit code."""
    from atalaia import runs

    data = [f"--data_dir={DATA.value}"] if DATA.value else []
    command = [sys.executable, "-m", f"atalaia.{name}", *arguments, *data]
    try:
        code = runs.call(command, ROOT) if executors.plain() else _submitted(name, command)
    except KeyboardInterrupt:
        code = 130
    if code:
        sys.exit(code if code > 0 else 1)


def _submitted(name, command):
    """The exit code of a step that the executor runs, its words in the log beside its run folder."""
    from atalaia import runs

    workdir = Path(next(word for word in command if word.startswith("--workdir=")).partition("=")[2])
    code = executors.finish(_Work.executor.submit(command, workdir), _Work.stop)
    if code:
        print(f"error: {runs.failure(name, workdir, code)}", file=sys.stderr)
    return code


def each(function: Callable[[Any], Any], rows: Iterable, needs: Callable[[Any], Iterable] = lambda row: ()) -> None:
    """function(row) of each, as many at once as --workers says.

    Args:
      function: runs a row by `run` and `step`, and adds it to its table.
      rows: in an order in which a row comes after those that it needs.
      needs: the rows to be done before one; of those that are not among `rows` it is known that they are there.
    """
    done: dict[Any, threading.Event] = {row: threading.Event() for row in rows}

    def one(row, stop):
        for other in needs(row):
            while other in done and not done[other].wait(0.5):
                if stop.is_set():
                    raise KeyboardInterrupt
        function(row)
        done[row].set()

    executors.each(one, done, flags.FLAGS.workers, _Work.stop)


def seeded(folder: Path, seed: int) -> Path:
    """The run folder of a row with this seed."""
    return folder if seed == 0 else folder.with_name(f"{folder.name}_seed{seed}")


def trained(workdir: Path) -> dict:
    """How long a run took, and on what."""
    said = read(workdir, "train.json")
    found = {name: said.get(name, NOT_RECORDED) for name in ("device", "jax")}  # older runs tell less
    return dict(seconds=said["seconds"], precision=said.get("precision"), **found)


def exported(workdir: Path) -> Path:
    """The run's folder once it holds what atalaia.export writes, export.json last."""
    if not (ROOT / workdir / "export.json").is_file():
        step("export", f"--workdir={workdir}")
    return workdir


def evaluated(workdir: Path, split: str, engines: str, *more: str) -> dict:
    """The scores of a split by engine; a split is looked at again only where an engine is missing.

    more: flags of atalaia.evaluate, such as those of a file that is no run's own.
    """
    name = "evaluation.json" if split == "test" else f"evaluation_{split}.json"
    if not (ROOT / workdir / name).is_file() or set(engines.split(",")) - set(read(workdir, name)):
        step("evaluate", f"--workdir={workdir}", f"--split={split}", f"--engines={engines}", *more)
    return read(workdir, name)


def require(*boards: str) -> None:
    """Runs a small model on boards: a compiler or an emulator that is missing shows before hours of training.

    Raises:
      UserError: names it.
    """
    from atalaia.codegen import boards as ours

    for board in boards:
        ours.run(ROOT / "mcu/models/cifar10", board, 1)


def in_c(tflite: Path, out: Path, config: str, *more: str) -> dict:
    """Writes a model's C to folder `out`, counts its instructions in the emulators, and returns its figures.

    more: flags of atalaia.codegen.
    """
    step("codegen", f"--tflite={tflite}", f"--out={out}", f"--config={config}", *more, "--count")
    made = read(out, "report.json")
    return {k: made[k] for k in ("weight_bytes", "arena_bytes", "macs", "counted_instructions", "estimated")}


@contextlib.contextmanager
def unpacked(atl: Path) -> Iterator[Path]:
    """A folder, there for as long as the context, with the model.tflite of a download that is kept."""
    from atalaia import pack

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.tflite").write_bytes(pack.unpack(atl.read_bytes()))
        yield Path(folder)


def read(workdir: Path, name: str) -> dict:
    """A JSON file of a run folder."""
    return json.loads((ROOT / workdir / name).read_text())


# What rows of one figure share, where they have it.
RECIPE = ("model", "fields", "epochs", "sparsity", "views", "chosen", "teacher_digest")


def older_recipe(row: dict) -> Callable[[dict], bool]:
    """Of a Table: rows of this one's name by another recipe are not seeds of one figure."""
    row = json.loads(json.dumps(row))  # as the older ones were read: with lists for tuples
    return lambda old: old["row"] == row["row"] and any(old[n] != row[n] for n in RECIPE if n in old and n in row)


# ---- tables: figures that are kept, and their page


@dataclasses.dataclass(frozen=True)
class Table:
    """A result: its figures in experiments/results/NAME/, its page docs/results/NAME.md.

    Attributes:
      name: of both. title: the page's heading. shows: what it shows, in one or two sentences.
      command: what makes it again.
      body: the tables of the page, from the figures. headline: the main figure, for the index.
      notes: where the figures come from, and what they do not say.
      picture: what docs/results/NAME.png shows; "" where there is none.
      draw: draws it from the figures; None where it comes with a run.
      files: JSON files with the figures. Of one, it is the figures; of several, they are a dict by the files' stems.
      key: of rows: the fields that say which are of a kind. A new row replaces an older one of its kind.
      order: of rows; by default that in which they came.
      stale: stale(row)(older): whether an older row has no place beside a new one, such as one of an older recipe.
    """

    name: str
    title: str
    shows: str
    command: str
    body: Callable[[Any], str]
    headline: Callable[[Any], str]
    notes: tuple[str, ...] = ()
    picture: str = ""
    draw: Callable[[Any, Path], None] | None = None
    files: tuple[str, ...] = ("rows.json",)
    key: tuple[str, ...] = ()
    order: Callable[[dict], Any] | None = None
    stale: Callable[[dict], Callable[[dict], bool]] = lambda row: lambda older: False

    @property
    def folder(self) -> Path:
        """Where the figures are kept."""
        return RESULTS / self.name

    def there(self) -> bool:
        """Whether there are figures."""
        return all((self.folder / name).is_file() for name in self.files)

    def figures(self) -> Any:
        """The figures that are kept."""
        found = {Path(name).stem: json.loads((self.folder / name).read_text()) for name in self.files}
        return found if len(found) > 1 else next(iter(found.values()))

    def add(self, row: dict) -> list[dict]:
        """Adds a row, in the place of an older one of its kind, writes the page, and returns all rows."""
        with _alone():
            stale = self.stale(row)
            rows = [old for old in (self.figures() if self.there() else []) if not stale(old)]
            rows = list({tuple(r[k] for k in self.key): r for r in (*rows, row)}.values())
            if self.order:
                rows.sort(key=self.order)
            self.save(rows)
        return rows

    def save(self, *figures: Any) -> None:
        """Keeps figures, one value for each of `files`, and writes the page."""
        from atalaia.files import write_json

        self.folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip(self.files, figures, strict=True):
            write_json(self.folder / name, value)
        print(self.body(self.figures()))
        self.write()

    def write(self) -> None:
        """Writes the page, and the picture, from the figures."""
        from atalaia.files import write_whole

        PAGES.mkdir(parents=True, exist_ok=True)
        figures = self.figures()
        if self.draw:
            self.draw(figures, PAGES / f"{self.name}.png")
        write_whole(PAGES / f"{self.name}.md", self.page(figures))
        print(f"written: {PAGES}/{self.name}.md", flush=True)

    def page(self, figures: Any) -> str:
        """The whole page, in Markdown."""
        parts = [
            f"# {self.title}",
            self.shows,
            f"Make it again:\n\n```\n{self.command}\n```",
            self.body(figures).strip(),
        ]
        if self.picture:
            parts.append(f"![{self.picture}]({self.name}.png)")
        if self.notes:
            parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in self.notes))
        parts.append(f"*Written by a script from the figures in `experiments/results/{self.name}/`.*")
        return "\n\n".join(parts) + "\n"


def _alone():
    """Scripts of several tables may run at once: only one of them reads and writes figures."""
    from atalaia.files import locked

    (ROOT / "runs").mkdir(exist_ok=True)
    return locked(ROOT / "runs/publish.lock")


def start(main: Callable[[], None], *tables: Table) -> None:
    """Runs a script's main, or with --pages only writes its pages. A user's mistake becomes one line."""
    from atalaia.errors import UserError

    def guarded(argv):
        if argv[1:] and ("rows" not in flags.FLAGS or any("=" in word for word in argv[1:])):
            raise app.UsageError(f"unexpected argument {argv[1]!r}")
        if argv[1:]:
            flags.FLAGS.rows = argv[1:]
        try:
            if not _ONLY_PAGES.value:
                with executors.opened(ROOT / "runs") as _Work.executor:
                    return main()
            for table in tables:
                if table.there():
                    table.write()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(error.code)

    app.run(guarded)


# ---- Markdown


def grid(columns: Mapping[str, Callable[[Any], Any]], items: Iterable, left: int = 1, more: Iterable[Sequence] = ()):
    """A Markdown table.

    Args:
      columns: what a cell says of an item, by heading. items: one a line.
      left: so many columns are text, aligned to the left; the others are numbers.
      more: cells of further lines, such as what others report; those missing at the end are empty.
    """
    width = len(columns)
    lines = [[cell(item) for cell in columns.values()] for item in items]
    lines += [[*cells, *[""] * (width - len(cells))] for cells in more]
    rule = "|" + "---|" * left + "---:|" * (width - left)
    return "\n".join([_line(columns), rule, *map(_line, lines)]) + "\n"


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def percent(rows: Sequence[dict], figure: Callable[[dict], float]) -> str:
    """100 * figure(row): of one row that, of several seeds the median with the smallest and the largest."""
    values = [100 * figure(row) for row in rows]
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def median(rows: Sequence[dict], figure: Callable[[dict], float]) -> str:
    """As `percent`, without the smallest and the largest: for a headline."""
    return f"{statistics.median(100 * figure(row) for row in rows):.2f} %"


def milliseconds(rows: Sequence[dict]) -> str:
    """Of rows with codegen's figures, the smallest and the largest estimate of an inference on an ESP32."""
    low, high = zip(*(row["estimated"]["esp32"]["milliseconds"] for row in rows), strict=True)
    return f"{min(low):.0f} to {max(high):.0f}"


def provenance(rows: Sequence[dict], title: Callable[[dict], str]) -> str:
    """What trained each row, with which seeds, in Markdown."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        where = tuple(row.get(name) or NOT_RECORDED for name in ("device", "jax"))
        groups.setdefault((title(row), *where), []).append(row)

    def seconds(group):
        found = [f"{row['seconds']:,.0f}" for row in group[1] if "seconds" in row]
        return ", ".join(found) or NOT_RECORDED

    columns = {
        "run": lambda g: g[0][0],
        "seeds": lambda g: ", ".join(str(row["seed"]) for row in g[1]),
        "trained on": lambda g: g[0][1],
        "JAX": lambda g: g[0][2],
        "training, seconds, by seed": seconds,
    }
    return grid(columns, groups.items(), left=4)

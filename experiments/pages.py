"""Every page of docs/results/, written from the figures in experiments/results/ without running anything.

python experiments/pages.py

Writes docs/results/index.md too. One page alone: python experiments/NAME.py --pages.
"""

import importlib
from collections.abc import Iterable, Mapping

import tables
from tables import Table, grid

# The scripts in the order of the index, under its headings.
SCRIPTS = {
    "Networks": (
        "frontier",
        "table2",
        "table2_variants",
        "pipeline",
        "table1",
        "cifar10",
        "early_exit",
        "mirrored",
        "blocks",
    ),
    "Detectors": ("faces", "face_search"),
    "Generated C": ("mcu", "mcu_esp32", "esp_nn", "few_bits", "public_files", "packages", "codegen_mutations"),
    "Search": ("search_replay", "executors", "halving", "goals"),
    "Distillation and teachers": ("distill_speed", "resnet50_port"),
    "Training speed": ("train_speed", "train_profile", "train_speed_tried"),
    "Larger work": ("scaling",),
}


def main():
    from atalaia.files import write_whole

    groups = published()
    for group in groups.values():
        for table in group:
            table.write()
    write_whole(tables.PAGES / "index.md", index(groups))


def published() -> dict[str, list[Table]]:
    """The tables that have figures, by heading of the index."""
    found = {}
    for heading, names in SCRIPTS.items():
        scripts = [importlib.import_module(name) for name in names]
        every = [table for script in scripts for table in getattr(script, "TABLES", (script.TABLE,))]
        found[heading] = [table for table in every if table.there()]
    return found


def index(groups: Mapping[str, Iterable[Table]]) -> str:
    """docs/results/index.md: a line and the main figure of each table."""
    columns = {
        "result": lambda table: f"[{table.title}]({table.name}.md)",
        "main figure": lambda table: table.headline(table.figures()),
    }
    parts = [
        "# Results\n",
        "Each page has its tables, the command that makes them again, the seeds, and where the figures come from. "
        "*Not recorded* means that the run did not write this down. Figures and small models are in "
        "`experiments/results/`.\n",
    ]
    parts += [f"## {heading}\n\n{grid(columns, group, left=2)}" for heading, group in groups.items()]
    return "\n".join([*parts, "*Written by `python experiments/pages.py`.*\n"])


if __name__ == "__main__":
    tables.start(main)

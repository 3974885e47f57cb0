"""A search for a detector of faces: which width, depth and front, and how many zeros, within an ESP32-CAM's limits.

python experiments/face_search.py     # goes on with runs/search_faces
python experiments/face_search.py --pages          # only writes the page and the picture, from the figures

Each trial trains for a few epochs, is exported and given C, all by atalaia.search; the test photos are never seen.
"""

from pathlib import Path

import tables
from tables import ROOT, Table, read

WORKDIR, SPACE = Path("runs/search_faces"), "configs/search_faces.py"
LIMITS = ("--max_bytes=100000", "--max_arena=100000", "--max_ms=150")
EPOCHS = {"dense": 1, "prune": 2, "quantize": 1}

TRIALS = 6


def main():
    short = [f"--config.{stage}.epochs={epochs}" for stage, epochs in EPOCHS.items()]
    words = ("--config=configs/faces.py", f"--space={SPACE}", f"--trials={TRIALS}")
    tables.step("search", f"--workdir={WORKDIR}", *words, *LIMITS, *short)
    TABLE.save(*(read(WORKDIR, name) for name in TABLE.files))


def _found():
    """The search that is published, and its trials."""
    from atalaia import search as searches
    from atalaia import space as spaces

    return searches.load(TABLE.folder, spaces.load(str(ROOT / SPACE)))


def _body(figures):
    from atalaia import search as searches

    config = figures["config"]
    epochs = ", ".join(f"{config[stage]['epochs']:g} of {stage}" for stage in EPOCHS)
    return f"Epochs of a trial: {epochs}; seed {config['seed']}.\n\n{searches.summary(*_found()).removeprefix('# ')}"


def _headline(figures):
    from atalaia import search as searches

    best = searches.best(*_found())
    network = best["point"]["model"].rpartition(":")[2] if best else "none"
    return f"best of {len(figures['search']['trials'])} trials within the limits: {network}"


def _draw(figures, path):
    from atalaia import search as searches

    del figures
    searches.picture(*_found(), path)


TABLE = Table(
    name="face_search",
    title="Search for a detector of faces",
    shows="Bayesian optimisation by `atalaia.search` over the detector's width, depth and front, and over its zeros, "
    "within 100 KB of flash, 100 KB of arena and 150 ms on an ESP32, estimated. The score is AP of validation.",
    command="python experiments/face_search.py",
    body=_body,
    headline=_headline,
    picture="Trials of the search, and what they cost",
    draw=_draw,
    files=("config.json", "search.json"),
    notes=(
        "`w32_d4` is `detector_sparse`: 32 channels and 4 residual layers at an eighth of the picture's size. `two_` "
        "is a front of two convolutions in place of one of strides 4.",
        "Trials are short and see the photos of the small recipe alone. They rank networks; they do not say what one "
        "reaches. The [published detector](faces.md) was chosen before this search, on validation photos too.",
    ),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

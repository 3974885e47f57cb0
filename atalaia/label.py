"""Labels a folder of photos: finds their faces with a strong detector and writes them as COCO JSON.

python -m atalaia.label --images=FOLDER [--out=FILE.json] [--min_score=0.5] [--side=640]

Needs the extra "label": pip install '.[label]' in the repository's folder. What it writes, data.name="boxes" reads.
Look at some of the boxes before you train on them. After Ctrl-C the same command goes on with the other photos.
"""

import os
from pathlib import Path

from absl import flags

from atalaia import centerface, cli, data, pseudolabels
from atalaia.datasets import pictures
from atalaia.errors import UserError


def main() -> None:
    """The command."""
    given = flags.FLAGS
    if not given.images:
        raise UserError("no photos: give --images=FOLDER")
    centerface.check_settings(given.side, given.min_score)
    folder = Path(given.images).expanduser()
    paths = pictures.below(folder, "--images")
    out = Path(given.out).expanduser() if given.out else folder / "annotations.json"
    if out.suffix != ".json":
        raise UserError(f"--out={given.out}: the name of a .json file is needed")
    if out.exists():
        raise UserError(f"{out} exists: remove it, or give another file by --out")
    if not out.parent.is_dir():
        raise UserError(f"--out: {out.parent} is not a folder: make it first")
    session = centerface.load(data.cache_dir(given.data_dir))
    named = [(Path(os.path.relpath(path, out.parent)).as_posix(), path) for path in paths]
    coco = pseudolabels.label(session, named, out, given.side, given.min_score)
    faces, empty = len(coco["annotations"]), len({i["id"] for i in coco["images"]} - _with_faces(coco))
    print(f"{out}: {faces} faces in {len(coco['images'])} photos, {empty} of them without")


def _with_faces(coco):
    return {annotation["image_id"] for annotation in coco["annotations"]}


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("images", None, "The folder of photos, and of folders of photos.", flag_values=values)
    flags.DEFINE_string(
        "out", None, "The COCO JSON to write (else annotations.json in the folder of photos).", flag_values=values
    )
    flags.DEFINE_float("min_score", 0.5, "The least score of a face, between 0 and 1.", flag_values=values)
    more = "Pixels of a photo's longer side when it is looked at: more finds smaller faces."
    flags.DEFINE_integer("side", 640, more, flag_values=values)
    kept = "Where the detector is kept (else $ATALAIA_DATA, else ~/.cache/atalaia)."
    flags.DEFINE_string("data_dir", None, kept, flag_values=values)


if __name__ == "__main__":
    define_flags()
    cli.run(main, goes_on=True)

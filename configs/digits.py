"""The embedded default: ResNet-8 on scikit-learn's digits (8x8, grey), pruned to 50 %, no network needed.

./run.sh demo

Half a minute on 2 CPU cores; about 98 % on 359 test images.
"""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.data.name = "digits"
    c.data.validation = 0.1
    c.augment.pad_crop = 1
    c.batch_size = 64
    c.stages = ("dense", "prune")
    c.dense.epochs = 12.0
    c.dense.learning_rate = 0.05
    c.prune.epochs = 6.0
    c.prune.learning_rate = 0.02
    c.prune.sparsity = 0.5
    return c

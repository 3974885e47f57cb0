"""The thesis's network on CIFAR-10 (its Table 2), the float network from which the other rows start.

./run.sh table2
"""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.model = "thesis"
    c.data.name = "cifar10"
    c.data.validation = 0.05
    c.augment.flip = True
    c.augment.pad_crop = 4
    c.loss.label_smoothing = 0.1
    c.dense.epochs = 25.0
    c.dense.learning_rate = 0.1
    c.dense.warmup = 0.2
    return c

"""MLPerf Tiny's ResNet-8 on CIFAR-10: dense, then pruned while it trains on, then int8.

./run.sh cifar10

47 minutes on 2 CPU cores that did other work too; 84.55 % on the test set in TFLite Micro, 95,216 bytes (one run,
seed 0: docs/results/cifar10.md).
"""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.model = "resnet8"
    c.data.name = "cifar10"
    c.data.validation = 0.1
    c.augment.flip = True
    c.augment.pad_crop = 4
    c.stages = ("dense", "prune")
    c.dense.epochs = 20.0
    c.dense.learning_rate = 0.1
    c.prune.epochs = 10.0
    c.prune.learning_rate = 0.05
    c.prune.sparsity = 0.5
    return c

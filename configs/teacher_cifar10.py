"""A teacher for CIFAR-10 that others have trained: ResNet-56 from a package of PyPI, 93.20 % as its authors say.

./run.sh frontier                                                   # makes it first
python -m atalaia.train --config=configs/teacher_cifar10.py --workdir=runs/teacher_cifar10

Nothing is trained: one step at a learning rate of 0 makes a run of it, in a minute. Its authors learned 45,000 of the
50,000 training images, and did not say which: they may be among those that a run holds back for validation.
"""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.model = "resnet56"
    c.pretrained = "cifar10"
    c.data.name = "cifar10"
    c.data.validation = 0.05
    c.dense.epochs = 0.0
    c.dense.steps = 1
    c.dense.learning_rate = 0.0
    c.dense.warmup = 0.0
    c.dense.weight_decay = 0.0
    return c

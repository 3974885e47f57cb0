"""Faces and non-faces, 25x25 grey, 200 images of scikit-image's lfw_subset: small, no network needed.

./run.sh faces_classify

A minute on 2 CPU cores; 40 test images, so the accuracy is coarse.
"""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.data.name = "lfw_faces"
    c.data.validation = 0.2
    c.augment.flip = True
    c.augment.pad_crop = 2
    c.augment.brightness = 0.1
    c.augment.contrast = 0.2
    c.batch_size = 32
    c.stages = ("dense", "prune")
    c.dense.epochs = 30.0
    c.dense.learning_rate = 0.05
    c.prune.epochs = 15.0
    c.prune.learning_rate = 0.02
    c.prune.every = 5
    c.prune.sparsity = 0.5
    return c

"""Faces in a picture of 160x120."""

from ml_collections import ConfigDict

from atalaia import config


def get_config() -> ConfigDict:
    c = config.base()
    c.task = "detect"
    c.loss.name = "centre"
    c.distillation.loss = "heads"
    c.model = "detector_small"
    c.data.name = "faces_masked"
    c.data.size = "120,160"
    c.detect.ignore_below = 8.0
    c.augment.flip = True
    c.augment.scale = 0.25
    c.augment.brightness = 0.2
    c.augment.contrast = 0.4
    c.batch_size = 64
    c.eval_epochs = 2.0
    c.stages = ("dense", "quantize")
    c.dense.epochs = 16.0
    c.dense.optimizer = "adam"
    c.dense.learning_rate = 3e-3
    c.dense.weight_decay = 1e-5
    c.quantize.epochs = 2.0
    c.quantize.optimizer = "adam"
    c.quantize.learning_rate = 3e-4
    return c

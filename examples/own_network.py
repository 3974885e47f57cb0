"""Your own network, arrays, loss and augmentation, from training to C. Copy this file anywhere and change it.

python own_network.py [FOLDER]    # the run folder, by default runs/own_network; half a minute on 2 cores
"""

import sys

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import atalaia
from atalaia import layers


class Net(nn.Module):
    outputs: int  # how many: the first field, which training sets

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(16, norm="before")(x, train)  # BatchNorm, then ReLU
        y = layers.Conv(16, norm="before", relu=False)(x, train)
        x = layers.Add(relu=True)(x, y)
        x = layers.Conv(32, strides=2, norm="before")(x, train)
        return layers.Dense(self.outputs)(layers.Flatten()(layers.GlobalAvgPool()(x)), train)


def loss(outputs, targets):
    """One number for a batch: here cross-entropy, less for images that are right already (focal loss)."""
    return optax.sigmoid_focal_loss(outputs, jax.nn.one_hot(targets, outputs.shape[1]), gamma=1.0).sum(1).mean()


def augment(key, images, targets):
    """Changes a batch of training images, in [0, 1]: here each becomes darker by up to a third."""
    return images * jax.random.uniform(key, (len(images), 1, 1, 1), minval=0.67), targets


# Your arrays: uint8 images [n, height, width] or [n, height, width, channels], and a class number for each.
digits = load_digits()
images, labels = np.round(digits.images * 255 / 16).astype(np.uint8), digits.target

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/own_network"
stages = dict(stages=("dense", "prune"), dense=dict(epochs=10.0), prune=dict(epochs=5.0, sparsity=0.5))
run = atalaia.train(Net, (images, labels), folder, loss=loss, augment=augment, batch_size=64, **stages)
exported = atalaia.export(run)  # model.tflite, in int8, compared with the network value by value
print(atalaia.evaluate(run))  # the test images: in floating point, in integers, and in the engine of boards
code = atalaia.compile_c(run)
print(f"{exported.path}: {exported.sizes['tflite_bytes']:,} bytes")
print(f"C code in {code.folder}: {code.figures['weight_bytes']:,} bytes of constants")

"""Our networks in tf-keras, built from our own code: every layer is replaced by Keras's of the same kind.

Used to compare speed (train_speed.py); tests/test_models.py builds the same networks by hand to compare values.
"""

import flax.linen as nn
import tf_keras as keras

from atalaia import layers


def keras_network(model: nn.Module, input_shape: tuple[int, int, int]) -> keras.Model:
    """The tf-keras model of a network of atalaia.models for images `[height, width, channels]`."""
    given = keras.Input(input_shape)
    return keras.Model(given, layers.interpret(model, _keras_layer, given))


def _keras_layer(path, layer, *inputs):
    del path
    x = inputs[0]
    match layer:
        case layers.Conv():
            return _conv(layer, x)
        case layers.Dense():
            return keras.layers.Dense(layer.features, activation="relu" if layer.relu else None)(x)
        case layers.Add():
            x = keras.layers.Add()(list(inputs))
            return keras.layers.ReLU()(x) if layer.relu else x
        case layers.Mul():
            return keras.layers.Multiply()(list(inputs))
        case layers.MaxPool():
            return keras.layers.MaxPool2D(layer.window)(x)
        case layers.GlobalAvgPool():
            return keras.layers.GlobalAveragePooling2D(keepdims=True)(x)
        case layers.Flatten():
            return keras.layers.Flatten()(x)
        case layers.Dropout():
            return keras.layers.Dropout(layer.rate)(x)


def _conv(layer, x):
    if layer.depthwise:
        x = keras.layers.DepthwiseConv2D(layer.kernel, layer.strides, "same")(x)
    else:
        x = keras.layers.Conv2D(layer.features, layer.kernel, layer.strides, "same")(x)
    if layer.norm == "before":
        x = _norm()(x)
    if layer.relu:
        x = keras.layers.ReLU()(x)
    return _norm()(x) if layer.norm == "after" else x


def _norm():
    return keras.layers.BatchNormalization(momentum=layers.BATCH_NORM_MOMENTUM, epsilon=layers.BATCH_NORM_EPSILON)

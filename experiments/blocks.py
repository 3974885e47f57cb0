"""Which blocks of a trained ResNet-56 can be left out: each alone, without training.

python experiments/blocks.py            # a few minutes on 2 cores; needs CIFAR-10 and the weights, which it fetches
python experiments/blocks.py --pages    # only writes the page, from the figures

A residual block adds something to what passes it by, so a network still works where one is missing (Veit et al., 2016,
arXiv:1605.06431). `models/resnet.py` builds networks of the blocks that matter most. The first block of a stack has
other sizes at its two ends, so it stays.
"""

from collections.abc import Iterable

import numpy as np
import tables
from tables import Table, grid

STACKS, BLOCKS = 3, 9
IMAGES = 1_000  # of training, the first of the data set


def main():
    import jax
    import jax.numpy as jnp

    from atalaia import config as configs
    from atalaia import data, models, pretrained

    config, cache = configs.base(), data.cache_dir(tables.DATA.value)
    config.data.name = "cifar10"
    split = data.load(config.data, cache).train
    images, targets = data.to_float(split.images[:IMAGES]), split.targets[:IMAGES]
    shapes = jax.eval_shape(models.create("resnet56", 10).init, jax.random.key(0), images[:1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params, batch_stats = pretrained.load("cifar10", zeros["params"], zeros["batch_stats"], cache)

    def accuracy(depth):
        network = models.resnet.ResNet(10, depth=depth, strided=5)
        outputs = jax.jit(network.apply)(dict(params=params, batch_stats=batch_stats), images)
        return float(np.mean(outputs.argmax(-1) == targets))

    rows, whole = [], accuracy(without())
    for stack in range(STACKS):
        for block in range(1, BLOCKS):
            row = dict(row=f"{stack}_{block}", accuracy=accuracy(without((stack, block))), whole=whole)
            print(f"without block {row['row']}: {100 * row['accuracy']:.1f} of {100 * whole:.1f} %", flush=True)
            rows.append(row)
    TABLE.save(rows)


def without(*gone: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """Blocks of each stack of ResNet-56, but for those of (stack, block) that are gone."""
    return tuple(tuple(j for j in range(BLOCKS) if (i, j) not in gone) for i in range(STACKS))


def dropped(row: dict) -> float:
    """Points of accuracy that a block's absence costs."""
    return 100 * (row["whole"] - row["accuracy"])


def table(rows: Iterable[dict]) -> str:
    """In Markdown: a line a block, a column a stack."""
    costs = {row["row"]: dropped(row) for row in rows}
    columns = {"block": str} | {
        f"stack {stack}, points": lambda block, stack=stack: f"{costs[f'{stack}_{block}']:.1f}"
        for stack in range(STACKS)
    }
    return grid(columns, range(1, BLOCKS), left=1)


def headline(rows: list[dict]) -> str:
    """The block that matters most, and how many cost less than a point."""
    most = max(rows, key=dropped)
    small = sum(dropped(row) < 1 for row in rows)
    return f"block {most['row']} {dropped(most):.1f} points; {small} of {len(rows)} less than one"


TABLE = Table(
    name="blocks",
    title="Blocks of ResNet-56 left out",
    shows="How many points of accuracy a trained ResNet-56 loses where one of its blocks is missing, the others as "
    "they were.",
    command="python experiments/blocks.py",
    body=table,
    headline=headline,
    notes=(
        f"Accuracy is that of the first {IMAGES:,} training images of CIFAR-10, in floating point. The authors of the "
        "weights learned most of them. No choice was made on the test set.",
        "Block 0 of each stack stays: its shortcut changes the sizes in stacks 1 and 2.",
        "Networks `resnet56_859`, `resnet56_333` and `resnet56_112` have some of these blocks "
        "([frontier](frontier.md)).",
    ),
)


tables.define_rows()

if __name__ == "__main__":
    tables.start(main, TABLE)

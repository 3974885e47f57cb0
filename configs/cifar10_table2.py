"""The thesis's network on CIFAR-10 (its Table 2): `:dense`, and what starts from it, `:small`, `:smallest` and others.

./run.sh table2                                                  # every row, then the tables
python -m atalaia.train --config=configs/cifar10_table2.py:small --workdir=runs/table2/small

Rows but :dense and :dense_long start from the finished run in runs/table2 that `start_from` names. About an hour on 2
cores for :dense, by estimate four for :dense_long and two for :small4, 10 to 100 minutes for each of the others;
figures: docs/results/table2.md.
"""

from ml_collections import ConfigDict

from atalaia import config
from atalaia.errors import UserError

DENSE, PRUNE, QUANTIZE = 25.0, 16.0, 4.0  # epochs
TEACHER = "runs/table2/dense"  # guides what is made of it
TEACHER_LONG = "runs/table2/dense_long"


def get_config(row: str = "dense") -> ConfigDict:
    if row not in ROWS:
        raise UserError(f"configs/cifar10_table2.py has no {row!r}, only {', '.join(ROWS)}")
    c = config.base()
    c.model = "thesis"
    c.data.name = "cifar10"
    c.data.validation = 0.05
    c.augment.flip = True
    c.augment.pad_crop = 4
    c.augment.cutout = 8
    c.loss.label_smoothing = 0.1
    c.distillation.alpha = 0.2
    c.distillation.temperature = 3.0
    c.dense.epochs = DENSE
    c.dense.learning_rate = 0.1
    c.dense.warmup = 0.2
    ROWS[row](c)
    return c


def dense(c):
    c.stages = ("dense",)
    c.dense.optimizer = "muon"


def dense_more(c):
    """The float network given the epochs, the rate and the teacher of :dense_int8, to measure its drop against."""
    c.start_from = TEACHER
    c.stages = ("distill",)
    c.distill.epochs = QUANTIZE
    c.distill.learning_rate = 0.01
    c.distill.teacher = TEACHER


def dense_int8(c):
    c.start_from = TEACHER
    _quantize(c)


def pruned(c):
    """As many weights as :small's bytes allow: its grids of 4 bits make room for most of them."""
    c.start_from = TEACHER
    _prune(c, "conv0a=0; conv=0.2; logits=0.5", 0.97)


def small(c):
    """What :pruned becomes on the int8 grids, the three large layers on those of 4 bits."""
    c.start_from = "runs/table2/pruned"
    _quantize(c)
    c.quantize.learning_rate = 0.02
    c.quantize.bits = "conv2=4; dense0=4"


def small4(c):
    """:pruned, pruned further, most weights on grids of 4 bits."""
    c.start_from = "runs/table2/pruned"
    _prune(c, "conv0a=0; conv0b=0.2; conv1=0.5; conv2=0.52; logits=0.6", 0.984)
    c.prune.epochs = 8.0
    c.prune.learning_rate = 0.03
    c.prune.end = 0.3
    _quantize(c)
    c.stages = ("prune", "quantize")
    c.quantize.epochs = 8.0
    c.quantize.learning_rate = 0.02
    c.quantize.bits = "conv0a=8; logits=8; .=4"


def smallest(c):
    """Above the thesis's accuracy, well within 60 KB: :pruned, pruned further, nearly all on grids of 4 bits."""
    c.start_from = "runs/table2/pruned"
    _prune(c, "conv0a=0.4; conv0b=0.8; conv=0.89; logits=0.85", 0.995)
    c.prune.epochs = 5.0
    _quantize(c)
    c.stages = ("prune", "quantize")
    c.quantize.epochs = 3.0
    c.quantize.learning_rate = 0.02
    c.quantize.bits = "conv0a=8; .=4"


def dense_long(c):
    """What the network can reach with four times the epochs of :dense, and larger squares cut out."""
    c.stages = ("dense",)
    c.dense.optimizer = "muon"
    c.dense.epochs = 4 * DENSE
    c.dense.warmup = 0.05
    c.augment.cutout = 12


def pruned_long(c):
    """:pruned from that network."""
    pruned(c)
    _from_long(c, TEACHER_LONG)


def small_long(c):
    """:small from that one, by twice the epochs."""
    small(c)
    _from_long(c, "runs/table2/pruned_long")
    c.quantize.epochs = 2 * QUANTIZE


def _from_long(c, start):
    c.start_from = start
    c.augment.cutout = 12
    c[c.stages[0]].teacher = TEACHER_LONG


def _prune(c, layers, others):
    c.stages = ("prune",)
    c.prune.epochs = PRUNE
    c.prune.optimizer = "muon"
    c.prune.learning_rate = 0.05  # not tuned: 0.015 over 8 epochs was stopped after 5, about as good on validation
    c.prune.end = 0.5
    c.prune.layers = layers
    c.prune.sparsity = others
    c.prune.teacher = TEACHER


def _quantize(c):
    c.stages = ("quantize",)
    c.quantize.epochs = QUANTIZE
    c.quantize.learning_rate = 0.01
    c.quantize.teacher = TEACHER


ROWS = {
    f.__name__: f
    for f in (dense, dense_more, dense_int8, pruned, small, small4, smallest, dense_long, pruned_long, small_long)
}

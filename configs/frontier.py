"""Networks for CIFAR-10 that fit so many bytes of flash: `:POINT`, after `:POINT_float`.

./run.sh frontier            # the teacher, every point and the picture; hours on 2 cores, resumable

A point has two runs: one in floating point, taught by the teacher of configs/teacher_cifar10.py, and one that begins
with its weights and trains them on their grids. Results: docs/results/frontier.md.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from atalaia import config
from atalaia.errors import UserError

TEACHER, FLOAT = "runs/teacher_cifar10", "_float"


class Point(NamedTuple):
    """A network, the epochs of its two runs, and fields of its second one."""

    model: str
    epochs: tuple[float, float]
    fields: dict[str, Any]


POINTS = {
    "tiny": Point(
        "resnet14_narrow", (28.0, 6.0), {"quantize.bits": "auto", "quantize.budget": 24_900.0, "quantize.narrow": 0.3}
    ),
    "small": Point(
        "rafael_base_32", (28.0, 5.0), {"quantize.bits": "auto", "quantize.budget": 44_000.0, "quantize.narrow": 0.3}
    ),
}


def get_config(words: str = "tiny") -> ConfigDict:
    name = words.removesuffix(FLOAT)
    if name not in POINTS:
        raise UserError(f"configs/frontier.py has no {words!r}, only {', '.join(POINTS)}, each also with {FLOAT}")
    point, c = POINTS[name], config.base()
    c.model = point.model
    c.data.name = "cifar10"
    c.data.validation = 0.05
    c.augment.flip = True
    c.augment.pad_crop = 4
    c.distillation.alpha = 0.1
    c.distillation.temperature = 4.0
    c.distillation.views = 3
    c.eval_epochs = 2.0
    if words != name:
        c.stages = ("distill",)
        c.distill.teacher = TEACHER
        c.distill.epochs = point.epochs[0]
        c.distill.optimizer = "muon"
        c.distill.learning_rate = 0.1
        c.distill.warmup = 0.1
        return c
    c.stages = ("quantize",)
    c.start_from = f"runs/frontier/{name}{FLOAT}"
    c.quantize.teacher = TEACHER
    c.quantize.epochs = point.epochs[1]
    c.quantize.optimizer = "adam"  # SGD at 0.01 diverged
    c.quantize.learning_rate = 5e-4
    c.update_from_flattened_dict(point.fields)
    return c

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
    """A network, fields of the run in floating point, and of the one on grids that begins with its weights.

    flash: bytes that the constants of its C should fit.
    """

    model: str
    flash: int
    first: dict[str, Any]
    then: dict[str, Any]


def _fits(size: float, epochs: float) -> dict[str, Any]:
    """Fields of stage quantize: bits for so many bytes."""
    fields = {"bits": "auto", "budget": size, "epochs": epochs, "narrow": 0.3}
    return {f"quantize.{field}": value for field, value in fields.items()}


_VIEWS = {"distillation.views": 9}


def _shrunk(goal: str, budget: float, cuts: int, epochs: float, end: float) -> dict[str, Any]:
    """Fields of the run that begins with weights of a trained ResNet-56 and loses channels."""
    shrink = {
        "epochs": epochs,
        "learning_rate": 0.06,
        "goal": goal,
        "keep": 0.0,
        "budget": float(budget),
        "score": "taylor",
        "cuts": cuts,
        "end": end,
    }
    return {
        "pretrained": "cifar10",
        "stages": ("distill", "shrink"),
        "distill.epochs": 3.0,
        "distill.learning_rate": 0.03,
        **{f"shrink.{field}": value for field, value in shrink.items()},
        **_VIEWS,
    }


def _pruned(epochs: float, sparsity: float, rate: float = 0.03) -> dict[str, Any]:
    """Fields of the run that begins with weights of a trained ResNet-56 and loses some, most in the last stack."""
    prune = {
        "epochs": epochs,
        "learning_rate": rate,
        "sparsity": sparsity,
        "layers": "^conv/=0; logits=0; block0=0.3; block1=0.5",
        "begin": 0.15,
        "end": 0.65,
    }
    return {
        "pretrained": "cifar10",
        "stages": ("prune",),
        **{f"prune.{field}": value for field, value in prune.items()},
    }


# Small begins with new weights, the others with blocks of a trained ResNet-56.
# Training on grids leaves more zeros than the bits were chosen for, a tenth of the bytes in middle and large.
POINTS = {
    "tiny": Point(
        "resnet56_112", 25_000, _shrunk("bytes", 48_000, cuts=4, epochs=28.0, end=0.3), _fits(24_000, 6.0) | _VIEWS
    ),
    "small": Point("rafael_base_32", 47_000, {"distill.epochs": 28.0}, _fits(44_000, 5.0)),
    "silva": Point(
        "resnet56_112", 59_000, _shrunk("macs", 9_800_000, cuts=3, epochs=70.0, end=0.15), _fits(58_700, 5.0) | _VIEWS
    ),
    "middle": Point("resnet56_333", 105_000, _pruned(11.0, 0.65) | _VIEWS, _fits(113_000, 5.0) | _VIEWS),
    "large": Point("resnet56_859", 210_000, _pruned(9.0, 0.78, rate=0.012) | _VIEWS, _fits(225_000, 4.0) | _VIEWS),
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
        for stage in (c.distill, c.shrink, c.prune):
            stage.teacher = TEACHER
            stage.optimizer = "muon"
            stage.learning_rate = 0.1
            stage.warmup = 0.1
        c.update_from_flattened_dict(point.first)
        return c
    c.stages = ("quantize",)
    c.start_from = f"runs/frontier/{name}{FLOAT}"
    c.quantize.teacher = TEACHER
    c.quantize.optimizer = "adam"  # SGD at 0.01 diverged
    c.quantize.learning_rate = 5e-4
    c.update_from_flattened_dict(point.then)
    return c

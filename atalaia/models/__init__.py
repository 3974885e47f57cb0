"""Networks by name. A new one: a file here with a Linen module of atalaia.layers, and a line in `MODELS`.

Every network maps `[batch, height, width, channels]` float32 in [0, 1] (pixel / 255) to outputs `[batch, n]`, or to a
dict of maps if it is a detector; n is its first field. A user's own is named "path/to/net.py:Net".
"""

import difflib
from collections.abc import Callable
from functools import partial

import flax.linen as nn

from atalaia import own
from atalaia.errors import UserError
from atalaia.models import detector, gated, mobilenet, rafael, resnet, resnet50, thesis

MODELS: dict[str, Callable[..., nn.Module]] = {
    "thesis": thesis.Thesis,
    "student": thesis.Thesis,  # Code 2 and Code 3 of the thesis are one body; the input's size makes the difference
    "resnet8": resnet.ResNet8,
    "resnet14": partial(resnet.ResNet, depth=2),
    "resnet14_narrow": partial(resnet.ResNet, width=8, depth=2),
    "resnet20": resnet.ResNet,
    "resnet32": partial(resnet.ResNet, depth=5),
    "resnet56": partial(resnet.ResNet, depth=9, strided=5),
    "resnet56_859": partial(resnet.ResNet, depth=((*range(6), 7, 8), (0, 1, 2, 4, 5), tuple(range(9))), strided=5),
    "resnet56_333": partial(resnet.ResNet, depth=((0, 7, 8),) * 3),
    "resnet56_112": partial(resnet.ResNet, depth=((8,), (0,), (0, 8))),
    "resnet20_wide": partial(resnet.ResNet, width=32),
    "gated": gated.Gated,
    "gated_small": partial(gated.Gated, stages=((16, 1), (32, 2), (48, 2))),
    "mobilenetv1": mobilenet.MobileNetV1,
    "detector": detector.Detector,
    "detector_small": partial(detector.Detector, widths=(8, 16, 48), depths=(0, 0, 4)),
    "detector_sparse": partial(
        detector.Detector, widths=(0, 16, 32), depths=(0, 0, 4), stem=5, full=True, dilations=(1, 2, 1, 2)
    ),
    "detector_large": partial(detector.Detector, widths=(32, 64, 128), depths=(1, 2, 6)),
    "rafael_base": rafael.Rafael,
    "rafael_base_32": partial(rafael.Rafael, stem=(3, 1)),  # for images of 32x32
    "rafael_deep_32": partial(rafael.Rafael, stem=(3, 1), stages=((32, 4), (64, 6), (128, 3))),
    "rafael_wide_32": partial(rafael.Rafael, stem=(3, 1), stages=((48, 3), (96, 4), (192, 2))),
    "rafael_1": partial(rafael.Rafael, extra=(9,)),
    "rafael_2": partial(rafael.Rafael, extra=(3, 3)),
    "rafael_3": partial(rafael.Rafael, extra=(3, 3, 3)),
    "resnet50": resnet50.ResNet50,
    **{f"resnet50_{size}": partial(resnet50.ResNet50, size=size) for size in (96, 160, 224)},  # resized first
}
# Names of the weights that atalaia.pretrained has for them.
PRETRAINED = {name: ("imagenet",) for name in MODELS if name.startswith("resnet50")} | {
    name: ("cifar10",) for name in MODELS if name.startswith("resnet56")
}


def create(name: str, outputs: int) -> nn.Module:
    """The network of that name with so many outputs.

    Raises:
      UserError: no network has that name, and the names are listed; or a user's own is none.
    """
    if own.is_own(name):
        return _own(name, outputs)
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown model {name!r}: {hint}there are {_listed(MODELS)}")
    return MODELS[name](outputs)


def _listed(names):
    """Sorted names, those of one beginning together: resnet50/_160/_224/_96."""
    families: dict[str, list[str]] = {}
    for name in sorted(names):
        families.setdefault(name.partition("_")[0], []).append(name)
    return ", ".join(
        "/".join([first, *(n.removeprefix(stem) for n in rest)]) for stem, (first, *rest) in families.items()
    )


def _own(name, outputs):
    network = own.resolve("model", name)
    try:
        model = network(outputs)
    except Exception as error:  # whatever a user's code raises
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"model: {name} cannot be made with {outputs} outputs: {why}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model: {name} is no Flax Linen network: derive it from flax.linen.Module")
    return model

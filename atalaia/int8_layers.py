"""Which layers have an int8 form, and one clear error for a network that is made of anything else."""

import inspect
import re
import traceback
from pathlib import Path

import flax.linen as nn

from atalaia import layers
from atalaia.errors import UserError

INT8_LAYERS = (
    layers.Conv,
    layers.Dense,
    layers.Dropout,
    layers.Add,
    layers.Mul,
    layers.MaxPool,
    layers.MinPool,
    layers.GlobalAvgPool,
    layers.Flatten,
)
# What a network's line may say, and what takes its place; the first that matches counts.
_INSTEAD = (
    (r"relu", "relu=True of Conv, Dense or Add"),
    (r"max_pool|\.max\(", "MaxPool"),
    (r"min_pool|\.min\(", "MinPool"),
    (r"avg_pool|mean", "GlobalAvgPool"),
    (r"reshape|ravel|flatten", "Flatten"),
    (r"BatchNorm", 'norm="before" or "after" of Conv'),
    (r"conv", "Conv"),
    (r"Dense|dot\(|matmul|einsum|@", "Dense"),
    (r"Dropout", "Dropout"),
    (r"add\(|\+", "Add"),
    (r"mul|\*", "Mul"),
)
_ALL = f"a network is made of atalaia.layers' {', '.join(kind.__name__ for kind in INT8_LAYERS)} alone"


def require_int8(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Does nothing for a network that has an int8 form.

    Raises:
      UserError: it has none; the network's own line is named with its file and number, and what to use instead.
    """

    def rule(path, layer, *inputs):
        if not isinstance(layer, INT8_LAYERS):
            raise UserError(f"layer {path!r} is a {type(layer).__name__}, which has no int8 form")
        return layers.output_spec(layer, *inputs)

    try:
        layers.interpret(model, rule, layers.spec((1, *input_shape)))
    # Flax and JAX have many errors for an operation on what is no array; the network's own line says which it is.
    except Exception as error:
        place, line = _own_line(model, error)
        reason = " ".join(str(error).split())[:120]
        if not isinstance(error, UserError):
            reason = f"{line!r} has no int8 form" if line else f"the network has no int8 form ({reason})"
        elif line:
            reason += f" ({line!r})"
        instead = next((f"use {name} instead; " for said, name in _INSTEAD if re.search(said, line)), "")
        raise UserError(f"{place}{reason}: {instead}{_ALL}, ReLU as their option") from None


def _own_line(model, error):
    """("file:number: ", text) of the line that failed in the folder of the network's own file; empty where none did."""
    frames = traceback.extract_tb(error.__traceback__)
    try:
        folder = Path(inspect.getsourcefile(type(model))).resolve().parent
        own = [f for f in frames if Path(f.filename).resolve().parent == folder]
    except TypeError:  # of a notebook's class Python knows no file
        library = Path(__file__).parent
        own = [f for f in frames if "site-packages" not in f.filename and library not in Path(f.filename).parents]
    if not own:
        return "", ""
    file = Path(own[-1].filename).resolve()
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}:{own[-1].lineno}: ", own[-1].line

"""Which channels of a network go together, and the network without some of them.

A rule over `layers.interpret` follows the channels through the network's own code: Conv and Dense make new ones,
depthwise convolutions, pooling and Flatten pass them on, Add and Mul tie two. Those of the image, of the outputs and of
layers that are not ours stay. It is the dependency graph of Fang et al., 2023 (DepGraph, arXiv:2301.12900), which finds
it in gradients; here the layers say it.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from atalaia import layers
from atalaia.errors import UserError

FIXED = ""  # the group of channels that stay


class Place(NamedTuple):
    """An axis of a parameter or statistic, and of which channel of its group each of its indices is, int `[n]`."""

    path: str
    axis: int
    channels: np.ndarray


class Group(NamedTuple):
    """Channels that go or stay together: how many, the Conv and Dense that make them, and all places that have them."""

    size: int
    makers: tuple[str, ...]
    places: tuple[Place, ...]


class Ties(NamedTuple):
    """What `find` found.

    groups: by the name of their first layer; through: of each layer, the groups of its inputs and of its output.
    paths: of all parameters and statistics of layers, those of channels that stay too.
    """

    groups: dict[str, Group]
    through: dict[str, tuple[tuple[str, ...], str]]
    paths: frozenset[str]


def find(model: nn.Module, params: dict) -> Ties:
    """The groups of a network's channels, and what flows through each layer.

    Args:
      model: a network of atalaia.layers; layers of its own keep their channels.
      params: its parameters, or their shapes.

    Raises:
      UserError: it does other things with its activations than calling layers.
    """
    walk = _Walk({path: value.shape for path, value in flatten_dict(params, sep="/").items()})
    try:
        last = layers.interpret(model, walk.rule, _IMAGE)
    except Exception as error:  # of whatever a user's code does with what is no array
        why = f"{type(error).__name__}: {error}"
        raise UserError(
            f"shrink: {type(model).__name__} does more than calling layers, so its channels cannot be followed "
            f"({why}): build it from atalaia.layers alone, or take 'shrink' out of stages"
        ) from None
    for head in jax.tree.leaves(last, is_leaf=lambda value: isinstance(value, _Flow)):
        walk.tie(head, _IMAGE)
    return walk.ties()


class _Flow(NamedTuple):
    """A tensor: its group, and the channel of each of its own; a flattened one repeats them."""

    group: str
    channels: np.ndarray


_IMAGE = _Flow(FIXED, np.arange(0))


class _Walk:
    """The rule, and what it has seen. A group has several names until all ties are known: `root` is the first."""

    def __init__(self, shapes):
        self.shapes = shapes
        self.names: dict[str, str] = {FIXED: FIXED}  # from a group to one that it is tied to, in the order of the walk
        self.sizes: dict[str, int] = {}
        self.places: list[tuple[str, Place]] = []
        self.seen: dict[str, tuple[list[_Flow], _Flow]] = {}

    def root(self, name):
        while self.names[name] != name:
            name = self.names[name]
        return name

    def tie(self, a, b):
        """Makes one group of two; where their channels lie in other orders, or one is fixed, both are."""
        same = np.array_equal(a.channels, b.channels)
        order = list(self.names)
        roots = sorted({self.root(a.group), self.root(b.group), *([] if same else [FIXED])}, key=order.index)
        self.names |= dict.fromkeys(roots, roots[0])
        return a

    def rule(self, path, layer, *inputs):
        if path in self.seen:  # one layer in two places
            for old, new in zip(self.seen[path][0], inputs, strict=True):
                self.tie(old, new)
            return self.seen[path][1]
        match layer:
            case layers.Conv(depthwise=True):
                out = self._filter(path, inputs[0])
            case layers.Conv() | layers.Dense():
                out = self._make(path, inputs[0])
            case layers.Add() | layers.Mul():
                out = self.tie(*inputs)
            case layers.MaxPool() | layers.MinPool() | layers.GlobalAvgPool() | layers.Flatten() | layers.Dropout():
                out = inputs[0]
            case _:
                for given in inputs:
                    self.tie(given, _IMAGE)
                out = _IMAGE
        self.seen[path] = list(inputs), out
        return out

    def _filter(self, path, given):
        """A depthwise convolution: each channel, or the few made of it, goes with the input's."""
        if not len(given.channels):
            return _IMAGE
        times = self.shapes[f"{path}/kernel"][-1] // len(given.channels)
        out = _Flow(given.group, np.repeat(given.channels, times))
        self._own(path, out)
        return out

    def _make(self, path, given):
        *_, inside, outside = shape = self.shapes[f"{path}/kernel"]
        self.names[path], self.sizes[path] = path, outside
        # A flattened map has its channels last: index i is of channel i modulo their number.
        self.places.append((given.group, Place(f"{path}/kernel", len(shape) - 2, np.resize(given.channels, inside))))
        out = _Flow(path, np.arange(outside))
        self._own(path, out)
        return out

    def _own(self, path, out):
        """The places of a layer's own output channels."""
        self.places.append((out.group, Place(f"{path}/kernel", len(self.shapes[f"{path}/kernel"]) - 1, out.channels)))
        names = ["bias", *(f"norm/{name}" for name in ("scale", "bias", "mean", "var"))]
        self.places += [(out.group, Place(f"{path}/{name}", 0, out.channels)) for name in names]

    def ties(self):
        groups = {}
        for name in self.sizes:
            if self.root(name) == name:
                places = tuple(place for group, place in self.places if self.root(group) == name)
                makers = tuple(maker for maker in self.sizes if self.root(maker) == name)
                groups[name] = Group(self.sizes[name], makers, places)
        through = {
            path: (tuple(self.root(x.group) for x in inputs), self.root(out.group))
            for path, (inputs, out) in self.seen.items()
        }
        return Ties(groups, through, frozenset(self.shapes) | {place.path for _, place in self.places})


def take(tree: Any, ties: Ties, kept: dict[str, np.ndarray]) -> Any:
    """A pytree of arrays without the channels that go.

    Args:
      tree: params, batch_stats, masks, an optimiser's state, or all of them: what is named like a parameter, with other
        names in front of it, and has its shape, is cut like it.
      ties: of the network.
      kept: by group, the channels that stay, increasing; a group that is not named stays whole.
    """
    chosen: dict[str, list[tuple[int, int, np.ndarray]]] = {}
    for name, channels in kept.items():
        for place in ties.groups[name].places:
            index = np.flatnonzero(np.isin(place.channels, channels))
            chosen.setdefault(place.path, []).append((place.axis, len(place.channels), index))

    def cut(path, leaf):
        names = "/".join(str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey)).split("/")
        ends = ("/".join(names[i:]) for i in range(len(names)))
        own = next((end for end in ends if end in ties.paths), "")  # the longest: a shorter one may be another layer's
        for axis, size, index in chosen.get(own, ()):
            if np.ndim(leaf) > axis and leaf.shape[axis] == size:
                leaf = np.take(np.asarray(leaf), index, axis)
        return leaf

    return jax.tree.map_with_path(cut, tree)


def widths(whole: dict, params: dict) -> dict[str, int]:
    """Output channels by layer, of those that have lost some: `whole` and `params` are parameters before and after."""
    before, after = (flatten_dict(tree, sep="/") for tree in (whole, params))
    kernels = {path.removesuffix("/kernel"): path for path in before if path.endswith("/kernel") and path in after}
    return {
        layer: int(after[path].shape[-1])
        for layer, path in kernels.items()
        if after[path].shape[-1] != before[path].shape[-1]
    }


def narrowed(model: nn.Module, tree: Any, params: dict, kept: dict[str, int]) -> Any:
    """A pytree, such as a state of zeros, in the shapes that the network has with the widths `kept`.

    Args:
      model: the network; params: its parameters or their shapes, before.
      tree: as in `take`.
      kept: what `widths` gives.
    """
    if not kept:
        return tree
    ties = find(model, params)
    first = {name: next((kept[m] for m in g.makers if m in kept), g.size) for name, g in ties.groups.items()}
    return take(tree, ties, {name: np.arange(width) for name, width in first.items()})


def narrow(model: nn.Module, kept: dict[str, int]) -> nn.Module:
    """The network with the widths `kept`; itself where there are none."""
    return layers.Narrow(model, tuple(sorted(kept.items()))) if kept else model


def fitted(model: nn.Module, whole: dict, params: dict) -> nn.Module:
    """The network that has these parameters; `whole` are those, or the shapes, of its own code."""
    return narrow(model, widths(whole, params))

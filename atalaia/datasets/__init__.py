"""Where images come from: one loader for each `data.name` of a config."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from atalaia.datasets import arrays, boxes, bundled, cifar10, faces, folder, stl10
from atalaia.datasets.source import Source

LOADERS: dict[str, Callable[[ConfigDict, Path], Source]] = {  # of the fields config.data and the folder of downloads
    "digits": bundled.digits,
    "turned_digits": bundled.turned_digits,
    "lfw_faces": bundled.lfw_faces,
    "cifar10": cifar10.load,
    "stl10": stl10.load,
    "image_folder": folder.load,
    "arrays": arrays.load,
    "boxes": boxes.load,
    "faces": faces.load,
    "faces_masked": faces.load_masked,
}
TITLES = {"cifar10": "CIFAR-10", "stl10": "STL-10"}  # shown instead of the loader's name

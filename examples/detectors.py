"""Detectors of many widths and depths, for configs/search_faces.py: `examples/detectors.py:w32_d4` is detector_sparse.

The letters: w, channels at an eighth of the picture's size; d, residual layers there; two_, two convolutions of
strides 2 in front in place of one of strides 4, which sees more of the edges and costs more.
"""

from functools import partial

from atalaia.models.detector import Detector

WIDTHS, DEPTHS = (24, 32, 40, 48), (2, 3, 4, 5, 6)
NAMES = []
for width in WIDTHS:
    for depth in DEPTHS:
        for front, stem, first in (("", 5, 0), ("two_", 0, 8)):
            name = f"{front}w{width}_d{depth}"
            NAMES.append(name)
            globals()[name] = partial(
                Detector, widths=(first, 16, width), depths=(0, 0, depth), stem=stem, full=True, dilations=(1, 2)
            )

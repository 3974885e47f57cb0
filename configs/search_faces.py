"""Networks and sparsities for a detector of faces: width, depth, strides in front, and how much is pruned.

python -m atalaia.search --config=configs/faces.py --space=configs/search_faces.py --workdir=runs/search_faces \\
    --trials=20 --max_bytes=100000 --max_arena=100000 --max_ms=150

The limits are those of an ESP32-CAM that is to find faces six times a second. For trials in minutes add
--config.dense.epochs=1 --config.prune.epochs=3 --config.quantize.epochs=1.
"""

from atalaia.space import Space, choice, uniform

FRONTS, WIDTHS, DEPTHS = ("", "two_"), (24, 32, 40, 48), (2, 3, 4, 5, 6)


def get_space() -> Space:
    networks = [f"examples/detectors.py:{f}w{w}_d{d}" for f in FRONTS for w in WIDTHS for d in DEPTHS]
    return {"model": choice(*networks), "prune.sparsity": uniform(0.6, 0.95)}

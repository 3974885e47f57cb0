"""A small space: how fast the network learns, and by which rule.

python -m atalaia.search --config=configs/digits.py --space=configs/search_digits.py --workdir=runs/search --trials=16
"""

from atalaia.space import Space, choice, uniform


def get_space() -> Space:
    return {
        "dense.learning_rate": uniform(1e-3, 1.0, log=True),
        "dense.optimizer": choice("sgd", "adam", "adamw"),
    }

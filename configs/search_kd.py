"""The thesis's space of distillation (section 2.5.3): the weight of the hard labels, and the temperature.

python -m atalaia.search --config=configs/NAME.py --space=configs/search_kd.py --workdir=runs/search_kd --trials=12

For any config with a stage that distils; 32 points. A space is any file like this one, over any fields of the config.
"""

from atalaia.space import Space, choice


def get_space() -> Space:
    return {
        "distillation.alpha": choice(0.01, 0.1, 0.25, 0.5),
        "distillation.temperature": choice(2.0, 5.0, 7.0, 10.0, 12.0, 15.0, 17.0, 20.0),
    }

"""The students of the thesis's Table 1 on CIFAR-10 upsampled to 96x96, 500 images a class: `:NAME`, `:NAME_distilled`.

./run.sh table1                                                                 # every row, then the table
python -m atalaia.train --config=configs/table1.py:rafael_base --workdir=runs/rafael_base
python -m atalaia.train --config=configs/table1.py:rafael_base_distilled --workdir=runs/rafael_base_distilled

NAME is one of STUDENTS. The distilled ones need the teacher of configs/teacher.py in runs/table1/teacher, and get the
same epochs. Each took 102 to 167 seconds on an H200, beside ten others; half of the small ones' epochs took 7 to 22
minutes on 2 cores. Figures: docs/results/table1.md. `:NAME,stl10` is the same on STL-10 itself, with the teacher
in runs/table1_stl10/teacher.
"""

from ml_collections import ConfigDict

from atalaia import config
from atalaia.errors import UserError

# Epochs, and the weight of the hard loss and the temperature that the thesis's search chose.
STUDENTS = {
    "rafael_base": (40.0, 0.1, 10.0),
    "rafael_1": (40.0, 0.01, 20.0),
    "rafael_2": (40.0, 0.01, 7.0),
    "rafael_3": (40.0, 0.01, 5.0),
    "student": (20.0, 0.1, 5.0),  # 19 M values: an epoch takes minutes on 2 cores
}
DISTILLED = "_distilled"
VIEWS = 16  # augmented images of each one that the teacher sees


def get_config(words: str = "rafael_base") -> ConfigDict:
    row, _, data = words.partition(",")
    name = row.removesuffix(DISTILLED)
    if name not in STUDENTS or data not in ("", "stl10"):
        rows = ", ".join(f"{n}, {n}{DISTILLED}" for n in STUDENTS)
        raise UserError(f"configs/table1.py has no {words!r}, only {rows}, each also with ,stl10 behind it")
    epochs, alpha, temperature = STUDENTS[name]
    c = config.base()
    c.model = name
    c.batch_size = 64
    c.data.validation = 0.1
    c.eval_epochs = 5.0
    if data == "stl10":
        c.data.name = "stl10"
    else:
        c.data.name = "cifar10"
        c.data.size = 96
        c.data.train_per_class = 1000
        c.data.validation = 0.5  # 500 a class to train on, as STL-10 has, and as many to choose by
        c.data.test_per_class = 800
    c.augment.flip = True
    c.augment.pad_crop = 12
    c.dense.epochs = epochs
    c.dense.optimizer = "muon"  # after 5 epochs of rafael_base 51.8 % of validation, by SGD 42.3
    c.dense.learning_rate = 0.05
    c.dense.weight_decay = 1e-3
    if name == "student":  # its 19 M values of one Dense: by the rates above it learns next to nothing in 3 epochs
        c.dense.optimizer = "adam"
        c.dense.learning_rate = 1e-3
        c.dense.weight_decay = 0.0
    if row.endswith(DISTILLED):
        _distil(c, f"runs/table1{'_stl10' if data else ''}/teacher", alpha, temperature)
    return c


def _distil(c, teacher, alpha, temperature):
    """The same stage with a teacher."""
    c.stages = ("distill",)
    c.distill.update(c.dense)
    c.distill.teacher = teacher
    c.distillation.loss = "kd"
    c.distillation.alpha = alpha
    c.distillation.temperature = temperature
    c.distillation.views = VIEWS

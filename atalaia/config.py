"""The fields of an experiment, their defaults, and their check before any long work starts.

A recipe in configs/ starts from `base()` and changes what differs. Any field can be set on the command line, as in
`--config.prune.sparsity=0.9`. A duration is `epochs` or `steps`, exactly one of them; 0 means not given.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict, FieldReference

from atalaia import augment, data, distill, mixing, models, optimizers, own, pretrained, pruning, qat, shrink, tasks
from atalaia.errors import UserError, choice
from atalaia.files import write_json
from atalaia.rules import compile_pattern

STAGES = ("dense", "distill", "shrink", "prune", "quantize")


def base() -> ConfigDict:
    """Every field with its default."""
    c = ConfigDict()
    c.seed = 0
    c.task = "classify"  # a name of atalaia.tasks.TASKS: what the network is trained for
    c.model = "resnet8"  # a name of atalaia.models.MODELS, or "path/to/net.py:Net"
    c.pretrained = ""  # weights of others to begin with, by a name of models.PRETRAINED; "": new weights
    c.trainable = ""  # regular expression: the parameters that are trained, the others stay as they are; "": all
    c.batch_size = 128
    c.stages = ("dense",)  # run in this order, each once
    c.start_from = ""  # folder of a finished run, whose weights and masks this one begins with; "": new weights
    c.eval_epochs = 1.0  # epochs between two looks at the validation split
    c.checkpoint_seconds = 60.0  # at least this long between two checkpoints
    c.log_steps = 50  # steps between two lines of metrics.jsonl

    c.data = ConfigDict()
    c.data.name = "digits"  # a name of atalaia.datasets.LOADERS, or "path/to/data.py:load", a function of your own
    c.data.path = (
        ""  # of image_folder and boxes: the folder of train/ and perhaps test/, or of all; of arrays: the .npz
    )
    c.data.size = FieldReference(0, field_type=object)  # side to resize to, or "height,width"; 0: as they are
    c.data.fit = "crop"  # where the sides' ratio changes: "crop" the rest, "pad" or "letterbox" with black, "stretch"
    c.data.in_memory = True  # False: images stay on the disk and are read as they are needed
    c.data.grey = False  # one channel instead of three
    c.data.validation = 0.1  # part of the training images that is held out
    c.data.split_seed = 0
    c.data.train_per_class = 0  # images of each class that are kept, of those to train on (validation is carved from
    c.data.test_per_class = 0  # them) and of the test set, drawn by split_seed and by a fixed seed; 0: all
    c.data.balance = (
        ""  # classes of unlike size count alike: by "weights" in the loss or by "sampling"; "": they do not
    )
    c.data.classes = ""  # of boxes: those that count, merged by "face=with_mask,without_mask; plate"; "": all
    c.data.ignore_below = 0.0  # pixels of the resized image: narrower boxes are ignored
    c.data.unlabelled = ""  # images without labels: a folder of them, or of stl10 its "official" ones; "": none

    c.augment = ConfigDict()  # 0 or False: off
    c.augment.flip = False  # left and right
    c.augment.pad_crop = 0  # pixels of zero padding, then a random crop of the old size
    c.augment.cutout = 0  # side of a square set to zero
    c.augment.brightness = 0.0  # largest amount added
    c.augment.contrast = 0.0  # largest relative change
    c.augment.noise = 0.0  # standard deviation of Gaussian noise
    c.augment.rotate = 0.0  # largest angle in degrees
    c.augment.scale = 0.0  # largest relative change of size, larger or smaller, at a random place
    c.augment.translate = 0.0  # largest shift, as a part of the height and width
    c.augment.blur = 0.0  # largest standard deviation of a Gaussian blur, in pixels
    c.augment.grey = 0.0  # largest part of the colour that is taken away, up to 1
    c.augment.gamma = 0.0  # largest relative change of the exponent of each value
    c.augment.own = ""  # "path/to/file.py:function" of (key, images, targets) to (images, targets), after the others

    c.mix = ConfigDict()  # pairs of images in one, by the loss of both their targets; 0: off
    c.mix.mixup = 0.0  # a of Beta(a, a), of which each batch draws how much stays of an image; 1 is even
    c.mix.cutmix = 0.0  # the same for a box of the other image
    c.mix.ramp = 0.0  # part of each stage in which the mixing grows from none

    c.loss = ConfigDict()
    c.loss.name = "cross_entropy"  # of the task's LOSSES, or "path/to/file.py:function" of (outputs, targets) to []
    c.loss.label_smoothing = 0.0
    c.loss.huber_delta = 1.0  # of loss "huber": the error from which on it is linear

    c.regress = ConfigDict()  # of task "regress"
    c.regress.kind = "numbers"  # what the numbers are, so that augmentation moves them: or "direction", "point"

    c.detect = ConfigDict()  # of task "detect"
    c.detect.stride = 8  # pixels between two cells of the network's maps
    c.detect.ignore_below = 0.0  # boxes narrower than so many pixels neither count nor are a mistake
    c.detect.visible = 0.4  # nor does one of which augmentation leaves less than this part in the picture
    c.detect.box_weight = 1.0  # of the boxes' loss beside that of the centres
    c.detect.threshold = 0.3  # least probability of a box that is found
    c.detect.overlap = 0.5  # intersection over union above which the lesser of two boxes is no other thing
    c.detect.most = 20  # boxes of an image at the most

    c.distillation = ConfigDict()  # of every stage that has a teacher
    c.distillation.loss = "kd"  # of the task's SOFT_LOSSES
    c.distillation.alpha = 0.1  # part of the loss by targets; the rest follows the teacher
    c.distillation.temperature = 5.0
    c.distillation.dkd_alpha = 1.0  # of loss "dkd": weight of the true class against the others
    c.distillation.dkd_beta = 8.0  # and of the other classes among themselves
    c.distillation.views = 0  # fixed augmented views of an image whose outputs are kept on disk; 0: none are kept

    c.dense = _stage(epochs=10.0)
    c.distill = _stage(epochs=10.0)
    c.distill.teacher = ""  # folder of a finished run that guides this stage; of several, with ";" between: their mean
    c.shrink = _stage(epochs=10.0)
    c.shrink.learning_rate = 0.05
    c.shrink.teacher = ""  # the folder of a finished run, or "self": the network as the run's first stage left it
    c.shrink.goal = "macs"  # what becomes less: "macs", "bytes" of constants or "ms" on a board, as estimated
    c.shrink.keep = 0.5  # part of it that stays
    c.shrink.budget = 0.0  # or so much of it; 0: not given
    c.shrink.score = "l2"  # what a channel matters: its weights, BatchNorm's scale ("norm") or the loss ("taylor")
    c.shrink.scope = "global"  # those go first that matter least for what they cost; "uniform": of each group a part
    c.shrink.least = 0.125  # part of its channels that a group keeps at least
    c.shrink.multiple = 4  # channels are a multiple of it
    c.shrink.cuts = 1  # cuts, evenly spread from the beginning of the stage
    c.shrink.end = 0.6  # to this part of it
    c.shrink.fixed = ""  # regular expression: layers whose channels all stay; "": none

    c.prune = _stage(epochs=5.0)
    c.prune.teacher = ""  # the same, or "self": the network as the run's first stage left it; "": labels alone
    c.prune.sparsity = 0.5  # part of the weights that become zero
    c.prune.scope = "uniform"  # in every layer, or "global": over all of them
    c.prune.pattern = "kernel$"  # regular expression: the parameters that are pruned
    c.prune.layers = ""  # other sparsities by pattern: "conv0a=0; dense0/kernel=0.95", the first that matches counts
    c.prune.schedule = "cubic"  # a name of atalaia.pruning.SCHEDULES
    c.prune.initial_sparsity = 0.0  # where the cubic schedule begins
    c.prune.begin = 0.0  # part of the stage before the first weight is pruned
    c.prune.end = 0.7  # part of the stage when the sparsity is reached
    c.prune.every = 50  # steps between two changes of the masks

    c.quantize = _stage(epochs=5.0)
    c.quantize.learning_rate = 0.01
    c.quantize.weight_decay = 0.0  # kernels are folded: no BatchNorm makes up for smaller ones
    c.quantize.teacher = ""  # as prune.teacher
    c.quantize.ranges = "ema"  # of activations: they follow each batch's extremes, or "learned" by gradients (LSQ)
    c.quantize.ema_decay = 0.99  # what a step keeps of the old range
    c.quantize.freeze = 0.5  # part of the stage after which ranges and learned scales stay as they are
    c.quantize.scale_learning_rate = 0.002  # of learned scales: about the relative change in one step
    c.quantize.bits = ""  # of weights by layer pattern: "dense0=4; conv=3"; 8 where none matches, 2 is ternary; "auto"
    c.quantize.budget = 0.0  # what the network may cost in the generated C, by quantize.goal: bits "auto" fit it
    c.quantize.goal = "bytes"  # of constants, by codegen --prefer=size; or "ms", of an ESP32, by --prefer=speed
    c.quantize.narrow = 0.0  # part of the stage in which weights come to fewer than 8 bits by 8, 4 and 3; 0: at once

    c.calibration = ConfigDict()
    c.calibration.images = (
        1024  # training images that choose the int8 ranges, those that stage quantize begins with too
    )
    return c.lock()


def _stage(epochs):
    c = ConfigDict()
    c.epochs = epochs
    c.steps = 0
    c.optimizer = "sgd"  # a name of atalaia.optimizers.OPTIMIZERS
    c.learning_rate = 0.1
    c.lr_schedule = "cosine"  # a name of atalaia.optimizers.SCHEDULES
    c.warmup = 0.05  # part of the stage in which the learning rate grows from 0
    c.momentum = 0.9
    c.weight_decay = 5e-4  # of kernels only
    c.average = 0.0  # part of their moving average that weights keep in a step, such as 0.999; 0: no average is used
    return c


def validate(config: ConfigDict) -> None:
    """Refuses what cannot work, before any work is done.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    models.create(config.model, 2)
    pretrained.validate(config.model, config.pretrained)
    if config.pretrained and config.start_from:
        raise UserError('start_from and pretrained both name weights to begin with: give one, and "" for the other')
    compile_pattern("trainable", config.trainable)
    data.validate(config.data)
    _range("batch_size", config.batch_size, 1)
    _range("log_steps", config.log_steps, 1)
    _range("calibration.images", config.calibration.images, 1)
    _range("loss.label_smoothing", config.loss.label_smoothing, 0, 1)
    _range("seed", config.seed, 0, 2**32)
    _range("checkpoint_seconds", config.checkpoint_seconds, 0)
    if not 0 < config.eval_epochs < math.inf:
        raise UserError(f"eval_epochs must be above 0, not {config.eval_epochs}")
    for name, _ in augment.OPERATIONS:
        _range(f"augment.{name}", config.augment[name], 0)
    _range("augment.translate", config.augment.translate, 0, 1)
    if config.augment.grey > 1:
        raise UserError(f"augment.grey is a part of the colour, at most 1, not {config.augment.grey}")
    if not config.stages or len(set(config.stages)) < len(config.stages):
        raise UserError(f"stages must name each stage once, not {tuple(config.stages)}")
    distill.validate(config.distillation)
    for name in config.stages:
        choice("stages", name, STAGES)
        _validate_stage(name, config[name])
    _validate_teachers(config)
    tasks.validate(config)
    mixing.validate(config)
    _validate_own_augmentation(config)
    if "shrink" in config.stages:
        shrink.validate(config.shrink)
    if "prune" in config.stages:
        pruning.validate(config.prune)
    if "quantize" in config.stages:
        qat.validate(config.quantize)
        if config.quantize.budget and not config.data.validation:
            raise UserError("quantize.budget: bits are chosen on validation images: data.validation must be above 0")
        if config.stages[-1] != "quantize":
            raise UserError(f"stages: quantize folds BatchNorm, so it must be the last, not {tuple(config.stages)}")


def _validate_stage(name, stage):
    given = [k for k in ("epochs", "steps") if stage[k]]
    if len(given) != 1:
        which = "both" if given else "neither"
        raise UserError(f"{name}: {which} of epochs and steps given; set exactly one, the other to 0")
    _range(f"{name}.{given[0]}", stage[given[0]], 0, math.inf)
    choice(f"{name}.optimizer", stage.optimizer, optimizers.OPTIMIZERS)
    choice(f"{name}.lr_schedule", stage.lr_schedule, optimizers.SCHEDULES)
    _range(f"{name}.warmup", stage.warmup, 0, 1)
    for field in ("momentum", "average"):
        _range(f"{name}.{field}", stage[field], 0, 1)
    for field in ("learning_rate", "weight_decay"):
        _range(f"{name}.{field}", stage[field], 0)


def _validate_teachers(config):
    if "distill" in config.stages and not config.distill.teacher:
        raise UserError("distill.teacher is empty: give the folder of a finished run, or take 'distill' out of stages")
    if config.data.unlabelled and not any(config[stage].get("teacher") for stage in config.stages):
        raise UserError(
            'data.unlabelled: only stages with a teacher learn from such images, and none has one: give "", or '
            "distill.teacher, shrink.teacher, prune.teacher or quantize.teacher"
        )
    for stage in config.stages:
        distill.validate_teachers(f"{stage}.teacher", config[stage].get("teacher"))
    first = config.stages[0]
    if distill.SELF in distill.names(config[first].get("teacher")) and not config.start_from:
        raise UserError(f"{first}.teacher = {distill.SELF!r}: nothing is trained before this stage: give start_from")


def _validate_own_augmentation(config):
    if not config.augment.own:
        return
    own.resolve("augment.own", config.augment.own)
    if config.distillation.views and any(config[stage].get("teacher") for stage in config.stages):
        raise UserError(
            "augment.own draws anew in each step, so a teacher's answers to it cannot be kept: set distillation.views "
            'to 0, or augment.own to ""'
        )


def _range(field, value, low, below=None):
    if not (value >= low and (below is None or value < below)):
        raise UserError(f"{field} must be {f'in [{low}, {below})' if below else f'at least {low}'}, not {value}")


# A run may go on with another value of these: they change no result.
_FREE = ("checkpoint_seconds",)


def refuse_other_run(config: ConfigDict, workdir: Path, stages: Sequence[str] | None = None) -> None:
    """Does nothing for a folder without a run, or with a run of this config, but for what changes no result.

    That is how often it is saved, and the fields of stages that it does not have: other ones than `stages`, by default
    the config's.

    Raises:
      UserError: the folder holds a run of another config; the first fields that differ are named.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        return
    # A user's own parts are compared as the run folder has them: paths to the same file may differ.
    ours, theirs = flat(own.opened(config.copy_and_resolve_references(), workdir)), flat(load(workdir))
    unused = set(STAGES) - set(config.stages if stages is None else stages)
    differ = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
    fields = [k for k in differ if k not in _FREE and k.partition(".")[0] not in unused]
    if fields:
        listed = ", ".join(f"{k}={theirs.get(k)!r} (now {ours.get(k)!r})" for k in fields[:3])
        raise UserError(f"{workdir} holds a run with {listed}: choose another --workdir or delete that one")


def claim(config: ConfigDict, workdir: Path) -> None:
    """Makes the run folder and writes its config.json, and copies of a user's own parts."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    own.keep(config, workdir)
    write_json(Path(workdir) / "config.json", _plain(config))


def refuse_unshared(config: ConfigDict, workdir: Path) -> None:
    """Does nothing where this process sees the run of this config, which another one has claimed.

    Raises:
      UserError: it does not, or it was started with another config.
    """
    if not (Path(workdir) / "config.json").is_file():
        raise UserError(f"{workdir} is not the folder of process 0: give one on a file system that all machines share")
    refuse_other_run(config, workdir)


def _plain(config):
    """The config as JSON's own types, to compare with what a file holds."""
    return json.loads(config.to_json_best_effort())


def load(workdir: Path) -> ConfigDict:
    """The config of a run folder.

    Raises:
      UserError: the folder holds no run.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run (no config.json): train first with atalaia.train --workdir={workdir}")
    return own.opened(ConfigDict(_merged(_plain(base()), _read(path))), workdir)  # an older version's lacks fields


def _read(path):
    try:
        fields = json.loads(path.read_text())
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"{path} is damaged: delete {path.parent} and train again, or choose another --workdir")
    return fields


def _merged(defaults, given):
    """`given` where it says something, `defaults` elsewhere."""
    if not isinstance(defaults, dict) or not isinstance(given, dict):
        return given
    return defaults | {k: _merged(defaults.get(k), v) for k, v in given.items()}


def flat(config: ConfigDict) -> dict:
    """Every field by its name with dots, and its value in JSON's types."""
    return _flat(_plain(config))


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, t in tree.items() for k, v in _flat(t, f"{prefix}.{name}" if prefix else name).items()}

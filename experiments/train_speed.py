"""Training speed side by side: ours against tf-keras, same network, augmentation and optimiser, data in memory.

python experiments/train_speed.py [--networks=thesis,student,resnet8,mobilenetv1,evaluation] [--batches=128,32,512]
python experiments/train_speed.py --pages        # only writes the page, from the figures

Each side runs in a process of its own and waits while another is measured; repeats alternate: ours, tf-keras with
jit_compile off, tf-keras with it on, ours again. The ratio is of medians, ours to the faster tf-keras. Training is
whole steps: reading from memory, flip and shifted crop, forward, backward, SGD with Nesterov momentum, accuracy. Run it
on a quiet machine.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parent))
import tables
from tables import ROOT, Table, grid

SIDES = ("atalaia", "keras", "keras_jit", "gemm")  # the last: the matrix product that no side can beat
CLASSES = 10
KERAS_EVALUATION_BATCH = 500  # its fastest of 125, 250 and 500; ours is step.EVAL_BATCH, ours
SECONDS = 2.0  # of one repeat, about

NETWORKS = {"thesis": 32, "student": 96, "resnet8": 32, "mobilenetv1": 96}  # and the size of their images
EVALUATION = "evaluation"  # of the test set, by the network `thesis`
TOO_LARGE = ("student:96:512",)  # the sides together need more than 24 GB

_NETWORKS = flags.DEFINE_list("networks", [*NETWORKS, EVALUATION], "What to measure.")
_BATCHES = flags.DEFINE_list("batches", ["128", "32", "512"], "Images a training step.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Of each side and row.", lower_bound=1)
_WORKER = flags.DEFINE_string("worker", None, "Used by the script itself: side:row.")


def main():
    if _WORKER.value:
        side, row = _WORKER.value.split(":", 1)
        return work(side, Row(row))
    for text in rows():
        row = measure(Row(text))
        print(json.dumps(row), flush=True)
        TABLE.add(row)


def rows() -> list[str]:
    """The rows asked for, those of the first batch size first."""
    unknown = [n for n in _NETWORKS.value if n not in (*NETWORKS, EVALUATION)]
    if unknown or not all(b.isdigit() and int(b) for b in _BATCHES.value):
        raise app.UsageError(f"networks are {', '.join([*NETWORKS, EVALUATION])}; batches are whole numbers above 0")
    trained = [n for n in _NETWORKS.value if n != EVALUATION]
    found = [f"{network}:{NETWORKS[network]}:{batch}" for batch in _BATCHES.value for network in trained]
    found += ["thesis:32:128:evaluate"] * (EVALUATION in _NETWORKS.value)
    for row in set(found) & set(TOO_LARGE):
        print(f"{row} is left out: the processes side by side need more than 24 GB", file=sys.stderr)
    return [row for row in found if row not in TOO_LARGE]


class Row:
    """What is measured: a network, its image size, a batch size, training or evaluation ("thesis:32:128:evaluate")."""

    def __init__(self, text: str):
        self.text = text
        name, size, batch, *rest = text.split(":")
        self.name, self.size, self.batch, self.train = name, int(size), int(batch), rest != ["evaluate"]


def measure(row: Row) -> dict:
    """Alternating repeats of all sides; images a second, spread, memory, and how near to the machine's peak."""
    workers, start = {}, {}
    for side in SIDES:  # one compiles after the other
        workers[side] = Worker(side, row)
        start[side] = workers[side].read()
    rates = {side: [] for side in SIDES}
    for _ in range(_REPEATS.value):
        for side, worker in workers.items():
            rates[side].append(worker.repeat()["rate"])
    memory = {side: worker.stop()["peak_memory_bytes"] for side, worker in workers.items()}
    medians = {side: statistics.median(values) for side, values in rates.items()}
    best = max(("keras", "keras_jit"), key=medians.get)
    gflops = medians["atalaia"] * start["atalaia"]["flops_per_image"] / 1e9
    return dict(
        network=row.name,
        size=row.size,
        batch=row.batch,
        what="train" if row.train else "evaluate",
        evaluation_batches=None if row.train else [start["atalaia"]["batch"], start[best]["batch"]],
        cores=os.cpu_count(),
        vectors=vectors(),
        repeats=_REPEATS.value,
        atalaia_images_per_s=medians["atalaia"],
        keras_images_per_s=medians[best],
        keras_jit_compile=best == "keras_jit",
        ratio=medians["atalaia"] / medians[best],
        spread={side: [min(rates[side]), max(rates[side])] for side in ("atalaia", best)},
        atalaia_peak_memory_bytes=memory["atalaia"],
        keras_peak_memory_bytes=memory[best],
        first_step_seconds=start["atalaia"]["first_step_seconds"],
        second_start_seconds=start["atalaia"]["second_start_seconds"],
        gflops=gflops,
        gemm_gflops=medians["gemm"],
        of_peak=gflops / medians["gemm"],
    )


def vectors() -> str:
    """The widest vector instructions of this machine, on which the ratio depends most: tf-keras's oneDNN uses them."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "other")


class Worker:
    """A side's process: compiles, then runs one repeat for each line it is sent."""

    def __init__(self, side: str, row: Row):
        command = [sys.executable, __file__, f"--worker={side}:{row.text}"]
        environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}  # as run.sh sets it, for all sides
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment
        )

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended: run it by hand to see why")
        return json.loads(line)

    def repeat(self) -> dict:
        print("go", file=self.process.stdin, flush=True)
        return self.read()

    def stop(self) -> dict:
        print("stop", file=self.process.stdin, flush=True)
        answer = self.read()
        self.process.wait()
        return answer


def work(side: str, row: Row) -> None:
    """One process: tells what it took to start, then answers each "go" with a rate."""
    from atalaia import metrics

    run, start = dict(atalaia=ours, keras=keras, keras_jit=keras, gemm=gemm)[side](side, row)
    per_repeat = max(1, round(SECONDS / max(timed(run, 1), 1e-3)))
    print(json.dumps(start), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        print(json.dumps(dict(rate=per_repeat * start["per_call"] / timed(run, per_repeat))), flush=True)
    print(json.dumps(dict(peak_memory_bytes=metrics.peak_memory_bytes())), flush=True)


def timed(run, calls: int) -> float:
    """Seconds of `run(calls)`."""
    begin = time.perf_counter()
    run(calls)
    return time.perf_counter() - begin


def _images(row):
    n = 8 * row.batch if row.train else 2000
    random = np.random.RandomState(0)
    return random.randint(0, 256, (n, row.size, row.size, 3), np.uint8), random.randint(0, CLASSES, n).astype(np.int32)


def ours(side, row):
    """The step (or validation) of atalaia.train; `run(calls)` waits for the last."""
    del side
    import jax

    from atalaia import step

    folder = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", folder.name)
    seconds = []
    for _ in range(2):  # the second start finds what the first compiled
        jax.clear_caches()
        begin = time.perf_counter()
        run, flops = our_step(row)
        run(1)
        seconds.append(time.perf_counter() - begin)
    images = row.batch if row.train else 2000
    batch = row.batch if row.train else step.EVAL_BATCH
    start = dict(
        batch=batch,
        per_call=images,
        flops_per_image=flops,
        first_step_seconds=seconds[0],
        second_start_seconds=seconds[1],
    )
    return run, start


def our_step(row: Row):
    """Ours, not compiled yet: `run(calls)` and the operations of one image."""
    import jax

    from atalaia import config as configs
    from atalaia import data, layers, models, plan, step

    config = configs.base()
    config.batch_size = row.batch
    config.augment.flip, config.augment.pad_crop = True, 4
    config.dense.weight_decay, config.dense.lr_schedule, config.dense.warmup = 0.0, "constant", 0.0
    config.dense.learning_rate = 0.01
    model = models.create(row.name, CLASSES)
    split = data.Split(*_images(row))
    state = step.init_state(config, model, split.images.shape[1:])
    rows, _ = layers.summary(model, dict(params=state.params), split.images.shape[1:])
    macs = [r["macs"] for r in rows if r["macs"]]
    # Forward, gradient of the weights, gradient of the input; the first layer's input needs none.
    flops = 2 * (3 * sum(macs) - macs[0]) if row.train else 2 * sum(macs)
    (stage,) = plan.make_plan(config, len(split.images))
    if not row.train:
        evaluate = step.make_evaluate(config, step.make_forward(config, model, stage), split)
        return lambda calls: [evaluate(state) for _ in range(calls)], flops
    optimizer = step.make_optimizer(config, stage, state.params)
    state = state._replace(opt_state=optimizer.init(state.params))
    state, split = jax.device_put((state, split), step.over_devices())
    train, held = step.make_step(config, step.make_forward(config, model, stage), optimizer), [state]

    def run(calls):
        for call in range(calls):
            if call % 8 == 0:
                order = step.epoch_order(held[0].key, call, len(split.images))
            held[0], figures = train(held[0], split, order, call % 8 * row.batch)
        jax.block_until_ready(figures)

    return run, flops


def keras(side, row):
    """Keras's own train function, as fit() calls it, on a tf.data pipeline from memory."""
    import tensorflow as tf
    from keras_networks import keras_network
    from tf_keras import losses, optimizers

    from atalaia import models

    model = keras_network(models.create(row.name, CLASSES), (row.size, row.size, 3))
    sgd = optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(sgd, loss, metrics=["accuracy"], jit_compile=side == "keras_jit")
    images, labels = _images(row)
    pairs = tf.data.Dataset.from_tensor_slices((images, labels))

    def to_float(image, label):
        return tf.cast(image, tf.float32) / 255.0, label

    def augmented(image, label):
        image = tf.image.random_flip_left_right(image)
        image = tf.image.random_crop(tf.pad(image, ((4, 4), (4, 4), (0, 0))), image.shape)
        return to_float(image, label)

    if not row.train:
        batches = pairs.batch(KERAS_EVALUATION_BATCH).map(to_float, tf.data.AUTOTUNE).prefetch(2)
        model.evaluate(batches, verbose=0)
        return lambda calls: [model.evaluate(batches, verbose=0) for _ in range(calls)], dict(
            batch=KERAS_EVALUATION_BATCH, per_call=len(images)
        )
    pairs = pairs.shuffle(len(images)).repeat().map(augmented, tf.data.AUTOTUNE)
    iterator = iter(pairs.batch(row.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE))
    step = model.make_train_function()

    def run(calls):
        for _ in range(calls):
            logs = step(iterator)
        float(logs["loss"])

    run(2)
    return run, dict(per_call=row.batch)


def gemm(side, row):
    """XLA's float32 matrix product of 2048 x 2048, in GFLOP/s: the machine's peak as we can reach it."""
    del side, row
    import jax
    import jax.numpy as jnp

    n = 2048
    a = jnp.ones((n, n))
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()

    def run(calls):
        for _ in range(calls):
            result = product(a)
        result.block_until_ready()

    return run, dict(per_call=2 * n**3 / 1e9)


def order(row: dict) -> tuple:
    """By machine, training before evaluation, batch, network."""
    return row["vectors"], row["what"] != "train", row["batch"], list(NETWORKS).index(row["network"])


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""

    def rate(side):
        return lambda r: f"{r[f'{side}_images_per_s']:.0f} ({' to '.join(f'{s:.0f}' for s in _spread(r, side))})"

    columns = {
        "machine": lambda r: f"{r['cores']} cores, {r['vectors']}",
        "network": lambda r: r["network"] + ("" if r["what"] == "train" else ", evaluation"),
        "images": lambda r: f"{r['size']}x{r['size']}",
        "batch": lambda r: r["batch"] if r["what"] == "train" else " / ".join(map(str, r["evaluation_batches"])),
        "ours, images/s": rate("atalaia"),
        "tf-keras, images/s": lambda r: rate("keras")(r) + (", jit" if r["keras_jit_compile"] else ""),
        "ratio": lambda r: f"{r['ratio']:.2f}",
        "memory, ours / tf-keras MiB": lambda r: " / ".join(
            f"{r[f'{side}_peak_memory_bytes'] / 2**20:.0f}" for side in ("atalaia", "keras")
        ),
        "GFLOP/s of GEMM's": lambda r: f"{r['gflops']:.0f} of {r['gemm_gflops']:.0f} ({r['of_peak']:.0%})",
        "first step / second start s": lambda r: f"{r['first_step_seconds']:.1f} / {r['second_start_seconds']:.1f}",
    }
    return grid(columns, rows, left=3)


def _spread(row, side):
    """Smallest and largest rate; of tf-keras that of its faster way."""
    if side == "keras":
        side = "keras_jit" if row["keras_jit_compile"] else "keras"
    return row["spread"][side]


def _headline(rows):
    found = {}
    for row in rows:
        if row["what"] == "train":
            found.setdefault(row["vectors"], []).append(row["ratio"])
    parts = [f"{min(ratios):.2f} to {max(ratios):.2f} ({vectors})" for vectors, ratios in found.items()]
    return f"training, our speed to tf-keras's: {', '.join(parts)}"


TABLE = Table(
    name="train_speed",
    title="Training speed on a CPU",
    shows="Pure JAX against tf-keras: whole training steps, side by side on 2 cores, with the same network, "
    "augmentation and optimiser.",
    command="python experiments/train_speed.py    # on a quiet machine; needs the packages of requirements-dev.txt",
    body=table,
    headline=_headline,
    notes=(
        "Medians of alternating repeats, in brackets the smallest and the largest. tf-keras is the faster of "
        "`jit_compile` on and off.",
        "With AVX2 ours is faster in every row. With AVX-512 tf-keras is faster in every row of training: its "
        "convolutions (oneDNN) use these instructions better than XLA's. Ours needs less memory on both.",
        "What was tried against it stands in [ways that were tried](train_speed_tried.md), where the time goes in "
        "[the profile](train_profile.md).",
        "One run of each row. Other work ran on the AVX-512 machine during `thesis` at 128, its evaluation, and "
        "`mobilenetv1` at 32: GEMM's rate in their rows is lower.",
        "The rows of AVX-512 are the older ones; their figures hold no versions, but `requirements.txt` always had jax "
        "0.9.2 and TensorFlow 2.21.0. Newer versions, AMX, bfloat16, larger shapes of GEMM and other options "
        "of XLA were not tried with AVX-512.",
        "`student` at batch 512 is left out: the processes side by side need more than 24 GB.",
    ),
    key=("cores", "vectors", "network", "size", "batch", "what"),
    order=order,
)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tables.start(main, TABLE)

"""Steps of a student with its teacher's logits cached, against steps that run the teacher: an epoch is some of these.

python experiments/distill_speed.py [--repeats=5]
python experiments/distill_speed.py --pages        # only writes the page, from the figures

The student and the teacher of Table 1, rafael_base and resnet50_160 at 96x96, whole training steps on the same
images, repeats alternating in one process. Weights are new ones: their values change no time. Filling the
cache is measured too: it is paid once for each image and view, whatever the number of epochs, students and trials. Run
it on a quiet machine.
"""

import os
import statistics
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent))
import tables
import train_speed
from tables import ROOT, Table, grid

STUDENT, TEACHER, SIZE, CLASSES = "rafael_base", "resnet50_160", 96, 10
BATCHES = 8  # of different images, of the student's training
STEPS = {"cached": 16, "live": 2, "fill": 2}  # of one repeat


def main():
    ways = steps()
    for run, _ in ways.values():
        run(1)  # compiles
    seconds = {way: [] for way in ways}  # of an image
    for _ in range(flags.FLAGS.repeats):
        for way, (run, batch) in ways.items():
            seconds[way].append(train_speed.timed(run, STEPS[way]) / STEPS[way] / batch)
    ratios = [live / cached for live, cached in zip(seconds["live"], seconds["cached"], strict=True)]
    row = dict(
        student=STUDENT,
        teacher=TEACHER,
        size=SIZE,
        batch={way: batch for way, (_, batch) in ways.items()},
        cores=os.cpu_count(),
        vectors=train_speed.vectors(),
        repeats=flags.FLAGS.repeats,
        images_per_s={way: 1 / statistics.median(found) for way, found in seconds.items()},
        spread={way: [1 / max(found), 1 / min(found)] for way, found in seconds.items()},
        ratio=statistics.median(ratios),
        ratio_spread=[min(ratios), max(ratios)],
    )
    TABLE.add(row)


def steps() -> dict:
    """`run(steps)` of each way with the images of a step; a cache is filled by larger ones, as atalaia.distill does."""
    import jax

    from atalaia import data, distill, models, plan, runs, step

    config = runs.check(f"{ROOT}/configs/table1.py:{STUDENT}_distilled", {})
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (BATCHES * config.batch_size, SIZE, SIZE, 3), np.uint8)
    split = data.Split(images, random.randint(0, CLASSES, len(images)).astype(np.int32))
    student, teacher = (models.create(name, CLASSES) for name in (STUDENT, TEACHER))
    taught = step.variables_of(step.init_state(config, teacher, images.shape[1:]))
    (stage,) = plan.make_plan(config, len(images))
    first = step.init_state(config, student, images.shape[1:])
    optimizer = step.make_optimizer(config, stage, first.params)
    guides = dict(
        cached=dict(outputs=random.randn(len(images), CLASSES).astype(np.float32), view=0),
        live=dict(variables=taught),
    )
    split, guides = jax.device_put((split, guides))
    train = step.make_step(config, step.make_forward(config, student, stage), optimizer, teacher.apply)
    order = step.epoch_order(first.key, 0, len(images))

    def training(guide):
        held = [jax.tree.map(jax.numpy.array, first._replace(opt_state=optimizer.init(first.params)))]

        def run(steps):
            for number in range(steps):
                held[0], figures = train(held[0], split, order, number % BATCHES * config.batch_size, guide)
            jax.block_until_ready(figures)

        return run

    @jax.jit
    def answer(variables, index):
        return teacher.apply(
            variables, distill.fixed_view(data.to_float(split.images[index]), index, 0, config.augment)[0]
        )

    def fill(calls):
        for number in range(calls):
            index = (np.arange(distill.BATCH) + number * distill.BATCH) % len(images)
            jax.block_until_ready(answer(guides["live"]["variables"], index))

    ways = {way: (training(guide), config.batch_size) for way, guide in guides.items()}
    return ways | {"fill": (fill, distill.BATCH)}


def table(rows: list[dict]) -> str:
    """Images a second of each way and their ratio, medians with the smallest and the largest, in Markdown."""

    def rate(way):
        return lambda r: f"{r['images_per_s'][way]:.0f} ({r['spread'][way][0]:.0f} to {r['spread'][way][1]:.0f})"

    columns = {
        "machine": lambda r: f"{r['cores']} cores, {r['vectors']}",
        "student, teacher": lambda r: f"{r['student']}, {r['teacher']}, images of {r['size']}x{r['size']}",
        "logits cached, images/s": rate("cached"),
        "teacher in each step, images/s": rate("live"),
        "ratio": lambda r: f"{r['ratio']:.1f} ({r['ratio_spread'][0]:.1f} to {r['ratio_spread'][1]:.1f})",
        "filling the cache, images/s": rate("fill"),
    }
    return grid(columns, rows, left=2)


TABLE = Table(
    name="distill_speed",
    title="Distillation with cached logits",
    shows="A teacher's logits can be kept on the disk, for a fixed number of augmented views of each image "
    "(`distillation.views`). Training steps with them, against steps that run the teacher.",
    command="python experiments/distill_speed.py    # on a quiet machine",
    body=table,
    headline=lambda rows: (
        "cached logits: " + ", ".join(f"{r['ratio']:.1f} times the speed ({r['vectors']})" for r in rows)
    ),
    notes=(
        "Medians of alternating repeats, in brackets the smallest and the largest.",
        "The aim is 10 times: reached with AVX2, missed with AVX-512.",
        "A whole run gains less, because the cache is filled first. Each further run with the same cache gains the "
        "full ratio.",
        "On the AVX-512 machine the cache was filled by 64 images at a time, on the other by 128, as today.",
    ),
    key=("student", "teacher", "cores", "vectors"),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

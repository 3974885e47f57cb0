"""Ways to state an operation that were tried for atalaia/ops.py, beside XLA's own and the one that is used.

python experiments/train_speed_tried.py
python experiments/train_speed_tried.py --pages        # only writes the page, from the figures

Milliseconds at batch 128, medians of alternating repeats on one machine. What is slower here need not be tried again on
such a CPU. Whole steps too: XLA's flags, and a process a core with its part of the batch and nothing exchanged, the
most that sharing the batch out to devices could reach. Run it on a quiet machine.
"""

import functools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

sys.path.insert(0, str(Path(__file__).parent))
import tables
from tables import ROOT, Table, grid

from atalaia import normalization, ops

BATCH, REPEATS = 128, 7
LIBRARY = "LIBRARY_FUSION_TYPE_"
# XLA_FLAGS of a whole step, by what they are called in the table.
FLAGS = {
    "none (used)": "",
    "vectors of 512 bits": "--xla_cpu_prefer_vector_width=512",
    "YNNPACK for convolutions": f"--xla_cpu_experimental_ynn_fusion_type={LIBRARY}INDIVIDUAL_CONVOLUTION",
    "oneDNN for products": f"--xla_cpu_experimental_onednn_fusion_type={LIBRARY}DOT",
    "XNNPACK for products": f"--xla_cpu_experimental_xnn_fusion_type={LIBRARY}DOT",
}
# Prints the milliseconds of a step, each of the repeats on a line of its own.
STEP = """
import sys, time
sys.path[:0] = sys.argv[3:]
from train_speed import Row, our_step
run = our_step(Row(sys.argv[1]))[0]
run(3)
for _ in range(int(sys.argv[2])):
    begin = time.perf_counter()
    run(8)
    print(1000 * (time.perf_counter() - begin) / 8, flush=True)
"""


def weight_gradient(conv, x, kernel):
    """The gradient of a convolution's kernel, for an output gradient of ones times the output's shape."""
    return jax.grad(lambda k: jnp.sum(jnp.square(conv(x, k))) / 2)(kernel)


def xla_conv(x, kernel, groups=1):
    with ops.plain_xla():
        return ops.conv2d(x, kernel, groups=groups)


def patches_conv(x, kernel):
    """im2col: every 3x3 neighbourhood copied, then one matrix product; its gradients are matrix products too."""
    n, h, w, cin = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return (jnp.concatenate(taps, -1).reshape(-1, 9 * cin) @ kernel.reshape(9 * cin, -1)).reshape(n, h, w, -1)


def taps_conv(x, kernel):
    """One matrix product for each of the nine taps."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + h, j : j + w] @ kernel[i, j] for i in range(3) for j in range(3))


def scanned_xla_weight_gradient(x, kernel):
    """XLA's own weight gradient, a few images at a time."""
    groups = x.reshape(BATCH // 4, 4, *x.shape[1:])
    return lax.scan(lambda s, x: (s + weight_gradient(xla_conv, x, kernel), None), jnp.zeros_like(kernel), groups)[0]


def plain_max_pool_gradient(x):
    with ops.plain_xla():
        return jax.grad(lambda x: jnp.sum(ops.max_pool(x)))(x)


def plain_norm_gradient(x, scale):
    def norm(x, scale):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) * (lax.rsqrt(var + 1e-3) * scale)

    return jax.grad(lambda *a: jnp.sum(jnp.square(norm(*a))), (0, 1))(x, scale)


def our_norm_gradient(x, scale):
    def loss(x, scale):
        return jnp.sum(jnp.square(normalization.batch_norm(x, scale, jnp.zeros_like(scale), 1e-3)[0]))

    return jax.grad(loss, (0, 1))(x, scale)


def trials():
    """(operation, shape, {way: (function, arguments)})."""

    def random(*shape):
        return jax.random.normal(jax.random.key(0), shape)

    for size, cin, cout in ((32, 32, 32), (16, 64, 64), (8, 128, 128), (32, 16, 16), (32, 3, 32)):
        arguments = random(BATCH, size, size, cin), random(3, 3, cin, cout)
        shape = f"{size}x{size}, {cin} to {cout}"
        forward = {"XLA (used)": xla_conv, "whole patches": patches_conv, "a product a tap": taps_conv}
        yield "convolution forward", shape, {way: (f, arguments) for way, f in forward.items()}
        gradient = {
            "XLA": functools.partial(weight_gradient, xla_conv),
            "ops.py (used)": functools.partial(weight_gradient, ops.conv2d),
            "whole patches": functools.partial(weight_gradient, patches_conv),
            "a product a tap": functools.partial(weight_gradient, taps_conv),
        }
        if size == 32 and cin == 16:
            gradient["XLA, scanned by 4 images"] = scanned_xla_weight_gradient
        yield "convolution and weight gradient", shape, {way: (f, arguments) for way, f in gradient.items()}
    x = random(BATCH, 32, 32, 32)
    yield (
        "max-pool and gradient",
        "32x32x32",
        {
            "XLA": (plain_max_pool_gradient, (x,)),
            "ops.py (used)": (jax.grad(lambda x: jnp.sum(ops.max_pool(x))), (x,)),
        },
    )
    yield (
        "BatchNorm and gradient",
        "32x32x32",
        {
            "XLA": (plain_norm_gradient, (x, jnp.ones(32))),
            "normalization.py (used)": (our_norm_gradient, (x, jnp.ones(32))),
        },
    )
    depthwise = random(BATCH, 48, 48, 8), random(3, 3, 1, 8)
    yield (
        "depthwise and weight gradient",
        "48x48x8",
        {
            "XLA": (functools.partial(weight_gradient, functools.partial(xla_conv, groups=8)), depthwise),
            "ops.py (used)": (functools.partial(weight_gradient, functools.partial(ops.conv2d, groups=8)), depthwise),
        },
    )


def milliseconds(ways: dict) -> dict[str, float]:
    """Median of each way, their repeats alternating."""
    compiled = {way: (jax.jit(f), arguments) for way, (f, arguments) in ways.items()}
    times = {way: [] for way in ways}
    for repeat in range(REPEATS + 1):
        for way, (f, arguments) in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(f(*arguments))
            if repeat:  # the first one compiles
                times[way].append(1000 * (time.perf_counter() - begin))
    return {way: statistics.median(t) for way, t in times.items()}


def step_milliseconds() -> dict[str, float]:
    """Median milliseconds of a training step of `thesis` by XLA's flags, and by one process a core."""

    def start(row, flags, core=None):
        command = [sys.executable, "-c", STEP, row, str(REPEATS), str(ROOT), str(ROOT / "experiments")]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ, "XLA_FLAGS": flags}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def median(processes):
        found = [float(line) for p in processes for line in p.communicate()[0].split()]
        if any(p.returncode for p in processes):
            raise RuntimeError("a step could not be measured: run its command by hand to see why")
        return statistics.median(found)

    found = {name: median([start(f"thesis:32:{BATCH}", flags)]) for name, flags in FLAGS.items()}
    cores = os.cpu_count()
    alone = "--xla_cpu_multi_thread_eigen=false"
    found["a process a core, its part of the batch"] = median(
        [start(f"thesis:32:{BATCH // cores}", alone, core) for core in range(cores)]
    )
    return found


def main() -> None:
    rows = [dict(operation="whole training step", shape="thesis", milliseconds=step_milliseconds())]
    print(rows[0], flush=True)
    for operation, shape, ways in trials():
        rows.append(dict(operation=operation, shape=shape, milliseconds=milliseconds(ways)))
        print(rows[-1], flush=True)
    TABLE.save(rows)


def table(rows: list[dict]) -> str:
    """Milliseconds of each way, by operation, in Markdown."""
    columns = {
        "operation": lambda row: row["operation"],
        "shape": lambda row: row["shape"],
        "milliseconds": lambda row: ", ".join(f"{way} {ms:.1f}" for way, ms in row["milliseconds"].items()),
    }
    return grid(columns, rows, left=3)


def _headline(rows):
    times = rows[0]["milliseconds"]
    return f"{len(rows) - 1} operations stated in several ways, {len(times) - 1} other ways to run a whole step"


TABLE = Table(
    name="train_speed_tried",
    title="Training speed: ways that were tried",
    shows="Each operation of a training step can be stated in several ways. These were tried; *used* marks what "
    "`atalaia/ops.py` does. What is slower here need not be tried again on such a CPU.",
    command="python experiments/train_speed_tried.py    # on a quiet machine",
    body=table,
    headline=_headline,
    notes=(
        f"Batch {BATCH}, medians of alternating repeats on one machine, which was not recorded.",
        "Versions were not recorded: `requirements.txt` always had jax 0.9.2. AMX, bfloat16 and newer versions were "
        "not tried.",
        "The first row is whole training steps: XLA's flags, and one process a core with its part of the batch and "
        "nothing exchanged, the most that sharing the batch out to devices could reach.",
    ),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

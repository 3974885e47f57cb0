"""Parses absl's flags, which pytest does not, so that absltest's temporary folders work; one folder for all workers."""

import os
import shutil
import tempfile
from unittest import mock

import pytest
from absl import flags
from absl.testing import absltest  # noqa: F401, defines --test_tmpdir

FOLDER = "ATALAIA_TEST_FOLDER"  # the workers of pytest-xdist find it in the environment that they inherit

COMPILE_BOUND = (
    *("test_api", "test_augment", "test_bits", "test_checkpoint", "test_detect", "test_disk", "test_distill"),
    *("test_evaluate", "test_export", "test_heads", "test_int8_layers", "test_losses", "test_mixing", "test_models"),
    *("test_optimizers", "test_own", "test_processes", "test_pruning", "test_qat", "test_quantize", "test_rafael"),
    *("test_search", "test_shrink", "test_tasks", "test_train"),
    *("test_ops.ConvTest", "test_ops.PoolTest", "test_ops.NormTest", "test_min_pool.IntegersTest"),
    *("test_experiments.RecipesTest", "test_min_pool.PipelineTest", "test_pipeline.RegressPipelineTest"),
)

AS_USERS = ("test_pipeline.PipelineTest", "test_engines")

QUICK_XLA = dict(xla_cpu_use_fusion_emitters=False)  # the emitters before these compile three times as fast

# Modules whose tests take longest: first, so that no worker is left with one of them when the others are done.
LONGEST = (
    *("test_pipeline", "test_train", "test_examples", "test_distill", "test_search", "test_codegen", "test_qat"),
    *("test_own", "test_detect"),
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="class")
def compile_quickly(request):
    """Of modules and classes that run small programs a few steps, XLA optimises none; AS_USERS compile as users do."""
    import jax  # not before pytest_configure has set its environment
    from jax._src import compiler  # jax has no public switch for the options of all programs

    module, options_of = request.module.__name__, compiler.get_compile_options
    names = {module, f"{module}.{request.cls.__name__}"}
    quick, as_users = (bool(names.intersection(listed)) for listed in (COMPILE_BOUND, AS_USERS))

    def quick_options(*args, env_options_overrides=None, **kwargs):
        return options_of(*args, env_options_overrides={**QUICK_XLA, **(env_options_overrides or {})}, **kwargs)

    jax.config.update("jax_disable_most_optimizations", quick)
    with mock.patch.object(compiler, "get_compile_options", options_of if as_users else quick_options):
        yield


def pytest_configure():
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="atalaia_test_")
    folder = os.environ[FOLDER]
    own = f"{folder}/{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    os.makedirs(own, exist_ok=True)
    flags.FLAGS(["pytest", f"--test_tmpdir={own}"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as atalaia does, but before a test imports jax
    # What one test compiled, the next and the programs it starts need not.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/xla"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)

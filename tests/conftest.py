"""Parses absl's flags, which pytest does not, so that absltest's temporary folders work."""

import os
import shutil
import tempfile

from absl import flags
from absl.testing import absltest  # noqa: F401, defines --test_tmpdir


def pytest_configure():
    folder = tempfile.mkdtemp(prefix="atalaia_test_")
    flags.FLAGS(["pytest", f"--test_tmpdir={folder}"])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as atalaia does, but before a test imports jax
    # What one test compiled, the next and the programs it starts need not.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/xla"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


def pytest_unconfigure():
    shutil.rmtree(flags.FLAGS.test_tmpdir, ignore_errors=True)

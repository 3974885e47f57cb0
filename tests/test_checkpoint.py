"""What is read back is what was saved, byte for byte, whatever happened to the files in between."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized

from atalaia import checkpoint
from atalaia.errors import UserError


def state(value):
    """A pytree like a run's: float32, int32, bool, uint32 and empty tuples."""
    random = np.random.default_rng(value)
    return dict(
        params=dict(
            kernel=random.normal(size=(3, 3, 4, 64)).astype(np.float32), bias=np.float32([np.nan, -0.0, 1e-45])
        ),
        opt_state=(dict(masks=random.random(70) < 0.5, count=np.int32(value)), (), [np.arange(5, dtype=np.int32)]),
        key=np.uint32([value, 2**32 - 1]),
        empty=(),
    )


def template(meta):
    return jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, state(0)))


def damages():
    """Name to what happens to a file: gone, emptied, cut short, a byte flipped somewhere."""

    def cut(keep):
        return lambda path: path.write_bytes(path.read_bytes()[: keep(path.stat().st_size)])

    def flip(part):
        def damage(path):
            content = bytearray(path.read_bytes())
            content[int(part * (len(content) - 1))] ^= 0x55
            path.write_bytes(content)

        return damage

    return dict(
        gone=Path.unlink,
        emptied=cut(lambda size: 0),
        halved=cut(lambda size: size // 2),
        one_byte_short=cut(lambda size: size - 1),
        first_byte=flip(0),
        byte_in_the_middle=flip(0.5),
        last_byte=flip(1),
    )


class CheckpointTest(parameterized.TestCase):
    def setUp(self):
        self.workdir = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.stderr = self.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def _save(self, *steps, keep=()):
        with contextlib.closing(checkpoint.open_folder(self.workdir, keep)) as manager:
            for step in steps:
                checkpoint.save(manager, step, state(step), dict(stage="dense", seconds=1.5))

    def _restore(self, step=None):
        with contextlib.closing(checkpoint.open_folder(self.workdir)) as manager:
            return checkpoint.restore(manager, template, step)

    def _assert_is(self, found, step):
        restored, meta = found
        self.assertEqual(jax.tree.structure(restored), jax.tree.structure(state(step)))
        for ours, theirs in zip(jax.tree.leaves(state(step)), jax.tree.leaves(restored), strict=True):
            theirs = np.asarray(theirs)
            self.assertEqual((theirs.dtype, theirs.shape), (ours.dtype, ours.shape))
            self.assertEqual(theirs.tobytes(), ours.tobytes())  # NaN and -0 too
        self.assertEqual({**meta, "stage": "dense", "seconds": 1.5, "step": step}, meta)


class RoundTripTest(CheckpointTest):
    def test_byte_for_byte(self):
        self._save(7)
        self._assert_is(self._restore(), 7)
        self.assertEmpty(self.stderr.getvalue())

    def test_jax_arrays_are_saved_alike(self):
        with contextlib.closing(checkpoint.open_folder(self.workdir)) as manager:
            checkpoint.save(manager, 7, jax.device_put(state(7)), dict(stage="dense", seconds=1.5))
        self._assert_is(self._restore(), 7)

    def test_none_yet(self):
        self.assertIsNone(self._restore())

    def test_the_template_is_chosen_by_the_meta(self):
        self._save(7)
        seen = []
        with contextlib.closing(checkpoint.open_folder(self.workdir)) as manager:
            checkpoint.restore(manager, lambda meta: seen.append(meta) or template(meta))
        self.assertEqual((seen[0]["stage"], seen[0]["step"]), ("dense", 7))

    def test_keeps_the_latest_two_and_those_asked_for(self):
        self._save(1, 2, 3, 4, 5, 6, keep=[2, 4])
        kept = sorted(int(p.name) for p in (self.workdir / "checkpoints").iterdir())
        self.assertEqual(kept, [2, 4, 5, 6])
        self._assert_is(self._restore(2), 2)
        self._assert_is(self._restore(), 6)

    def test_folder_bytes(self):
        self._save(1)
        files = [p for p in (self.workdir / "checkpoints" / "1").rglob("*") if p.is_file()]
        with contextlib.closing(checkpoint.open_folder(self.workdir)) as manager:
            self.assertEqual(checkpoint.folder_bytes(manager, 1), sum(len(p.read_bytes()) for p in files))


class ParameterShapesTest(CheckpointTest):
    def _shapes(self, step):
        with contextlib.closing(checkpoint.open_folder(self.workdir, writing=False)) as manager:
            return checkpoint.parameter_shapes(manager, step)

    def test_without_the_arrays(self):
        self._save(1, 2)
        shutil.rmtree(self.workdir / "checkpoints/1/state/ocdbt.process_0")  # where orbax keeps them
        self.assertEqual(self._shapes(1), {"['kernel']": (3, 3, 4, 64), "['bias']": (3,)})

    def test_what_is_damaged_or_not_there(self):
        self._save(1)
        (self.workdir / "checkpoints/1/state/_METADATA").write_text("{")
        for step in (1, 2):
            with self.assertRaisesRegex(UserError, f"no whole checkpoint .*step {step}.*train again"):
                self._shapes(step)


class DamageTest(CheckpointTest):
    def _files(self, step):
        return sorted(p for p in (self.workdir / "checkpoints" / str(step)).rglob("*") if p.is_file())

    @parameterized.named_parameters((name, name) for name in damages())
    def test_any_file(self, name):
        """Either nothing that counts is lost, or the previous checkpoint is used and that is said."""
        self._save(1, 2)
        folder = self.workdir / "checkpoints"
        whole = Path(self.enter_context(tempfile.TemporaryDirectory())) / "whole"
        shutil.copytree(folder, whole)
        said = {}
        for file in self._files(2):
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            damages()[name](file)
            self.stderr.seek(0)
            self.stderr.truncate()
            key = str(file.relative_to(folder / "2"))
            with self.subTest(file=key), contextlib.closing(checkpoint.open_folder(self.workdir)) as manager:
                found = checkpoint.restore(manager, template)
                said[key] = "checkpoint of step 2 is damaged" in self.stderr.getvalue()
                self._assert_is(found, 1 if said[key] else 2)
                if said[key]:  # the damaged step comes again, when training goes on
                    checkpoint.save(manager, 2, state(2), dict(stage="dense", seconds=1.5))
                    self._assert_is(self._restore(), 2)
        self.assertTrue(said["meta/metadata"])
        self.assertTrue(said["state/manifest.ocdbt"])
        self.assertGreaterEqual(sum(said.values()), 4)  # those that hold arrays

    def test_altered_arrays_are_seen_by_their_sha(self):
        self._save(1)
        (self.workdir / "checkpoints/1").rename(self.workdir / "other")
        self._save(1, 2)
        # Every file of the arrays is whole, but they are those of another step.
        shutil.rmtree(self.workdir / "checkpoints/2/state")
        (self.workdir / "other/state").rename(self.workdir / "checkpoints/2/state")
        self._assert_is(self._restore(), 1)
        self.assertIn("SHA-256", self.stderr.getvalue())

    @parameterized.parameters(("seconds", 9.5), ("step", 3), ("stage", "prune"))
    def test_altered_meta(self, name, value):
        self._save(1, 2)
        path = self.workdir / "checkpoints/2/meta/metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        self._assert_is(self._restore(), 1)

    def test_two_damaged_the_third_is_used(self):
        self._save(1, 2, 3, keep=[1])
        for step in (2, 3):
            (self.workdir / f"checkpoints/{step}/meta/metadata").unlink()
        self._assert_is(self._restore(), 1)
        for step in (2, 3):
            self.assertIn(f"step {step} is damaged", self.stderr.getvalue())

    def test_all_damaged(self):
        self._save(1, 2)
        for step in (1, 2):
            for path in self._files(step):
                path.write_bytes(b"")
        with self.assertRaisesRegex(UserError, "no whole checkpoint in .*delete the run folder and train again"):
            self._restore()

    def test_the_one_that_was_asked_for(self):
        self._save(1, 2)
        (self.workdir / "checkpoints/1/meta/metadata").unlink()
        with self.assertRaisesRegex(UserError, "no whole checkpoint .*step 1"):
            self._restore(1)
        self._assert_is(self._restore(2), 2)

    def test_another_template(self):
        self._save(1)
        with (
            contextlib.closing(checkpoint.open_folder(self.workdir)) as manager,
            self.assertRaisesRegex(UserError, "no whole checkpoint"),
        ):
            checkpoint.restore(manager, lambda meta: dict(other=np.zeros(3)))


class KilledTest(CheckpointTest):
    def _kill_in_the_middle_of_a_save(self):
        code = (
            "import os, signal, sys; from unittest import mock; import numpy as np; from atalaia import checkpoint\n"
            "manager = checkpoint.open_folder(sys.argv[1])\n"
            "with mock.patch.object(os, 'rename', lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)):\n"
            "    checkpoint.save(manager, 2, dict(w=np.ones(3)), {})\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(self.workdir)], capture_output=True, check=False)
        self.assertEqual(done.returncode, -9, done.stderr)

    def test_killed_in_the_middle_of_the_first_save(self):
        self._kill_in_the_middle_of_a_save()
        self.assertLen(list((self.workdir / "checkpoints").iterdir()), 1)
        self.assertEqual(checkpoint.latest(self.workdir), 0)  # else start_from would be skipped
        self._save(1)
        self.assertEqual(checkpoint.latest(self.workdir), 1)

    def test_killed_in_the_middle_of_a_save(self):
        self._save(1)
        self._kill_in_the_middle_of_a_save()
        left = [p.name for p in (self.workdir / "checkpoints").iterdir()]
        self.assertLen(left, 2)  # the whole one and what the kill left
        self._assert_is(self._restore(), 1)
        self._save(3)
        self._assert_is(self._restore(), 3)
        self.assertCountEqual([p.name for p in (self.workdir / "checkpoints").iterdir()], ["1", "3"])


class DigestTest(parameterized.TestCase):
    def test_equal_for_equal_arrays(self):
        self.assertEqual(checkpoint.digest(state(1)), checkpoint.digest(jax.device_put(state(1))))
        array = np.arange(12.0).reshape(3, 4)
        self.assertEqual(checkpoint.digest([array]), checkpoint.digest([np.asfortranarray(array)]))

    @parameterized.named_parameters(
        ("value", dict(w=np.float32([1, 2 + 2**-22]))),
        ("sign_of_zero", dict(w=np.float32([-0.0, 2]))),
        ("name", dict(v=np.float32([0, 2]))),
        ("depth", dict(w=dict(w=np.float32([0, 2])))),
        ("type", dict(w=np.int32([0, 2**30]))),  # the same bytes
        ("shape", dict(w=np.float32([[0, 2]]))),
        ("more", dict(w=np.float32([0, 2]), x=np.float32([]))),
    )
    def test_differs(self, other):
        ours = dict(w=np.float32([0, 2]))
        self.assertEqual(np.float32([0, 2]).tobytes(), np.int32([0, 2**30]).tobytes())
        self.assertNotEqual(checkpoint.digest(ours), checkpoint.digest(other))


if __name__ == "__main__":
    absltest.main()

"""Everything a run needs to go on exactly, kept by orbax: whole or not at all, never believed without a check.

A checkpoint is the state's arrays and a small JSON beside them: the stage, its step, and a SHA-256 over every array.
The latest two are kept, and the last of each stage.
"""

import errno
import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from atalaia import processes
from atalaia.datasets.disk import Rows
from atalaia.errors import UserError, quiet_stderr

Manager: TypeAlias = ocp.CheckpointManager
HASHED = 1 << 26  # bytes of an array that are hashed at a time, about


def open_folder(workdir: Path, keep: Sequence[int] = (), writing: bool = True) -> Manager:
    """The checkpoints of a run folder; those of the steps in `keep` are never thrown away.

    With `writing`, what a kill in the middle of a save left is removed; a reader could take a running save's files.
    """
    folder = (Path(workdir) / "checkpoints").absolute()
    for left in folder.glob("*.orbax-checkpoint-tmp") if writing and processes.first() else ():
        shutil.rmtree(left)
    policy = preservation_policy.AnyPreservationPolicy(
        [preservation_policy.LatestN(2), preservation_policy.CustomSteps(list(keep))]
    )
    return _manager(folder, alone=not writing, preservation_policy=policy)


def _manager(folder, alone, **options):
    """orbax's manager; `alone` does not wait for other processes, so that each can read when it likes."""
    if alone and jax.process_count() > 1:
        options |= dict(multiprocessing_options=_alone(), create=False)
    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, **options)
    return ocp.CheckpointManager(folder, options=options)


def _alone():
    own = jax.process_index()
    names = dict(active_processes={own}, barrier_sync_key_prefix=f"process{own}")
    return ocp.options.MultiprocessingOptions(primary_host=own, **names)


def latest(workdir: Path) -> int:
    """The step of the latest checkpoint in a run folder, 0 without one; one whose save was cut short is none."""
    return max((int(p.name) for p in (Path(workdir) / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def save(manager: Manager, step: int, state: Any, meta: dict) -> None:
    """Writes `state` (a pytree of arrays) and `meta` (JSON) as the checkpoint of that step.

    Of several processes each writes a part of the arrays.

    Raises:
      OSError: no space is left; asked beforehand, since orbax would leave half a checkpoint and a page of messages.
      UserError: the processes do not have the same state.
    """
    arrays = jax.device_get(state)
    if shutil.disk_usage(manager.directory).free < 2**20 + sum(np.asarray(x).nbytes for x in jax.tree.leaves(arrays)):
        raise OSError(errno.ENOSPC, "No space left on device", str(manager.directory))
    meta = {**meta, "step": step}
    meta["sha256"] = digest((arrays, meta))
    if jax.process_count() == 1:
        state = arrays
    else:
        processes.refuse_unlike(f"weights after step {step}", digest(arrays))
    manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)))


def restore(manager: Manager, template: Callable[[dict], Any], step: int | None = None) -> tuple[Any, dict] | None:
    """The latest whole checkpoint, or that of `step`.

    A damaged one is said on stderr and removed, and the one before it is used.

    Args:
      manager: from `open_folder`.
      template: gives from a checkpoint's meta a pytree of the shapes and types to expect.
      step: to read this one alone.

    Returns:
      (state, meta), or None where there is no checkpoint yet.

    Raises:
      UserError: there are checkpoints, but all are damaged, or `step` is.
    """
    steps = sorted(manager.all_steps(), reverse=True) if step is None else [step]
    reader = manager if jax.process_count() == 1 else _manager(manager.directory, alone=True)
    for at in steps:
        try:
            with quiet_stderr(show_on_error=False):  # of a damaged file orbax's threads have much to say
                return _read(reader, template, at)
        except (MemoryError, PermissionError):  # it may be whole all the same
            raise
        # A damaged file shows as nearly any exception, from JSON, zarr, zstd or tensorstore.
        except Exception as error:
            if step is not None or at == steps[-1]:
                fix = "delete the run folder and train again"
                if at != min(manager.all_steps(), default=at):
                    fix = "give the same atalaia.train command again, which goes on from the one before"
                raise UserError(
                    f"no whole checkpoint in {manager.directory} (step {at}: {_brief(error)}): {fix}"
                ) from None
            print(f"checkpoint of step {at} is damaged ({_brief(error)}): using the one before", file=sys.stderr)
            shutil.rmtree(Path(manager.directory) / str(at), ignore_errors=True)
            manager.reload()
    return None


def _read(manager, template, step):
    meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    expected = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template(meta))
    args = ocp.args.Composite(state=ocp.args.StandardRestore(expected))
    state = manager.restore(step, args=args).state
    if digest((state, {k: v for k, v in meta.items() if k != "sha256"})) != meta["sha256"]:
        raise ValueError("its contents do not have the SHA-256 written beside them")
    return state, meta


def meta_of(manager: Manager, step: int) -> dict:
    """What is said of the checkpoint of a step; reads no arrays.

    Raises:
      UserError: there is no such checkpoint, or it is damaged.
    """
    try:
        with quiet_stderr(show_on_error=False):
            return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    except Exception as error:  # as in `restore`
        said = f"no whole checkpoint in {manager.directory} (step {step}: {_brief(error)})"
        raise UserError(f"{said}: delete the run folder and train again") from None


def parameter_shapes(manager: Manager, step: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter in the checkpoint of a step, by path, whatever network it is of; reads no arrays.

    Raises:
      UserError: there is no such checkpoint, or what describes its arrays is damaged.
    """
    try:
        alone = dict(multiprocessing_options=_alone()) if jax.process_count() > 1 else {}
        with quiet_stderr(show_on_error=False), ocp.StandardCheckpointer(**alone) as reader:
            found = reader.metadata(Path(manager.directory) / str(step) / "state").item_metadata
        if found is None:  # so orbax says that something is missing
            raise ValueError("what describes its arrays cannot be read")
        params = found["params"]
    except Exception as error:  # as in `restore`
        said = f"no whole checkpoint in {manager.directory} (step {step}: {_brief(error)})"
        raise UserError(f"{said}: delete the run folder and train again") from None
    return {jax.tree_util.keystr(path): tuple(x.shape) for path, x in jax.tree.leaves_with_path(params)}


def _brief(error):
    return " ".join(str(error).split())[:120] or type(error).__name__


def digest(state: Any) -> str:
    """SHA-256 over the path, type, shape and bytes of every array of a pytree."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(state):
        leaf = leaf if isinstance(leaf, Rows) else np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n".encode())
        # In parts, since a copy of it all may not fit: it may lie on the disk in another order.
        rows = max(1, HASHED * len(leaf) // max(leaf.nbytes, 1)) if leaf.ndim else 1
        for part in (leaf[at : at + rows] for at in range(0, len(leaf), rows)) if leaf.ndim else [leaf]:
            sha.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def folder_bytes(manager: Manager, step: int) -> int:
    """Size of one checkpoint on the disk: the sum of its files."""
    return sum(f.stat().st_size for f in (Path(manager.directory) / str(step)).rglob("*") if f.is_file())

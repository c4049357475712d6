"""The output folder: who may write there, what stands already, and files that appear whole or not at all.

    DIR/.batch/run.json     what was asked for, and whether it is finished
    DIR/.batch/plan.sqlite  the list of files, until the run is finished
    DIR/.batch/plan.new.sqlite  that list while nothing is sure yet
    DIR/.batch/parts/       answers so far, a file for each part, named by what it answers for
    DIR/.batch/tmp/         files being written
    DIR/.batch/clearing     names what another run left while that is removed

Everything else below DIR is what the run was for.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, DataError, ImageError
from serving.batch.names import shown

FOLDER, CLEARING = ".batch", "clearing"

DOCUMENTS = ("predictions.parquet", "errors.jsonl", "summary.json", "report.html")
"""What every finished run has."""

OPTIONAL = {
    "jsonl": "predictions.jsonl", "csv": "predictions.csv",
    "coco": "coco", "yolo": "yolo", "masks": "masks", "overlay": "overlay", "crops": "crops",
}  # fmt: skip
"""By format or option, what a run may put into its folder besides; nothing else there is ever removed."""

OUTPUTS = (*DOCUMENTS, *OPTIONAL.values())


class Journal:
    """A run's output folder, held alone.

    Args:
        out: the folder; made where it is missing.

    Raises:
        ConfigError: it holds something else, or another process writes there.
        DataError: it cannot be made.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.home = out, out / FOLDER
        self.plan, self.new_plan = self.home / "plan.sqlite", self.home / "plan.new.sqlite"
        try:
            if out.exists() and not self.home.is_dir() and (not out.is_dir() or any(out.iterdir())):
                raise ConfigError(f"{out} exists and holds something else; name another folder with --out")
            for folder in (self.home / "parts", self.home / "tmp"):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.home / "lock").open("w")
        except OSError as error:
            raise DataError(f"{out} cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{out}: another batch-predict is writing there") from error
        self._real = os.fsencode(out.resolve())
        self._numbers = count()
        self._known: set[bytes] = set()
        self._unnamed: dict[bytes, Path] = {}
        self._guard = threading.Lock()
        self._clear_tmp()
        if (self.home / CLEARING).exists():
            self.clear()

    def _clear_tmp(self) -> None:
        for path in (self.home / "tmp").iterdir():
            path.unlink()

    # --- what was asked for ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any] | None:
        """What `run.json` holds; None for a fresh folder."""
        try:
            found = json.loads((self.home / "run.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        if not isinstance(found, dict) or not {"identity", "engine", "finished"} <= found.keys():
            raise ConfigError(f"{self.out}: {FOLDER}/run.json is broken; start anew with --restart")
        return found

    def save_state(self, state: dict[str, Any]) -> None:
        """Writes `run.json`."""
        self.put(f"{FOLDER}/run.json", json.dumps(state, indent=1, sort_keys=True).encode() + b"\n")

    def clear(self, keep: Path | None = None) -> None:
        """Removes everything a run wrote here; where that is interrupted, the next to open the folder goes on with it.

        Args:
            keep: the list of files of the run that comes after it.
        """
        mark = self.home / CLEARING
        if not mark.exists():
            self.put(f"{FOLDER}/{CLEARING}", json.dumps(self._written()).encode())
        (self.home / "run.json").unlink(missing_ok=True)
        self._drop(json.loads(mark.read_text()))
        for path in self.home.glob("plan*"):
            if path != keep:
                path.unlink()
        mark.unlink()

    def drop_outputs(self) -> None:
        """Removes answers and files, not what was asked for."""
        self._drop(self._written())

    def _written(self) -> list[str]:
        """What the run here may have put into its folder; all that any may where one cannot tell."""
        try:
            state = self.state()
            asked = {} if state is None else state["identity"]["options"]
            names = [name for key, name in OPTIONAL.items() if key in asked.get("format", ()) or asked.get(key)]
        except (ConfigError, LookupError, TypeError, AttributeError):
            return [*OUTPUTS]
        return [] if state is None else [*DOCUMENTS, *names]

    def _drop(self, names: list[str]) -> None:
        self.drop_parts()
        for name in names:
            path = self.out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def held(self) -> dict[str, int]:
        """How many files there are of each output that is there."""
        found = ((name, os.fsencode(self.out / name)) for name in OUTPUTS)
        return {
            name: sum(len(files) for _, _, files in os.walk(path)) if os.path.isdir(path) else 1
            for name, path in found
            if os.path.exists(path)
        }

    # --- parts ----------------------------------------------------------------------------------------------------

    def part(self, digest: str) -> Path:
        """Where a part's answers stand or will stand."""
        return self.home / "parts" / f"{digest}.arrow"

    def drop_parts(self) -> None:
        """Removes all parts."""
        for path in (self.home / "parts").iterdir():
            path.unlink()

    def close(self) -> None:
        """Lets others in."""
        self._lock.close()

    # --- files that appear whole ----------------------------------------------------------------------------------

    @contextmanager
    def placing(self, name: str | bytes) -> Iterator[Path]:
        """A temporary file to fill, which gets its name in the output folder, on disk, when the block ends well."""
        target = os.path.join(os.fsencode(self.out), os.fsencode(name))
        part = self.home / "tmp" / f"{os.getpid()}.{next(self._numbers)}"
        try:
            yield part
            sync(part)
            self._make_folder(os.path.dirname(target))
            os.replace(part, target)
            for folder in _folders(os.fsencode(name)):
                sync(os.path.join(os.fsencode(self.out), folder))
        finally:
            part.unlink(missing_ok=True)

    def put(self, name: str | bytes, data: bytes) -> None:
        """Writes a whole file below the output folder, on disk when this returns."""
        with self.placing(name) as part:
            part.write_bytes(data)

    def put_quickly(self, name: bytes, data: bytes) -> None:
        """Takes a whole file, which gets its name in `settle`, for many files at once: no name before it is on disk.

        Raises:
            ImageError: a link in the output folder leads out of it, or the name is too long or a folder's.
        """
        target = os.path.join(os.fsencode(self.out), name)
        part = self.home / "tmp" / f"{os.getpid()}.{threading.get_ident()}.{next(self._numbers)}"
        try:
            self._make_folder(os.path.dirname(target))
            _check_name(target)
            part.write_bytes(data)
        except OSError as error:
            part.unlink(missing_ok=True)
            if (
                isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError))
                or error.errno == errno.ENAMETOOLONG
            ):
                raise _unwritable(name, error) from error
            raise
        self._unnamed[name] = part

    def forget(self, names: list[bytes]) -> None:
        """Takes files of `put_quickly` back."""
        for name in names:
            self._unnamed.pop(name).unlink()

    def settle(self, names: list[bytes]) -> dict[bytes, ImageError]:
        """Gives files of `put_quickly` their names once they are on disk; those that cannot have theirs, and why."""
        refused: dict[bytes, ImageError] = {}
        for name in names:
            part = self._unnamed.pop(name)
            sync(part)
            try:
                os.replace(part, os.path.join(os.fsencode(self.out), name))
            except IsADirectoryError as error:  # another image's folder, made since `put_quickly`
                refused[name] = _unwritable(name, error)
                part.unlink()
        for folder in {above for name in names for above in _folders(name)}:
            sync(os.path.join(os.fsencode(self.out), folder))
        return refused

    def _make_folder(self, folder: bytes) -> None:
        with self._guard:
            if folder in self._known:
                return
            os.makedirs(folder, exist_ok=True)
            real = os.path.realpath(folder)
            if real != self._real and not real.startswith(self._real + b"/"):
                raise ImageError(f"a link in the output folder leads out of it: {shown(folder)}")
            if len(self._known) < 10_000:
                self._known.add(folder)


def _check_name(target: bytes) -> None:
    """Raises OSError where a file cannot have this name: it is too long, or a folder's."""
    try:
        held = os.lstat(target)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(held.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _unwritable(name: bytes, error: OSError) -> ImageError:
    return ImageError(f"its output cannot be written: {error.strerror}: {shown(name)}")


def _folders(name: bytes) -> list[bytes]:
    """The folders that a file below the output folder lies in, which itself is the empty name."""
    parts = name.split(b"/")
    return [b"/".join(parts[:depth]) for depth in range(len(parts))]


def sync(path: Path | bytes) -> None:
    """Waits until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

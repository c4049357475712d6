"""Writes a bundle's folder, which appears under its name only when it is whole (pipeline/bundle.py reads it)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pipeline.bundle import MANIFEST, FileSpec, Manifest
from pipeline.errors import BundleError


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A hidden folder beside `target` to fill; it is removed unless `finish` gave it its name.

    Raises:
        BundleError: `target` exists and is no bundle, is a folder that cannot be replaced, or cannot be written.
    """
    try:
        if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
            raise BundleError(f"{target} exists and is no bundle; name another folder with --out")
        if target.resolve() in {Path.cwd(), *Path.cwd().parents} or target.is_mount():
            raise BundleError(f"{target} is in use as a folder or a mount and cannot be replaced; name one inside it")
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield part
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}:
            raise _unwritable(target, error) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> BundleError:
    return BundleError(f"{target} cannot be written ({error.strerror}); name another folder with --out")


def describe_file(path: Path, file_format: str, precision: str = "") -> FileSpec:
    """Checksum and size of a file that stands."""
    data = path.read_bytes()
    return FileSpec(hashlib.sha256(data).hexdigest(), len(data), file_format, precision)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `bundle.json` into a folder."""
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n")


def finish(part: Path, target: Path) -> None:
    """Gives a filled folder its name; a bundle that stood there goes only when the new one stands. Raises BundleError."""
    part.chmod(0o755)
    for file in [*part.iterdir(), part]:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        if target.exists():
            target.rename(old)
        part.rename(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.rename(target)
        raise _unwritable(target, error) from error
    if old.is_symlink():  # only the name was replaced, not the folder it led to
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)

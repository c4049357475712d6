"""Images at an fsspec URL: `s3://bucket/folder`, `gs://…`, `memory://…`, a folder or a glob."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, ImageError
from pipeline.imaging.decode import MAX_BYTES
from serving.batch.names import public, shown
from serving.batch.sources import Entry

_STAMPS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


class RemoteFiles:
    """Objects below a URL.

    Args:
        url: `protocol://folder`, or with a pattern.

    Raises:
        DataError: an unknown protocol, a package that is missing, or nothing there.
    """

    remote = True

    def __init__(self, url: str) -> None:
        import fsspec
        from fsspec.core import url_to_fs

        self.url = public(url)
        if url.startswith(("http://", "https://")) and "=" in url.partition("?")[2]:
            raise DataError(
                f"{self.url}: a URL with a query names one object, and its signature would be written down beside the answers;"
                " fetch the object, or name its folder as s3://… or the like"
            )
        self._pattern = ""
        fixed = url
        while glob.has_magic(fixed):
            fixed = fixed.rpartition("/")[0]
        try:
            self._files, root = url_to_fs(fixed)
            if fixed != url:
                self._pattern = str(url_to_fs(url)[1])
            self._root = str(root).rstrip("/")
            self._files.invalidate_cache()
            # Not `exists`, which for some protocols takes a server that does not answer for a folder that is not there.
            self._files.info(self._root or "/")
        except FileNotFoundError as error:
            raise DataError(f"{self.url} does not exist") from error
        except (ImportError, ValueError) as error:
            known = ", ".join(sorted({"s3", "gs", "abfs", "memory", "file"} & set(fsspec.available_protocols())))
            raise DataError(f"{self.url}: {public(str(error))} (protocols: {known}, …)") from error
        except Exception as error:  # each protocol has exceptions of its own
            raise DataError(f"{self.url}: {public(str(error))}") from error

    @property
    def identity(self) -> str:
        """The URL."""
        return shown(os.fsencode(self.url))

    def path(self, name: bytes) -> Path | None:  # noqa: ARG002  # not on this machine
        """None."""
        return None

    def entries(self) -> Iterator[Entry]:
        """Every object, folder by folder; raises DataError where listing fails."""
        try:
            yield from self._listed()
        except Exception as error:  # each protocol has exceptions of its own
            raise DataError(f"{self.url}: cannot be listed: {type(error).__name__}: {public(str(error))}") from error

    def _listed(self) -> Iterator[Entry]:
        if self._pattern:
            for path, info in self._files.glob(self._pattern, detail=True).items():
                if info["type"] == "file":
                    yield self._entry(str(path), info)
            return
        own = self._files.info(self._root or "/")
        if own.get("type") == "file" and not str(own["name"]).endswith("/"):
            yield self._entry(str(own["name"]), own)
            if not self._files.isdir(self._root):
                return
        troubles: list[tuple[str, Exception]] = []
        walk = self._files.walk(self._root, detail=True, on_error=lambda error: troubles.append((self._root, error)))
        for _, _, held in walk:
            for info in held.values():
                if info.get("size") or not str(info["name"]).endswith(
                    "/"
                ):  # not an empty object that stands for a folder
                    yield self._entry(str(info["name"]), info)
        for place, error in troubles:
            yield Entry(public(place).encode() + b"/", "", f"the folder cannot be read: {public(str(error))}")

    def _entry(self, path: str, info: dict[str, Any]) -> Entry:
        name = path.removeprefix(self._root).lstrip("/") or path.rpartition("/")[2]
        stamp = next((str(info[key]) for key in _STAMPS if info.get(key) is not None), "")
        return Entry(name.encode("utf-8", "surrogateescape"), f"{info.get('size')}:{stamp}")

    def read(self, name: bytes, limit: int | None = None) -> bytes:
        """An object's first `limit` bytes, or all; raises ImageError."""
        text = name.decode("utf-8", "surrogateescape")
        single = self._root.rpartition("/")[2] == text and self._files.isfile(self._root)
        place = self._root if single else f"{self._root}/{text}"
        try:
            data: bytes = self._files.cat_file(place, start=0, end=limit or MAX_BYTES + 1)
        except Exception as error:  # each protocol has exceptions of its own
            if self._is_empty(place):  # S3 has no bytes 0 to anything of it to give
                return b""
            raise ImageError(f"{shown(name)}: {type(error).__name__}: {public(str(error))}") from error
        if limit is None and len(data) > MAX_BYTES:
            raise ImageError(f"{shown(name)}: larger than {MAX_BYTES >> 20} MiB")
        return data

    def _is_empty(self, place: str) -> bool:
        try:
            return bool(self._files.info(place)["size"] == 0)
        except Exception:  # noqa: BLE001  # each protocol has exceptions of its own; the first error is told
            return False

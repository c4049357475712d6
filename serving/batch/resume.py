"""What tells one run from another, and how two differ, in words."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline.bundle import Bundle
from serving.batch.settings import Settings
from serving.batch.sources import LocalFiles, Source

LAYOUT = 1
"""Raised when parts of an earlier version cannot be used."""


def run_identity(settings: Settings, bundle: Bundle, source: Source) -> dict[str, Any]:
    """Everything that decides the output but the files and the engine, as plain values."""
    manifest = bundle.manifest
    return {
        "source": source.identity,
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "files": {name: file.sha256 for name, file in sorted(manifest.files.items())},
            "heads": {
                name: [head.kind, *head.classes, head.threshold] for name, head in sorted(manifest.heads.items())
            },
        },
        "options": settings.identity(),
        "layout": LAYOUT,
    }


def labels_stamp(settings: Settings) -> str | None:
    """Changes when a file of the labels does; None where there are none."""
    if settings.labels is None:
        return None
    path = Path(settings.labels)
    if path.is_file():
        held = path.stat()
        return f"{held.st_size}:{held.st_mtime_ns}"
    found = sorted((entry.name, entry.stamp) for entry in LocalFiles(path, settings.out).entries())
    return hashlib.sha256(repr(found).encode()).hexdigest()


def differences(earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """How an earlier run differs from the one asked for; empty where it does not."""
    told = []
    if earlier["source"] != now["source"]:
        told.append(f"the source {earlier['source']}")
    if earlier["model"] != now["model"]:
        told.append(f"another model ({earlier['model']['name']} {earlier['model']['version']})")
    options, wanted = earlier["options"], now["options"]
    told += [
        f"{name} {options.get(name)} instead of {wanted.get(name)}"
        for name in sorted(options.keys() | wanted.keys())
        if options.get(name) != wanted.get(name)
    ]
    if earlier["layout"] != now["layout"]:
        told.append("the layout of another version of this command")
    return ", ".join(told)


def lost(earlier: dict[str, int], now: dict[str, int]) -> str:
    """Which of a finished run's files are gone, by output; empty where none is."""
    for name, count in earlier.items():
        left = now.get(name, 0)
        if left < count:
            return f"{count - left} of the {count} files of its {name} are gone" if left else f"its {name} is gone"
    return ""

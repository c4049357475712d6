"""Where a model to run is: a bundle's folder, or a model of the registry whose bundle is fetched."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.registered import fetch_bundle, parse_ref, version_number


@contextmanager
def find_bundle(reference: str) -> Iterator[Path]:
    """A bundle on disk from a path, `models:/NAME@ALIAS` or `models:/NAME/VERSION`; a fetched one goes with the block.

    Raises:
        BundleError: the registry has no such model, or cannot be reached.
        ConfigError: `models:` is followed by neither form.
    """
    ref = parse_ref(reference)
    if ref is None:
        yield Path(reference)
        return
    with tempfile.TemporaryDirectory(prefix="trifocal-") as folder:
        target = Path(folder) / "bundle"
        fetch_bundle(ref.name, version_number(ref), target)
        yield target

"""`--model models:/…`: the bundle that was registered comes back whole, and goes when the work is done."""

from __future__ import annotations

import pytest

from pipeline.bundle import read_bundle
from pipeline.errors import BundleError
from pipeline.export.register import register
from pipeline.model_source import find_bundle
from tests.unit.bundles import known_bundle


def test_a_registered_bundle_is_fetched_by_alias_and_by_version(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle = read_bundle(known_bundle(tmp_path / "known"))
    register(bundle, "known", "champion")
    for reference in ("models:/known@champion", "models:/known/1"):
        with find_bundle(reference) as folder:
            found = read_bundle(folder)
            found.verify()
            assert found.manifest == bundle.manifest
        assert not folder.exists()
    for reference in ("models:/known@nobody", "models:/unknown/1"):
        with pytest.raises(BundleError, match=reference), find_bundle(reference):
            pass
    with find_bundle("some/folder") as folder:
        assert str(folder) == "some/folder"

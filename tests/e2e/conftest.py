"""What several end-to-end files start: a service of the known bundle, one for each file."""

from __future__ import annotations

import pytest

from tests.e2e.services import Running
from tests.unit.bundles import known_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder of the bundle whose answers are known."""
    return known_bundle(tmp_path_factory.mktemp("bundle") / "known")


@pytest.fixture(scope="module")
def service(bundle):
    """A running service of it."""
    with Running(bundle) as running:
        yield running

"""Follows an alias: a new version is fetched, tested beside the old one and swapped in; a broken one changes nothing."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

from pipeline.errors import BundleError, TrifocalError
from pipeline.registered import ModelRef
from pipeline.store import store_uri
from serving import registry
from serving.service import Service

log = logging.getLogger("trifocal.follow")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 30.0, 1800.0


class Follower:
    """Keeps a service on the version that an alias names.

    Args:
        service: where versions are deployed.
        ref: the registered model.
    """

    def __init__(self, service: Service, ref: ModelRef) -> None:
        self._service, self._ref = service, ref
        self._serves = ""
        self._broken: dict[str, tuple[float, float]] = {}
        self._complained = ""
        self._seen: tuple[float, ...] = ()

    async def start(self) -> None:
        """Deploys the current version, or the last one that served where the store is down. Raises TrifocalError."""
        try:
            version = await asyncio.to_thread(registry.current_version, self._ref)
        except BundleError as error:
            last = registry.recall(self._ref)
            if last is None:
                raise
            log.warning("%s; serving version %s, which served last", error, last)
            await self._deploy(last)
            return
        try:
            await self._deploy(version)
        except TrifocalError as error:
            if not await asyncio.to_thread(registry.forget_damaged, self._ref, version):
                raise
            log.warning(
                "%s version %s was damaged here since it was fetched (%s); fetched anew", self._ref, version, error
            )
            await self._deploy(version)

    async def run(self) -> None:
        """Looks for a new version for ever."""
        while True:
            # Workers and replicas should not all ask in the same moment.
            await asyncio.sleep(self._service.settings.poll_s * random.uniform(0.9, 1.1))
            try:
                await self.look()
            except Exception:
                log.exception("a fault while looking for a new version; looking goes on")

    async def look(self) -> None:
        """One look: deploys what the alias names now, unless it proved broken lately."""
        stamp = _database_stamp()
        if stamp and stamp == self._seen:
            return
        try:
            version = await asyncio.to_thread(registry.current_version, self._ref)
        except BundleError as error:
            self._complain("store-down", f"{error}; version {self._serves} goes on serving")
            return
        now = asyncio.get_running_loop().time()
        pause, until = self._broken.get(version, (_FIRST_PAUSE_S, 0.0))
        if version == self._serves or now < until:
            self._seen = stamp if version == self._serves else ()
            return
        try:
            await self._deploy(version)
        except (TrifocalError, OSError) as error:
            self._broken[version] = min(2 * pause, _LONGEST_PAUSE_S), now + pause
            await asyncio.to_thread(registry.forget, self._ref, version)
            self._complain("broken", f"version {version} is broken ({error}); version {self._serves} goes on serving")

    async def _deploy(self, version: str) -> None:
        folder = await asyncio.to_thread(registry.fetch, self._ref, version)
        await self._service.deploy(folder, version)
        if self._serves:
            log.info("%s: version %s took over from %s", self._ref, version, self._serves)
            self._service.metrics.swaps.labels("swapped").inc()
        self._serves, self._complained = version, ""
        await asyncio.to_thread(registry.remember, self._ref, version)

    def _complain(self, outcome: str, text: str) -> None:
        self._service.metrics.swaps.labels(outcome).inc()
        if text != self._complained:
            log.warning("%s: %s", self._ref, text)
        self._complained = text


def _database_stamp() -> tuple[float, ...]:
    """When a store in a file was last written, so that an idle service need not open it; empty for other stores."""
    uri = store_uri()
    if not uri.startswith("sqlite:///"):
        return ()
    file = Path(uri.removeprefix("sqlite:///"))
    beside = (file, file.with_name(file.name + "-wal"))
    return tuple(one.stat().st_mtime for one in beside if one.exists())

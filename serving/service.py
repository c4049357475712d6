"""The service behind the routes: the model version that answers now, and what the whole process shares."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.bundle import read_bundle
from serving.admission import Quota
from serving.deployment import Deployment
from serving.observe import Metrics
from serving.problems import Problem
from serving.settings import Settings
from serving.traces import OFF, Traces
from serving.workers.entry import settle

log = logging.getLogger("trifocal.service")


class Service:
    """Holds the deployment that answers.

    Args:
        settings: of the service.
        metrics: of the process.
        traces: where requests are traced.
    """

    def __init__(self, settings: Settings, metrics: Metrics, traces: Traces = OFF) -> None:
        self.settings, self.metrics, self.traces = settings, metrics, traces
        self.quota = Quota(settings.quota)
        self.draining = False
        self._current: Deployment | None = None
        self._users: Counter[Deployment] = Counter()
        self._retiring: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._current is not None and not self.draining

    @property
    def model(self) -> Deployment:
        """The deployment that answers; raises Problem while there is none."""
        if self._current is None:
            raise Problem("stopping", "no model is loaded")
        return self._current

    def require_room(self) -> None:
        """Raises Problem where a request that came now would be refused anyway."""
        if self._current is not None:
            self._current.admission.ticket(self.settings.deadline_s)

    @contextmanager
    def using(self) -> Iterator[Deployment]:
        """The deployment that answers, kept alive meanwhile."""
        deployment = self.model
        self._users[deployment] += 1
        try:
            yield deployment
        finally:
            self._users[deployment] -= 1

    async def deploy(self, folder: Path, version: str | None = None) -> Deployment:
        """Starts a bundle beside what serves now, and swaps when it has passed its tests.

        Raises:
            BundleError, EngineError, ServeError: it cannot serve; the old one goes on.
        """
        bundle = await asyncio.to_thread(read_bundle, folder)
        fresh = Deployment(bundle, version or bundle.manifest.version, self.settings, self.metrics, self.traces)
        await fresh.start()
        old, self._current = self._current, fresh
        log.info("model %s version %s: %s", fresh.manifest.name, fresh.version, fresh.ready["choice"])
        self._tell(fresh, serves=True)
        settle()
        if old is not None:
            self._tell(old, serves=False)
            task = asyncio.ensure_future(self._retire(old))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return fresh

    async def close(self) -> None:
        """Ends every process."""
        for task in list(self._retiring):
            await task
        if self._current is not None:
            await self._current.close()
            self._current = None
        self.traces.close()

    async def _retire(self, old: Deployment) -> None:
        """Closes a deployment once the last of its requests is answered."""
        while self._users[old]:
            await asyncio.sleep(0.05)
        del self._users[old]
        await old.close()

    def _tell(self, deployment: Deployment, serves: bool) -> None:
        self.metrics.model(
            deployment.manifest.name, deployment.version, deployment.run_id or "", deployment.ready["spec"], serves
        )

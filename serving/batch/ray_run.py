"""`--engine ray`: the same parts through Ray Data, on a cluster or on this machine, each actor with its own engine."""

from __future__ import annotations

import importlib.util
import logging
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2

from pipeline.bundle import Bundle
from pipeline.errors import EngineError, ImageError, TrifocalError
from serving.batch.journal import Journal
from serving.batch.local import LocalRun, Store
from serving.batch.plan import Part
from serving.batch.settings import Settings
from serving.batch.sources import open_source
from serving.batch.work import Done, Told, Worker
from serving.predictor import Predictor

INSTALL = "pip install 'trifocal[ray]'"


class Collected:
    """Stands for a Journal in an actor: files of single images travel to the driver, which alone writes."""

    def __init__(self) -> None:
        self.files: list[tuple[bytes, bytes]] = []

    def put_quickly(self, name: bytes, data: bytes) -> None:
        """Keeps a file."""
        self.files.append((name, data))

    def forget(self, names: list[bytes]) -> None:
        """Takes files back."""
        self.files = [(name, data) for name, data in self.files if name not in names]


class Answers:
    """An actor of Ray: loads the engine once, then answers whole parts.

    Args:
        settings: the options; `engine` names the engine itself, `heads` all that are answered.
        files: the bundle's files by name: the actor's machine need not hold the bundle.
    """

    def __init__(self, settings: Settings, files: dict[str, bytes]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trifocal-")
        bundle = Path(self._folder.name)
        for name, data in files.items():
            (bundle / name).write_bytes(data)
        cv2.setNumThreads(1)
        self._settings = settings
        self._predictor = Predictor.load(bundle, settings.engine, threads=1, heads=settings.heads)
        self._predictor.engine.warm_up(settings.batch)
        self._source = open_source(settings.source, settings.out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A part, pickled, to its results and files, pickled."""
        part: Part = pickle.loads(batch["part"][0])  # noqa: S301  # the driver's own
        kept = Collected()
        worker = Worker(self._predictor, self._source, self._settings, kept)
        found: list[Done] = []
        LocalRun(worker, 1, self._settings.batch, lambda _, batches: found.extend(batches)).run(
            [part], self._source.remote
        )
        return {"number": batch["number"], "done": [pickle.dumps((found, kept.files))]}


@contextmanager
def joined(workers: int) -> Iterator[None]:
    """A cluster, joined where RAY_ADDRESS names one; otherwise Ray starts on this machine, and ends with the block.

    Where this process is part of one already, nothing happens.

    Raises:
        EngineError: ray is not installed, or the cluster cannot be joined.
    """
    _require_ray()
    # Ray's agents and its usage report are nothing a folder needs.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    here: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False}
    cluster = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **({} if cluster else here))
    except Exception as error:
        raise EngineError(
            f"--engine ray: {_first_line(error)}; see that the cluster at RAY_ADDRESS={cluster} runs and, where it"
            " asks for a token, that RAY_AUTH_MODE=token is set and ~/.ray/auth_token is the cluster's"
            if cluster
            else f"--engine ray: Ray does not start here: {_first_line(error)}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise EngineError(f"--engine ray: ray is not installed: {INSTALL}")


class RayRun:
    """Answers parts by an actor pool of Ray Data.

    Args:
        bundle: the model, sent to every actor.
        settings: the options.
        engine: `name:variant` that each actor loads.
        journal: where files of single images go.
        store: keeps a finished part.
        told: takes the number of images of each finished batch, and of its errors.

    Raises:
        EngineError: ray is not installed; from `run`, the cluster cannot be joined.
    """

    def __init__(
        self, bundle: Bundle, settings: Settings, engine: str, journal: Journal, store: Store, told: Told
    ) -> None:
        _require_ray()
        source = settings.source if "://" in settings.source else os.path.abspath(settings.source)
        heads = tuple(settings.answered(bundle.manifest.heads))
        self._settings = replace(settings, engine=engine, source=source, out=settings.out.resolve(), heads=heads)
        names = ["bundle.json", *bundle.manifest.files]
        self._files = {name: (bundle.path / name).read_bytes() for name in names}
        self._journal, self._store, self._told = journal, store, told

    def run(self, parts: Iterable[Part], workers: int) -> None:
        """Answers all parts, in any order; raises what an actor raised."""
        waiting = list(parts)
        if not waiting:
            return
        with joined(workers):
            import ray

            try:
                self._stream(ray, waiting, workers)
            except ray.exceptions.RayError as error:
                raise _cause(error) from error

    def _stream(self, ray: Any, waiting: list[Part], workers: int) -> None:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"number": number, "part": pickle.dumps(part)} for number, part in enumerate(waiting)]
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(rows)))
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Answers, fn_constructor_args=(self._settings, self._files), batch_size=1, compute=pool, num_cpus=1
        )
        for row in data.iter_rows():
            batches, files = pickle.loads(row["done"])  # noqa: S301  # our own actors'
            self._write(batches, files)
            self._store(waiting[row["number"]], batches)
            results = [result for done in batches for result in done.results]
            self._told(len(results), sum(r.failure is not None and not r.failure.skipped for r in results))

    def _write(self, batches: list[Done], files: list[tuple[bytes, bytes]]) -> None:
        """Writes a part's files; an image whose file cannot be written has no answer, as in a local run."""
        refused: dict[bytes, ImageError] = {}
        for name, data in files:
            try:
                self._journal.put_quickly(name, data)
            except ImageError as error:
                refused[name] = error
        for done in batches if refused else ():
            kept = set(done.files) - refused.keys()
            done.refuse(refused)
            self._journal.forget(sorted(kept.difference(done.files)))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _cause(error: Exception) -> TrifocalError:
    """The actor's own error where it was one of ours; Ray's first words otherwise."""
    inner: BaseException | None = error
    while inner is not None:
        found = getattr(inner, "cause", None)
        if isinstance(inner, TrifocalError):
            return inner
        if isinstance(found, TrifocalError):
            return found
        inner = found if isinstance(found, BaseException) else inner.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return EngineError(f"--engine ray: {lines[-1] if lines else type(error).__name__}")

"""A few files' bytes to their results: decode, infer, rows, and files of their own; the same for threads and for Ray."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.errors import EngineError, ImageError
from serving.answers import Answer
from serving.batch.failures import NOT_AN_IMAGE, StoppedError, failure_of, kind_of
from serving.batch.kinds import HEAD, has_image_ending, looks_like_image
from serving.batch.names import raw, shown
from serving.batch.picture import Picture
from serving.batch.plan import Item
from serving.batch.rows import Failure, ImageResult, rows_of
from serving.batch.settings import Settings
from serving.batch.sources import Source
from serving.batch.views import View, views_of
from serving.batch.writers.base import Context
from serving.batch.writers.registry import image_writers
from serving.predictor import Predictor

Content = bytes | Failure | None
"""A file's bytes, why it has none, or None where the worker shall read it itself."""

ENGINE = "engine"
"""Kind of the failures that are the engine's."""

READ_AHEAD = 32 * 2**20
"""Larger files are read when their turn comes: bytes that wait are memory."""


@dataclass(slots=True)
class Read:
    """What was read ahead, and the seconds it took."""

    contents: list[Content]
    seconds: float


@dataclass(slots=True)
class Done:
    """What a worker hands back: results in the items' order, busy seconds by stage, and files that are not yet on disk."""

    results: list[ImageResult] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    files: list[bytes] = field(default_factory=list)

    def refuse(self, refused: Mapping[bytes, ImageError]) -> None:
        """Takes the answer from each image of which a file cannot be written."""
        if not refused:
            return
        left: set[bytes] = set()
        for at, result in enumerate(self.results):
            names = [raw(name) for name in result.files]
            error = next((refused[name] for name in names if name in refused), None)
            if error is not None:
                self.results[at] = ImageResult(result.image, (), failure_of(raw(result.image), error))
                left.update(names)
        self.files = [name for name in self.files if name not in left]


def read_item(source: Source, item: Item, most: int | None = None) -> Content:
    """A file's bytes, or why there are none; None where it is larger than `most`."""
    if item.problem:
        return Failure(item.problem, kind_of(item.problem), item.skip)
    try:
        if not _looks_like_image(source, item):
            return NOT_AN_IMAGE
        if most is None:
            return source.read(item.name)
        content = source.read(item.name, most + 1)
    except ImageError as error:
        return failure_of(item.name, error)
    return content if len(content) <= most else None


def may_be_image(source: Source, item: Item) -> bool:
    """Whether a file will be answered or be an error, not skipped."""
    if item.problem:
        return not item.skip
    try:
        return _looks_like_image(source, item)
    except ImageError:
        return True


def _looks_like_image(source: Source, item: Item) -> bool:
    return has_image_ending(item.name) or looks_like_image(item.name, source.read(item.name, HEAD))


class Files(Protocol):
    """Where files of single images go."""

    def put_quickly(self, name: bytes, data: bytes) -> None:
        """Takes a file; raises ImageError where it cannot be written."""

    def forget(self, names: list[bytes]) -> None:
        """Takes files back."""


Told = Callable[[int, int], None]
"""Takes the number of images of a finished batch, and of its errors."""


class Worker:
    """Answers for batches of items. May be called from several threads.

    Args:
        predictor: the loaded bundle.
        source: where the bytes are.
        settings: what is wanted.
        journal: where files of single images go.
        told: takes the number of images of each finished batch, and of its errors.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: Source,
        settings: Settings,
        journal: Files,
        told: Told = lambda images, errors: None,  # noqa: ARG005  # told nobody
    ) -> None:
        self._told = told
        self.predictor, self.source, self.settings, self.journal = predictor, source, settings, journal
        self._writers = image_writers(Context(settings, predictor.bundle.manifest))
        self._stopped = threading.Event()
        self._views = views_of(predictor, settings, self._stopped)

    def read(self, items: Sequence[Item]) -> Read:
        """The bytes of a few items, ahead of `process`."""
        started = time.perf_counter()
        contents = [read_item(self.source, item, READ_AHEAD) for item in items]
        return Read(contents, time.perf_counter() - started)

    def stop(self) -> None:
        """Ends `process` as soon as can be, which raises StoppedError; for another thread."""
        self._stopped.set()

    def process(self, items: Sequence[Item], contents: Sequence[Content]) -> Done:
        """Results of a few items whose bytes were perhaps read already."""
        done = Done()
        # Pictures that are opened whole stay one at a time: a few of them would fill the memory.
        step = 1 if self._views.opens_files else len(items)
        for at in range(0, len(items), step):
            if self._stopped.is_set():
                raise StoppedError
            self._batch(items[at : at + step], contents[at : at + step], done)
        self._told(len(items), sum(r.failure is not None and not r.failure.skipped for r in done.results))
        return done

    def _batch(self, items: Sequence[Item], contents: Sequence[Content], done: Done) -> None:
        answers: list[Answer | Failure] = [NOT_AN_IMAGE] * len(items)
        views: dict[int, View] = {}
        pictures: dict[int, Picture] = {}
        for at, (item, given) in enumerate(zip(items, contents, strict=True)):
            path = self.source.path(item.name)
            content = given
            if content is None and not (self._views.opens_files and path is not None):
                content = self._read(item, done)
            if isinstance(content, Failure):
                answers[at] = content
                continue
            started = time.perf_counter()
            try:
                views[at] = self._views.prepare(content, shown(item.name), path)
            except ImageError as error:
                answers[at] = failure_of(item.name, error)
            except Exception as error:  # noqa: BLE001  # one odd file must not end a run of a million
                answers[at] = Failure(f"unexpected: {error!r}", "unexpected")
            else:
                if self._writers:
                    pictures[at] = Picture(shown(item.name), content, path, getattr(views[at], "regions", None))
            done.seconds["decode"] += time.perf_counter() - started
        for at, answer in self._infer(views, items, done).items():
            answers[at] = answer
        started = time.perf_counter()
        for at, (item, one) in enumerate(zip(items, answers, strict=True)):
            done.results.append(self._result(item, one, pictures.get(at), done))
        done.seconds["answer"] += time.perf_counter() - started

    def _read(self, item: Item, done: Done) -> Content:
        started = time.perf_counter()
        content = read_item(self.source, item)
        done.seconds["read"] += time.perf_counter() - started
        return content

    def _infer(self, waiting: dict[int, View], items: Sequence[Item], done: Done) -> dict[int, Answer | Failure]:
        """Answers of all views at once; where the engine or a late read fails, of each alone, once."""
        if not waiting:
            return {}
        started = time.perf_counter()
        try:
            found: list[Answer] = self._views.answers(list(waiting.values()))
            return dict(zip(waiting, found, strict=True))
        except (EngineError, ImageError):
            singly: dict[int, Answer | Failure] = {}
            for at, view in waiting.items():
                try:
                    singly[at] = self._views.answers([view])[0]
                except ImageError as error:
                    singly[at] = failure_of(items[at].name, error)
                except EngineError as error:
                    singly[at] = Failure(str(error), ENGINE)
            if all(isinstance(answer, Failure) and answer.kind == ENGINE for answer in singly.values()):
                raise
            return singly
        finally:
            done.seconds["infer"] += time.perf_counter() - started

    def _result(self, item: Item, answer: Answer | Failure, picture: Picture | None, done: Done) -> ImageResult:
        image = shown(item.name)
        if isinstance(answer, Failure):
            return ImageResult(image, (), answer)
        rows = rows_of(image, answer, self.predictor.heads, self.settings.threshold)
        if not self._writers or picture is None:
            return ImageResult(image, rows)
        names = []
        try:
            for writer in self._writers:
                for name, data in writer.files(item, answer, picture):
                    self.journal.put_quickly(name, data)
                    names.append(name)
        except ImageError as error:
            self.journal.forget(names)  # an image without an answer has no files either
            return ImageResult(image, (), failure_of(item.name, error))
        done.files += names
        return ImageResult(image, rows, None, tuple(shown(name) for name in names))

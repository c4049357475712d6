"""Pictures of a request that are begun while the rest of it is still on its way."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Generic, TypeVar

from serving.admission import Ticket
from serving.body import Form, Upload
from serving.deployment import PredictOptions

Found = TypeVar("Found")
Work = Callable[[Upload, PredictOptions], Coroutine[None, None, Found]]


class EarlyPictures(Generic[Found]):
    """Begins a form's pictures as they become whole, as long as no other request's are in the house.

    While others are, nothing is gained by it, and a request that is refused in the end would have taken their time.
    Those that are done are no longer in the house, however long the rest takes to come. A field that comes behind pictures
    may change what is wanted of them: those are begun anew.

    Args:
        ticket: the request's, on which pictures are counted.
        work: what is done with each picture.
        options: what is wanted by the fields that have come; None where pictures are not to be begun early.
    """

    def __init__(self, ticket: Ticket, work: Work[Found], options: Callable[[Form], PredictOptions | None]) -> None:
        self._ticket, self._work, self._options_by = ticket, work, options
        self._options: PredictOptions | None = None
        self._fields = -1
        self._begun: list[asyncio.Task[Found]] = []
        self._in_house: set[asyncio.Task[Found]] = set()
        self._context = contextvars.copy_context()  # the request's, in whatever stage of it a picture comes

    def came(self, so_far: Form) -> None:
        """More of the request has come, and more is to come; raises Problem where its options are wrong or there is no room."""
        if len(so_far.uploads) == len(self._begun) or not self._ticket.alone:
            return
        if len(so_far.fields) != self._fields:
            self._fields = len(so_far.fields)
            self._want(self._options_by(so_far))
        if self._options is None:
            return
        for upload in so_far.uploads[len(self._begun) :]:
            self._ticket.take_items(1)
            task = asyncio.create_task(self._work(upload, self._options), context=self._context.copy())
            self._begun.append(task)
            self._in_house.add(task)
            task.add_done_callback(self._done)

    async def all(self, uploads: list[Upload], options: PredictOptions) -> list[Found]:
        """Every picture's result, in order; raises Problem where there is no room for those that are not yet begun."""
        self._want(options)
        rest = uploads[len(self._begun) :]
        self._ticket.take_items(len(rest))
        if len(uploads) == 1 and rest:  # the usual case, without a task of its own
            return [await self._work(uploads[0], options)]
        return await asyncio.gather(*self._begun, *(self._work(upload, options) for upload in rest))

    def cancel(self) -> None:
        """Gives up what was begun."""
        self._ticket.give_items(len(self._in_house))
        self._in_house.clear()
        for task in self._begun:
            task.cancel()
        self._begun = []

    def _want(self, options: PredictOptions | None) -> None:
        if options != self._options:
            self.cancel()
            self._options = options

    def _done(self, task: asyncio.Task[Found]) -> None:
        if task in self._in_house:
            self._in_house.remove(task)
            self._ticket.give_items(1)

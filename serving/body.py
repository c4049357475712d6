"""A request's body: read under limits of size and time, and taken apart where it is multipart."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from serving.admission import Ticket
from serving.problems import Problem


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture as it came."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """The pictures and the plain fields of a request."""

    uploads: list[Upload]
    fields: list[tuple[str, str]] = field(default_factory=list)


def require_plain(request: Request) -> None:
    """Raises Problem for a compressed body: of a picture nothing would be saved, and a small one could grow large."""
    if request.headers.get("content-encoding", "identity").lower() not in {"identity", ""}:
        raise Problem("bad-request", "compressed requests are not read; send the body as it is")


async def take_body(
    request: Request, limit: int, timeout_s: float, ticket: Ticket, take: Callable[[bytes, bool], None]
) -> None:
    """Gives a body's parts on as they come, counted on the ticket, each with whether more is to come.

    Raises:
        Problem: too large as soon as it is, too slow, broken off, or no room for it. What the header says of its size
            was looked at before. And what `take` raises.
    """
    got = 0
    try:
        async with asyncio.timeout(timeout_s):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Problem("client-gone", "the request broke off")
                part, more = message.get("body", b""), message.get("more_body", False)
                got += len(part)
                if got > limit:
                    raise Problem("body-too-large", f"more than {limit} bytes")
                ticket.take_bytes(len(part))
                take(part, more)
    except TimeoutError as error:
        raise Problem("slow-sender", f"{got} bytes came within {timeout_s:g} s") from error


async def read_body(request: Request, limit: int, timeout_s: float, ticket: Ticket) -> bytes:
    """The whole body; raises Problem as `take_body`."""
    parts: list[bytes] = []
    await take_body(request, limit, timeout_s, ticket, lambda part, _: parts.append(part))
    return b"".join(parts)


class FormReader:
    """A body taken apart while it comes: multipart uploads and fields, or the body itself as the one picture.

    Args:
        content_type: the request's.
        max_images: most pictures of a request.

    Raises:
        Problem: multipart without a boundary, or with one that is too long.
    """

    def __init__(self, content_type: str, max_images: int) -> None:
        kind, options = parse_options_header(content_type)
        self._parts: list[bytes] = []
        self._collector = _Collector(max_images)
        self._parser: MultipartParser | None = None
        if kind == b"multipart/form-data":
            boundary = options.get(b"boundary")
            if not boundary:
                raise Problem("bad-request", "multipart/form-data without a boundary in Content-Type")
            with _broken():
                self._parser = MultipartParser(boundary, self._collector.callbacks())  # type: ignore[arg-type]  # its names are Literals

    @property
    def so_far(self) -> Form:
        """What is whole already."""
        return Form(self._collector.uploads, self._collector.fields)

    def feed(self, part: bytes) -> None:
        """The next bytes; raises Problem where they are broken or hold too many pictures."""
        if self._parser is None:
            self._parts.append(part)
            return
        with _broken():
            self._parser.write(part)

    def end(self) -> Form:
        """Everything, when all of it has come; raises Problem where it breaks off."""
        if self._parser is None:
            return Form([Upload("body", b"".join(self._parts))])
        with _broken():
            self._parser.finalize()
        if not self._collector.ended:
            raise Problem("bad-request", "the multipart body breaks off before its last boundary")
        return self.so_far


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    """Says of the parser's errors what they are of."""
    try:
        yield
    except FormParserError as error:
        raise Problem("bad-request", f"the multipart body is broken: {error}") from error


class _Collector:
    """Gathers the parser's pieces."""

    def __init__(self, max_images: int) -> None:
        self.uploads: list[Upload] = []
        self.fields: list[tuple[str, str]] = []
        self.ended = False
        self._max_images = max_images
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, Any]:
        """By the parser's names."""
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end_part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._data = {}, []

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        data = b"".join(self._data)
        if b"filename" in options:
            if len(self.uploads) >= self._max_images:
                raise Problem("too-many-images", f"more than {self._max_images} pictures in one request")
            told = options[b"filename"].decode("utf-8", "replace")[-200:]
            self.uploads.append(Upload(told or name or "image", data))
        else:
            self.fields.append((name, data.decode("utf-8", "replace")))

    def _end(self) -> None:
        self.ended = True

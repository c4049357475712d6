"""What goes out on a connection and when: a response's head together with its body, everything else at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serving.protocol import JoinedWrites, _join_writes


class Wire:
    """A transport that notes what was sent in one piece."""

    def __init__(self):
        self.sent, self.closed = [], False

    def write(self, data):
        self.sent.append(data)

    def writelines(self, parts):
        self.sent.append(b"".join(parts))

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


@pytest.fixture
def wire():
    return Wire()


def test_a_head_goes_with_the_first_part_of_its_body(wire):
    joined = JoinedWrites(wire)
    joined.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # its sender waits for it
    assert len(wire.sent) == 1
    joined.write(b"head ")
    assert len(wire.sent) == 1
    joined.write(b"body")
    joined.write(b"more")
    assert wire.sent[1:] == [b"head body", b"more"]


def test_an_empty_body_sends_the_head(wire):
    joined = JoinedWrites(wire)
    joined.write(b"head")
    joined.write(b"")
    joined.close()
    assert b"".join(wire.sent) == b"head"
    assert wire.closed


def test_a_head_without_a_body_goes_before_the_end(wire):
    """As where the application fails after it began to answer."""
    joined = JoinedWrites(wire)
    joined.write(b"head")
    assert not joined.is_closing()
    joined.close()
    assert wire.sent == [b"head"]
    assert joined.is_closing()


def test_an_answer_that_is_whole_has_been_sent(wire):
    """As for HEAD, where uvicorn writes no body."""
    ended = []
    cycle = SimpleNamespace(transport=wire, on_response=lambda: ended.append(list(wire.sent)))
    _join_writes(cycle)
    cycle.transport.write(b"head")
    cycle.on_response()
    assert ended == [[b"head"]]

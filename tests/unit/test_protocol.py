"""What goes out on a connection and when: a response's head together with its body, everything else at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from serving.protocol import JoinedHead


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
def cycle():
    return SimpleNamespace(transport=Wire(), response_started=False)


def test_a_head_goes_with_the_first_part_of_its_body(cycle):
    joined = JoinedHead(cycle)
    joined.write(b"100 Continue ")  # before the response: its sender waits for it
    assert cycle.transport.sent == [b"100 Continue "]
    cycle.response_started = True
    joined.write(b"head ")
    assert cycle.transport.sent[1:] == []
    joined.write(b"body")
    joined.write(b"more")
    joined.write(b"")
    assert cycle.transport.sent[1:] == [b"head body", b"more", b""]


def test_an_empty_body_sends_the_head(cycle):
    joined, cycle.response_started = JoinedHead(cycle), True
    joined.write(b"head")
    joined.write(b"")
    joined.close()
    assert cycle.transport.sent == [b"head"]
    assert cycle.transport.closed


def test_a_head_without_a_body_goes_before_the_end(cycle):
    """As where the application fails after it began to answer."""
    joined, cycle.response_started = JoinedHead(cycle), True
    joined.write(b"head")
    assert not joined.is_closing()
    joined.close()
    assert cycle.transport.sent == [b"head"]
    assert joined.is_closing()

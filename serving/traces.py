"""Where a request's time went, for tracing systems: this is the service without; `serving.otel` is it with OpenTelemetry."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any


class Traces:
    """Switched off: every call does nothing."""

    def request(self, scope: MutableMapping[str, Any]) -> AbstractContextManager[None]:
        """Around one HTTP request; `scope` is ASGI's, whose state holds `request_id`."""
        del scope
        return nullcontext()

    def stage(self, name: str, **attributes: str | float) -> AbstractContextManager[None]:
        """Around one stage of the request that is being answered."""
        del name, attributes
        return nullcontext()

    def past(self, name: str, ago_s: float, seconds: float, **attributes: str | float) -> None:
        """A stage that began `ago_s` seconds before now and took `seconds`."""

    def note(self, **attributes: str | float) -> None:
        """Adds to the request's span."""

    def close(self) -> None:
        """Sends what was not sent yet; takes 3 s at most."""


OFF = Traces()

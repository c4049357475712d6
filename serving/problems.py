"""What a request can meet, as RFC 9457 problem documents: each kind has a status, a title and a remedy, and no trace."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

MEDIA_TYPE = "application/problem+json"

_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem."""

    status: int
    title: str
    remedy: str


KINDS = {
    "bad-request": Kind(400, "The request cannot be understood", "Compare it with /docs."),
    "unknown-option": Kind(400, "An option has an unknown value", "Take one of the values that are named."),
    "unauthorized": Kind(401, "The API key is missing or wrong", "Send it as `Authorization: Bearer KEY`."),
    "not-found": Kind(404, "There is nothing here", "The paths are listed in /docs."),
    "method-not-allowed": Kind(405, "This path takes another method", "The methods are listed in /docs."),
    "not-acceptable": Kind(406, "The answer has no such form", "Accept application/json, image/png or image/jpeg."),
    "slow-sender": Kind(408, "The request came too slowly", "Send it again over a better line, or a smaller picture."),
    "body-too-large": Kind(413, "The request has too many bytes", "Send fewer or smaller pictures at a time."),
    "too-many-images": Kind(413, "The request has too many pictures", "Send them in several requests."),
    "image-too-large": Kind(413, "The picture has too many bytes or pixels", "Shrink it before sending."),
    "unsupported-format": Kind(415, "Not a picture of a known format", "Send JPEG, PNG, WebP, TIFF, BMP or GIF."),
    "broken-image": Kind(422, "The picture cannot be decoded", "Save it again, or send it anew if it was cut off."),
    "decoder-failed": Kind(422, "The picture broke or blocked its decoder", "Save it again with another program."),
    "over-quota": Kind(429, "More requests than this client may send", "Wait as long as Retry-After says."),
    "client-gone": Kind(499, "The client closed the connection", "Wait longer for the answer."),
    "engine-failed": Kind(500, "The network could not be computed", "Try again; tell the operator if it stays."),
    "internal": Kind(500, "The service made a mistake", "Tell the operator the request id."),
    "overloaded": Kind(503, "The service is busy", "Try again after as long as Retry-After says."),
    "stopping": Kind(503, "The service is stopping", "Try again; another instance may answer."),
    "deadline": Kind(504, "The answer did not come in time", "Try again later, or allow more by X-Deadline-Ms."),
}
"""Every kind by its name; the document's `type` ends in it."""


class Problem(Exception):  # noqa: N818  # RFC 9457's word
    """Raised anywhere under a request; becomes its answer.

    Args:
        kind: one of KINDS.
        detail: what exactly, and where.
        retry_after_s: seconds to wait before another try.
    """

    def __init__(self, kind: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail
        self.retry_after_s = None if retry_after_s is None else max(1, math.ceil(retry_after_s))

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind].status

    def document(self, instance: str = "", oip: bool = False) -> dict[str, Any]:
        """The members of the problem document; `instance` is the request id, `oip` adds that protocol's own member."""
        kind = KINDS[self.kind]
        found = {
            "type": f"urn:trifocal:problem:{self.kind}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            "remedy": kind.remedy,
        }
        if oip:
            found["error"] = f"{kind.title}: {self.detail}"
        return {**found, "instance": f"urn:trifocal:request:{instance}"} if instance else found

    def headers(self) -> dict[str, str]:
        """What goes with the document."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}

    def encode(self, instance: str = "", oip: bool = False) -> bytes:
        """The document as JSON."""
        return _ENCODER.encode(self.document(instance, oip)).encode()

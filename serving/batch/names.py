"""File names as text and as safe places in the output folder: one text per name, also for bytes that are no UTF-8."""

from __future__ import annotations

import re

from pipeline.errors import ImageError

_PASSWORD = re.compile(r"(://[^/:@\s]*):[^/\s]*@")
_TOKEN = re.compile(
    r"([?&;#][\w.-]*(?:token|sig|signature|key|secret|password|pwd|credential|auth|jwt)=)[^&;\s'\"]*", re.IGNORECASE
)
_ESCAPE = re.compile(rb"\\\\|\\x([0-9a-f]{2})")


def shown(name: bytes) -> str:
    r"""A name as text: UTF-8, with `\xNN` for bytes that are none and `\\` for a backslash, so no two names look alike."""
    if b"\\" not in name:
        try:
            return name.decode()
        except UnicodeDecodeError:
            pass
    return name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def public(text: str) -> str:
    """A source, or a message about one, as others may read it: passwords, tokens and signatures of URLs left out."""
    return _TOKEN.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text)) if "://" in text else text


def raw(text: str) -> bytes:
    """Inverse of `shown`."""
    data = text.encode()
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else b"\\", data)


def inside(name: bytes) -> bytes:
    """The name as a relative path that stays below the folder it is put in.

    Raises:
        ImageError: it is absolute or climbs by `..`, or is empty.
    """
    parts = name.split(b"/")
    if not name or name.startswith(b"/") or b".." in parts or b"\0" in name:
        raise ImageError(f"its name would leave the output folder: {shown(name)}")
    return b"/".join(part for part in parts if part not in {b"", b"."})


def one_part(text: str) -> str:
    """A head's or class's name as one folder name: separators, control characters and leading dots become `_`."""
    plain = "".join("_" if c in '/\\:*?"<>|' or ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 else c for c in text)
    return "_" + plain[1:] if plain.startswith(".") else plain or "_"


def stem(name: bytes) -> bytes:
    """The name without its ending, folders kept; a name whose rest would be nothing but dots keeps it."""
    folder, slash, last = name.rpartition(b"/")
    base = last.rpartition(b".")[0]
    return folder + slash + (base if base.strip(b".") else last)

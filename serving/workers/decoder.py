"""A decode process: strangers' bytes to letterboxed pixels in shared memory, under limits of memory and time.

It also draws: what needs the full picture happens here, away from the service.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import mmap
import resource
import signal
import socket
import time
import warnings
from dataclasses import asdict
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.errors import ImageError, ImageFormatError, ImageSizeError
from pipeline.imaging.decode import FORMATS, decode_bytes
from pipeline.imaging.draw import draw_answer
from pipeline.imaging.geometry import Letterbox
from pipeline.imaging.letterbox import letterbox_image
from pipeline.imaging.tiff_float import float_tiff
from pipeline.labels import LabelSpace
from serving.workers import wire
from serving.workers.entry import await_work, enter, hush_libraries

SERVED = tuple(name for name in FORMATS if name != "PPM")
"""What the API promises to read; the one format more is training data's."""

FIRST_FRAME = "only the first frame was used"

SERVED_BY = ("Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")
"""Pillow's plugins for these; with them at hand it never loads its forty others."""


def run(pipe: Connection, settings: dict[str, Any]) -> None:
    """Decodes and draws until the service closes the pipe.

    Args:
        pipe: to the service.
        settings: `size` (height, width) of the network's input, `max_pixels` of a picture, `memory` in bytes,
            `spaces` by head for drawing. Each job names the `seconds` it may take.
    """
    own, (descriptor, _) = enter(pipe, "decoder")
    hush_libraries()
    cv2.setNumThreads(1)
    # Counted from here on: what was inherited is not the picture's doing.
    resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + settings["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = mmap.mmap(descriptor, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, ConnectionError):
        wire.send(own, {"ready": "decoder"})
        while True:
            await_work(own)
            head, data = wire.receive(own)
            # The service ends a process that hangs; where the service itself is gone, the alarm does.
            signal.alarm(int(head["seconds"]) + 2)
            _work(own, memory, settings, head, data)
            signal.alarm(0)


def warm_up() -> None:
    """What libraries put off until their first picture; to be called before decoders are forked."""
    for plugin in SERVED_BY:
        importlib.import_module(f"PIL.{plugin}ImagePlugin")
    grey = np.full((64, 64, 3), 114, np.uint8)
    pixels, full = decode_bytes(cv2.imencode(".jpg", grey)[1].tobytes(), "warm-up")
    letterbox_image(pixels, Letterbox.fit(full, (32, 32)))


def _work(own: socket.socket, memory: mmap.mmap, settings: dict[str, Any], head: wire.Head, data: bytes) -> None:
    begun = time.perf_counter()
    try:
        if head["job"] == "draw":
            wire.send(own, {}, draw(data, head, settings))
            return
        answer = decode(data, head, memory, settings)
    except (ImageError, MemoryError) as error:
        wire.send(own, {"error": error_code(error), "detail": str(error) or "it needs too much memory"})
        return
    except Exception as error:  # noqa: BLE001  # a library's slip on one picture is that picture's
        wire.send(own, {"error": "broken-image", "detail": f"{head['name']}: {type(error).__name__} while decoding"})
        return
    wire.send(own, {**answer, "seconds": time.perf_counter() - begun})


def decode(data: bytes, head: wire.Head, memory: mmap.mmap, settings: dict[str, Any]) -> wire.Head:
    """One picture into the slot that the job names: how it lies there, its format and remarks; raises ImageError."""
    size = (settings["size"][0], settings["size"][1])
    pixels, full = decode_bytes(data, head["name"], max(size), settings["max_pixels"], SERVED)
    frame = Letterbox.fit(full, size)
    count = size[0] * size[1] * 3
    letterbox_image(pixels, frame, np.frombuffer(memory, np.uint8, count, head["slot"] * count).reshape(*size, 3))
    return {"frame": asdict(frame), **_remarks(data)}


def _remarks(data: bytes) -> dict[str, Any]:
    """The format, and whether only the first of several frames was read."""
    if data[:2] == b"\xff\xd8":
        return {"format": "JPEG", "notes": []}
    header = float_tiff(BytesIO(data))
    if header is not None:
        return {"format": "TIFF", "notes": [FIRST_FRAME] if header.more else []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(data), formats=SERVED) as image:
                notes = [FIRST_FRAME] if getattr(image, "is_animated", False) else []
                return {"format": image.format, "notes": notes}
        except Exception:  # noqa: BLE001  # a later frame may be broken in any way; the first one is whole
            return {"format": "unknown", "notes": [FIRST_FRAME]}


def draw(data: bytes, head: wire.Head, settings: dict[str, Any]) -> bytes:
    """The picture with the answer over it, encoded as the job's `format`; raises ImageError."""
    pixels, _ = decode_bytes(data, head["name"], None, settings["max_pixels"], SERVED)
    spaces = {name: LabelSpace.from_dict(space) for name, space in settings["spaces"].items()}
    picture = draw_answer(pixels, {name: _columns(found) for name, found in head["heads"].items()}, spaces, 0.0)
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if head["format"] == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, encoded = cv2.imencode(head["format"], picture[..., ::-1], options)
    if not done:
        raise ImageError(f"{head['name']}: cannot be drawn at {picture.shape[1]} x {picture.shape[0]}")
    return bytes(encoded)


def _columns(found: dict[str, Any]) -> dict[str, Any]:
    """One head's JSON answer as the arrays that drawing takes."""
    if found["kind"] == "boxes":
        rows = found["boxes"]
        return {
            "boxes": np.asarray([row["box"] for row in rows], np.float32).reshape(-1, 4),
            "scores": np.asarray([row["score"] for row in rows], np.float32),
            "classes": np.asarray([row["class_id"] for row in rows], np.int64),
        }
    if found["kind"] == "mask":
        coded = np.frombuffer(base64.b64decode(found["png"]), np.uint8)
        return {"mask": cv2.imdecode(coded, cv2.IMREAD_UNCHANGED)}
    rows = found["probabilities"]
    return {
        "probabilities": np.asarray([row["probability"] for row in rows], np.float32),
        "labels": [index for index, row in enumerate(rows) if row["class"] in found["labels"]],
    }


def error_code(error: BaseException) -> str:
    """The kind of problem that a picture is to the service."""
    if isinstance(error, ImageFormatError):
        return "unsupported-format"
    if isinstance(error, ImageSizeError):
        return "image-too-large"
    return "broken-image"


def _data_bytes() -> int:
    """Private writable memory of this process in bytes, as RLIMIT_DATA counts it; 0 where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            return next((int(line.split()[1]) << 10 for line in status if line.startswith("VmData")), 0)
    except OSError:
        return 0

"""What is fuzzed: each target takes any bytes and raises AssertionError, or anything unforeseen, where the code is wrong."""

from __future__ import annotations

import io
import json
import mmap
import struct
from collections.abc import Callable, Iterator

import cv2
import numpy as np
from PIL import Image

from pipeline.errors import ImageError
from serving.body import Form, FormReader
from serving.oip import ANSWERS, Tensor, parse_inference, write_response
from serving.problems import Problem
from serving.workers.decoder import decode

SIZE = (32, 32)
"""(height, width) of the network's input."""

OUTPUTS = ("colour.probabilities", "things.boxes")

_MEMORY = mmap.mmap(-1, SIZE[0] * SIZE[1] * 3)
_SETTINGS = {"size": list(SIZE), "max_pixels": 1_000_000}


def decoder(data: bytes) -> None:
    """A stranger's picture: letterboxed pixels and how they lie, or an ImageError."""
    try:
        found = decode(data, {"name": "x", "slot": 0}, _MEMORY, _SETTINGS)
    except ImageError as error:
        assert str(error)
        return
    height, width = found["frame"]["source"]
    assert height > 0
    assert width > 0
    assert height * width <= _SETTINGS["max_pixels"]
    assert max(found["frame"]["inner"]) == SIZE[0]
    assert found["format"] in {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "DIB", "MPO", "unknown"}, found
    json.dumps(found)


def v2(data: bytes) -> None:
    """A request of the Open Inference Protocol: checked pictures and outputs, or a Problem. Byte 0 tells of a header."""
    if not data:
        return
    told = None
    if data[0] & 1:
        told = str(data[1] if len(data) > 1 else 0) if data[0] & 2 else data[1:5].decode("latin-1")
    try:
        found = parse_inference(data[5:], told, "images", SIZE, OUTPUTS, 4)
    except Problem as problem:
        json.loads(problem.encode("id", oip=True))
        return
    assert 1 <= len(found.pictures) <= 4
    if not found.encoded:
        assert {len(picture) for picture in found.pictures} == {SIZE[0] * SIZE[1] * 3}
    known = {*OUTPUTS, ANSWERS}
    assert found.outputs
    assert {output.name for output in found.outputs} <= known
    tensors = [
        Tensor(output.name, "BYTES", (1,), [b"{}"], output.binary)
        if output.name == ANSWERS
        else Tensor(output.name, "FP32", (1, 2), struct.pack("<2f", 1, 2), output.binary)
        for output in found.outputs
    ]
    body, length = write_response({"id": found.request_id}, tensors)
    json.loads(body[:length])


def form(data: bytes) -> None:
    """A multipart body: uploads and fields, or a Problem. Its first line is the Content-Type.

    In pieces it is the same, or a Problem: of text ahead of the first boundary the parser is not of one mind.
    """
    kind, _, body = data.partition(b"\n")
    whole, pieces = (_formed(kind.decode("latin-1"), parts) for parts in ([body], _pieces(body)))
    if whole is None:
        return
    assert pieces in (whole, None)
    assert len(whole.uploads) <= 3
    assert sum(len(upload.data) for upload in whole.uploads) <= len(body)


def _pieces(body: bytes) -> list[bytes]:
    size = 1 + len(body) % 61
    return [body[at : at + size] for at in range(0, len(body), size)]


def _formed(kind: str, parts: list[bytes]) -> Form | None:
    """The form; None where a Problem refuses it."""
    try:
        reader = FormReader(kind, 3)
        for part in parts:
            reader.feed(part)
        return reader.end()
    except Problem as problem:
        json.loads(problem.encode("id"))
        return None


def decoder_seeds() -> Iterator[bytes]:
    """A small picture of each format and of the odd modes."""
    ramp = np.arange(12 * 9 * 3, dtype=np.uint16).reshape(12, 9, 3)
    colour = Image.fromarray((ramp % 256).astype(np.uint8))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"):
        yield _encoded(colour, kind)
    for mode in ("L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "F"):
        image = Image.fromarray(ramp[..., 0] * 200) if mode == "I;16" else colour.convert(mode)
        yield _encoded(image, "TIFF")
        if mode in {"P", "LA", "RGBA", "I;16", "1"}:
            yield _encoded(image, "PNG")
    yield _encoded(colour.convert("CMYK"), "JPEG")
    yield _encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 6
    yield _encoded(colour, "JPEG", exif=turned.tobytes(), progressive=True)
    yield cv2.imencode(".png", ramp[..., 0] * 300)[1].tobytes()
    for channels in (3, 4):
        yield cv2.imencode(".tiff", np.resize(ramp, (12, 9, channels)).astype(np.float32))[1].tobytes()


def v2_seeds() -> Iterator[bytes]:
    """Requests as clients send them: JSON pixels, base64, and binary tensors."""
    pixels = {"name": "images", "datatype": "UINT8", "shape": [1, *SIZE, 3], "data": [7] * (SIZE[0] * SIZE[1] * 3)}
    yield b"\0" * 5 + json.dumps({"inputs": [pixels]}).encode()
    known = {"name": "encoded", "datatype": "BYTES", "shape": [2], "data": ["aGk=", "aGk="]}
    wanted = [{"name": OUTPUTS[0]}, {"name": ANSWERS, "parameters": {"binary_data": True}}]
    yield b"\0" * 5 + json.dumps({"id": "7", "inputs": [known], "outputs": wanted}).encode()
    binary = {"name": "encoded", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
    head = json.dumps({"inputs": [binary], "parameters": {"binary_data_output": True}}).encode()
    yield bytes([3, len(head), 0, 0, 0]) + head + struct.pack("<I", 2) + b"hi"


def form_seeds() -> Iterator[bytes]:
    """Two files and a field; one body that is no form."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\nhi\r\n'
    yield (
        b"multipart/form-data; boundary=b\n"
        + part % (b"i", b'; filename="a.png"')
        + part % (b"i", b'; filename="b.png"')
        + part % (b"heads", b"")
        + b"--b--\r\n"
    )
    yield b"image/png\nhi"


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "decoder": (decoder, decoder_seeds),
    "v2": (v2, v2_seeds),
    "form": (form, form_seeds),
}
"""Each target and its first inputs."""

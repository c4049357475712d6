"""`--format masks`: masks/HEAD/IMAGE.png, a class index per pixel with the classes' colours as its palette."""

from __future__ import annotations

import io
from collections.abc import Iterator

from PIL import Image

from serving.answers import Answer, MaskAnswer
from serving.batch.names import inside, one_part
from serving.batch.picture import Picture
from serving.batch.plan import Item
from serving.batch.writers.base import Context


class Writer:
    """PNG of the image's full size; the palette only makes it visible, the value is the class."""

    def __init__(self, context: Context) -> None:
        heads = context.manifest.heads.items()
        self._palettes = {
            name: [value for colour in head.space.colours for value in colour]
            for name, head in heads
            if head.kind == "mask"
        }

    def files(self, item: Item, answer: Answer, picture: Picture) -> Iterator[tuple[bytes, bytes]]:  # noqa: ARG002
        """See ImageWriter."""
        for name, found in answer.heads.items():
            if isinstance(found, MaskAnswer):
                image = Image.fromarray(found.mask)
                image.putpalette(self._palettes[name])
                data = io.BytesIO()
                image.save(data, "PNG", compress_level=3)
                yield b"masks/" + one_part(name).encode() + b"/" + inside(item.base) + b".png", data.getvalue()


def once(context: Context) -> Iterator[tuple[str, bytes]]:
    """The class names of each head, by number."""
    for name, head in context.manifest.heads.items():
        if head.kind == "mask":
            yield f"masks/{one_part(name)}.names", "".join(f"{label}\n" for label in head.classes).encode()

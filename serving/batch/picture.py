"""An encoded image whose pixels are decoded when a writer first asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.decode import decode_bytes


@dataclass(slots=True)
class Picture:
    """One image for the writers; used by one thread at a time.

    Attributes:
        name: for messages.
        content: the encoded bytes.
    """

    name: str
    content: bytes
    _pixels: NDArray[np.uint8] | None = field(default=None, init=False)

    def pixels(self) -> NDArray[np.uint8]:
        """Upright RGB uint8 (h, w, 3) at full size; raises ImageError."""
        if self._pixels is None:
            self._pixels = decode_bytes(self.content, self.name)[0]
        return self._pixels

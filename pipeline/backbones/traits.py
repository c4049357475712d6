"""What a backbone says of itself beside its channels: strides, sizes it takes, remembered poolings, its classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from pipeline.errors import ConfigError

STRIDES = (2, 4, 8, 16, 32)


class Features(list[Tensor]):
    """Feature maps fine to coarse, and beside them what some heads need besides.

    Attributes:
        pooled: the maps that went into each 2 x 2 pooling, at strides 1, 2, 4, ..., where the network remembers them:
            where each maximum stood, and the skips at the input's own resolution.
    """

    def __init__(self, maps: Iterable[Tensor], pooled: Iterable[Tensor] = ()) -> None:
        super().__init__(maps)
        self.pooled = list(pooled)


@dataclass(frozen=True, slots=True)
class Published:
    """The classifier a network was published with.

    Attributes:
        build: number of classes to a module from the coarsest map to logits (B, classes).
        smallest: least (height, width) of the input that leaves it something to see.
    """

    build: Callable[[int], nn.Module]
    smallest: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Traits:
    """What heads and configs must know of a backbone.

    Attributes:
        strides: of the five maps; dilation keeps the coarse ones at a finer stride.
        smallest: least (height, width) of the input.
        multiple: sides of the input must divide by it.
        dense: maps lie on the grid of their stride, as boxes and masks need; valid convolutions leave it.
        pooled: channels of `Features.pooled`; none where the network remembers no pooling.
        published: its own classifier; None where it is a global average and one linear layer.
    """

    strides: tuple[int, ...] = STRIDES
    smallest: tuple[int, int] = (1, 1)
    multiple: int = 32
    dense: bool = True
    pooled: tuple[int, ...] = ()
    published: Published | None = None


def require_size(name: str, size: tuple[int, int], smallest: tuple[int, int], multiple: int) -> None:
    """Refuses an input that a network's strides leave nothing of, naming the nearest that fits; raises ConfigError."""
    fits = [
        max(-(-low // multiple), round(side / multiple), 1) * multiple for side, low in zip(size, smallest, strict=True)
    ]
    if any(side < low or side % multiple for side, low in zip(size, smallest, strict=True)):
        least = [-(-low // multiple) * multiple for low in smallest]
        rule = f"at least {least}" + (f" and sides that are multiples of {multiple}" if multiple > 1 else "")
        raise ConfigError(
            f"data.size {list(size)} does not fit {name}: it needs {rule}; the nearest that fits is {fits}"
        )

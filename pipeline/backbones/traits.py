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
        along: the maps that classifiers along the way see, where the network was published with some.
    """

    def __init__(self, maps: Iterable[Tensor], pooled: Iterable[Tensor] = (), along: Iterable[Tensor] = ()) -> None:
        super().__init__(maps)
        self.pooled, self.along = list(pooled), list(along)


@dataclass(frozen=True, slots=True)
class Natural:
    """What a network was published for, and is looked at with where nothing else is asked for.

    Attributes:
        size: (height, width) of the input.
        channels: of the image.
        classes: of the published classifier.
    """

    size: tuple[int, int] = (224, 224)
    channels: int = 3
    classes: int = 1000


@dataclass(frozen=True, slots=True)
class Published:
    """The classifier a network was published with.

    Attributes:
        build: number of classes to a module from the coarsest map to logits (B, classes).
        smallest: least (height, width) of the input that leaves it something to see.
        exact: the only (height, width) it takes; None = any from the smallest on.
    """

    build: Callable[[int], nn.Module]
    smallest: tuple[int, int]
    exact: tuple[int, int] | None = None


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
        along: its classifiers along the way, for training only: each takes a number of classes and gives a module from a
            map of `Features.along` to logits (B, classes).
    """

    strides: tuple[int, ...] = STRIDES
    smallest: tuple[int, int] = (1, 1)
    multiple: int = 32
    dense: bool = True
    pooled: tuple[int, ...] = ()
    published: Published | None = None
    along: tuple[Callable[[int], nn.Module], ...] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """What a part of a network, beside its backbone, asks of the input's size.

    Attributes:
        name: the part's.
        smallest: least (height, width).
        multiple: sides must divide by it.
        exact: the only (height, width) there is; None = any.
    """

    name: str
    smallest: tuple[int, int] = (1, 1)
    multiple: int = 1
    exact: tuple[int, int] | None = None

    def check(self, size: tuple[int, int], setting: str = "data.size") -> None:
        """Refuses a (height, width), given as `setting`, that does not fit; raises SizeError, or ConfigError where only one does."""
        require_size(self.name, size, self.smallest, self.multiple, setting)
        if self.exact is not None and tuple(size) != tuple(self.exact):
            raise ConfigError(
                f"{setting} {list(size)} does not fit {self.name}, which is built for {list(self.exact)}:"
                f" leave {setting} out, or take a head without fully connected layers"
            )


def require_output_stride(name: str, stride: object) -> None:
    """Raises ConfigError for a stride of the coarsest map that no dilation gives."""
    if stride not in {8, 16, 32}:
        raise ConfigError(f"backbone {name!r}: output_stride is 8, 16 or 32, not {stride!r}")


class SizeError(ConfigError):
    """An input's (height, width) that a part of a network cannot take.

    Attributes:
        told: what does not fit and why.
        nearest: the nearest (height, width) that this part takes.
    """

    def __init__(self, told: str, nearest: tuple[int, int]) -> None:
        super().__init__(f"{told}; the nearest that fits is {list(nearest)}")
        self.told, self.nearest = told, nearest


def follow_sizes(error: SizeError, attempt: Callable[[tuple[int, int]], object]) -> SizeError:
    """The same error with the nearest size that all parts take: `attempt` raises SizeError for one that some part refuses."""
    size, tried = error.nearest, set[tuple[int, int]]()
    while size not in tried:
        tried.add(size)
        try:
            attempt(size)
        except SizeError as next_one:
            size = next_one.nearest
        else:
            return SizeError(error.told, size)
    return error


def require_size(
    name: str, size: tuple[int, int], smallest: tuple[int, int], multiple: int, setting: str = "data.size"
) -> None:
    """Refuses an input that a network's strides leave nothing of, naming the nearest that fits; raises SizeError.

    Args:
        name: what it does not fit.
        size: (height, width).
        smallest: least (height, width).
        multiple: sides must divide by it.
        setting: where the size was given.
    """
    if any(side < low or side % multiple for side, low in zip(size, smallest, strict=True)):
        least = [-(-low // multiple) * multiple for low in smallest]
        rule = f"at least {least}" + (f" and sides that are multiples of {multiple}" if multiple > 1 else "")
        told = f"{setting} {list(size)} does not fit {name}: it needs {rule}"
        raise SizeError(told, fitting_size(size, smallest, multiple))


def fitting_size(size: tuple[int, int], smallest: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The nearest (height, width) whose sides divide by `multiple` and are no smaller than `smallest`."""
    tall, wide = (
        max(-(-low // multiple), round(side / multiple), 1) * multiple for side, low in zip(size, smallest, strict=True)
    )
    return tall, wide

"""What every look is given: the network, its layers, the images; and what it says where it cannot be taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.inspect.layers import Listing, list_layers
from pipeline.inspect.subject import Subject

Pixels = NDArray[np.uint8]


class NotHereError(Exception):
    """A look that this network, without images, heads or data, does not allow; says what is missing."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person wants to see of each look.

    Attributes:
        layers: paths of the layers to look at; empty = the backbone's stages.
        count: channels, filters or images shown.
        repeats: timed passes; 0 = none.
    """

    layers: tuple[str, ...] = ()
    count: int = 8
    repeats: int = 3


class Look:
    """One network under inspection; what several looks need is computed once.

    Args:
        subject: the network.
        find: gives names and letterboxed pictures, RGB uint8 (H, W, 3).
        wish: what is wanted.
    """

    def __init__(self, subject: Subject, find: Callable[[], list[tuple[str, Pixels]]], wish: Wish) -> None:
        self.subject, self.wish = subject, wish
        self._find = find

    @cached_property
    def listing(self) -> Listing:
        """The layers, without times."""
        return list_layers(self.subject.module, self.subject.channels, self.subject.size, self.subject.prefix)

    @cached_property
    def images(self) -> list[tuple[str, Pixels]]:
        """Names and pictures; raises NotHereError where there are none."""
        found = self._find()
        if not found:
            raise NotHereError("needs pictures: --images FILE|DIR")
        return found

    @property
    def layers(self) -> list[str]:
        """The layers to look at."""
        return list(self.wish.layers) or self.subject.stages()

"""Takes the looks in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import ConfigError
from pipeline.inspect.activations import look_at_activations
from pipeline.inspect.augmented import look_at_samples
from pipeline.inspect.command import LOOKS
from pipeline.inspect.costs import look_at_costs
from pipeline.inspect.filters import look_at_filters
from pipeline.inspect.gradcam import look_at_answers
from pipeline.inspect.look import Look, NotHereError, Pixels, Wish
from pipeline.inspect.page import Section
from pipeline.inspect.patches import look_at_patches
from pipeline.inspect.receptive import look_at_fields
from pipeline.inspect.shift import look_at_shifts
from pipeline.inspect.subject import Subject

TAKEN: dict[str, Callable[[Look], Section]] = {
    "costs": look_at_costs,
    "filters": look_at_filters,
    "activations": look_at_activations,
    "patches": look_at_patches,
    "gradcam": look_at_answers,
    "fields": look_at_fields,
    "shift": look_at_shifts,
    "samples": look_at_samples,
}
"""Looks by name: one line for each file that takes one."""

assert TAKEN.keys() == LOOKS.keys()


def take_looks(
    looks: Sequence[str] | None,
    subject: Subject,
    find: Callable[[], list[tuple[str, Pixels]]],
    wish: Wish,
    say: Callable[[str], None],
) -> dict[str, Section]:
    """A section per look, in the order of the page.

    Args:
        looks: which; None takes all that can be had.
        subject: the network.
        find: gives the pictures, where a look needs them.
        wish: what is wanted of each.
        say: told before each look, and of those that cannot be taken.

    Raises:
        ConfigError: a look was asked for by name that cannot be taken, or a layer that is not there.
        DataError: the pictures cannot be read.
    """
    look = Look(subject, find, wish)
    sections: dict[str, Section] = {}
    for name, take in TAKEN.items():
        if looks is not None and name not in looks:
            continue
        say(f"looking: {LOOKS[name]}")
        try:
            sections[name] = take(look)
        except NotHereError as missing:
            if looks is not None:
                raise ConfigError(f"--looks {name} {missing}") from None
            say(f"left out: {name} {missing}")
    return sections

"""Shared memory for the pixels on their way from decoder to engine: equal slots, none copied through a pipe."""

from __future__ import annotations

import mmap
import os
import tempfile


def anonymous_file(size: int) -> int:
    """A descriptor of `size` bytes of memory that no path leads to; it can be sent to another process."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("trifocal-slots")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


class Slab:
    """`count` slots of `slot_bytes`; only touched slots take memory, hence the last one returned is lent first."""

    def __init__(self, slot_bytes: int, count: int) -> None:
        self.slot_bytes, self.count = slot_bytes, count
        self.descriptor = anonymous_file(slot_bytes * count)
        self._memory = mmap.mmap(self.descriptor, slot_bytes * count)
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        """Slots that are not lent."""
        return len(self._free)

    def lend(self) -> Lease:
        """A slot; raises IndexError when none is free."""
        return Lease(self, self._free.pop())

    def put(self, slot: int, data: bytes | memoryview) -> None:
        """Fills a slot from its start."""
        at = slot * self.slot_bytes
        self._memory[at : at + len(data)] = data

    def give_back(self, slot: int) -> None:
        """Ends a loan."""
        self._free.append(slot)

    def close(self) -> None:
        """Returns the memory."""
        self._memory.close()
        os.close(self.descriptor)


class Lease:
    """One slot, kept while anybody still reads or writes it, whoever gave up waiting meanwhile."""

    def __init__(self, slab: Slab, slot: int) -> None:
        self._slab, self.slot, self._holders = slab, slot, 1

    def hold(self) -> None:
        """One more user."""
        self._holders += 1

    def drop(self, *_: object) -> None:
        """One user less; the last one returns the slot."""
        self._holders -= 1
        if self._holders == 0:
            self._slab.give_back(self.slot)

"""Who is let in: bounds on pictures and bytes, refusal by estimated wait, and a quota per client."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Self

from serving.problems import Problem


class Admission:
    """Counts what is in the house, and refuses at the door what would wait too long.

    Args:
        max_items: pictures at a time, waiting or in work.
        max_bytes: bytes of their requests.
        max_wait_s: longest wait before work begins that is worth accepting.
        lanes: pictures that are worked on side by side.
        tell: called with how many pictures and bytes more (or less, below zero) are in the house.
    """

    def __init__(
        self,
        max_items: int,
        max_bytes: int,
        max_wait_s: float,
        lanes: int,
        tell: Callable[[int, int], None] = lambda _items, _bytes: None,
    ) -> None:
        self.max_items, self.max_bytes, self.max_wait_s, self.lanes = max_items, max_bytes, max_wait_s, lanes
        self._tell = tell
        self.items = self.bytes = 0
        self._seconds = 0.0

    def observe(self, items: int, seconds: float) -> None:
        """Learns from a batch how long a picture keeps a lane busy (a moving average over about ten batches)."""
        each = seconds / items
        self._seconds += (each - self._seconds) * (0.1 if self._seconds else 1.0)

    def enter(self, items: int, count: int) -> None:
        """So many pictures and bytes more are in the house; fewer, below zero."""
        self.items += items
        self.bytes += count
        self._tell(items, count)

    @property
    def estimated_wait_s(self) -> float:
        """Seconds until a picture that came now would be begun."""
        return max(0, self.items - self.lanes + 1) * self._seconds / self.lanes

    def ticket(self, deadline_s: float) -> Ticket:
        """For a request whose answer is worthless after `deadline_s`; raises Problem where it would wait too long.

        A house that is full of pictures already refuses here too: what comes later, the body, need not be read then.
        """
        wait = self.estimated_wait_s
        if self.items >= self.max_items:
            raise Problem("overloaded", f"{self.items} pictures are waiting", wait)
        if wait > min(self.max_wait_s, deadline_s):
            raise Problem("overloaded", f"the wait would be about {wait:.1f} s", wait - self.max_wait_s / 2)
        return Ticket(self)


class Ticket:
    """What one request takes of the house; a context that gives it back."""

    def __init__(self, house: Admission) -> None:
        self._house, self.items, self.bytes = house, 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._house.enter(-self.items, -self.bytes)
        self.items = self.bytes = 0

    @property
    def alone(self) -> bool:
        """Whether no other request's pictures are in the house."""
        return self._house.items == self.items

    def take_bytes(self, count: int) -> None:
        """Bytes that have come; raises Problem when the house is full."""
        house = self._house
        if house.bytes + count > house.max_bytes:
            raise Problem("overloaded", f"{house.bytes >> 20} MiB of pictures are waiting", house.estimated_wait_s)
        house.enter(0, count)
        self.bytes += count

    def give_items(self, count: int) -> None:
        """Pictures that are done before their request is."""
        self._house.enter(-count, 0)
        self.items -= count

    def take_items(self, count: int) -> None:
        """Pictures that are about to be worked on; raises Problem when the house is full."""
        house = self._house
        if self.items + count > house.max_items:
            raise Problem("too-many-images", f"{self.items + count} pictures; at most {house.max_items} at a time")
        if house.items + count > house.max_items:
            raise Problem("overloaded", f"{house.items} pictures are waiting", house.estimated_wait_s)
        house.enter(count, 0)
        self.items += count


class Quota:
    """A bucket of requests per client, refilled steadily; a second's worth may come at once.

    Args:
        per_second: requests a client may send; 0 for no quota.
        clock: seconds that only grow.
        clients: most clients remembered; the longest silent are forgotten first.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic, clients: int = 10_000) -> None:
        self._rate, self._clock, self._clients = per_second, clock, clients
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Counts one request; raises Problem `over-quota` with when to try again."""
        if self._rate <= 0:
            return
        now, full = self._clock(), max(1.0, self._rate)
        left, seen = self._buckets.pop(client, (full, now))
        left = min(full, left + (now - seen) * self._rate)
        if left < 1:
            self._buckets[client] = left, now
            raise Problem("over-quota", f"more than {self._rate:g} requests a second", (1 - left) / self._rate)
        self._buckets[client] = left - 1, now
        while len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)

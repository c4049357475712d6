"""Which images make up a batch: shuffled by (seed, epoch), mixed over groups by weight, shared among processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(epoch, index): what a sample is made from, so that nothing else needs to be remembered to make it again."""


class TrainBatches(Sampler[list[Key]]):
    """Batches of a training epoch; every process gets as many.

    Args:
        groups: of each image, the number of its group: a source, or a class of one.
        weights: of each group, above 0; every batch holds the groups in these proportions, to within an image or two.
            A group without training images is passed over. None takes every image once.
        batch_size: images a batch, per process.
        seed: decides the order, with the epoch.
        rank, world: this process among how many.
    """

    def __init__(
        self, groups: list[int], weights: list[float] | None, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.groups = np.asarray(groups)
        self.weights, self.batch_size, self.seed = weights, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        self.skip = 0

    @property
    def sampler(self) -> TrainBatches:
        """Itself: Lightning tells the epoch to `batch_sampler.sampler`, never to a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Told by Lightning before each epoch."""
        self.epoch = epoch

    def order(self) -> list[int]:
        """The epoch's images in order, over all processes."""
        rng = np.random.default_rng((self.seed, self.epoch))
        total = len(self.groups)
        if self.weights is None:
            return [int(i) for i in rng.permutation(total)]
        held = np.bincount(self.groups, minlength=len(self.weights)) > 0
        share = np.asarray(self.weights) * held
        share = share / share.sum()
        queues = [self._endless(number, rng) for number in range(len(share))]
        # Each next image is of the group furthest behind its share, so every batch holds the mix, not the epoch alone.
        owed = rng.uniform(size=len(share)) * held
        out = []
        for _ in range(total):
            owed += share
            number = int(np.argmax(np.where(held, owed, -np.inf)))
            owed[number] -= 1
            out.append(next(queues[number]))
        return out

    def _endless(self, number: int, rng: np.random.Generator) -> Iterator[int]:
        members = np.nonzero(self.groups == number)[0]
        while True:
            yield from (int(i) for i in rng.permutation(members))

    def __iter__(self) -> Iterator[list[Key]]:
        """Lists of (epoch, index); the first `skip` batches of a resumed epoch are left out once."""
        order, size = self.order(), self.batch_size
        step, first, self.skip = size * self.world, self.skip, 0
        for number in range(first, self._count()):
            chunk = order[number * step + self.rank * size : number * step + (self.rank + 1) * size]
            # The last batch is filled up from the epoch's beginning: batch norm needs full ones.
            chunk += order[: size - len(chunk)]
            yield [(self.epoch, index) for index in chunk]

    def _count(self) -> int:
        return -(-len(self.groups) // (self.batch_size * self.world))

    def __len__(self) -> int:
        """Batches per epoch and process."""
        return self._count()


class EvalBatches(Sampler[list[Key]]):
    """Every image once, in order; each process takes every `world`-th batch, so none is counted twice."""

    def __init__(self, total: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        indices = range(rank, total, world)
        self.batches = [[(0, i) for i in indices[at : at + batch_size]] for at in range(0, len(indices), batch_size)]

    def __iter__(self) -> Iterator[list[Key]]:
        """Lists of (0, index)."""
        return iter(self.batches)

    def __len__(self) -> int:
        """Batches of this process."""
        return len(self.batches)

"""VisionData, the LightningDataModule: from folders, or the built-in shapes, to loaders of Batches."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from pipeline.data import fused
from pipeline.data.align import align_fields
from pipeline.data.augment import Albumentations
from pipeline.data.balance import group_records, require_classes
from pipeline.data.cache import ImageCache
from pipeline.data.collate import Collate
from pipeline.data.dataset import RecordDataset, View
from pipeline.data.disk_cache import DiskCache
from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.detect import read_source, unknown_format
from pipeline.data.identity import facts
from pipeline.data.intake import refuse, refuse_unlearnable, size_problems, statement, unlabelled
from pipeline.data.loader import ResumableLoader, start_worker
from pipeline.data.mix import Mixing
from pipeline.data.presets import Preset, check_preset, find_preset
from pipeline.data.sampling import EvalBatches, TrainBatches
from pipeline.data.shapes import read_shapes
from pipeline.data.signals import SAMPLES, read_signals
from pipeline.data.split import split_records
from pipeline.data.unite import Source, count, renumber, unite
from pipeline.errors import ConfigError, DataError, nearest
from pipeline.hardware import cpu_limit
from pipeline.labels import LabelSpace
from pipeline.ranges import require_between
from pipeline.records import Record


class VisionData(L.LightningDataModule):
    """Labelled images as Batches.

    Args:
        root: the data set's folder; without it, and without sources, the built-in shapes.
        format: `auto`, or readers joined by `+`, e.g. `coco+masks`.
        sources: several data sets for one network, mixed by weight.
        size: input side in pixels, or (height, width); the network says what fits (most: multiples of 32).
        train_size: side of the training views, cut out at random at the input's scale; None trains on whole inputs.
            Large inputs cost a fraction so (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).
        batch_size: images a batch and process.
        workers: loader processes; -1 chooses: none for the built-in shapes, else one per core up to 4.
        augment: preset `none`, `light`, `standard` or `strong`, or albumentations' transforms by class name.
        flip: probability of a horizontal flip in the preset's stead; 0 for texts, hands and roads, which have a side.
        mosaic: probability of a sample made of four images.
        mixup: probability that a sample is blended with another, with its image labels, boxes and masks.
        cutmix: probability that a rectangle of another sample is set in.
        close_mosaic: last epochs without mosaic, mixup and cutmix.
        cache_gb: memory for decoded images, in GiB, over all workers; 0 keeps none.
        cache_dir: a folder that keeps decoded, shrunk images between runs; None keeps none.
        cache_dir_gb: most GiB in that folder.
        balance: a label field with one class per image, whose rare classes are drawn more often: a class of n images
            in proportion to sqrt(n), in every batch.
        split: fractions of train, val and test where the data set does not say itself.
        shapes: size of the built-in data: `images`, `size`, `seed`.
        signals: the built-in signals of one dimension in the shapes' stead: `images`, `seed`; with size [1, 40].
        seed: decides split, order and augmentation.
    """

    def __init__(
        self,
        root: str | None = None,
        format: str = "auto",  # noqa: A002  # the config's name for it
        sources: list[Source] | None = None,
        size: int | tuple[int, int] = 320,
        train_size: int | tuple[int, int] | None = None,
        batch_size: int = 16,
        workers: int = -1,
        augment: Literal["none", "light", "standard", "strong"] | list[dict[str, Any]] = "standard",
        flip: float | None = None,
        mosaic: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        close_mosaic: int = 10,
        cache_gb: float = 2.0,
        cache_dir: str | None = None,
        cache_dir_gb: float = 20.0,
        balance: str | None = None,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        shapes: dict[str, int] | None = None,
        signals: dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = _plain_settings(locals())
        self.size = _sides("size", size)
        self.train_size = self.size if train_size is None else _sides("train_size", train_size)
        if self.train_size != self.size and any(side % 32 for side in self.train_size):
            raise ConfigError(f"data.train_size must be multiples of 32, not {list(self.train_size)}")
        if self.train_size[0] > self.size[0] or self.train_size[1] > self.size[1]:
            raise ConfigError(f"data.train_size {list(self.train_size)} is larger than data.size {list(self.size)}")
        if root is not None and sources:
            raise ConfigError("give data.root or data.sources, not both")
        for number, source in enumerate(sources or []):
            if not 0 < source.weight < float("inf"):
                raise ConfigError(f"data.sources[{number}].weight must be a number above 0, not {source.weight}")
        _check_formats([format, *(source.format for source in sources or [])])
        self.sources = sources or ([Source(root, format)] if root is not None else [])
        _check_keys("shapes", shapes, read_shapes)
        _check_keys("signals", signals, read_signals)
        self.shapes, self.signals, self.fractions = shapes, signals, split
        if signals is not None and self.size != (1, SAMPLES):
            raise ConfigError(
                f"data.signals have {SAMPLES} samples: give data.size [1, {SAMPLES}], not {list(self.size)}"
            )
        self.batch_size, self.workers, self.cache_gb, self.seed = batch_size, workers, cache_gb, seed
        for name, chance in (("flip", flip or 0.0), ("mosaic", mosaic), ("mixup", mixup), ("cutmix", cutmix)):
            require_between(f"data.{name}", chance, 0, 1)
        require_between("data.batch_size", batch_size, 1)
        require_between("data.workers", workers, -1)
        for name, least in (("close_mosaic", close_mosaic), ("cache_gb", cache_gb), ("cache_dir_gb", cache_dir_gb)):
            require_between(f"data.{name}", least, 0)
        self.mosaic, self.mixup, self.cutmix, self.close_mosaic = mosaic, mixup, cutmix, close_mosaic
        self.disk, self.disk_gb = Path(cache_dir) if cache_dir else None, cache_dir_gb
        self.augment, self.flip, self.balance = augment, flip, balance
        # A mistake in it is told before any label is read.
        if isinstance(augment, str):
            check_preset(augment)
        else:
            Albumentations(augment, self.size, self.train_size)
        self.problems: list[Problem] = []
        self.formats: list[str] = []
        self._splits: dict[str, list[Record]] | None = None
        self._spaces: dict[str, LabelSpace] = {}
        self._source_of: dict[str, int] = {}
        self._told = False

    def _view(self) -> View:
        """The training view; a preset is chosen by what the data is labelled with."""
        if isinstance(self.augment, str):
            kinds = {space.kind for space in self._spaces.values()}
            preset = find_preset(self.augment, kinds, self.flip)
            return partial(_preset_view, preset=preset, size=self.train_size, fit=self.size)
        return Albumentations(self.augment, self.size, self.train_size)

    # --- what the data is ---------------------------------------------------------------------------------------

    @property
    def label_spaces(self) -> dict[str, dict[str, Any]]:
        """Label fields as plain values, with the training split's counts; reads the labels at first use.

        Raises DataError where nothing can be learnt from them.
        """
        train = self._read()["train"]
        refuse_unlearnable(self._spaces, train)
        return {name: space.to_dict() for name, space in self._spaces.items()}

    def records(self, split: str) -> list[Record]:
        """The Records of `train`, `val` or `test`."""
        return self._read()[split]

    def _read(self) -> dict[str, list[Record]]:
        if self._splits is not None:
            return self._splits
        loaded = [read_source(Path(s.root), s.format) for s in self.sources] or [self._built_in()]
        spaces, records = unite(loaded, [source.fields or {} for source in self.sources])
        self.formats = [source.format for source in loaded]
        self.problems = [problem for source in loaded for problem in source.problems]
        for source, given in zip(loaded, self.sources, strict=False):
            self.problems += unlabelled(Path(given.root), source)
        images = [record for part in records for record in part]
        self.problems += size_problems(images)
        refuse(self.problems, len(images))
        if self.balance is not None:
            require_classes(self.balance, spaces)
        self._source_of = {record.image.name: number for number, part in enumerate(records) for record in part}
        splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
        for part in records:
            for name, members in split_records(part, self.fractions, self.seed).items():
                splits[name] += members
        self._spaces = {name: space.with_counts(count(name, space, splits["train"])) for name, space in spaces.items()}
        self._splits = splits
        return splits

    def _built_in(self) -> SourceData:
        return read_signals(**self.signals) if self.signals is not None else read_shapes(**(self.shapes or {}))

    def align(self, spaces: dict[str, LabelSpace]) -> tuple[str, ...]:
        """Names the fields and numbers the classes as a trained network's heads do, for data that was read without it.

        Returns what does not count, and why. Raises DataError as `align_fields` does.
        """
        splits = self._read()
        found = align_fields(self._spaces, spaces)
        self._splits = {
            k: [renumber(record.only(found.heads), found.heads, found.tables) for record in v]
            for k, v in splits.items()
        }
        self._spaces = {head: spaces[head] for head in found.heads.values()}
        return found.remarks

    def setup(self, stage: str) -> None:
        """Says, once and on rank zero, what `fit` found and what it leaves out."""
        splits = self._read()
        if stage == "fit" and not self._told and (self.trainer is None or self.trainer.is_global_zero):
            self._told = True
            sys.stdout.write(statement(self.formats, self._spaces, splits, self.problems) + "\n")
            sys.stdout.flush()

    def digest(self) -> dict[str, dict[str, Any]]:
        """Per split: `sha256` over names within the data set, sizes of files and labels; `images`, and labels per field.

        It is the same wherever the data set lies.
        """
        out: dict[str, dict[str, Any]] = {}
        for split, records in self._read().items():
            state = hashlib.sha256()
            for record in records:
                number = self._source_of.get(record.image.name, 0)
                root = self.sources[number].root if self.sources else ""
                for part in facts(record):
                    state.update(part if isinstance(part, bytes) else part.replace(root, "").encode(errors="replace"))
            fields = {name: sum(name in record.labels for record in records) for name in self._spaces}
            out[split] = {"sha256": state.hexdigest(), "images": len(records), **fields}
        return out

    def state_dict(self) -> dict[str, Any]:
        """The settings as plain values, for the checkpoint: export measures on the same data without a config."""
        return self.settings

    @classmethod
    def from_settings(cls, settings: dict[str, Any], **changed: Any) -> VisionData:
        """The data of a checkpoint, with some settings changed."""
        given = {**settings, **changed}
        sources = [Source(**source) for source in given["sources"] or []] if "sources" in given else None
        return cls(**{**given, "sources": sources or None})

    # --- loaders ------------------------------------------------------------------------------------------------

    def _dataset(self, split: str, train: bool) -> RecordDataset:
        records = self._read()[split]
        if not records:
            raise DataError(f"the data has no {split} images; set data.split, or add a {split} split to the data set")
        if not train:
            return RecordDataset(records, self._spaces, self.size, None, ImageCache(0))
        until = 1 << 30
        if self.trainer is not None and self.trainer.max_epochs is not None and self.trainer.max_epochs > 0:
            until = self.trainer.max_epochs - self.close_mosaic
        workers = max(1, self._workers())
        disk = DiskCache(self.disk, int(self.disk_gb * 2**30), workers) if self.disk else None
        cache = ImageCache(int(self.cache_gb * 2**30 / workers), disk)
        mixing = Mixing(self.mosaic, self.mixup, self.cutmix, until)
        return RecordDataset(records, self._spaces, self.size, self._view(), cache, mixing, self.seed)

    def _workers(self) -> int:
        if self.workers >= 0:
            return self.workers
        return 0 if not self.sources else min(4, cpu_limit())

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented Batches."""
        dataset = self._dataset("train", train=True)
        numbers = [self._source_of[record.image.name] for record in dataset.records]
        weights = [source.weight for source in self.sources] if len(self.sources) > 1 else None
        rank, world = self._place()
        groups, shares = group_records(dataset.records, numbers, weights, self.balance)
        batches = TrainBatches(groups, shares, self.batch_size, self.seed, rank, world)
        return ResumableLoader(dataset, batch_sampler=batches, **self._loader_options())

    def evaluation_dataloader(self, split: str) -> DataLoader[Any]:
        """Letterboxed Batches with frames of `train`, `val` or `test`, every image once, in order."""
        dataset = self._dataset(split, train=False)
        batches = EvalBatches(len(dataset), self.batch_size, *self._place())
        return DataLoader(dataset, batch_sampler=batches, **self._loader_options())

    def val_dataloader(self) -> DataLoader[Any]:
        """Letterboxed Batches with frames."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Letterboxed Batches with frames."""
        return self.evaluation_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test split's Batches."""
        return self.evaluation_dataloader("test")

    def _loader_options(self) -> dict[str, Any]:
        workers = self._workers()
        return {
            "num_workers": workers,
            "collate_fn": Collate(self._spaces),
            "worker_init_fn": start_worker,
            "persistent_workers": workers > 0,
            "multiprocessing_context": "fork" if workers > 0 else None,
        }


def _plain_settings(given: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments as values that a checkpoint may hold; folders absolute, so that any place finds them."""
    plain = {key: value for key, value in given.items() if key not in {"self", "__class__"}}
    if plain["root"] is not None:
        plain["root"] = str(Path(plain["root"]).absolute())
    plain["sources"] = [{**asdict(s), "root": str(Path(s.root).absolute())} for s in plain["sources"] or []]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def _check_formats(given: list[str]) -> None:
    for wrong in filter(None, map(unknown_format, given)):
        raise ConfigError(wrong)


def _check_keys(name: str, given: dict[str, int] | None, reader: Callable[..., SourceData]) -> None:
    known = inspect.signature(reader).parameters
    for key in given or {}:
        if key not in known:
            raise ConfigError(f"data.{name} has no {key!r}{nearest(key, known)}")


def _sides(name: str, given: int | tuple[int, int]) -> tuple[int, int]:
    sides = (given, given) if isinstance(given, int) else (int(given[0]), int(given[1]))
    if any(side < 1 for side in sides):
        raise ConfigError(f"data.{name} must be pixels, 1 or more, not {list(sides)}")
    return sides


def _preset_view(
    image: Any, labels: Any, rng: np.random.Generator, preset: Preset, size: tuple[int, int], fit: tuple[int, int]
) -> Any:
    return fused.augment(image, labels, size, preset, rng, fit)

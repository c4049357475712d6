"""VisionData, the LightningDataModule: from folders, or the built-in shapes, to loaders of Batches."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from torch.utils.data import DataLoader

from pipeline.data import fused
from pipeline.data.augment import Albumentations
from pipeline.data.cache import ImageCache
from pipeline.data.collate import Collate
from pipeline.data.dataset import RecordDataset, View
from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.detect import read_source
from pipeline.data.intake import refuse, refuse_unlearnable, size_problems, statement
from pipeline.data.sampling import EvalBatches, TrainBatches
from pipeline.data.shapes import read_shapes
from pipeline.data.split import split_records
from pipeline.errors import ConfigError, DataError
from pipeline.hardware import cpu_limit
from pipeline.labels import LabelSpace
from pipeline.records import Boxes, Record


@dataclass
class Source:
    """One of several sources.

    Attributes:
        root: its folder.
        format: as `data.format`.
        weight: its share of every batch, relative to the others'.
        fields: new names of its label fields, to tell or to unite them with other sources' fields.
    """

    root: str
    format: str = "auto"
    weight: float = 1.0
    fields: dict[str, str] | None = None


class VisionData(L.LightningDataModule):
    """Labelled images as Batches.

    Args:
        root: the data set's folder; without it, and without sources, the built-in shapes.
        format: `auto`, or readers joined by `+`, e.g. `coco+masks`.
        sources: several data sets for one network, mixed by weight.
        size: input side in pixels, or (height, width); multiples of 32.
        batch_size: images a batch and process.
        workers: loader processes; -1 chooses: none for the built-in shapes, else one per core up to 4.
        augment: preset `none`, `light`, `standard` or `strong`, or albumentations' transforms by class name.
        mosaic: probability of a sample made of four images.
        close_mosaic: last epochs without mosaic.
        cache_gb: memory for decoded images, in GiB, over all workers; 0 keeps none.
        split: fractions of train, val and test where the data set does not say itself.
        shapes: size of the built-in data: `images`, `size`, `seed`.
        seed: decides split, order and augmentation.
    """

    def __init__(
        self,
        root: str | None = None,
        format: str = "auto",  # noqa: A002  # the config's name for it
        sources: list[Source] | None = None,
        size: int | tuple[int, int] = 320,
        batch_size: int = 16,
        workers: int = -1,
        augment: Literal["none", "light", "standard", "strong"] | list[dict[str, Any]] = "standard",
        mosaic: float = 0.0,
        close_mosaic: int = 10,
        cache_gb: float = 2.0,
        split: tuple[float, float, float] = (0.8, 0.1, 0.1),
        shapes: dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = _plain_settings(locals())
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if any(side % 32 or side < 32 for side in self.size):
            raise ConfigError(f"data.size must be multiples of 32, not {list(self.size)}")
        if root is not None and sources:
            raise ConfigError("give data.root or data.sources, not both")
        self.sources = sources or ([Source(root, format)] if root is not None else [])
        self.shapes, self.fractions = shapes, split
        self.batch_size, self.workers, self.cache_gb, self.seed = batch_size, workers, cache_gb, seed
        self.mosaic, self.close_mosaic = mosaic, close_mosaic
        self.view = self._view(augment)
        self.problems: list[Problem] = []
        self.formats: list[str] = []
        self._splits: dict[str, list[Record]] | None = None
        self._spaces: dict[str, LabelSpace] = {}
        self._source_of: dict[str, int] = {}
        self._told = False

    def _view(self, augment: str | list[dict[str, Any]]) -> View | None:
        if isinstance(augment, str):
            preset = fused.find_preset(augment)
            return partial(_preset_view, preset=preset or fused.Preset(flip=0.0), size=self.size)
        return Albumentations(augment, self.size)

    # --- what the data is ---------------------------------------------------------------------------------------

    @property
    def label_spaces(self) -> dict[str, dict[str, Any]]:
        """Label fields as plain values, with the training split's counts; reads the labels at first use."""
        self._read()
        return {name: space.to_dict() for name, space in self._spaces.items()}

    def records(self, split: str) -> list[Record]:
        """The Records of `train`, `val` or `test`."""
        return self._read()[split]

    def _read(self) -> dict[str, list[Record]]:
        if self._splits is not None:
            return self._splits
        loaded = [read_source(Path(s.root), s.format) for s in self.sources] or [read_shapes(**(self.shapes or {}))]
        spaces, records = unite(loaded, [source.fields or {} for source in self.sources])
        self.formats = [source.format for source in loaded]
        self.problems = [problem for source in loaded for problem in source.problems]
        images = [record for part in records for record in part]
        self.problems += size_problems(images)
        refuse(self.problems, len(images))
        self._source_of = {record.image.name: number for number, part in enumerate(records) for record in part}
        splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
        for part in records:
            for name, members in split_records(part, self.fractions, self.seed).items():
                splits[name] += members
        if not splits["train"]:
            raise DataError("the data has no training images; check data.split, or the data set's own split files")
        self._spaces = {name: space.with_counts(count(name, space, splits["train"])) for name, space in spaces.items()}
        refuse_unlearnable(self._spaces)
        self._splits = splits
        return splits

    def align(self, spaces: dict[str, LabelSpace]) -> None:
        """Numbers the classes as a trained network's heads do, for data that was read without it.

        Raises:
            DataError: no field is a head's, or a class is unknown to its head.
        """
        splits = self._read()
        shared = {name: space for name, space in self._spaces.items() if name in spaces}
        if not shared:
            raise DataError(f"no label field of the data ({', '.join(self._spaces)}) is a head's ({', '.join(spaces)})")
        tables = {n: [spaces[n].index(c) for c in space.names] for n, space in shared.items()}
        for name, table in tables.items():
            if spaces[name].kind != shared[name].kind:
                raise DataError(f"field {name!r} holds {shared[name].kind}, its head answers {spaces[name].kind}")
            if spaces[name].kind == "mask" and table != list(range(len(table))):
                raise DataError(f"the masks of field {name!r} number their classes otherwise than its head")
        self._splits = {k: [_renumber(record.only(shared), {}, tables) for record in v] for k, v in splits.items()}
        self._spaces = {name: spaces[name] for name in shared}

    def setup(self, stage: str) -> None:
        """Says, once and on rank zero, what `fit` found and what it leaves out."""
        splits = self._read()
        if stage == "fit" and not self._told and (self.trainer is None or self.trainer.is_global_zero):
            self._told = True
            sys.stdout.write(statement(self.formats, self._spaces, splits, self.problems) + "\n")
            sys.stdout.flush()

    def digest(self) -> dict[str, dict[str, Any]]:
        """Per split: `sha256` over names and labels, `images`, and labels per field."""
        out: dict[str, dict[str, Any]] = {}
        for split, records in self._read().items():
            state = hashlib.sha256()
            for record in records:
                state.update(repr((record.image.name, sorted(record.labels))).encode())
                for _, label in sorted(record.labels.items()):
                    raw = (
                        label.xyxy.tobytes() + label.classes.tobytes()
                        if isinstance(label, Boxes)
                        else repr(label).encode()
                    )
                    state.update(raw)
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

    def _dataset(self, split: str, view: View | None) -> RecordDataset:
        records = self._read()[split]
        if not records:
            raise DataError(f"the data has no {split} images; set data.split, or add a {split} split to the data set")
        workers = max(1, self._workers())
        cache = ImageCache(int(self.cache_gb * 2**30 / workers) if view is not None else 0)
        until = 1 << 30
        if self.trainer is not None and self.trainer.max_epochs is not None and self.trainer.max_epochs > 0:
            until = self.trainer.max_epochs - self.close_mosaic
        mosaic = self.mosaic if view is not None else 0.0
        return RecordDataset(records, self._spaces, self.size, view, cache, mosaic, until, self.seed)

    def _workers(self) -> int:
        if self.workers >= 0:
            return self.workers
        return 0 if not self.sources else min(4, cpu_limit())

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented Batches."""
        dataset = self._dataset("train", self.view)
        numbers = [self._source_of[record.image.name] for record in dataset.records]
        weights = [source.weight for source in self.sources] if len(self.sources) > 1 else None
        rank, world = self._place()
        batches = TrainBatches(numbers, weights, self.batch_size, self.seed, rank, world)
        return ResumableLoader(dataset, batch_sampler=batches, **self._loader_options())

    def evaluation_dataloader(self, split: str) -> DataLoader[Any]:
        """Letterboxed Batches with frames of `train`, `val` or `test`, every image once, in order."""
        dataset = self._dataset(split, None)
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
            "worker_init_fn": _start_worker,
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


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that goes on in mid-epoch: its state is how many batches of the epoch are done."""

    done = 0

    def __iter__(self) -> Any:
        """Batches of the epoch, counted."""
        assert isinstance(self.batch_sampler, TrainBatches)
        self.done = self.batch_sampler.skip
        for batch in super().__iter__():
            self.done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """`done`: batches of this epoch that training has had (0 at its end)."""
        return {"done": self.done % len(self)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Leaves out the batches that are done."""
        assert isinstance(self.batch_sampler, TrainBatches)
        self.batch_sampler.skip = state["done"]


def _preset_view(image: Any, labels: Any, rng: np.random.Generator, preset: fused.Preset, size: tuple[int, int]) -> Any:
    return fused.augment(image, labels, size, preset, rng)


def _start_worker(number: int) -> None:  # noqa: ARG001  # the loader gives it
    """One thread a worker; Ctrl-C is the main process's business."""
    import cv2
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def unite(loaded: list[SourceData], renames: list[dict[str, str]]) -> tuple[dict[str, LabelSpace], list[list[Record]]]:
    """Several sources' fields and Records as one: fields of one name share a class list, in order of appearance.

    Raises:
        ConfigError: a renamed field that the source has not.
        DataError: fields of one name but of different kinds.
    """
    spaces: dict[str, LabelSpace] = {}
    moved: list[list[Record]] = []
    for number, source in enumerate(loaded):
        rename = renames[number] if number < len(renames) else {}
        for field in rename:
            if field not in source.spaces:
                raise ConfigError(
                    f"data.sources[{number}].fields: no field {field!r}; it has {', '.join(source.spaces)}"
                )
        tables: dict[str, list[int]] = {}
        for field, space in source.spaces.items():
            name = rename.get(field, field)
            known = spaces.get(name, LabelSpace(space.kind, ()))
            if known.kind != space.kind:
                raise DataError(f"label field {name!r} holds {known.kind} in one source and {space.kind} in another")
            names = known.names + tuple(n for n in space.names if n not in known.names)
            spaces[name] = LabelSpace(space.kind, names)
            tables[field] = [names.index(n) for n in space.names]
            if space.kind == "mask" and tables[field] != list(range(len(space.names))):
                raise DataError(f"the masks of field {name!r} number their classes differently in {source.format}")
        moved.append([_renumber(record, rename, tables) for record in source.records])
    return spaces, moved


def _renumber(record: Record, rename: dict[str, str], tables: dict[str, list[int]]) -> Record:
    labels: dict[str, Any] = {}
    for field, label in record.labels.items():
        table, name = tables[field], rename.get(field, field)
        if isinstance(label, Boxes):
            labels[name] = replace(label, classes=np.asarray(table, np.int64)[label.classes])
        elif isinstance(label, int):
            labels[name] = table[label]
        elif isinstance(label, tuple):
            labels[name] = tuple(table[i] for i in label)
        else:
            labels[name] = label
    return replace(record, labels=labels)


def count(name: str, space: LabelSpace, records: list[Record]) -> tuple[int, ...]:
    """Labels per class: images, or boxes; zeros for masks, which are not read for it."""
    total = np.zeros(len(space.names), np.int64)
    for record in records:
        label = record.labels.get(name)
        if isinstance(label, Boxes):
            total += np.bincount(label.classes, minlength=len(total))
        elif isinstance(label, int):
            total[label] += 1
        elif isinstance(label, tuple):
            total[list(label)] += 1
    return tuple(int(value) for value in total)

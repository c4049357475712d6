"""A CSV or Parquet table of files and labels: columns file, one or more labels, perhaps split and group."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.files import SPLITS, images_under
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.records import FieldLabel, FileImage, Record

FILE_COLUMNS = ("file", "filename", "file_name", "path", "image", "image_path")


def find_table(root: Path) -> Path | None:
    """The folder's table of labels, if there is one with a file column."""
    for path in sorted([*root.glob("*.csv"), *root.glob("*.parquet")]):
        columns = path.open(errors="replace").readline().lower() if path.suffix == ".csv" else "file"
        if any(name in columns.replace('"', "").strip().split(",") for name in FILE_COLUMNS):
            return path
    return None


def read_table(root: Path) -> SourceData:
    """Records of a table; a cell with `|` between names makes its column multi-label, an empty cell is not labelled."""
    path = find_table(root)
    if path is None:
        raise DataError(f"{root}: no CSV or Parquet table with one of the columns {', '.join(FILE_COLUMNS)}")
    frame = pd.read_csv(path, dtype=str) if path.suffix == ".csv" else pd.read_parquet(path).astype("string")
    frame.columns = frame.columns.str.strip()
    file_column = next(column for column in frame.columns if column.lower() in FILE_COLUMNS)
    fields = [column for column in frame.columns if column not in {file_column, "split", "group"}]
    spaces = {column: _space(frame[column]) for column in fields}
    pictures = {picture.name: picture for picture in images_under(root)}
    records, problems = [], []
    for number, row in enumerate(frame.to_dict("records"), 2):
        name = str(row[file_column])
        picture = root / name if (root / name).is_file() else pictures.get(Path(name).name)
        if picture is None or not picture.resolve().is_relative_to(root.resolve()):
            problems.append(Problem("error", "missing image", f"{path}:{number}", f"{name} is not in the folder"))
            continue
        labels: dict[str, FieldLabel] = {}
        for column, space in spaces.items():
            if not pd.isna(row[column]):
                labels[column] = _label(str(row[column]), space)
        split = SPLITS.get(str(row.get("split", "")).lower())
        group = None if pd.isna(row.get("group", float("nan"))) else str(row["group"])
        records.append(Record(FileImage(picture), labels, split, group))
    return SourceData("table", spaces, records, problems)


def _space(column: pd.Series) -> LabelSpace:
    values = [str(value) for value in column.dropna().unique()]
    if any("|" in value for value in values):
        return LabelSpace("multilabel", tuple(sorted({name for value in values for name in value.split("|") if name})))
    return LabelSpace("classes", tuple(sorted(values)))


def _label(value: str, space: LabelSpace) -> FieldLabel:
    if space.kind == "multilabel":
        return tuple(space.index(name) for name in value.split("|") if name)
    return space.index(value)

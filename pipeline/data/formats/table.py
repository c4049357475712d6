"""A CSV or Parquet table of files and labels: columns file, one or more labels, perhaps split and group."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pandas as pd

from pipeline.data.formats.base import Problem, SourceData
from pipeline.data.formats.files import SPLITS, Pictures, read_text
from pipeline.errors import DataError
from pipeline.labels import LabelSpace
from pipeline.records import FieldLabel, FileImage, Record

FILE_COLUMNS = ("file", "filename", "file_name", "filepath", "path", "image", "image_path", "image_name")
GROUP_COLUMNS = ("group", "group_id", "patient", "patient_id", "subject", "subject_id", "video", "video_id")
_NOT_LABELS = frozenset({"id", "index", "width", "height", "size", "url", "licence", "license", ""})


def find_tables(root: Path) -> list[Path]:
    """The folder's tables with a file column, sorted; the first is read."""
    found = sorted([*root.glob("*.csv"), *root.glob("*.parquet")])
    return [path for path in found if any(column.strip().lower() in FILE_COLUMNS for column in _columns(path))]


def _columns(path: Path) -> list[str]:
    if path.suffix == ".csv":
        with path.open(errors="replace", encoding="utf-8-sig") as file:
            return file.readline().replace('"', "").replace(";", ",").strip().split(",")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return list(map(str, parquet.read_schema(path).names))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


def read_table(root: Path) -> SourceData:
    """Records of a table; a cell with `|` between names makes its column multi-label.

    An empty cell is not labelled; a cell `|` in a multi-label column is labelled with no class.

    Columns that cannot be labels (`id`, sizes, fractions, a different text in every row) are left out and told.

    Raises:
        DataError: no table with a file column, one that cannot be read, or one without a label column.
    """
    found = find_tables(root)
    if not found:
        raise DataError(f"{root}: no CSV or Parquet table with one of the columns {', '.join(FILE_COLUMNS)}")
    path, *others = found
    frame = _read(path)
    file_column = next(column for column in frame.columns if column.lower() in FILE_COLUMNS)
    split_column = next((column for column in frame.columns if column.lower() == "split"), None)
    group_column = next((column for name in GROUP_COLUMNS for column in frame.columns if column.lower() == name), None)
    taken = {file_column, split_column, group_column}
    spaces, problems = _label_columns(path, frame[[column for column in frame.columns if column not in taken]])
    if not spaces:
        reasons = "; ".join(f"{problem.where.removeprefix(f'{path}: ')}: {problem.message}" for problem in problems)
        raise DataError(f"{path}: no label column beside {file_column!r}; {reasons or 'add one, e.g. `label`'}")
    message = f"only {path.name} is read; put all rows into one table, with a column `split`"
    problems += [Problem("warning", "table not read", str(other), message) for other in others]
    pictures = Pictures(root)
    records = []
    for number, row in zip(frame.index, frame.to_dict("records"), strict=True):
        place = f"{path}:{number}"
        name, split = _cell(row[file_column]), None
        if split_column is not None and (given := _cell(row[split_column])):
            split = SPLITS.get(given.lower())
            if split is None:
                message = f"split {given!r} is none of train, val, test"
                problems.append(Problem("error", "unknown split", place, message))
                continue
        picture = pictures.named(name, place, problems, (root / "images",), split)
        if picture is None:
            continue
        labels = {c: _label(cell, space) for c, space in spaces.items() if (cell := _cell(row[c]))}
        group = _cell(row[group_column]) or None if group_column is not None else None
        records.append(Record(FileImage(picture), labels, split, group))
    return SourceData("table", spaces, records, problems)


def _label_columns(path: Path, frame: pd.DataFrame) -> tuple[dict[str, LabelSpace], list[Problem]]:
    """The label fields among a table's other columns, and which columns are none, with the reason."""
    problems: list[Problem] = []
    spaces: dict[str, LabelSpace] = {}
    for column in frame.columns:
        reason = _no_label(frame[column])
        if reason is None:
            spaces[column] = _space(frame[column])
        elif column.lower() not in _NOT_LABELS:
            problems.append(Problem("info", "column left out", f"{path}: {column}", reason))
    for column in [c for c, space in spaces.items() if space.kind == "classes" and len(space.names) == 1]:
        if len(spaces) > 1:
            (only,) = spaces.pop(column).names
            message = f"{only!r} in every row: nothing to tell apart"
            problems.append(Problem("info", "column left out", f"{path}: {column}", message))
    return spaces, problems


def _read(path: Path) -> pd.DataFrame:
    """All cells as text; `None` and `NA` are names like others, only an empty cell is empty."""
    if path.suffix == ".csv":
        lines = _csv_rows(path)
        header = [column.strip() for column in lines[0][1]] if lines else []
        wrong = next(((n, row) for n, row in lines if len(row) != len(header)), None)
        if wrong is not None:
            raise DataError(f"{path}:{wrong[0]}: {len(wrong[1])} cells, but the first line has {len(header)}")
        index = pd.Index([number for number, _ in lines[1:]])
        frame = pd.DataFrame([row for _, row in lines[1:]], index=index, columns=header, dtype=str)
    else:
        # Whole numbers with gaps come as floats: `1.0` would be another class than the CSV's `1`.
        frame = _read_parquet(path).convert_dtypes()
        frame.columns = pd.Index([str(column).strip() for column in frame.columns])
        frame = frame.reset_index(drop=True).astype("string").fillna("")
    twice = sorted({column for column in frame.columns if list(frame.columns).count(column) > 1})
    if twice:
        raise DataError(f"{path}: the column {', '.join(twice)} stands there twice")
    return frame


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: not readable as Parquet: {error}") from error


def _csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it ends in."""
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in text.split("\n")[0] else ",")
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not readable as CSV: {error}") from error


def _cell(value: object) -> str:
    return str(value).strip()


def _no_label(column: pd.Series) -> str | None:
    """Why a column holds no labels, None when it may."""
    values = [value for value in map(_cell, column) if value]
    distinct = set(values)
    if not values:
        return "every cell is empty"
    if str(column.name).lower() in _NOT_LABELS:
        return "its name says that it is no label"
    if len(distinct) > 20 and len(distinct) > len(values) / 2:
        return f"{len(distinct)} different values in {len(values)} rows are no classes"
    if any(_is_fraction(value) for value in distinct):
        return "fractions are no classes"
    return None


def _is_fraction(value: str) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return math.isfinite(number) and not number.is_integer()


def _space(column: pd.Series) -> LabelSpace:
    values = sorted({value for value in map(_cell, column) if value})
    if any("|" in value for value in values):
        return LabelSpace("multilabel", tuple(sorted({name for value in values for name in _parts(value)})))
    whole = all(value.isdecimal() for value in values)
    return LabelSpace("classes", tuple(sorted(values, key=int) if whole else values))


def _parts(value: str) -> list[str]:
    return [name.strip() for name in value.split("|") if name.strip()]


def _label(value: str, space: LabelSpace) -> FieldLabel:
    if space.kind == "multilabel":
        return tuple(sorted({space.index(name) for name in _parts(value)}))
    return space.index(value)

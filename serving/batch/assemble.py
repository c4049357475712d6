"""The parts of a run become its final files, each of which appears whole: predictions.parquet, errors.jsonl, formats."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.batch.journal import Journal
from serving.batch.rows import ImageResult, part_schema, prediction_schema, results_of
from serving.batch.tally import Tally
from serving.batch.writers.base import RunWriter

PREDICTIONS, ERRORS = "predictions.parquet", "errors.jsonl"


def write_part(path: Path, table: pa.Table) -> None:
    """A part's table as an Arrow file."""
    with path.open("wb") as sink, pa.ipc.new_file(sink, part_schema()) as writer:
        writer.write_table(table)


def read_part(path: Path) -> pa.Table:
    """Inverse of `write_part`."""
    with path.open("rb") as content:  # Arrow's own files take no name that is not UTF-8
        return pa.ipc.open_file(content).read_all()


def errors_in(path: Path) -> int:
    """How many images of a part could not be answered."""
    schema = part_schema()
    wanted = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in ("reason", "skipped")])
    with path.open("rb") as content:
        table = pa.ipc.open_file(content, options=wanted).read_all()
    return len(table.filter(pc.and_not(pc.is_valid(table["reason"]), table["skipped"])))


def assemble(
    journal: Journal,
    parts: Iterable[Path],
    writers: list[RunWriter],
    tally: Tally,
    each: Callable[[ImageResult], None] | None = None,
) -> None:
    """Writes all documents in one pass over the parts, in order; memory holds one part.

    Args:
        journal: the output folder.
        parts: files of `write_part`.
        writers: of the formats asked for.
        tally: counts what passes.
        each: also sees every image.
    """
    with ExitStack() as stack:
        rows = stack.enter_context(journal.placing(PREDICTIONS))
        row_file = stack.enter_context(rows.open("wb"))
        table_file = stack.enter_context(pq.ParquetWriter(row_file, prediction_schema(), compression="zstd"))
        errors = stack.enter_context(journal.placing(ERRORS))
        error_file = stack.enter_context(errors.open("w", encoding="utf-8"))
        adds = [stack.enter_context(writer.writing(journal)) for writer in writers]
        number = 0
        for path in parts:
            table = read_part(path)
            answered = table.filter(pc.is_valid(table["head"])).select(prediction_schema().names)
            if len(answered):
                table_file.write_table(answered)
            for result in results_of(table):
                number += 1
                tally.add(result)
                if result.failure is not None:
                    error_file.write(_error_line(result) + "\n")
                for add in adds:
                    add(number, result)
                if each is not None:
                    each(result)


def _error_line(result: ImageResult) -> str:
    assert result.failure is not None
    failure = result.failure
    told = {"image": result.image, "kind": failure.kind, "reason": failure.reason}
    return json.dumps(told | ({"skipped": True} if failure.skipped else {}), ensure_ascii=False)

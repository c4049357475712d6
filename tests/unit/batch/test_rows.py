"""Rows, tables and names: what goes in comes out, whatever the names and sizes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.batch.names import inside, raw, shown, stem
from serving.batch.rows import Failure, ImageResult, Row, part_schema, results_of, table_of

ROWS = (
    Row("a.jpg", 80, 40, "colour", "classes", [2], ["blue"], [0.75], [0.125, 0.125, 0.75]),
    Row("a.jpg", 80, 40, "things", "boxes", [0, 0], ["x", "x"], [0.5, 0.25], [], [[1, 2, 3, 4], [5, 6, 7, 8.5]]),
    Row("a.jpg", 80, 40, "ground", "mask", [0, 1], ["w", "c"], [], [], [], [3000, 200], ["abc", "d\\ef"]),
)


def test_results_survive_their_table():
    results = [
        ImageResult("a.jpg", ROWS, None, ("overlay/a.jpg", "yolo/ü.txt")),
        ImageResult("b.jpg", (), Failure("broken: bad", "broken")),
        ImageResult("c.txt", (), Failure("no image", "not an image", skipped=True)),
        ImageResult("d.jpg", (Row("d.jpg", 1, 2, "things", "boxes"),)),
    ]
    table = table_of(results)
    table.validate(full=True)
    assert table.schema == part_schema()
    assert list(results_of(table)) == results
    assert list(results_of(table_of([]))) == []


@given(st.binary(max_size=30))
@settings(deadline=None)
def test_any_name_is_text_and_back(name):
    text = shown(name)
    text.encode()
    assert raw(text) == name


def test_no_two_names_look_alike():
    assert shown(b"a\xff") == "a\\xff"
    assert shown(b"a\\xff") == "a\\\\xff"
    assert shown("ü b\n.jpg".encode()) == "ü b\n.jpg"


def test_names_stay_inside():
    from pipeline.errors import ImageError

    assert inside(b"a/./b//c.jpg") == b"a/b/c.jpg"
    for bad in (b"../x", b"a/../../x", b"/etc/x", b"", b"a\0b"):
        with pytest.raises(ImageError, match="leave the output folder"):
            inside(bad)
    assert stem(b"a.b/c.tar.gz") == b"a.b/c.tar"
    assert stem(b".hidden") == b".hidden"

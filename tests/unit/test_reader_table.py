"""CSV and Parquet tables as read: label columns, splits, groups; every fault names the table and the line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline.data.formats.table import read_table
from pipeline.errors import DataError
from tests.unit.folders import of_kind, only, picture, text


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name in "abc":
        picture(tmp_path / "images" / f"{name}.png", ord(name))
    return tmp_path


def table(root: Path, content: str, name: str = "labels.csv") -> Path:
    return text(root / name, content)


def labels(source) -> dict[str, dict[str, object]]:
    return {Path(record.image.name).stem: record.labels for record in source.records}


def test_a_column_of_names_is_a_label_field(three):
    table(three, "file,animal,colour\na.png,cat,red\nb.png,dog,blue\nc.png,cat,\n")
    source = read_table(three)
    assert {name: space.names for name, space in source.spaces.items()} == {
        "animal": ("cat", "dog"),
        "colour": ("blue", "red"),
    }
    # An empty cell is not labelled.
    assert labels(source) == {
        "a": {"animal": 0, "colour": 1},
        "b": {"animal": 1, "colour": 0},
        "c": {"animal": 0},
    }
    assert source.problems == []


def test_numbers_are_classes_in_their_order(three):
    table(three, "image,digit\na.png,10\nb.png,9\nc.png,2\n")
    source = read_table(three)
    assert source.spaces["digit"].names == ("2", "9", "10")
    assert labels(source)["a"] == {"digit": 2}


def test_bars_make_a_column_multi_label(three):
    table(three, "file,tags\na.png,sun|sea\nb.png,|\nc.png,\n")
    source = read_table(three)
    assert (source.spaces["tags"].kind, source.spaces["tags"].names) == ("multilabel", ("sea", "sun"))
    # A lone bar: labelled, with nothing; an empty cell: not labelled.
    assert labels(source) == {"a": {"tags": (0, 1)}, "b": {"tags": ()}, "c": {}}


def test_split_and_group_columns_are_no_labels(three):
    table(three, "file,split,patient_id,label\na.png,training,p1,x\nb.png,valid,p2,y\nc.png,,,x\n")
    source = read_table(three)
    assert set(source.spaces) == {"label"}
    assert [(record.split, record.group) for record in source.records] == [
        ("train", "p1"),
        ("val", "p2"),
        (None, None),
    ]


def test_none_and_na_are_names_like_others(three):
    table(three, "file,finding\na.png,None\nb.png,NA\nc.png,nan\n")
    assert read_table(three).spaces["finding"].names == ("NA", "None", "nan")


def test_semicolons_quotes_and_a_byte_order_mark_are_understood(three):
    table(three, '\ufefffile;label\n"a.png";"cat; big"\nb.png;dog\n')
    assert read_table(three).spaces["label"].names == ("cat; big", "dog")


def test_parquet_reads_as_the_same_csv_does(three):
    frame = pd.DataFrame(
        {"file": ["a.png", "b.png", "c.png"], "digit": [1, 2, None], "kind": ["x", None, "y"], "split": ["train"] * 3}
    )
    table(three, "file,digit,kind,split\na.png,1,x,train\nb.png,2,,train\nc.png,,y,train\n")
    as_csv = read_table(three)
    (three / "labels.csv").unlink()
    frame.to_parquet(three / "labels.parquet")
    as_parquet = read_table(three)
    assert as_parquet.spaces == as_csv.spaces
    assert as_parquet.records == as_csv.records


def test_columns_that_cannot_be_labels_are_left_out_and_told(tmp_path):
    rows = ["file,label,url,score,caption,source,spare"]
    for number in range(24):
        picture(tmp_path / f"{number}.png", number)
        rows.append(f"{number}.png,{'xy'[number % 2]},u{number},0.{number}1,text {number},web,")
    file = table(tmp_path, "\n".join(rows))
    source = read_table(tmp_path)
    assert set(source.spaces) == {"label"}
    told = {problem.where: problem.message for problem in of_kind(source.problems, "column left out")}
    assert told == {
        f"{file}: score": "24 different values in 24 rows are no classes",
        f"{file}: caption": "24 different values in 24 rows are no classes",
        f"{file}: source": "'web' in every row: nothing to tell apart",
        f"{file}: spare": "every cell is empty",
    }


def test_fractions_are_no_classes(three):
    table(three, "file,label,score\na.png,x,0.5\nb.png,y,0.5\nc.png,x,1.0\n")
    source = read_table(three)
    assert set(source.spaces) == {"label"}
    assert only(source.problems, "column left out").message == "fractions are no classes"


def test_faults_of_a_row_name_its_line(three):
    picture(three / "other" / "c.png", 9)
    file = table(three, "file,label,split\n\na.png,x,train\ngone.png,y,\nb.png,x,testt\nc.png,y,\n")
    source = read_table(three)
    assert list(labels(source)) == ["a", "c"]
    gone = only(source.problems, "label without image")
    assert (gone.severity, gone.where) == ("error", f"{file}:4")
    assert "'gone.png'" in gone.message
    split = only(source.problems, "unknown split")
    assert (split.severity, split.where) == ("error", f"{file}:5")
    assert "'testt'" in split.message


def test_a_name_of_several_images_names_its_line(three):
    picture(three / "left" / "d.png", 4)
    picture(three / "right" / "d.png", 5)
    file = table(three, "file,label\nd.png,x\nright/d.png,y\n")
    source = read_table(three)
    assert labels(source) == {"d": {"label": 1}}
    ambiguous = only(source.problems, "ambiguous image")
    assert ambiguous.where == f"{file}:2"
    assert "left/d.png, right/d.png" in ambiguous.message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("file,label\na.png,x\nb.png\n", r"labels\.csv:3: 1 cells, but the first line has 2"),
        ("file,label,label\na.png,x,y\n", r"labels\.csv: the column label stands there twice"),
        ("file,url\na.png,x\n", r"labels\.csv: no label column beside 'file'; add one"),
        ("file,spare,score\na.png,,0.5\n", r"'file'; spare: every cell is empty; score: fractions are no classes"),
        ("file,label\n", r"labels\.csv: no label column beside 'file'"),
        ("name,label\na.png,x\n", r"no CSV or Parquet table with one of the columns file, "),
        (f'file,label\na.png,"{"x" * 200_000}"\n', r"labels\.csv:2: not readable as CSV"),
    ],
)
def test_tables_that_cannot_be_used_are_errors_with_their_place(three, content, told):
    table(three, content)
    with pytest.raises(DataError, match=told):
        read_table(three)


def test_a_table_that_is_no_text_or_no_parquet_is_named(three):
    file = three / "labels.csv"
    file.write_bytes(b"file,label\na.png,\xff\xfe\n")
    with pytest.raises(DataError, match=r"labels\.csv:2: not UTF-8"):
        read_table(three)
    file.unlink()
    (three / "labels.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"labels\.parquet: not readable as Parquet"):
        read_table(three)


def test_a_second_table_is_told(three):
    table(three, "file,label\na.png,x\nb.png,y\n", "a.csv")
    other = table(three, "file,label\nc.png,x\n", "b.csv")
    table(three, "epoch,loss\n1,2\n", "history.csv")
    source = read_table(three)
    assert list(labels(source)) == ["a", "b"]
    problem = only(source.problems, "table not read")
    assert problem.where == str(other)
    assert "only a.csv is read" in problem.message

"""Pascal VOC as read: boxes, image sets, XML beside the images; every fault names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.data.formats.voc import read_voc
from tests.unit.folders import boxes_of, only, picture, text, voc


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    for name in "abc":
        picture(tmp_path / "JPEGImages" / f"{name}.png", ord(name))
        voc(tmp_path / "Annotations" / f"{name}.xml", [("dog", (5, 4, 15, 12)), ("cat", (0, 0, 3, 2))])
    return tmp_path


def test_voc_objects_become_boxes_of_sorted_classes(pascal):
    source = read_voc(pascal)
    assert source.spaces["boxes"].names == ("cat", "dog")
    assert boxes_of(source.records[0]) == [(1, 5, 4, 15, 12), (0, 0, 0, 3, 2)]
    assert source.records[0].size == (20, 30)
    assert source.problems == []


def test_voc_image_sets_decide_the_split(pascal):
    text(pascal / "ImageSets" / "Main" / "train.txt", "a\n")
    text(pascal / "ImageSets" / "Main" / "test.txt", "b 1\n")
    source = read_voc(pascal)
    assert [(Path(r.image.name).stem, r.split) for r in source.records] == [("a", "train"), ("b", "test")]
    left = only(source.problems, "not in a split")
    assert left.where == str(pascal / "JPEGImages" / "c.png")
    assert "c.xml" in left.message


def test_voc_image_in_two_sets_names_list_and_line(pascal):
    text(pascal / "ImageSets" / "Main" / "train.txt", "a\nb\nc\n")
    listing = text(pascal / "ImageSets" / "Main" / "val.txt", "\nb\n")
    problem = only(read_voc(pascal).problems, "in two splits")
    assert (problem.severity, problem.where) == ("error", f"{listing}:2")
    assert "b stands in train and in val" in problem.message


@pytest.mark.parametrize(
    ("bad", "kind", "told"),
    [
        (("cat", (5, 5, 5, 5)), "zero-size box", "no area"),
        (("cat", (9, 5, 5, 9)), "zero-size box", "no area"),
        (("cat", (40, 5, 50, 9)), "box out of image", "lies outside: dropped"),
        (("cat", (20, 5, 50, 9)), "box out of image", "reaches out: cut"),
        (("cat", ("inf", 5, 50, 9)), "broken box", "not finite"),
        (("cat", ("left", 5, 50, 9)), "broken label", "xmin 'left'"),
        (("", (1, 5, 5, 9)), "broken label", "no <name>"),
        (("dog", (5, 4, 15, 12)), "double box", "stands there twice"),
    ],
)
def test_voc_faults_name_file_and_line(pascal, bad, kind, told):
    file = voc(pascal / "Annotations" / "a.xml", [("dog", (5, 4, 15, 12)), bad])
    problem = only(read_voc(pascal).problems, kind)
    assert problem.where == f"{file}:3"
    assert told in problem.message


def test_voc_boxes_out_of_the_image_are_found_where_the_xml_states_no_size(pascal):
    voc(pascal / "Annotations" / "a.xml", [("cat", (20, 5, 50, 9))], size=None)
    source = read_voc(pascal)
    assert boxes_of(source.records[0]) == [(0, 20, 5, 30, 9)]
    assert only(source.problems, "box out of image").where == f"{pascal / 'Annotations' / 'a.xml'}:2"


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        ("<annotation>\n<object>\n</annotation>", ":3", "not readable as XML"),
        ("", ":1", "not readable as XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "", "entities are not allowed"),
    ],
)
def test_voc_broken_xml_names_the_file(pascal, content, line, told):
    file = text(pascal / "Annotations" / "a.xml", content)
    source = read_voc(pascal)
    problem = only(source.problems, "broken label")
    assert problem.where == f"{file}{line}"
    assert told in problem.message
    assert len(source.records) == 2


def test_voc_label_without_image_and_ambiguous_image_name_the_xml(pascal):
    (pascal / "JPEGImages" / "a.png").unlink()
    picture(pascal / "JPEGImages" / "b.jpg", 5)
    problems = read_voc(pascal).problems
    assert only(problems, "label without image").where == str(pascal / "Annotations" / "a.xml")
    ambiguous = only(problems, "ambiguous image")
    assert ambiguous.where == str(pascal / "Annotations" / "b.xml")
    assert "b.jpg" in ambiguous.message


def test_voc_xml_beside_the_images_in_split_folders(tmp_path):
    for split in ("train", "valid"):
        picture(tmp_path / split / f"{split}_1.png", len(split))
        voc(tmp_path / split / f"{split}_1.xml", [("cat", (1, 1, 5, 5))])
    assert [record.split for record in read_voc(tmp_path).records] == ["train", "val"]

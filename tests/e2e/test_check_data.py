"""`lightning check-data`: every kind of fault is found, named by file, counted in the report, and decides the exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.e2e.commands import lightning
from tests.unit.folders import coco, picture, plane, text, turned, voc

MASK = np.repeat(np.arange(2, dtype=np.uint8), 10)[:, None].repeat(30, 1)


def shade(path: Path, value: int) -> Path:
    """A grey picture: other values, other files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20), (value, value, value)).save(path)
    return path


@pytest.fixture
def check(command, tmp_path):
    """Runs it on a folder: exit code, the report, the printed table."""

    def run(root: Path, *options: str) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / "out" / "report.json"
        code, out, _ = command("check-data", "--data.root", str(root), "--json", str(file), *options)
        return code, json.loads(file.read_text()), out

    return run


@pytest.fixture
def kinds(tmp_path) -> Path:
    """A folder per class, two classes of two pictures."""
    for number, kind in enumerate(("cat", "dog")):
        for at in range(2):
            shade(tmp_path / "data" / kind / f"{at}.png", 10 + 2 * number + at)
    return tmp_path / "data"


@pytest.fixture
def boxed(tmp_path) -> Path:
    """VOC: three pictures with a box each."""
    for name in "abc":
        shade(tmp_path / "data" / "JPEGImages" / f"{name}.png", ord(name))
        voc(tmp_path / "data" / "Annotations" / f"{name}.xml", [("cat", (5, 4, 15, 12))])
    return tmp_path / "data"


@pytest.fixture
def painted(tmp_path) -> Path:
    """Three pictures with index masks of two named classes."""
    for name in "abc":
        shade(tmp_path / "data" / "images" / f"{name}.png", ord(name))
        plane(tmp_path / "data" / "masks" / f"{name}.png", MASK)
    text(tmp_path / "data" / "classes.txt", "0 sky\n1 road\n")
    return tmp_path / "data"


def only(report: dict[str, Any], kind: str) -> dict[str, str]:
    found = [problem for problem in report["problems"] if problem["kind"] == kind]
    assert len(found) == 1, report["problems"]
    return found[0]


def test_a_sound_data_set_has_no_problems_and_exit_code_0(check, kinds):
    code, report, out = check(kinds)
    assert code == 0
    assert report == {
        "root": str(kinds),
        "format": "folders",
        "images": 4,
        "splits": {"unsplit": 4},
        "counts": {"label": {"cat": 2, "dog": 2}},
        "sizes": {"30x20": 4},
        "problems": [],
    }
    assert "Format: folders; 4 images (unsplit 4)" in out
    assert "label: cat 2, dog 2" in out
    assert "No problems." in out


def test_unreadable_and_truncated_images_are_errors(check, kinds):
    (kinds / "cat" / "0.png").write_bytes(b"no picture")
    file = picture(kinds / "dog" / "2.jpg", 5, (200, 200))
    file.write_bytes(file.read_bytes()[:2000])
    code, report, out = check(kinds)
    assert code == 1
    problems = {Path(p["where"]).name: p for p in report["problems"] if p["kind"] == "unreadable image"}
    assert set(problems) == {"0.png", "2.jpg"}
    assert {p["severity"] for p in problems.values()} == {"error"}
    assert "not an image of an allowed format" in problems["0.png"]["message"]
    assert "cannot be decoded" in problems["2.jpg"]["message"]
    assert "2 errors, 0 warnings" in out


def test_labels_without_image_are_errors_and_images_without_label_warnings(check, boxed):
    (boxed / "JPEGImages" / "a.png").unlink()
    (boxed / "Annotations" / "b.xml").unlink()
    code, report, _ = check(boxed)
    assert code == 1
    gone, bare = only(report, "label without image"), only(report, "image without label")
    assert (gone["severity"], gone["where"]) == ("error", str(boxed / "Annotations" / "a.xml"))
    assert (bare["severity"], bare["where"]) == ("warning", str(boxed / "JPEGImages" / "b.png"))
    assert report["images"] == 1


def test_boxes_of_no_area_and_out_of_the_image_are_named_by_line(check, boxed):
    objects = [("cat", (5, 4, 15, 12)), ("cat", (7, 7, 7, 7)), ("cat", (40, 4, 50, 9)), ("cat", (20, 4, 50, 9))]
    file = voc(boxed / "Annotations" / "a.xml", objects)
    code, report, out = check(boxed)
    assert code == 0  # dropped or cut: nothing that would poison a run
    assert only(report, "zero-size box")["where"] == f"{file}:3"
    reaching = {p["where"]: p["message"] for p in report["problems"] if p["kind"] == "box out of image"}
    assert reaching[f"{file}:4"].endswith("lies outside: dropped")
    assert reaching[f"{file}:5"].endswith("reaches out: cut")
    assert report["counts"]["boxes"] == {"cat": 4}
    assert "Annotations/a.xml:3" in out


def test_classes_that_are_not_in_the_list_are_errors(check, tmp_path):
    shade(tmp_path / "data" / "a.png", 1)
    box = {"image_id": 1, "bbox": [5, 4, 10, 8]}
    coco(tmp_path / "data" / "labels.json", ["a.png"], [{**box, "category_id": 10}, {**box, "category_id": 7}])
    code, report, _ = check(tmp_path / "data")
    assert code == 1
    assert only(report, "unknown class")["where"].endswith("labels.json: annotations[1]")
    assert "class 'dog' has no label" in only(report, "empty class")["message"]


def test_boxes_of_an_image_of_another_size_are_errors(check, boxed):
    voc(boxed / "Annotations" / "a.xml", [("cat", (5, 4, 15, 12))], size=(40, 60))
    code, report, _ = check(boxed)
    assert code == 1
    assert "the labels say 60 x 40, the upright image is 30 x 20" in only(report, "size differs")["message"]


def test_boxes_drawn_before_a_picture_was_turned_are_errors(check, boxed):
    (boxed / "JPEGImages" / "a.png").unlink()
    turned(boxed / "JPEGImages" / "a.jpg", orientation=6)
    code, report, _ = check(boxed)
    assert code == 1
    assert "before it was turned (EXIF orientation 6)?" in only(report, "size differs")["message"]


def test_masks_of_another_size_with_unknown_values_or_unreadable_are_errors(check, painted):
    plane(painted / "masks" / "a.png", MASK[:10])
    plane(painted / "masks" / "b.png", np.where(MASK == 0, 9, MASK))
    (painted / "masks" / "c.png").write_bytes(b"no picture")
    shade(painted / "images" / "d.png", 200)
    plane(painted / "masks" / "d.png", MASK)
    code, report, _ = check(painted)
    assert code == 1
    told = {p["message"] for p in report["problems"] if p["kind"] == "bad mask"}
    assert any("a.png is 30 x 10 pixels, its image 30 x 20" in message for message in told)
    assert any("c.png" in message and "cannot identify" in message for message in told)
    unknown = [p for p in report["problems"] if p["kind"] == "unknown mask value" and p["severity"] == "error"]
    assert [p["where"] for p in unknown] == [str(painted / "images" / "b.png")]
    assert unknown[0]["message"].startswith("9 of no class")
    # Images in which a class occurs: the whole one and the lower half of b.
    assert report["counts"]["mask"] == {"sky": 1, "road": 2}


def test_a_mask_that_is_all_ignored_is_told(check, painted):
    plane(painted / "masks" / "b.png", np.full((20, 30), 255))
    code, report, _ = check(painted)
    assert code == 0
    assert only(report, "empty mask")["where"] == str(painted / "images" / "b.png")


def test_the_same_picture_twice_is_a_warning(check, kinds):
    (kinds / "cat" / "copy.png").write_bytes((kinds / "cat" / "0.png").read_bytes())
    code, report, _ = check(kinds)
    assert code == 0
    problem = only(report, "duplicate")
    assert (Path(problem["where"]).name, problem["severity"]) == ("0.png", "warning")
    assert "copy.png; a random split may part them" in problem["message"]


def test_the_same_picture_with_another_label_is_told(check, kinds):
    (kinds / "dog" / "copy.png").write_bytes((kinds / "cat" / "0.png").read_bytes())
    assert "with another label" in only(check(kinds)[1], "duplicate with another label")["message"]


def test_the_same_picture_in_two_splits_is_an_error(check, tmp_path):
    for number, split in enumerate(("train", "test")):
        for at, kind in enumerate(("cat", "dog")):
            shade(tmp_path / "data" / split / kind / "a.png", 10 + 2 * number + at)
    leak = tmp_path / "data" / "test" / "cat" / "leak.png"
    leak.write_bytes((tmp_path / "data" / "train" / "cat" / "a.png").read_bytes())
    code, report, _ = check(tmp_path / "data")
    assert code == 1
    problem = only(report, "duplicate across splits")
    told = " ".join(problem.values())
    assert str(leak) in told
    assert str(tmp_path / "data" / "train" / "cat" / "a.png") in told


def test_giants_and_turned_pictures_are_told_by_name(check, kinds):
    turned(kinds / "cat" / "giant.jpg", 1, (200, 300))
    code, report, _ = check(kinds)
    assert code == 0
    odd = only(report, "odd size")
    assert Path(odd["where"]).name == "giant.jpg"
    assert odd["message"].startswith("200 x 300 where most are 30 x 20, EXIF-rotated (orientation 6)")
    assert Path(only(report, "EXIF-rotated")["where"]).name == "giant.jpg"
    assert report["sizes"] == {"30x20": 4, "200x300": 1}


def test_rare_classes_are_told(check, kinds):
    for number in range(20):
        shade(kinds / "cat" / f"more{number}.png", 100 + number)
    (kinds / "dog" / "1.png").unlink()
    problem = only(check(kinds)[1], "imbalance")
    assert "'cat' has 22 labels, 'dog' only 1" in problem["message"]


def test_labels_that_cannot_be_read_are_one_error_in_the_report(check, boxed):
    coco(boxed / "labels.json", ["a.png"], [])
    text(boxed / "labels.json", '{"images": [], "categories": [],\n')
    code, report, out = check(boxed)
    assert code == 1
    assert "labels.json:2: not valid JSON" in only(report, "unusable data set")["message"]
    assert (report["images"], report["format"]) == (0, "")
    assert "1 errors" in out


@pytest.mark.parametrize("case", ["gone", "empty", "one level up"])
def test_a_folder_without_a_data_set_is_told_with_the_remedy(check, kinds, case):
    root = {"gone": kinds / "gone", "empty": kinds / "empty", "one level up": kinds.parent / "up"}[case]
    if case == "empty":
        root.mkdir()
    elif case == "one level up":
        root.mkdir()
        kinds.rename(root / "data")
    code, report, out = check(root)
    assert code == 1
    told = {"gone": "is not a folder", "empty": "no known labels found", "one level up": f"data.root {root / 'data'}?"}
    assert told[case] in only(report, "unusable data set")["message"]
    assert told[case] in " ".join(out.replace("│", " ").split())


def test_a_format_that_is_asked_for_is_the_one_that_is_read(check, painted):
    text(painted / "labels.csv", "file,time\na.png,day\nb.png,night\nc.png,day\n")
    assert check(painted)[1]["format"] == "masks+table"
    assert check(painted, "--data.format", "table")[1]["counts"] == {"time": {"day": 2, "night": 1}}


def test_the_table_names_ten_of_a_kind_and_counts_the_rest_the_report_all(check, kinds):
    for number in range(13):
        (kinds / "cat" / f"bad{number}.png").write_bytes(b"no picture")
    _, report, out = check(kinds)
    assert sum(problem["kind"] == "unreadable image" for problem in report["problems"]) == 13
    assert out.count("/bad") == 10
    assert "and 3 more of kind 'unreadable image'" in out


def test_names_with_brackets_and_bytes_that_are_no_text_are_told_as_they_are(check, kinds):
    (kinds / "cat" / "[bold]0[x].png").write_bytes(b"no picture")
    odd = os.fsencode(str(kinds / "cat")) + b"/\xff.png"
    try:
        Path(os.fsdecode(odd)).write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system has no such names")
    code, report, out = check(kinds)
    assert code == 1
    assert len(report["problems"]) == 2
    assert "cat/[bold]0[x].png" in out
    assert "\\xff.png" in out or "\\udcff.png" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.rot", "x"], "lightning check-data: unknown option --data.rot; did you mean '--data.root'?"),
        ([], "the following arguments are required: --data.root"),
        (["--data.root", "x", "y"], "unrecognized arguments: y"),
    ],
)
def test_a_wrong_option_is_one_line(command, arguments, told):
    code, out, err = command("check-data", *arguments)
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_a_report_that_cannot_be_written_is_told(command, kinds):
    (kinds.parent / "file").write_text("in the way")
    code, _, err = command("check-data", "--data.root", str(kinds), "--json", str(kinds.parent / "file" / "r.json"))
    assert code == 2
    assert "--json" in err
    assert len(err.strip().splitlines()) == 1


def test_the_installed_command_answers_with_its_exit_code(kinds, tmp_path):
    (kinds / "cat" / "0.png").write_bytes(b"no picture")
    done = lightning("check-data", "--data.root", "data", "--json", "report.json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "cat/0.png" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["images"] == 4

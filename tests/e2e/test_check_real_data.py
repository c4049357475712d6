"""`check-data` on real data sets: what is known to be wrong with each is told by name. Skipped where they are absent."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("TRIFOCAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def check(command, tmp_path):
    """Runs it on a data set by name: exit code and report."""

    def run(name: str) -> tuple[int, dict[str, Any]]:
        root = DATA / name
        if not root.is_dir():
            pytest.skip(f"no {root}; set TRIFOCAL_DATA to the folder of the real data sets")
        code, _, _ = command("check-data", "--data.root", str(root), "--json", str(tmp_path / "report.json"))
        return code, json.loads((tmp_path / "report.json").read_text())

    return run


def test_blood_cells_have_two_boxes_of_no_size(check):
    code, report = check("bccd/BCCD")
    assert code == 0
    assert (report["format"], report["splits"]) == ("voc", {"train": 205, "val": 87, "test": 72})
    # 4155 RBC, two of them of no size.
    assert report["counts"]["boxes"] == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    dropped = [Path(p["where"]).name for p in report["problems"] if p["kind"] == "zero-size box"]
    assert dropped == ["BloodImage_00338.xml:158", "BloodImage_00343.xml:50"]


def test_sign_digits_have_three_turned_giants(check):
    code, report = check("sign_digits/Dataset")
    assert code == 0
    assert (report["format"], report["images"]) == ("folders", 2062)
    giants = {Path(p["where"]).name: p["message"] for p in report["problems"] if p["kind"] == "odd size"}
    assert set(giants) == {"IMG_5874.JPG", "IMG_5935.JPG", "IMG_5978.JPG"}
    assert all("3024 x 3024" in message and "EXIF-rotated" in message for message in giants.values())


def test_nuclei_are_three_formats_of_the_same_images(check):
    code, report = check("dsb2018")
    assert code == 0
    assert (report["format"], report["splits"]) == ("coco+masks+table", {"train": 466, "val": 99, "test": 99})
    assert report["counts"]["boxes"] == {"nucleus": 28986}
    assert report["counts"]["mask"] == {"background": 664, "foreground": 664}
    assert set(report["counts"]["label"]) == {"fluorescence", "stained_colour", "brightfield_grey"}
    assert {p["severity"] for p in report["problems"]} == {"warning", "info"}


def test_broken_and_odd_files_are_told_and_none_stops_the_check(check):
    code, report = check("nasty")
    assert code == 1
    kinds = Counter(p["kind"] for p in report["problems"] if p["severity"] == "error")
    assert set(kinds) == {"unreadable image"}
    unreadable = {Path(p["where"]).name for p in report["problems"] if p["kind"] == "unreadable image"}
    assert {"decompression_bomb.gif", "badwidth.bmp", "broken.png", "corrupted.jpg", "00090.jpg"} <= unreadable
    assert not any("exif_rotated" in p["where"] for p in report["problems"] if p["severity"] == "error")

"""report.html shows what summary.json counts, and cannot be led astray by names."""

from __future__ import annotations

import base64
import re

import cv2
import numpy as np
import pytest

from serving.batch.progress import Progress
from serving.batch.rows import Failure, ImageResult, Row
from serving.batch.summary import Timing
from serving.batch.tally import SAMPLES, Tally
from tests.unit.batch.helpers import fill, picture, predict
from tests.unit.bundles import HEADS, known_bundle


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    place = tmp_path_factory.mktemp("report")
    fill(place / "in", 9)
    (place / "in" / "<script>alert(1)<").mkdir()
    (place / "in" / "<script>alert(1)<" / "b.png").write_bytes(picture(1))
    (place / "in" / "bad & broken.png").write_bytes(b"")
    predict(place / "in", known_bundle(place / "known"), place / "out")
    return (place / "out" / "report.html").read_text()


def test_the_page_stands_alone_and_shows_samples_of_every_class(page):
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert re.findall(r'href="#(\w+)"', page) == re.findall(r'id="(\w+)"', page)
    assert "9" in page
    assert page.count("<h2>") == 4  # three heads and the errors
    things = page.split("<h2>")[2]
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', things)
    assert len(shown) == SAMPLES
    image = cv2.imdecode(np.frombuffer(base64.b64decode(shown[0]), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (80, 160, 3)
    assert "the file is empty" in page


def test_names_are_text_not_markup(page):
    assert "<script" not in page
    assert "bad &amp; broken.png" in page


def test_pictures_that_take_a_minute_each_have_a_speed():
    now = iter([0.0, 1.0, 240.0, 240.0])
    plain = Timing(4, 240.0, {"infer": 220.0, "read": 0.5}).plain()
    assert plain["images_per_second"] == 0.017
    assert plain["images_per_second_by_stage"] == {"infer": 0.018, "read": 8.0}
    lines = []
    progress = Progress(8, lines.append, terminal=False, clock=lambda: next(now))
    progress.add(0, 0)
    progress.add(4, 0)
    assert lines == ["4 of 8 files, 0.017 a second, 4:00 left, 0 errors"]


def test_counts_leave_weak_boxes_out_that_are_kept_for_scoring():
    tally = Tally.of(HEADS, None)
    boxes = Row(
        "a", 10, 10, "things", "boxes", [0, 1, 0], ["thing", "other", "thing"], [0.9, 0.5, 0.01], [], [[0] * 4] * 3
    )
    tally.add(ImageResult("a", (boxes,)))
    tally.add(ImageResult("b", (), Failure("x", "x")))
    tally.add(ImageResult("c", (), Failure("y", "y", skipped=True)))
    head = tally.heads["things"]
    assert head.counts == {"thing": 1, "other": 1}
    assert head.histogram.sum() == 2
    assert (head.histogram[18], head.histogram[10]) == (1, 1)
    assert (tally.answered, tally.failed, tally.skipped) == (1, 1, 1)


def test_samples_are_bounded_and_do_not_depend_on_the_order():
    rows = [Row(f"{n}.jpg", 10, 10, "colour", "classes", [0], ["red"], [1.0], [1.0, 0.0, 0.0]) for n in range(100)]
    forward, backward = Tally.of(HEADS, None), Tally.of(HEADS, None)
    for row in rows:
        forward.add(ImageResult(row.image, (row,)))
    for row in reversed(rows):
        backward.add(ImageResult(row.image, (row,)))
    assert len(forward.heads["colour"].samples["red"]) == SAMPLES
    assert min(forward.heads["colour"].samples["red"])[1] == min(backward.heads["colour"].samples["red"])[1]
    names = [{held[1] for held in tally.heads["colour"].samples["red"]} for tally in (forward, backward)]
    assert names[0] == names[1] != {f"{n}.jpg" for n in range(SAMPLES)}

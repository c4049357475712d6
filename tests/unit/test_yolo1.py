"""YOLO v1's head: the published grid and size, its loss against a loop, its answers, training and export."""

from __future__ import annotations

import pytest
import torch

import tasks.multitask  # noqa: F401  # registers the heads
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.detection.yolo1 import RawGrid, YoloV1Head
from tasks.network import build_network
from tests.unit.backbones.trial import built_in, parameters, passes


def built(size=(448, 448), classes=20, backbone="yolo-v1", options=None, **head):
    space = LabelSpace("boxes", tuple(map(str, range(classes))))
    given = {"o": {"kind": "yolo-v1", **head}}
    with torch.device("meta"):
        return build_network(backbone, 3, None, given, {"o": space}, options, size)


def test_448_pixels_give_7_x_7_cells_of_two_boxes_and_20_classes():
    network = built()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    linear = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert len(convolutions) == 24
    assert [(m.in_features, m.out_features) for m in linear] == [(7 * 7 * 1024, 4096), (4096, 7 * 7 * 30)]
    raw = network(torch.zeros(2, 3, 448, 448, device="meta"))["o"]
    assert raw.boxes.shape == (2, 7, 7, 2, 5)
    assert raw.classes.shape == (2, 7, 7, 20)
    answer = (7 * 7 * 1024 + 1) * 4096 + (4096 + 1) * 7 * 7 * 30
    assert sum(parameters(m) for m in linear) == answer


def head_of(size=(64, 96), classes=3):
    space = LabelSpace("boxes", tuple("abc"[:classes]))
    return YoloV1Head(space, (0, 0, 0, 0, 4), None, size, stride=32, width=4, hidden=8, dropout=0.0)


def test_the_loss_is_the_papers_sum():
    """Against equation 3 as loops over cells and boxes."""
    torch.manual_seed(0)
    head = head_of()
    raw = RawGrid(torch.rand(3, 2, 3, 2, 5), torch.rand(3, 2, 3, 3))
    # The second image is not labelled; the third has a crowd region, and two boxes in one cell.
    xyxy = torch.tensor([
        [[4.0, 6, 30, 40], [40, 8, 92, 60], [0, 0, 0, 0]], [[1, 1, 9, 9], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[70, 40, 90, 60], [68, 36, 94, 62], [0, 0, 96, 64]],
    ])  # fmt: skip
    target = BoxTarget(
        xyxy, torch.tensor([[0, 2, -1], [1, -1, -1], [0, 1, 2]]),
        torch.tensor([[False] * 3, [False] * 3, [False, False, True]]), torch.tensor([True, False, True]),
    )  # fmt: skip
    found = head.loss(raw, target)
    wanted = dict.fromkeys(found, 0.0)
    for image, boxes in ((0, {0: 0, 1: 2}), (2, {1: 1})):  # row of the box: its class; of two in a cell the larger
        taken = set()
        for row, kind in boxes.items():
            x0, y0, x1, y1 = xyxy[image, row].tolist()
            column, line = int((x0 + x1) / 2 / 32), int((y0 + y1) / 2 / 32)
            best, overlap = None, -1.0
            for n in range(2):
                x, y, w, h, _ = raw.boxes[image, line, column, n].tolist()
                cx, cy, w, h = (column + x) * 32, (line + y) * 32, w * w * 96, h * h * 64
                inter = max(min(x1, cx + w / 2) - max(x0, cx - w / 2), 0) * max(
                    min(y1, cy + h / 2) - max(y0, cy - h / 2), 0
                )
                iou = inter / (w * h + (x1 - x0) * (y1 - y0) - inter)
                best, overlap = (n, iou) if iou > overlap else (best, overlap)
            taken.add((line, column, best))
            x, y, w, h, c = raw.boxes[image, line, column, best].tolist()
            wanted["place"] += 5 * ((x - ((x0 + x1) / 64 - column)) ** 2 + (y - ((y0 + y1) / 64 - line)) ** 2)
            wanted["size"] += 5 * ((w - ((x1 - x0) / 96) ** 0.5) ** 2 + (h - ((y1 - y0) / 64) ** 0.5) ** 2)
            wanted["object"] += (c - overlap) ** 2
            wanted["class"] += sum(
                (p - (i == kind)) ** 2 for i, p in enumerate(raw.classes[image, line, column].tolist())
            )
        wanted["empty"] += 0.5 * sum(
            float(raw.boxes[image, i, j, n, 4]) ** 2
            for i in range(2) for j in range(3) for n in range(2) if (i, j, n) not in taken
        )  # fmt: skip
    assert {k: float(v) for k, v in found.items()} == {k: pytest.approx(v / 2, rel=1e-4) for k, v in wanted.items()}


def test_images_without_boxes_teach_only_that_nothing_is_there():
    head = head_of()
    raw = RawGrid(torch.rand(1, 2, 3, 2, 5), torch.rand(1, 2, 3, 3))
    none = BoxTarget(
        torch.zeros(1, 0, 4),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.bool),
        torch.tensor([True]),
    )
    found = {name: float(value) for name, value in head.loss(raw, none).items()}
    assert found == {
        "place": 0,
        "size": 0,
        "object": 0,
        "class": 0,
        "empty": pytest.approx(0.5 * float(raw.boxes[..., 4].square().sum())),
    }


def test_a_cells_two_boxes_on_one_object_are_suppressed_to_one():
    head = head_of()
    boxes, classes = torch.zeros(1, 2, 3, 2, 5), torch.zeros(1, 2, 3, 3)
    boxes[0, 1, 2, 0] = torch.tensor([0.5, 0.25, 0.5**0.5, 0.5**0.5, 0.9])
    boxes[0, 1, 2, 1] = torch.tensor([0.5, 0.25, 0.5**0.5, 0.49**0.5, 0.8])
    classes[0, 1, 2, 1] = 1.0
    answer = head.decode(RawGrid(boxes, classes))
    assert answer.scores[0, :2].tolist() == [pytest.approx(0.9), 0]
    assert answer.boxes[0, 0].tolist() == pytest.approx([80 - 24, 40 - 16, 80 + 24, 40 + 16])
    assert int(answer.classes[0, 0]) == 1


@pytest.mark.parametrize("backbone", ["yolo-v1", "resnet18"])
def test_it_trains_and_exports(tmp_path, backbone):
    options = {"backbone_options": {"width": 0.0625, "batch_norm": True}} if backbone == "yolo-v1" else {}
    head = {"kind": "yolo-v1", "stride": 32, "width": 16, "hidden": 64}
    passes(tmp_path, backbone, {"objects": head}, built_in(64), steps=6, lr=2e-3, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (416, 448)}, r"cells of 64 pixels: it needs at least \[64, 64\] and sides that are multiples of 64"),
        ({"size": None}, "built for one input size"),
        ({"size": (64, 64), "backbone": "resnet20"}, r"needs maps at strides \[32\]; backbone 'resnet20' has maps at strides \[2, 4\]: take backbone: yolo-v1"),
        ({"size": (448, 448), "hidden": 0}, "1 or more"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_at_construction(options, message):
    with pytest.raises(ConfigError, match=message):
        built(**options)

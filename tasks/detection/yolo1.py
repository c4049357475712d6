"""YOLO v1's head: a grid of cells, each with a class and a few boxes, out of two fully connected layers."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.backbones.build import STRIDES, Backbone, require_strides
from pipeline.backbones.traits import Demand
from pipeline.backbones.yolo import leaky_convolution
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.detection.assignment import best_of_groups, pair_iou
from tasks.detection.base import BoxHead
from tasks.detection.decode import BoxPrediction, suppress, top_boxes
from tasks.head import Losses, register


class RawGrid(NamedTuple):
    """Per cell and box float32 (B, S, T, N, 5): x and y within the cell, square roots of width and height as shares of
    the picture, confidence; and class scores float32 (B, S, T, C).
    """

    boxes: Tensor
    classes: Tensor


@register("yolo-v1")
class YoloV1Head(BoxHead):
    """YOLO v1 (Redmon et al. 2016, https://arxiv.org/abs/1506.02640): four convolutions, two fully connected layers.

    At 448 pixels and stride 64 the grid has 7 x 7 cells. The answer passes non-maximum suppression inside the graph.

    Args:
        space: the boxes' classes.
        channels: the backbone's channels at strides 2 to 32.
        backbone: as published `yolo-v1`; any with a map at stride 32.
        size: (height, width) of the input, on which the fully connected layers depend.
        stride: pixels of a cell's side: 64 as published, or 32, for smaller pictures.
        boxes: boxes of a cell, 2 as published.
        width: channels of the four convolutions, 1024 as published.
        hidden: units of the first fully connected layer, 4096 as published.
        dropout: share of them dropped while training.
        max_boxes: boxes per image in the answer (K).
        nms_iou: IoU above which a box of the same class is suppressed.
        coordinate_weight: of the boxes' places and sizes in the loss, 5 as published.
        empty_weight: of the confidence of boxes that answer for nothing, 0.5 as published.
    """

    def __init__(
        self,
        space: LabelSpace,
        channels: tuple[int, ...],
        backbone: Backbone | None = None,
        size: tuple[int, int] | None = None,
        stride: Literal[32, 64] = 64,
        boxes: int = 2,
        width: int = 1024,
        hidden: int = 4096,
        dropout: float = 0.5,
        max_boxes: int = 98,
        nms_iou: float = 0.5,
        coordinate_weight: float = 5.0,
        empty_weight: float = 0.5,
    ) -> None:
        super().__init__(space)
        if backbone is not None:
            require_strides(backbone, STRIDES[-1:], "YOLO v1's head", "backbone: yolo-v1")
        if size is None:
            raise ConfigError("YOLO v1's fully connected layers are built for one input size; give model.size")
        if boxes < 1 or width < 1 or hidden < 1:
            raise ConfigError(f"boxes, width and hidden are 1 or more, not {boxes}, {width} and {hidden}")
        self.demand = Demand(f"YOLO v1's head with cells of {stride} pixels", (stride, stride), stride, size)
        self.demand.check(size)
        self.size, self.grid, self.count = size, (size[0] // stride, size[1] // stride), boxes
        self.max_boxes, self.nms_iou = max_boxes, nms_iou
        self.coordinate_weight, self.empty_weight = coordinate_weight, empty_weight
        self.layers = nn.Sequential(
            leaky_convolution(channels[-1], width, 3, 1, norm=False),
            leaky_convolution(width, width, 3, stride // 32, norm=False),
            leaky_convolution(width, width, 3, 1, norm=False),
            leaky_convolution(width, width, 3, 1, norm=False),
        )
        cells = self.grid[0] * self.grid[1]
        self.connected = nn.Sequential(
            nn.Linear(width * cells, hidden), nn.LeakyReLU(0.1, inplace=True), nn.Dropout(dropout),
            nn.Linear(hidden, cells * (5 * boxes + len(space.names))),
        )  # fmt: skip

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> RawGrid:
        """The grid's numbers; raises ConfigError for an input of another size than the head was built for."""
        if tuple(map(int, size)) != tuple(self.size):
            raise ConfigError(f"YOLO v1's head was built for {list(self.size)} pixels, not {list(size)}")
        rows, columns = self.grid
        numbers = self.connected(self.layers(features[-1]).flatten(1)).float()
        numbers = numbers.reshape(numbers.shape[0], rows, columns, -1)
        boxes = numbers[..., : 5 * self.count].reshape(numbers.shape[0], rows, columns, self.count, 5)
        return RawGrid(boxes, numbers[..., 5 * self.count :])

    def pixels(self, boxes: Tensor) -> Tensor:
        """Cells' boxes (B, S, T, N, 5) to xyxy (B, S, T, N, 4) in pixels."""
        rows, columns = self.grid
        height, width = self.size
        device = boxes.device
        left = torch.arange(columns, device=device, dtype=boxes.dtype)[None, None, :, None]
        top = torch.arange(rows, device=device, dtype=boxes.dtype)[None, :, None, None]
        x, y = (left + boxes[..., 0]) * (width / columns), (top + boxes[..., 1]) * (height / rows)
        half_w, half_h = boxes[..., 2].square() * (width / 2), boxes[..., 3].square() * (height / 2)
        return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)

    def loss(self, raw: RawGrid, target: BoxTarget) -> Losses:
        """`place` and `size` (coordinates), `object`, `empty` (confidence) and `class`: sums of squares, per image.

        A cell answers for the box whose centre lies in it (the largest, where there are several), and in it the
        predicted box that overlaps most; that box's confidence aims at the overlap (equation 3 of the paper).
        """
        boxes, classes = raw.boxes[target.present], raw.classes[target.present]
        images, rows, columns, count, _ = boxes.shape
        wanted, kinds = target.xyxy[target.present], target.classes[target.present]
        real = (kinds >= 0) & ~target.crowd[target.present]
        image, row = real.nonzero(as_tuple=True)
        xyxy, kind = wanted[image, row], kinds[image, row]
        scale = torch.tensor([columns / self.size[1], rows / self.size[0]], device=xyxy.device)
        centre = (xyxy[:, :2] + xyxy[:, 2:]) / 2 * scale
        cell_x, cell_y = centre[:, 0].long().clamp(0, columns - 1), centre[:, 1].long().clamp(0, rows - 1)
        sides = (xyxy[:, 2:] - xyxy[:, :2]).clamp(min=0)
        kept = best_of_groups(sides.prod(1), (image * rows + cell_y) * columns + cell_x, 1)
        image, cell_x, cell_y, xyxy, kind = (v[kept] for v in (image, cell_x, cell_y, xyxy, kind))
        with torch.no_grad():
            guesses = self.pixels(boxes)[image, cell_y, cell_x]
            iou = pair_iou(guesses.reshape(-1, 4), xyxy.repeat_interleave(count, 0)).reshape(-1, count)
            overlap, best = iou.max(1) if len(iou) else (iou.new_zeros(0), torch.zeros_like(image))
        own = boxes[image, cell_y, cell_x, best]
        place = centre[kept] - torch.stack([cell_x, cell_y], 1)
        picture = torch.tensor([self.size[1], self.size[0]], device=xyxy.device)
        roots = (sides[kept] / picture).sqrt()
        empty = torch.ones(images, rows, columns, count, dtype=torch.bool, device=boxes.device)
        empty[image, cell_y, cell_x, best] = False
        one_hot = nn.functional.one_hot(kind, classes.shape[-1]).float()
        return {
            "place": self.coordinate_weight * (own[:, :2] - place).square().sum() / images,
            "size": self.coordinate_weight * (own[:, 2:4] - roots).square().sum() / images,
            "object": (own[:, 4] - overlap).square().sum() / images,
            "empty": self.empty_weight * (boxes[..., 4].square() * empty).sum() / images,
            "class": (classes[image, cell_y, cell_x] - one_hot).square().sum() / images,
        }

    def decode(self, raw: RawGrid) -> BoxPrediction:
        """Confidence times class score, suppressed per class; the `max_boxes` best of each image."""
        batch = raw.boxes.shape[0]
        scores = (raw.boxes[..., 4:5] * raw.classes[:, :, :, None, :]).clamp(0, 1)
        boxes = self.pixels(raw.boxes).reshape(batch, -1, 4)
        return suppress(top_boxes(boxes, scores.reshape(batch, boxes.shape[1], -1), self.max_boxes), self.nms_iou)

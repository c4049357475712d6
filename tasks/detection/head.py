"""The detection head: feature pyramid, decoupled anchor-free branches, one-to-many and one-to-one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import STRIDES, Backbone, require_strides
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.necks import ConvNormAct, PathAggregation
from pipeline.records import BoxTarget
from tasks.detection.assignment import assign
from tasks.detection.base import BoxHead
from tasks.detection.decode import (
    BoxPrediction,
    anchor_points,
    best_pairs,
    best_points,
    boxes_to_distances,
    distances_to_boxes,
    expected_distances,
    rows_of,
    suppress,
)
from tasks.detection.loss import complete_iou, distribution_focal_loss
from tasks.head import Losses, register


class BranchOutput(NamedTuple):
    """Class logits float32 (B, A, C) and side logits (B, A, 4, R), as computed, of all anchor points."""

    logits: Tensor
    sides: Tensor


class RawBoxes(NamedTuple):
    """Both branches' outputs (`many` is None at inference without NMS, `one` with it), anchor points and strides."""

    many: BranchOutput | None
    one: BranchOutput | None
    points: Tensor
    strides: Tensor


class Branch(nn.Module):
    """Decoupled class and box towers over the pyramid's levels (Ge et al. 2021, YOLOX; Li et al. 2020, GFL)."""

    def __init__(self, levels: int, width: int, classes: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.class_tower = nn.ModuleList(self._tower(width, classes, -math.log(99)) for _ in range(levels))
        self.side_tower = nn.ModuleList(self._tower(width, 4 * bins, 0.0) for _ in range(levels))

    @staticmethod
    def _tower(width: int, out: int, bias: float) -> nn.Sequential:
        last = nn.Conv2d(width, out, 1)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]  # a Conv2d has a bias unless told otherwise
        return nn.Sequential(ConvNormAct(width, width), last)

    def forward(self, maps: list[Tensor]) -> BranchOutput:
        """Maps (B, width, H_i, W_i) to the outputs of all points, level by level."""
        logits = [tower(m).flatten(2).transpose(1, 2) for tower, m in zip(self.class_tower, maps, strict=True)]
        sides = [tower(m).flatten(2).transpose(1, 2) for tower, m in zip(self.side_tower, maps, strict=True)]
        joined = torch.cat(sides, 1)
        return BranchOutput(torch.cat(logits, 1).float(), joined.reshape(joined.shape[0], -1, 4, self.bins))


@register("detection")
class DetectionHead(BoxHead):
    """YOLO-style boxes without NMS: dual assignment as in YOLOv10 (Wang et al. 2024, https://arxiv.org/abs/2405.14458).

    Args:
        space: the boxes' classes.
        channels: the backbone's channels at strides 2 to 32.
        backbone: checked to have maps at those strides.
        strides: the pyramid's strides; add 4 for small objects.
        width: channels of pyramid and branches.
        bins: bins of each side's distance; boxes reach (bins - 1) strides from their point.
        max_boxes: boxes per image in the answer (K).
        nms: answer by the one-to-many branch and NMS inside instead of the one-to-one branch.
        nms_iou: IoU above which NMS suppresses.
        topk: points a box trains in the one-to-many branch.
        box_weight: weight of the CIoU loss.
        class_weight: weight of the classification loss.
        dfl_weight: weight of the distribution focal loss.
        one_gradient: share of the one-to-one branch's gradient that reaches the features, 0 to 1. YOLOv10 takes 0; in
            short training the branch then tells doubles apart less well.
    """

    def __init__(
        self,
        space: LabelSpace,
        channels: tuple[int, ...],
        backbone: Backbone | None = None,
        strides: list[int] | None = None,
        width: int = 96,
        bins: int = 16,
        max_boxes: int = 100,
        nms: bool = False,
        nms_iou: float = 0.65,
        topk: int = 10,
        box_weight: float = 7.5,
        class_weight: float = 0.5,
        dfl_weight: float = 1.5,
        one_gradient: float = 1.0,
    ) -> None:
        super().__init__(space)
        self.strides = strides or [8, 16, 32]
        picked = [STRIDES.index(stride) for stride in self.strides if stride in STRIDES]
        if len(picked) != len(self.strides) or picked != list(range(picked[0], picked[0] + len(picked))):
            raise ConfigError(f"strides {self.strides} must be consecutive ones of {list(STRIDES)}, fine to coarse")
        if backbone is not None:
            other = "strides that it has" + (", or kind: yolo-v1" if 32 in backbone.present else "")
            require_strides(backbone, tuple(self.strides), "the pyramid", other)
        self.picked, self.max_boxes = picked, max_boxes
        self.nms, self.nms_iou, self.topk = nms, nms_iou, topk
        self.one_gradient = one_gradient
        self.gains = {"box": box_weight, "class": class_weight, "dfl": dfl_weight}
        self.neck = PathAggregation([channels[i] for i in picked], width)
        self.many = Branch(len(picked), width, len(space.names), bins)
        self.one = Branch(len(picked), width, len(space.names), bins)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> RawBoxes:  # noqa: ARG002  # the size is other heads' need
        """Raw outputs of both branches; at inference only of the one that answers."""
        maps = self.neck([features[i] for i in self.picked])
        shapes = [(m.shape[2], m.shape[3]) for m in maps]  # kept as they are: an exported graph may leave them open
        # A trace keeps them as constants, which move to any device with it.
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]  # torch leaves it unexported
            shapes = [(int(height), int(width)) for height, width in shapes]
        points, strides = anchor_points(shapes, self.strides, maps[0].device)
        many = self.many(maps) if self.training or self.nms else None
        one = self.one([self._shared(m) for m in maps]) if self.training or not self.nms else None
        return RawBoxes(many, one, points, strides)

    def _shared(self, features: Tensor) -> Tensor:
        """The same values, through which only a share of the gradient flows back."""
        if not self.training or self.one_gradient == 1:
            return features
        return features.detach() if self.one_gradient == 0 else _scale_gradient(features, self.one_gradient)

    def loss(self, raw: RawBoxes, target: BoxTarget) -> Losses:
        """`class`, `box`, `dfl` of the one-to-many branch and the same of the one-to-one branch, as `one_...`."""
        out: Losses = {}
        for prefix, branch, topk in (("", raw.many, self.topk), ("one_", raw.one, 1)):
            if branch is not None:
                terms = self._branch_loss(branch, raw.points, raw.strides, target, topk)
                out |= {prefix + name: value for name, value in terms.items()}
        return out

    def _branch_loss(
        self, branch: BranchOutput, points: Tensor, strides: Tensor, target: BoxTarget, topk: int
    ) -> Losses:
        logits, sides, wanted, classes, crowd = _labelled(
            target.present, branch.logits, branch.sides, target.xyxy, target.classes, target.crowd
        )
        with torch.no_grad():
            boxes = distances_to_boxes(expected_distances(sides), points, strides)
            # Crowd regions are neither objects nor background.
            given = assign(logits.sigmoid(), boxes, points, strides, wanted, classes.masked_fill(crowd, -1), topk)
        norm = given.scores.sum().clamp(min=1)
        loss = F.binary_cross_entropy_with_logits(logits, given.scores, reduction="none")
        crowded = _inside_crowd(points, wanted, crowd) & ~given.taken
        class_loss = (loss * ~crowded[..., None]).sum() / norm
        weight = given.scores.sum(2)[given.taken]
        # Few points answer for a box, so only theirs are taken through the distribution with gradients.
        side_logits, aim = sides[given.taken].float(), given.boxes[given.taken]
        at = given.taken.nonzero()[:, 1]
        found = distances_to_boxes(expected_distances(side_logits), points[at], strides[at])
        box_loss = ((1 - complete_iou(found, aim)) * weight).sum() / norm
        distances = boxes_to_distances(aim, points[at], strides[at])
        dfl = (distribution_focal_loss(side_logits, distances) * weight).sum() / norm
        return {
            "class": class_loss * self.gains["class"],
            "box": box_loss * self.gains["box"],
            "dfl": dfl * self.gains["dfl"],
        }

    def decode(self, raw: RawBoxes) -> BoxPrediction:
        """The `max_boxes` best boxes of each image."""
        branch = raw.many if self.nms else raw.one
        assert branch is not None
        count = self.max_boxes * (3 if self.nms else 1)
        best = best_points(branch.logits, count)  # only these are decoded: they can give all of the answer
        distances = expected_distances(rows_of(branch.sides, best))
        boxes = distances_to_boxes(distances, raw.points[best], raw.strides[best])
        found = best_pairs(boxes, rows_of(branch.logits, best).sigmoid(), count)
        if not self.nms:
            return found
        return BoxPrediction(*(column[:, : self.max_boxes] for column in suppress(found, self.nms_iou)))


def _scale_gradient(value: Tensor, factor: float) -> Tensor:
    return value * factor + value.detach() * (1 - factor)


def _labelled(present: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The labelled images' rows of each (B, ...); no copy where all are labelled."""
    return values if bool(present.all()) else tuple(value[present] for value in values)


def _inside_crowd(points: Tensor, boxes: Tensor, crowd: Tensor) -> Tensor:
    """Bool (B, A): the point lies in a crowd region; points (A, 2), boxes (B, M, 4), crowd (B, M)."""
    inside = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    for image, box in crowd.nonzero().tolist():  # there are few
        low, high = boxes[image, box, :2], boxes[image, box, 2:]
        inside[image] |= ((points > low) & (points < high)).all(1)
    return inside

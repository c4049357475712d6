"""Faster R-CNN: torchvision's anchors, region proposals and region heads on one of our maps, with answers of fixed shape."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.backbones.build import Backbone, require_strides
from pipeline.errors import ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import BoxTarget
from tasks.decoders.registry import pooled_maps
from tasks.detection.base import BoxHead
from tasks.detection.decode import BoxPrediction, logit, steady_order, surviving
from tasks.head import Losses, register


class RawRegions(NamedTuple):
    """The map (B, C, H, W), objectness logits (B, A), box deltas (B, A, 4), anchors xyxy (A, 4) in pixels, and the
    input's size float32 (2,), width before height.
    """

    features: Tensor
    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    size: Tensor


@register("faster-rcnn")
class FasterRcnnHead(BoxHead):
    """Faster R-CNN (Ren et al. 2015, https://arxiv.org/abs/1506.01497) on one map, as first published on VGG-16.

    Training runs torchvision's own sampling, losses and region heads. The answer keeps a fixed number of proposals and
    boxes, so that the graph exports with an open batch; it is torchvision's answer where that has no more of them.

    Args:
        space: the boxes' classes.
        channels: the backbone's channels at strides 2 to 32.
        backbone: whose map is taken.
        stride: of that map: 16 as published; 8 for small objects, also by `output_stride: 8`.
        anchors: sides of the anchors in pixels, each in the proportions 1:2, 1:1 and 2:1.
        proposals: regions looked at in an answer.
        width: units of the region head's two layers.
        max_boxes: boxes per image in the answer (K).
        nms_iou: IoU above which a box of the same class is suppressed.
    """

    def __init__(
        self,
        space: LabelSpace,
        channels: tuple[int, ...],
        backbone: Backbone,
        stride: int = 16,
        anchors: list[int] | None = None,
        proposals: int = 100,
        width: int = 1024,
        max_boxes: int = 100,
        nms_iou: float = 0.5,
    ) -> None:
        super().__init__(space)
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.roi_heads import RoIHeads
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
        from torchvision.ops import MultiScaleRoIAlign

        require_strides(backbone, (stride,), "Faster R-CNN", "a stride that it has")
        sides = anchors or [32, 64, 128, 256, 512]
        if min(sides) <= 0 or min(proposals, width, max_boxes) < 1:
            raise ConfigError(
                f"anchors, proposals, width and max_boxes are above 0, not {sides}, {proposals}, {width}, {max_boxes}"
            )
        self.level = max(i for i, s in enumerate(backbone.traits.strides) if s == stride and channels[i])
        # As published on VGG: the last map of that stride, which is the one before its pooling.
        self.before = self.level + 1 if len(backbone.traits.pooled) > self.level + 1 else None
        self.stride, self.proposals, self.max_boxes, self.nms_iou = stride, proposals, max_boxes, nms_iou
        classes = len(space.names) + 1
        depth = channels[self.level] if self.before is None else backbone.traits.pooled[self.before]
        generator = AnchorGenerator((tuple(sides),), ((0.5, 1.0, 2.0),))
        counts = {"training": 2000, "testing": 1000}
        # torchvision's own settings.
        self.rpn = RegionProposalNetwork(
            generator, RPNHead(depth, generator.num_anchors_per_location()[0]),
            0.7, 0.3, 256, 0.5, counts, {"training": 2000, "testing": proposals}, 0.7,
        )  # fmt: skip
        self.roi = RoIHeads(
            MultiScaleRoIAlign(["0"], 7, 2), TwoMLPHead(depth * 49, width), FastRCNNPredictor(width, classes),
            0.5, 0.5, 512, 0.25, None, 0.001, nms_iou, max_boxes,
        )  # fmt: skip

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> RawRegions:
        """The proposal network's raw outputs."""
        maps = features[self.level] if self.before is None else pooled_maps(features)[self.before]
        maps = maps.to(next(self.rpn.parameters()).dtype)  # torchvision's parts do not run under autocast
        objectness, deltas = self.rpn.head([maps])
        batch = maps.shape[0]
        scores = objectness[0].permute(0, 2, 3, 1).reshape(batch, -1)
        per_place = objectness[0].shape[1]
        moves = deltas[0].reshape(batch, per_place, 4, maps.shape[2], maps.shape[3]).permute(0, 3, 4, 1, 2)
        extent = torch.tensor([float(size[1]), float(size[0])], device=maps.device)
        return RawRegions(maps, scores, moves.reshape(batch, -1, 4), self.anchors(maps), extent)

    def anchors(self, maps: Tensor) -> Tensor:
        """Anchors xyxy (A, 4) in pixels, place by place, rows first."""
        cells: Tensor = self.rpn.anchor_generator.cell_anchors[0].to(maps)
        rows, columns = (torch.arange(int(side), device=maps.device) * self.stride for side in maps.shape[2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corners = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
        return (corners + cells).reshape(-1, 4)

    def loss(self, raw: RawRegions, target: BoxTarget) -> Losses:
        """`objectness` and `rpn_box` of the proposals, `class` and `box` of the regions: torchvision's own."""
        from torchvision.models.detection.roi_heads import fastrcnn_loss

        keep = target.present.nonzero().flatten().tolist()
        maps, size = raw.features[target.present], (int(raw.size[1]), int(raw.size[0]))
        objectness, deltas = raw.objectness[target.present], raw.deltas[target.present]
        wanted = [self._labels(target, image) for image in keep]
        anchors = [raw.anchors] * len(keep)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, wanted)
        aims = self.rpn.box_coder.encode(matched, anchors)
        found, places = self.rpn.compute_loss(objectness.reshape(-1, 1), deltas.reshape(-1, 4), labels, aims)
        shapes = [size] * len(keep)
        with torch.no_grad():
            guesses = self.rpn.box_coder.decode(deltas.detach().reshape(-1, 4), anchors).view(len(keep), -1, 4)
            proposals, _ = self.rpn.filter_proposals(
                guesses, objectness.detach().reshape(-1, 1), shapes, [raw.anchors.shape[0]]
            )
        regions, _, kinds, moves = self.roi.select_training_samples(proposals, wanted)
        seen = self.roi.box_head(self.roi.box_roi_pool({"0": maps}, regions, shapes))
        class_loss, box_loss = fastrcnn_loss(*self.roi.box_predictor(seen), kinds, moves)
        return {"objectness": found, "rpn_box": places, "class": class_loss, "box": box_loss}

    @staticmethod
    def _labels(target: BoxTarget, image: int) -> dict[str, Any]:
        """One image's boxes as torchvision takes them; crowd regions are left out, class 0 is the background."""
        real = (target.classes[image] >= 0) & ~target.crowd[image]
        return {"boxes": target.xyxy[image][real].float(), "labels": target.classes[image][real] + 1}

    def decode(self, raw: RawRegions) -> BoxPrediction:
        """Proposals, regions and boxes of fixed numbers; what was suppressed has score 0."""
        from torchvision.ops import roi_align

        batch, classes = raw.objectness.shape[0], len(self.space.names)
        every = self.rpn.box_coder.decode_single(raw.deltas.reshape(-1, 4), self._for_each(raw.anchors, batch))
        every = clipped(every.reshape(batch, -1, 4), raw.size)
        best = steady_order(raw.objectness, 10 * self.proposals)
        boxes = every.gather(1, best[..., None].expand(-1, -1, 4))
        alive = surviving(boxes, torch.zeros_like(best), 0.7)
        first = steady_order(alive, self.proposals)
        boxes, alive = boxes.gather(1, first[..., None].expand(-1, -1, 4)), alive.gather(1, first)
        count = boxes.shape[1]
        number = torch.arange(batch, device=boxes.device, dtype=boxes.dtype)[:, None, None].expand(-1, count, 1)
        rois = torch.cat([number, boxes], 2).reshape(-1, 5)
        seen = self.roi.box_head(roi_align(raw.features, rois, 7, 1 / self.stride, 2))
        logits, moves = self.roi.box_predictor(seen)
        scores = logits.softmax(1)[:, 1:].reshape(batch, count, classes) * (alive > 0)[..., None]
        placed = self.roi.box_coder.decode_single(moves, rois[:, 1:])[:, 4:].reshape(batch, count * classes, 1, 4)
        placed = clipped(placed.reshape(batch, count * classes, 4), raw.size)
        kinds = torch.arange(classes, device=boxes.device).expand(batch, count, -1).reshape(batch, -1)
        order = steady_order(logit(scores.reshape(batch, -1)), 3 * self.max_boxes)
        picked, sorts = placed.gather(1, order[..., None].expand(-1, -1, 4)), kinds.gather(1, order)
        kept = scores.reshape(batch, -1).gather(1, order) * surviving(picked, sorts, self.nms_iou)
        values, last = kept.topk(min(self.max_boxes, kept.shape[1]), dim=1)
        return BoxPrediction(picked.gather(1, last[..., None].expand(-1, -1, 4)), values, sorts.gather(1, last))

    @staticmethod
    def _for_each(anchors: Tensor, batch: int) -> Tensor:
        return anchors[None].expand(batch, -1, -1).reshape(-1, 4)


def clipped(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes xyxy (B, N, 4) cut at the borders of a picture of (width, height)."""
    limits = torch.cat([size, size])
    return torch.minimum(boxes.clamp(min=0), limits)

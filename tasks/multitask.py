"""The LightningModules a config names: each trains the label fields of its kinds; MultiTaskModule trains them all."""

from __future__ import annotations

# Importing the heads registers them.
import tasks.classification
import tasks.denoising
import tasks.detection.faster_rcnn
import tasks.detection.head
import tasks.detection.yolo1
import tasks.segmentation  # noqa: F401
from tasks.module import VisionModule


class ClassificationModule(VisionModule):
    """Image labels only, one or several heads."""

    kinds = ("classes", "multilabel")


class DetectionModule(VisionModule):
    """Boxes only."""

    kinds = ("boxes",)


class SegmentationModule(VisionModule):
    """Semantic masks, and denoising beside them where `heads` asks for it."""

    kinds = ("mask", "image")


class DenoisingModule(VisionModule):
    """Mends spoilt images: a start for a backbone, from images without labels."""

    kinds = ("image",)


class MultiTaskModule(VisionModule):
    """Any number of heads of any kind on one backbone."""

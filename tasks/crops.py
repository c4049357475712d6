"""Ten crops: image labels averaged over the corners and the middle, each mirrored too (Krizhevsky et al. 2012)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.classification import ClassPrediction
from tasks.network import VisionNetwork

CROP = 224 / 256
"""Side of a crop as a share of the picture's."""


def ten_crops(images: Tensor) -> Tensor:
    """Pixels (B, C, H, W) to (10, B, C, H, W) float32: four corners and the middle, enlarged again, then their mirrors."""
    height, width = images.shape[2:]
    tall, wide = max(1, round(height * CROP)), max(1, round(width * CROP))
    places = [(0, 0), (0, width - wide), (height - tall, 0), (height - tall, width - wide)]
    places.append(((height - tall) // 2, (width - wide) // 2))
    five = [images[:, :, y : y + tall, x : x + wide].float() for y, x in places]
    full = torch.stack([F.interpolate(c, (height, width), mode="bilinear", align_corners=False) for c in five])
    return torch.cat([full, full.flip(-1)])


def ten_crop_labels(network: VisionNetwork, images: Tensor) -> dict[str, ClassPrediction]:
    """Each image-label head's probabilities (B, C), the mean over ten crops; other heads are left out."""
    found: dict[str, list[Tensor]] = {}
    for crop in ten_crops(images):
        predictions: dict[str, Any] = network.decode(network(crop))
        for name, prediction in predictions.items():
            if isinstance(prediction, ClassPrediction):
                found.setdefault(name, []).append(prediction.probabilities.float())
    return {name: ClassPrediction(torch.stack(values).mean(0)) for name, values in found.items()}

"""Spoilt copies of images for a network to mend: Gaussian noise, masked squares, blind spots."""

from __future__ import annotations

import zlib
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Noise = Literal["gaussian", "masked", "blind"]


class Spoilt(NamedTuple):
    """Images float32 (B, C, H, W) in 0 to 255 after spoiling, and where the answer is asked: float32 (B, 1, H, W), 0 or 1."""

    images: Tensor
    asked: Tensor


def spoil(images: Tensor, noise: Noise, strength: float, draws: torch.Generator) -> Spoilt:
    """Spoils pixels (B, C, H, W) of 0 to 255, on the CPU or any device.

    Args:
        images: the clean ones.
        noise: `gaussian`: white noise of standard deviation `strength` x 255, not clipped, asked everywhere (Vincent et
            al. 2008). `masked`: a share `strength` of 8 x 8 squares made grey, asked there (Pathak et al. 2016,
            https://arxiv.org/abs/1604.07379). `blind`: a share `strength` of pixels replaced by one of their
            neighbours, asked there: learns from images that are noisy themselves (Krull et al. 2019,
            https://arxiv.org/abs/1811.10980).
        strength: 0 to 1.
        draws: decides.
    """
    clean, shape = images.float(), (images.shape[0], 1, *images.shape[2:])
    if noise == "gaussian":
        added = torch.randn(clean.shape, generator=draws) * (255 * strength)
        return Spoilt(clean + added.to(clean.device), torch.ones(shape, device=clean.device))
    if noise == "masked":
        coarse = torch.rand(shape[0], 1, -(-shape[2] // 8), -(-shape[3] // 8), generator=draws) < strength
        hidden = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, : shape[2], : shape[3]].to(clean.device)
        grey = clean.mean((2, 3), keepdim=True)
        return Spoilt(torch.where(hidden, grey, clean), hidden.float())
    chosen = (torch.rand(shape, generator=draws) < strength).to(clean.device)
    return Spoilt(torch.where(chosen, _neighbours(clean, draws), clean), chosen.float())


def _neighbours(images: Tensor, draws: torch.Generator) -> Tensor:
    """For each pixel the value of one of the eight around it; the picture goes on at its other side."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    which = torch.randint(len(steps), (images.shape[0], 1, *images.shape[2:]), generator=draws).to(images.device)
    out = images
    for number, (y, x) in enumerate(steps):
        out = torch.where(which == number, images.roll((y, x), (2, 3)), out)
    return out


def fixed_draws(names: list[str]) -> torch.Generator:
    """A generator that draws the same for the same images, so that every validation meets the same noise."""
    return torch.Generator().manual_seed(zlib.crc32("\n".join(names).encode()))


def random_draws() -> torch.Generator:
    """A generator seeded by torch's own, which the training seeds at every step."""
    return torch.Generator().manual_seed(int(torch.randint(1 << 62, ())))

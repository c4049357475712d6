"""What this machine's cores can do at most, and so how much faster than eager PyTorch any engine can be.

    python benchmarks/peak.py [--size 320 --backbone resnet18 --decoder smp-unet --rounds 15 --seconds 20]

A large matrix product and a large 3x3 convolution are the quickest things that a network can be made of: the operations a
second that they reach in float32, bf16 and int8 (through PyTorch) bound every engine in that precision, Winograd's trick
aside. Timed in turn with eager float32 of the three-task network.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from engines import Ways, eager_of, graph_of, scenes, timed, with_decoder
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048
CONVOLUTION = (1, 256, 64, 64)
OPERATIONS = {"product": 2 * SIDE**3, "convolution": 2 * 9 * 256**2 * 64**2}


def quickest() -> Ways:
    """A product of square matrices and a convolution in each precision that PyTorch computes them in on a CPU."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    half, other_half = left.bfloat16(), right.bfloat16()
    whole, other_whole = left.mul(30).to(torch.int8), right.mul(30).to(torch.int8)
    layer = torch.nn.Conv2d(256, 256, 3, padding=1, bias=False).requires_grad_(False)
    maps, half_layer = torch.randn(CONVOLUTION), copy.deepcopy(layer).bfloat16()
    half_maps = maps.bfloat16()
    return {
        "float32 product": lambda: left @ right,
        "float32 convolution": lambda: layer(maps),
        "bf16 product": lambda: half @ other_half,
        "bf16 convolution": lambda: half_layer(half_maps),
        "int8 product": lambda: torch._int_mm(whole, other_whole),  # noqa: SLF001  # it has no public name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--decoder", help="of the mask: smp-unet")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20)
    parser.set_defaults(batch=1)
    given = parser.parse_args()
    graph = graph_of(given.backbone, with_decoder(given.decoder))
    eager = eager_of(graph, scenes(1, given.size))
    with FlopCounterMode(display=False) as counter:
        eager()
    operations = counter.get_total_flops()
    found = timed({"eager": eager} | quickest(), given)
    eager_seconds = 1 / found.pop("eager")
    sys.stdout.write(
        f"eager float32: {1000 * eager_seconds:.1f} ms for {operations / 1e9:.1f} G operations,"
        f" {operations / eager_seconds / 1e9:.0f} G/s\n"
    )
    for name, rate in found.items():
        speed = OPERATIONS[name.split()[1]] * rate
        sys.stdout.write(
            f"{name:20} {speed / 1e9:6.0f} G/s: at least {1000 * operations / speed:5.1f} ms,"
            f" at most {eager_seconds * speed / operations:5.1f} x eager\n"
        )


if __name__ == "__main__":
    main()

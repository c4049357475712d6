"""What this machine's cores can do at most, and so how much faster than eager PyTorch any engine can be.

    python benchmarks/peak.py [--size 320 --backbone resnet18 --decoder fpn --rounds 15 --seconds 20]

A large matrix product is the quickest thing that convolutions can become: the operations a second it reaches in float32,
bf16 and int8 (oneDNN through PyTorch) bound every engine in that precision, Winograd's trick aside. Timed in turn with
eager float32 of the three-task network.
"""

from __future__ import annotations

import argparse
import sys

import torch
from engines import Ways, eager_of, graph_of, scenes, timed
from torch.utils.flop_counter import FlopCounterMode

SIDE = 2048


def products() -> Ways:
    """A product of two square matrices in each precision that PyTorch multiplies in on a CPU."""
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    half, other_half = left.bfloat16(), right.bfloat16()
    whole, other_whole = left.mul(30).to(torch.int8), right.mul(30).to(torch.int8)
    return {
        "float32": lambda: left @ right,
        "bf16": lambda: half @ other_half,
        "int8": lambda: torch._int_mm(whole, other_whole),  # noqa: SLF001  # it has no public name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--decoder", help="of the mask: fpn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20)
    parser.set_defaults(batch=1)
    given = parser.parse_args()
    graph = graph_of(given.backbone, {"surface": {"decoder": given.decoder}} if given.decoder else None)
    eager = eager_of(graph, scenes(1, given.size))
    with FlopCounterMode(display=False) as counter:
        eager()
    operations = counter.get_total_flops()
    found = timed({"eager": eager} | products(), given)
    eager_seconds = 1 / found.pop("eager")
    sys.stdout.write(
        f"eager float32: {1000 * eager_seconds:.1f} ms for {operations / 1e9:.1f} G operations,"
        f" {operations / eager_seconds / 1e9:.0f} G/s\n"
    )
    for precision, rate in found.items():
        speed = 2 * SIDE**3 * rate
        sys.stdout.write(
            f"{precision:8} {speed / 1e9:6.0f} G/s in a matrix product: at least {1000 * operations / speed:5.1f} ms,"
            f" at most {eager_seconds * speed / operations:5.1f} x eager\n"
        )


if __name__ == "__main__":
    main()

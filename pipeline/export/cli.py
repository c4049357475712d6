"""The commands export, describe and evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.bundle import Bundle


def export_command(argv: list[str]) -> int:
    """`lightning export --ckpt PATH --out DIR`: writes a bundle; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lightning export", description="A checkpoint as a folder that anyone can run."
    )
    parser.add_argument("--ckpt", required=True, help="checkpoint file")
    parser.add_argument("--out", required=True, type=Path, help="the bundle's folder")
    parser.add_argument("--name", default="trifocal", help="the model's name")
    parser.add_argument("--allow-worse", type=float, metavar="F", help="let the metrics differ by F")
    parser.add_argument("--dynamic-size", action="store_true", help="leave height and width open")
    parser.add_argument("--no-mask-probabilities", action="store_true", help="masks without probabilities")
    parser.add_argument("--no-torchscript", action="store_true", help="leave model.ts.pt out")
    parser.add_argument("--data.root", dest="root", help="measure on this data instead of the checkpoint's")
    parser.add_argument("--data.format", dest="format", help="its format")
    given = parser.parse_args(argv)
    from pipeline.export.run import ExportOptions, export

    options = ExportOptions(
        checkpoint=Path(given.ckpt),
        out=given.out,
        name=given.name,
        allow_worse=given.allow_worse,
        dynamic_size=given.dynamic_size,
        mask_probabilities=not given.no_mask_probabilities,
        torchscript=not given.no_torchscript,
        data={key: value for key, value in (("root", given.root), ("format", given.format)) if value},
    )
    bundle = export(options, _say)
    sys.stdout.write(table(bundle))
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def table(bundle: Bundle) -> str:
    """Files with sizes, and each engine's parity and metrics."""
    lines = [f"bundle {bundle.path}"]
    for name, file in bundle.manifest.files.items():
        lines.append(f"  {name:<20} {file.bytes / 2**20:8.1f} MiB  {file.precision}")
    return "\n".join(lines) + "\n"

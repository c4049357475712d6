"""`lightning batch-predict`: its options, where the model is, and its exit code."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.arguments import Arguments
from pipeline.errors import ConfigError, TrifocalError
from serving.batch.settings import Settings, again

if TYPE_CHECKING:
    from pipeline.bundle import HeadSpec
    from serving.batch.scorer import Scorer
    from serving.batch.sources import Source


LEAST_TILE = 32
"""Pixels: smaller tiles show no network anything, and a photograph would make millions of them."""


def parser() -> Arguments:
    """The options of batch-predict."""
    out = Arguments(
        "lightning batch-predict",
        "Answers for every image of a folder, finished exactly once: a killed run goes on where it stopped.",
    )
    out.epilog = "exit code: 0 all images answered, 3 some could not be (errors.jsonl), 1 it could not run"
    out.add_argument(
        "source", nargs="+", help="a folder, a glob in quotes, a list file, an image, or a URL such as s3://bucket/dir"
    )
    out.add_argument("--model", required=True, help="a bundle's folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    out.add_argument("--out", required=True, type=Path, metavar="DIR", help="the output folder")
    out.add_argument("--format", action="append", default=[], metavar="NAME", help=_formats_help())
    out.add_argument("--overlay", action="store_true", help="write annotated pictures to overlay/")
    out.add_argument("--crops", action="store_true", help="cut the boxes out into crops/")
    out.add_argument(
        "--threshold", type=_share, help="score from which boxes and labels count; each head's own by default"
    )
    out.add_argument("--heads", help="comma-separated names of the heads wanted; all by default")
    out.add_argument("--no-masks", action="store_true", help="leave masks out")
    out.add_argument("--tile", type=int, default=0, metavar="PIXELS", help="predict tiles of this side and merge them")
    out.add_argument("--overlap", type=float, help="share of a tile that the next one repeats (0.2)")
    out.add_argument("--tta", choices=("none", "flip", "ten-crop"), default="none", help="average over several views")
    out.add_argument("--engine", default="auto", help="auto, onnxruntime, openvino:bf16, ..., or ray[:ENGINE]")
    out.add_argument("--batch", type=int, default=4, help="images a call of the engine (4)")
    out.add_argument("--workers", type=int, default=0, help="threads, or Ray's actors; one per core by default")
    out.add_argument(
        "--part", type=int, default=256, help="images between two points that a killed run resumes from (256)"
    )
    out.add_argument("--restart", action="store_true", help="throw away what another run left in the output folder")
    out.add_argument(
        "--data.root", dest="labels", metavar="DIR", help="labels to score the answers by: folder or COCO JSON"
    )
    out.add_argument("--data.format", dest="labels_format", default="auto", help="their format")
    return out


def _formats_help() -> str:
    return "also write coco, csv, jsonl, masks (index PNG) or yolo; may be repeated or comma-separated"


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text or 'nothing'} is not between 0 and 1")
    return value


def settings_from(argv: list[str]) -> Settings:
    """The options as Settings; raises ConfigError."""
    given = parser().parse(argv)
    for name, least in (("tile", 0), ("batch", 1), ("workers", 0), ("part", 1)):
        if getattr(given, name) < least:
            raise ConfigError(f"--{name} must be at least {least}, not {getattr(given, name)}")
    if 0 < given.tile < LEAST_TILE:
        raise ConfigError(f"--tile must be 0 (whole pictures) or at least {LEAST_TILE} pixels, not {given.tile}")
    if len(given.source) > 1:
        from serving.batch.names import public

        raise ConfigError(
            f"{len(given.source)} sources, {public(given.source[0])} and more; give one: a folder, a list file, or a glob in quotes,"
            " which keep the shell from taking it apart"
        )
    if not given.source[0]:
        raise ConfigError("SOURCE is empty; give a folder, a glob in quotes, a list file, an image or a URL")
    if given.overlap is not None and not given.tile:
        raise ConfigError("--overlap is that of tiles; give their side too, such as --tile 640")
    overlap = 0.2 if given.overlap is None else given.overlap
    if not 0 <= overlap < 0.9:
        raise ConfigError(f"--overlap must be from 0 to below 0.9, not {overlap}")
    formats = tuple(dict.fromkeys(name for text in given.format for name in _names(text) if name))
    return Settings(
        source=given.source[0],
        model=given.model,
        out=given.out,
        engine=given.engine,
        formats=formats,
        overlay=given.overlay,
        crops=given.crops,
        threshold=given.threshold,
        heads=None if given.heads is None else tuple(_names(given.heads)),
        masks=not given.no_masks,
        batch=given.batch,
        tile=given.tile,
        overlap=overlap,
        tta=given.tta,
        workers=given.workers,
        part=given.part,
        restart=given.restart,
        labels=given.labels,
        labels_format=given.labels_format,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code, 130 where its user stopped it."""
    try:
        settings = settings_from(argv)
        import cv2

        from pipeline.bundle import read_bundle
        from pipeline.model_source import find_bundle
        from serving.batch.names import shown
        from serving.batch.run import BatchRun, exit_code
        from serving.batch.summary import printed

        cv2.setNumThreads(1)  # the workers share the cores; OpenCV's own threads would only hinder them
        with find_bundle(settings.model) as folder:
            make = partial(_scorer, settings) if settings.labels is not None else None
            run = BatchRun(settings, read_bundle(folder), _say, sys.stderr.isatty(), make)
            summary = run.run()
    except TrifocalError as error:
        error.exit_code = 1
        raise
    except KeyboardInterrupt:
        _say(f"interrupted; {again('--restart' in argv)}")
        return 130
    sys.stdout.write(printed(summary, shown(os.fsencode(settings.out))))
    return exit_code(summary)


def _scorer(settings: Settings, source: Source, heads: dict[str, HeadSpec]) -> Scorer:
    from pipeline.batch_scores import LabelScorer

    assert settings.labels is not None
    if settings.threshold is not None:  # the answers that are scored are those it lets pass
        heads = {name: replace(head, threshold=settings.threshold) for name, head in heads.items()}
    return LabelScorer(Path(settings.labels), settings.labels_format, source, heads)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()

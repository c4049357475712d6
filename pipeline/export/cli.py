"""The commands export, describe and evaluate."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.arguments import Arguments
from pipeline.bundle import read_bundle
from pipeline.errors import ConfigError
from pipeline.export.table import describe_bundle, export_table, score_table


def export_command(argv: list[str]) -> int:
    """`lightning export --ckpt PATH --out DIR`: writes a bundle; returns the exit code."""
    parser = Arguments("lightning export", "A checkpoint as a folder that anyone can run, proven to answer alike.")
    parser.add_argument("--ckpt", required=True, help="a checkpoint file, runs:/RUN_ID or models:/NAME@ALIAS")
    parser.add_argument("--out", required=True, type=Path, help="the bundle's folder")
    parser.add_argument("--name", default="trifocal", help="the model's name, also in the registry")
    parser.add_argument("--int8", action="store_true", help="also quantise, calibrated on training images")
    parser.add_argument("--allow-worse", type=_share, metavar="F", help="let the metrics differ by F, 0 to 1")
    parser.add_argument("--dynamic-size", action="store_true", help="leave height and width open")
    parser.add_argument("--no-mask-probabilities", action="store_true", help="masks without probabilities")
    parser.add_argument("--no-torchscript", action="store_true", help="leave model.ts.pt out")
    parser.add_argument("--register", action="store_true", help="register the ONNX model in MLflow as --name")
    parser.add_argument("--alias", help="its alias there: challenger (taken without), champion, ...")
    parser.add_argument("--data.root", dest="root", help="measure on this data instead of the checkpoint's")
    parser.add_argument("--data.format", dest="format", help="its format")
    given = parser.parse(argv)
    _check_names(given)
    from pipeline.export.source import find_checkpoint

    checkpoint = find_checkpoint(given.ckpt)  # told before torch is loaded where there is none
    from pipeline.export.run import ExportOptions, export

    options = ExportOptions(
        checkpoint=checkpoint,
        out=given.out,
        name=given.name,
        int8=given.int8,
        allow_worse=given.allow_worse,
        dynamic_size=given.dynamic_size,
        mask_probabilities=not given.no_mask_probabilities,
        torchscript=not given.no_torchscript,
        data=_data(given),
    )
    bundle = export(options, _say)
    from pipeline.export.register import log_to_run, register

    log_to_run(bundle, _say)
    if given.register:
        alias = given.alias or "challenger"
        version = register(bundle, given.name, alias)
        _say(f"registered models:/{given.name}/{version}, alias {alias}")
    sys.stdout.write(export_table(bundle))
    return 0


def describe_command(argv: list[str]) -> int:
    """`lightning describe BUNDLE`: what is inside, every checksum checked; returns the exit code."""
    parser = Arguments("lightning describe", "What a bundle holds.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", action="store_true", help="the manifest itself")
    given = parser.parse(argv)
    bundle = read_bundle(given.bundle)
    bundle.verify()
    sys.stdout.write((bundle.path / "bundle.json").read_text() if given.json else describe_bundle(bundle))
    return 0


def evaluate_command(argv: list[str]) -> int:
    """`lightning evaluate BUNDLE --data.root DIR`: the trainer's metrics of a bundle; returns the exit code."""
    parser = Arguments("lightning evaluate", "A bundle's metrics on labelled images.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data.root", dest="root", help="the data's folder; without it, the built-in shapes")
    parser.add_argument("--data.format", dest="format", help="its format")
    parser.add_argument("--data.shapes", dest="shapes", type=_mapping, help='the built-in shapes, {"images": 100}')
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--engine", default="auto", help="auto, or a name such as onnxruntime or openvino:bf16")
    parser.add_argument("--tta", choices=("none", "flip", "ten-crop"), default="none", help="also average over views")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse(argv)
    if given.format and not given.root:
        raise ConfigError("lightning evaluate: --data.format is that of a folder; name it by --data.root")
    if given.root and given.shapes:
        raise ConfigError("lightning evaluate: give --data.root or --data.shapes, not both")
    from pipeline.export.evaluate import evaluate

    found = evaluate(given.bundle, _data(given), given.split, given.engine, given.tta)
    _say(found.predictor.choice.describe())
    for remark in found.remarks:
        _say(remark)
    if found.unread:
        more = ", ..." if len(found.unread) > 5 else ""
        total = found.images + len(found.unread)
        _say(
            f"{len(found.unread)} of {total} images cannot be read and do not count: {', '.join(found.unread[:5])}{more}"
        )
    columns = {given.split: found.scores} | ({given.tta: found.averaged} if found.averaged is not None else {})
    sys.stdout.write(score_table(columns, given.split, found.images))
    if given.json is not None:
        told: dict[str, Any] = {"split": given.split, "images": found.images, "metrics": found.scores}
        if found.unread:
            told["unread"] = list(found.unread)
        if found.averaged is not None:
            told |= {"tta": given.tta, "averaged": found.averaged}
        try:
            given.json.write_text(json.dumps(_plain(told), indent=1) + "\n")
        except OSError as error:
            raise ConfigError(f"--json {given.json} cannot be written ({error.strerror}); name another file") from error
    return 0


def _check_names(given: argparse.Namespace) -> None:
    """Raises ConfigError for a name or an alias that MLflow would refuse once all the work is done."""
    if given.alias is not None and not given.register:
        raise ConfigError("lightning export: --alias is given to a registered model; add --register")
    if not re.fullmatch(r"[^/@:]+", given.name):
        raise ConfigError(f"lightning export: --name {given.name!r} may not be empty or hold / @ or :")
    if given.alias is not None and not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", given.alias, re.IGNORECASE | re.ASCII):
        raise ConfigError(
            f"lightning export: --alias {given.alias!r} is none for MLflow: letters, digits, - and _, not latest or v1"
        )


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _plain(value: Any) -> Any:
    """Figures for JSON, which has no NaN: null stands for what was not labelled."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mapping(text: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)  # as `fit` reads it; JSON is YAML
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is no mapping such as {{"images": 100}}')
    return found


def _data(given: argparse.Namespace) -> dict[str, Any]:
    named = {key: getattr(given, key, None) for key in ("root", "format", "shapes")}
    return {key: value for key, value in named.items() if value}


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()

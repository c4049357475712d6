"""`lightning inspect`: options in, looks taken, page, figures and artifacts out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.arguments import Arguments
from pipeline.errors import ConfigError, nearest

LOOKS = {
    "costs": "parameters, multiply-adds, memory and time, layer by layer",
    "filters": "the first layer's kernels",
    "activations": "the liveliest channels of each stage as maps",
    "patches": "the image patches that excite a channel most",
    "gradcam": "where each head's answer comes from",
    "fields": "receptive fields: theoretical, effective by the gradient, checked by a NaN",
    "shift": "how far the answers move when the picture is shifted",
    "samples": "augmented training samples, as show-data draws them",
}
"""Every look with what it shows; one that needs images, heads or data is left out where there are none."""


def main(argv: list[str]) -> int:
    """The command; returns the exit code."""
    given = _parse(argv)
    looks = _looks(given)
    from pipeline.inspect.look import Wish
    from pipeline.inspect.page import to_json, write_page
    from pipeline.inspect.run import take_looks
    from pipeline.inspect.subject import find_images, from_checkpoint, named_backbone

    if given.ckpt is not None:
        subject = from_checkpoint(given.ckpt, given.size)
    else:
        subject = named_backbone(given.backbone, given.channels, given.size, given.weights, given.classes)
    paged = given.json is None or given.out is not None or given.track
    out = (given.out or Path("outputs/inspect")) if paged else None
    _prepare(out, given.json)
    wish = Wish(tuple(_words(given.layers)), given.count, given.repeats)
    sections = take_looks(
        looks, subject, lambda: find_images(subject, given.images, given.max_images, _say), wish, _say
    )
    figures = {name: section.figures for name, section in sections.items()}
    if given.json is not None:
        text = to_json({"name": subject.name, **figures})
        if given.json == "-":
            sys.stdout.write(text)
        else:
            Path(given.json).write_text(text, encoding="utf-8")
    if out is not None:
        files = write_page(out, subject.name, sections)
        _say(f"{', '.join(sections)}: {files[0]}")
        if given.track:
            from pipeline.inspect.track import log_page

            log_page(subject, files, figures, _say)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Arguments(
        "lightning inspect",
        "Looks inside a network: what it costs, what each layer sees, what excites it, where its answers come from.",
    )
    parser.add_argument("--ckpt", help="a checkpoint file, runs:/RUN_ID or models:/NAME@ALIAS")
    parser.add_argument(
        "--backbone", help="a backbone by name instead: resnet18, light, tu-<timm model>, torchvision/<model>"
    )
    parser.add_argument(
        "--weights", help="with --backbone: a local file, runs:/RUN_ID, models:/NAME@ALIAS or the hub's name of a set"
    )
    parser.add_argument("--channels", type=int, help="with --backbone: channels of the image; as published without it")
    parser.add_argument(
        "--classes",
        type=int,
        help="with --backbone: of its published classifier, if it has one; as published without it, 0 leaves it out",
    )
    parser.add_argument(
        "--size", type=_size, metavar="N|HxW", help="input size; the checkpoint's, or the published one"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FILE|DIR", help="what it is shown; else the checkpoint's validation images"
    )
    parser.add_argument("--max-images", type=int, default=32, help="how many of them at most")
    parser.add_argument("--looks", help="some of: " + ", ".join(LOOKS) + "; all that can be had without it")
    parser.add_argument("--layers", help="layers to look at, by their paths in the layer table, with commas between")
    parser.add_argument("--count", type=int, default=8, help="channels and images shown of each")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes; 0 measures no time")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the page and its PNGs; outputs/inspect")
    parser.add_argument(
        "--json", metavar="FILE|-", help="the figures; alone, only these are computed and no page is written"
    )
    parser.add_argument("--track", action="store_true", help="add page, pictures and figures to the MLflow run")
    given = parser.parse(argv)
    if (given.ckpt is None) == (given.backbone is None):
        raise ConfigError("lightning inspect: give either --ckpt PATH or --backbone NAME")
    if given.ckpt is not None:
        for name in ("weights", "channels", "classes"):
            if getattr(given, name) is not None:
                raise ConfigError(f"--{name} goes with --backbone; a checkpoint brings its own: leave it out")
    for name, least in (("channels", 1), ("max_images", 1), ("classes", 0), ("count", 1), ("repeats", 0)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {value}")
    return given


def _looks(given: argparse.Namespace) -> list[str] | None:
    """The looks asked for; None = all that can be had."""
    if given.looks is None:
        return ["costs"] if given.json is not None and given.out is None and not given.track else None
    words = _words(given.looks)
    for word in words:
        if word not in LOOKS:
            raise ConfigError(f"--looks: unknown look {word!r}{nearest(word, LOOKS)}")
    return words


def _prepare(out: Path | None, json: str | None) -> None:
    """Makes the page's folder and the figures' file before minutes are spent on looks; raises ConfigError where it cannot."""
    option, place = "--out", str(out)
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        option, place = "--json", str(json)
        if json not in {None, "-"}:
            Path(str(json)).open("a", encoding="utf-8").close()
    except OSError as error:
        raise ConfigError(f"{option} {place} cannot be written ({error.strerror}); name another place") from error


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) for side in text.lower().split("x")]
    if len(sides) not in {1, 2} or min(sides) < 1:
        raise ValueError(text)
    return sides[0], sides[-1]


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()

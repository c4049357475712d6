"""report.html: one self-contained page of counts, score histograms, samples of every class, and errors."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from html import escape
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec, Manifest
from pipeline.errors import ImageError, ImageSizeError
from pipeline.imaging.decode import decode_bytes
from pipeline.imaging.draw import draw_mask
from pipeline.imaging.runs import MaskRuns
from serving.batch.names import raw
from serving.batch.regions import thumbnail
from serving.batch.rows import Row
from serving.batch.sources import Source
from serving.batch.summary import figure
from serving.batch.tally import BINS, HeadTally, Tally
from serving.engines.registry import usable_cores

SIDE = 160
"""Longer side of a sample, pixels."""

HELD = 256
"""Small pictures that are kept: one is often a sample of several classes."""

Small = Callable[[str], NDArray[np.uint8]]

_STYLE = """
:root{--ink:#1d2430;--soft:#667085;--line:#e3e7ee;--card:#fff;--page:#f5f7fa;--bar:#3b74c4}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ef;--soft:#98a2b3;--line:#333b48;--card:#1d232d;--page:#13171e;--bar:#5b93e0}}
*{box-sizing:border-box}body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:76rem;padding:2rem 1.2rem;color:var(--ink);
background:var(--page)}h1,h2,h3{line-height:1.2;margin:0}h1{font-size:1.7rem}h2{font-size:1.3rem}h2 small{color:var(--soft);font-weight:400}
h3{font-size:1rem;margin:1.3rem 0 .4rem}nav{margin:.4rem 0 1rem}nav a{color:var(--bar);margin-right:1rem;text-decoration:none}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.3rem;margin:1rem 0}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:.2rem 0 1rem}.tiles div{flex:1 1 8rem;border:1px solid var(--line);border-radius:8px;
padding:.5rem .9rem}.tiles b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}.tiles span{color:var(--soft)}
.bad b{color:#c4453b}.pair{display:flex;flex-wrap:wrap;gap:1rem 3rem;align-items:flex-start;margin-top:.6rem}
table{border-collapse:collapse}td,th{padding:.16rem .8rem .16rem 0;text-align:left;vertical-align:middle;overflow-wrap:anywhere}
th{color:var(--soft);font-weight:400}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{background:var(--bar);height:.7rem;border-radius:2px;min-width:1px}.dot{display:inline-block;width:.75rem;height:.75rem;
border-radius:2px;margin-right:.5rem}svg rect{fill:var(--bar)}svg text{fill:var(--soft)}svg line{stroke:var(--line)}
.samples{display:flex;flex-wrap:wrap;gap:.7rem}figure{margin:0;width:160px}figure img{display:block;max-width:100%;border-radius:4px}
figcaption{font-size:12px;line-height:1.35;margin-top:.2rem;overflow-wrap:anywhere;color:var(--soft)}
"""


def report(summary: dict[str, Any], tally: Tally, manifest: Manifest, source: Source) -> str:
    """The page.

    Args:
        summary: as `summary_of` makes it; its `timing` is left out, so that the page is the same every time.
        tally: histograms, samples and errors.
        manifest: the model's.
        source: where the images are.
    """
    images, model = summary["images"], summary["model"]

    @lru_cache(maxsize=HELD)
    def small(image: str) -> NDArray[np.uint8]:
        pixels = _decoded(source, image)
        scale = SIDE / max(pixels.shape[:2])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        shrunk: NDArray[np.uint8] = cv2.resize(
            pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        return shrunk

    def prepare(image: str) -> None:
        with contextlib.suppress(ImageError):  # it is told where the picture would be
            small(image)

    # Photographs take longer to decode than all the rest takes to write.
    rows = (row for head in tally.heads.values() for held in head.samples.values() for _, _, row in held)
    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(prepare, islice(dict.fromkeys(row.image for row in rows), HELD)))
    facts = {
        "Source": summary["source"],
        "Model": f"{model['name']} {model['version']}, run {model['run_id'] or 'unknown'}",
        "Engine": summary["engine"],
        "Options": ", ".join(
            _asked(name, value) for name, value in summary["options"].items() if value != PLAIN.get(name)
        ),
    }
    tiles = [("images", images["found"], ""), ("answered", images["answered"], "")]
    tiles.append(("without an answer", images["failed"], "bad" if images["failed"] else ""))
    tiles.append(("other files left out", images["skipped"], ""))
    counted = "".join(f'<div class="{kind}"><b>{count:,}</b><span>{what}</span></div>' for what, count, kind in tiles)
    links = "".join(f'<a href="#head{at}">{escape(name)}</a>' for at, name in enumerate(tally.heads))
    if tally.errors:
        links += '<a href="#errors">without an answer</a>'
    body = [f"<h1>Batch prediction</h1><nav>{links}</nav>"]
    body.append(
        f'<section><div class="tiles">{counted}</div>{_table([(k, v) for k, v in facts.items() if v])}</section>'
    )
    for at, (name, head) in enumerate(tally.heads.items()):
        spec = replace(manifest.heads[name], threshold=tally.thresholds[name])
        body.append(f'<section id="head{at}">{"".join(_head(name, head, spec, summary, small))}</section>')
    if tally.errors:
        errors = ["<h2>Without an answer</h2>", _counts(dict(tally.errors.most_common())), _table(tally.examples)]
        if tally.failed > len(tally.examples):
            errors.append(f"<p>and {tally.failed - len(tally.examples):,} more in errors.jsonl</p>")
        body.append(f'<section id="errors">{"".join(errors)}</section>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Batch prediction</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _decoded(source: Source, image: str) -> NDArray[np.uint8]:
    """An image's pixels, perhaps shrunk to no less than SIDE; raises ImageError."""
    path = source.path(raw(image))
    content: bytes | None = None
    try:
        content = source.read(raw(image))
        return decode_bytes(content, image, SIDE)[0]
    except ImageSizeError:
        if content is None and path is None:
            raise
    return thumbnail(path or content or b"", image, SIDE)


PLAIN = {"masks": True, "tile": 0, "tta": "none", "format": [], "overlay": False, "crops": False}
"""Values of options where nothing was asked for; None of all others."""


def _asked(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


KINDS = {"boxes": "boxes", "mask": "mask: images with the class, and its share of all pixels"}


def _head(name: str, head: HeadTally, spec: HeadSpec, summary: dict[str, Any], small: Small) -> list[str]:
    body = [f"<h2>{escape(name)} <small>{KINDS.get(head.kind, 'image labels')}</small></h2>"]
    colours = dict(zip(spec.classes, spec.space.colours, strict=True)) if head.kind in {"boxes", "mask"} else {}
    shares = head.pixels if head.kind == "mask" else {}
    parts = [_counts(dict(head.counts.most_common()), colours, shares)]
    if head.histogram.any():
        parts.append(f"<div>{_histogram(head.histogram)}</div>")
    scores = summary.get("scores", {}).get(name)
    if scores:
        parts.append(_table([(metric, figure(metric, value)) for metric, value in scores.items()]))
    body.append(f'<div class="pair">{"".join(parts)}</div>')
    for label in sorted(head.samples, key=lambda label: spec.classes.index(label) if label in spec.classes else 0):
        held = sorted(head.samples[label], key=lambda held: held[:2])
        figures = [_figure(row, spec, small, label) for _, _, row in held]
        body.append(f'<h3>{_dot(colours.get(label))}{escape(label)}</h3><div class="samples">{"".join(figures)}</div>')
    return body


def _dot(colour: tuple[int, int, int] | None) -> str:
    return f'<i class="dot" style="background:rgb{colour}"></i>' if colour else ""


def _figure(row: Row, spec: HeadSpec, small: Small, label: str) -> str:
    caption = escape(row.image)
    if row.kind in {"classes", "multilabel"}:
        caption = (
            escape(", ".join(f"{n} {s:.2f}" for n, s in zip(row.labels, row.scores, strict=True))) + "<br>" + caption
        )
    try:
        pixels = small(row.image)
    except ImageError as error:
        return f"<figure><figcaption>{caption}<br>{escape(str(error))}</figcaption></figure>"
    data = cv2.imencode(".jpg", _thumbnail(pixels, row, spec, label)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[
        1
    ].tobytes()
    source = base64.b64encode(data).decode()
    return f'<figure><img alt="" src="data:image/jpeg;base64,{source}"><figcaption>{caption}</figcaption></figure>'


def _thumbnail(small: NDArray[np.uint8], row: Row, spec: HeadSpec, label: str) -> NDArray[np.uint8]:
    """The picture with its mask, or with its boxes, those of the class it is a sample of in thicker lines."""
    size = small.shape[1], small.shape[0]
    if row.kind == "mask":
        runs = MaskRuns.decoded(dict(zip(row.classes, row.counts, strict=True)), (row.height, row.width))
        return draw_mask(small, runs.sampled(size[::-1]), spec.space)
    if row.kind == "boxes":
        small = small.copy()
        for kind, score, box in zip(row.classes, row.scores, row.boxes, strict=True):
            if score >= spec.threshold:
                x1, y1, x2, y2 = (round(side * size[0] / row.width) for side in box)
                thick = 2 if spec.classes[kind] == label else 1
                cv2.rectangle(small, (x1, y1), (x2, y2), spec.space.colours[kind], thick, cv2.LINE_AA)
    return small


def _table(rows: list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(str(a))}</th><td>{escape(str(b))}</td></tr>" for a, b in rows)
    return f"<table>{lines}</table>"


def _counts(
    counts: dict[str, int],
    colours: Mapping[str, tuple[int, int, int]] | None = None,
    pixels: Mapping[str, int] | None = None,
) -> str:
    """A bar for each class, with its colour, and its share of the pixels where they were counted."""
    most, all_pixels = max(counts.values(), default=1), sum((pixels or {}).values())
    lines = []
    for label, count in counts.items():
        share = f'<td class="n">{100 * (pixels or {}).get(label, 0) / all_pixels:.1f} %</td>' if all_pixels else ""
        lines.append(
            f'<tr><td>{_dot((colours or {}).get(label))}{escape(label)}</td><td class="n">{count:,}</td>{share}'
            f'<td><div class="bar" style="width:{180 * count / most:.0f}px"></div></td></tr>'
        )
    return f"<table>{''.join(lines)}</table>" if lines else "<p>nothing found</p>"


def _histogram(counts: NDArray[np.int64]) -> str:
    """Bars from score 0 to 1 as SVG."""
    top, width = int(counts.max()), 360 / BINS
    bars = "".join(
        f'<rect x="{at * width:.1f}" y="{96 - 80 * int(n) / top:.1f}" width="{width - 2:.1f}"'
        f' height="{80 * int(n) / top:.1f}"><title>{at / BINS:.2f} to {(at + 1) / BINS:.2f}: {int(n):,}'
        "</title></rect>"
        for at, n in enumerate(counts)
    )
    ticks = "".join(
        f'<text x="{360 * at:.0f}" y="112" text-anchor="{side}">{at:g}</text>'
        for at, side in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))
    )
    axis = f'<line x1="0" x2="360" y1="96.5" y2="96.5"/><text x="0" y="11">scores; the highest bar is {top:,}</text>'
    return f'<svg width="360" height="116" font-size="12" role="img">{bars}{axis}{ticks}</svg>'

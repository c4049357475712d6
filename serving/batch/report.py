"""report.html: one self-contained page of counts, score histograms, samples of every class, and errors."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import HeadSpec, Manifest
from pipeline.errors import ImageError
from pipeline.imaging.decode import decode_bytes
from pipeline.imaging.draw import draw_boxes, draw_mask
from pipeline.imaging.runs import MaskRuns
from serving.batch.names import raw
from serving.batch.rows import Row
from serving.batch.tally import BINS, HeadTally, Tally

SIDE = 144
"""Longer side of a sample, pixels."""

Read = Callable[[bytes], bytes]
Small = Callable[[str], NDArray[np.uint8]]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fff}
h1,h2,h3{line-height:1.2}table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .7rem .15rem 0;text-align:left;
vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#4a7db8;height:.7rem}
.samples{display:flex;flex-wrap:wrap;gap:.5rem;margin:.3rem 0 1rem}figure{margin:0;width:144px}figure img{display:block;max-width:100%}
figcaption{font-size:11px;overflow-wrap:anywhere;color:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1b1b1b}figcaption{color:#aaa}}
"""


def report(summary: dict[str, Any], tally: Tally, manifest: Manifest, read: Read) -> str:
    """The page.

    Args:
        summary: as `summary_of` makes it; its `timing` is left out, so that the page is the same every time.
        tally: histograms, samples and errors.
        manifest: the model's.
        read: an image's bytes by its name; raises ImageError.
    """
    images, model = summary["images"], summary["model"]

    @lru_cache(maxsize=256)  # one picture is often a sample of several classes
    def small(image: str) -> NDArray[np.uint8]:
        pixels = decode_bytes(read(raw(image)), image, SIDE)[0]
        scale = SIDE / max(pixels.shape[:2])
        size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
        shrunk: NDArray[np.uint8] = cv2.resize(
            pixels, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        return shrunk

    facts = {
        "Source": summary["source"],
        "Images": f"{images['answered']:,} of {images['found']:,} answered, {images['failed']:,} not",
        "Left out": f"{images['skipped']:,} other files" if images["skipped"] else "",
        "Model": f"{model['name']} {model['version']}, run {model['run_id'] or 'unknown'}",
        "Engine": summary["engine"],
    }
    body = ["<h1>Batch prediction</h1>", _table([(k, v) for k, v in facts.items() if v])]
    for name, head in tally.heads.items():
        body += _head(name, head, replace(manifest.heads[name], threshold=tally.thresholds[name]), summary, small)
    if tally.errors:
        body += ["<h2>Without an answer</h2>", _counts(dict(tally.errors.most_common()))]
        body.append(_table(tally.examples))
        if tally.failed > len(tally.examples):
            body.append(f"<p>and {tally.failed - len(tally.examples):,} more in errors.jsonl</p>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Batch prediction</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _head(name: str, head: HeadTally, spec: HeadSpec, summary: dict[str, Any], small: Small) -> list[str]:
    body = [f"<h2>{escape(name)} <small>({head.kind})</small></h2>"]
    scores = summary.get("scores", {}).get(name)
    if scores:
        body.append(_table([(metric, f"{value:.4f}") for metric, value in scores.items()]))
    body.append(_counts(dict(head.counts.most_common())))
    if head.histogram.any():
        body += ["<h3>Scores</h3>", _histogram(head.histogram)]
    for label in sorted(head.samples, key=lambda label: spec.classes.index(label) if label in spec.classes else 0):
        figures = [_figure(row, spec, small) for _, _, row in sorted(head.samples[label], key=lambda held: held[:2])]
        body.append(f'<h3>{escape(label)}</h3><div class="samples">{"".join(figures)}</div>')
    return body


def _figure(row: Row, spec: HeadSpec, small: Small) -> str:
    caption = escape(row.image)
    if row.kind in {"classes", "multilabel"}:
        caption = (
            escape(", ".join(f"{n} {s:.2f}" for n, s in zip(row.labels, row.scores, strict=True))) + "<br>" + caption
        )
    try:
        pixels = small(row.image)
    except ImageError as error:
        return f"<figure><figcaption>{caption}<br>{escape(str(error))}</figcaption></figure>"
    data = cv2.imencode(".jpg", _thumbnail(pixels, row, spec)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
    source = base64.b64encode(data).decode()
    return f'<figure><img alt="" src="data:image/jpeg;base64,{source}"><figcaption>{caption}</figcaption></figure>'


def _thumbnail(small: NDArray[np.uint8], row: Row, spec: HeadSpec) -> NDArray[np.uint8]:
    size = small.shape[1], small.shape[0]
    if row.kind == "mask":
        runs = MaskRuns.decoded(dict(zip(row.classes, row.counts, strict=True)), (row.height, row.width))
        return draw_mask(small, runs.sampled(size[::-1]), spec.space)
    if row.kind == "boxes":
        moved = np.asarray(row.boxes, np.float32).reshape(-1, 4) * (size[0] / row.width)
        keep = np.asarray(row.scores) >= spec.threshold
        return draw_boxes(small, moved[keep], np.asarray(row.classes)[keep], spec.space)
    return small


def _table(rows: list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(str(a))}</th><td>{escape(str(b))}</td></tr>" for a, b in rows)
    return f"<table>{lines}</table>"


def _counts(counts: dict[str, int]) -> str:
    most = max(counts.values(), default=1)
    lines = [
        f'<tr><td>{escape(label)}</td><td class="n">{count:,}</td>'
        f'<td><div class="bar" style="width:{200 * count / most:.0f}px"></div></td></tr>'
        for label, count in counts.items()
    ]
    return f"<table>{''.join(lines)}</table>" if lines else "<p>nothing found</p>"


def _histogram(counts: NDArray[np.int64]) -> str:
    """Bars from score 0 to 1 as SVG."""
    top, width = int(counts.max()), 320 / BINS
    bars = "".join(
        f'<rect x="{at * width:.1f}" y="{80 - 80 * int(n) / top:.1f}" width="{width - 1:.1f}"'
        f' height="{80 * int(n) / top:.1f}" fill="#4a7db8"><title>{at / BINS:.2f} to {(at + 1) / BINS:.2f}: {int(n):,}'
        "</title></rect>"
        for at, n in enumerate(counts)
    )
    labels = '<text x="0" y="96">0</text><text x="320" y="96" text-anchor="end">1</text>'
    return f'<svg width="320" height="100" font-size="12" fill="currentColor" role="img">{bars}{labels}</svg>'

"""What a look gives back, and all of it as PNG files, figures in JSON and one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.draw import write_png


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the page: its file's name without ending, RGB uint8 (H, W, 3), and what is to be seen."""

    name: str
    pixels: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Section:
    """One look.

    Attributes:
        title: its heading.
        lead: what is shown and how it is to be read.
        pictures: in order.
        tables: in order, above the pictures.
        figures: plain values for the JSON.
    """

    title: str
    lead: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    figures: Any = field(default_factory=dict)


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; }
h2 { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1rem; }
p.lead { max-width: 50rem; }
.scroll { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; font-size: 13px; }
th { background: Canvas; position: sticky; text-align: left; top: 0; }
th, td { border-bottom: 1px solid var(--line); padding: 2px 10px; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
tr:nth-child(even) td { background: var(--soft); }
figure { margin: 1rem 0; }
img { height: auto; max-width: 100%; }
figcaption { font-size: 13px; }
"""


def write_page(out: Path, title: str, sections: dict[str, Section]) -> list[Path]:
    """Writes every picture as `<out>/<name>.png`, the figures as `inspect.json` and the page as `index.html`.

    Returns these files, the page first. Raises OSError where the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    page, told = out / "index.html", out / "inspect.json"
    files = [page, told]
    for section in sections.values():
        for picture in section.pictures:
            files.append(out / f"{picture.name}.png")
            write_png(files[-1], picture.pixels)
    figures = {name: section.figures for name, section in sections.items()}
    told.write_text(to_json({"name": title, **figures}), encoding="utf-8")
    page.write_text(_html(out, title, sections), encoding="utf-8")
    return files


def to_json(values: Any) -> str:
    """Plain values as strict JSON, NaN and infinity as null."""
    return json.dumps(_plain(values), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _html(out: Path, title: str, sections: dict[str, Section]) -> str:
    links = "".join(f'<a href="#{name}">{html.escape(section.title)}</a>' for name, section in sections.items())
    parts = [_section(out, name, section) for name, section in sections.items()]
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{name}</h1><nav>{links}</nav>\n{''.join(parts)}</body></html>\n"
    )


def _section(out: Path, name: str, section: Section) -> str:
    lead = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(section.lead))
    parts = [f'<section id="{name}"><h2>{html.escape(section.title)}</h2><p class="lead">{lead}</p>']
    parts += [_table(table) for table in section.tables]
    for picture in section.pictures:
        data = base64.b64encode((out / f"{picture.name}.png").read_bytes()).decode()
        caption = html.escape(picture.caption)
        parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )
    return "\n".join(parts) + "</section>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(word)}</th>" for word in table.header)
    rows = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>\n" for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f'<td class="number">{number(value)}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def number(value: float) -> str:
    """A figure for people: thousands apart, four digits of fractions, nothing for NaN."""
    if isinstance(value, int):
        return f"{value:,}"
    return "" if math.isnan(value) else f"{value:.4g}"

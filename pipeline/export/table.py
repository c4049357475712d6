"""What the commands print about a bundle: files, heads, how each engine was checked, metrics."""

from __future__ import annotations

from typing import Any

from pipeline.bundle import Bundle

MAIN = {"classes": "accuracy", "multilabel": "accuracy", "boxes": "AP", "mask": "mIoU"}
"""The figure that stands for each kind of head."""


def export_table(bundle: Bundle) -> str:
    """Files with sizes, then a row per engine: difference, metrics, images/s."""
    return "\n".join([f"bundle {bundle.path}", "", *_files(bundle), "", *_engines(bundle), ""])


def describe_bundle(bundle: Bundle) -> str:
    """Everything a person would ask of a bundle."""
    manifest = bundle.manifest
    size = f"{manifest.input.height} x {manifest.input.width}" + (", or other" if manifest.input.dynamic_size else "")
    origin = manifest.provenance
    lines = [
        f"{manifest.name} {manifest.version}, schema {manifest.schema}, every checksum right",
        "",
        f"input    {manifest.input.name}: RGB uint8 (batch, {size}, 3), letterboxed on grey {manifest.input.fill}",
    ]
    for name, head in manifest.heads.items():
        names = ", ".join(head.classes[:12]) + (f", … ({len(head.classes)})" if len(head.classes) > 12 else "")
        from_score = f", shown from {head.threshold:g}" if head.kind in {"boxes", "multilabel"} else ""
        lines += [f"head     {name} ({head.kind}{from_score}): {names}", f"         gives {', '.join(head.outputs)}"]
    trained = (
        f"checkpoint {origin.get('checkpoint', '?')}, epoch {origin.get('epoch', '?')}, run {origin.get('run_id')}"
    )
    lines += [
        "",
        f"from     {origin.get('backbone', '?')}, {trained}, exported {origin.get('exported', '?')}",
        f"         code {origin.get('code', {}).get('code.commit', 'unknown')[:12]}, opset {manifest.opset}",
    ]
    for split, facts in origin.get("data", {}).items():
        lines.append(f"data     {split}: {facts.get('images', '?')} images, digest {facts.get('sha256', '?')[:12]}")
    return "\n".join([*lines, "", *_files(bundle), "", *_engines(bundle), ""])


def _files(bundle: Bundle) -> list[str]:
    rows = [["file", "MiB", "holds"]]
    for name, file in bundle.manifest.files.items():
        rows.append([name, f"{file.bytes / 2**20:.1f}", f"{file.format} {file.precision}".strip()])
    return aligned(rows)


def _engines(bundle: Bundle) -> list[str]:
    heads = bundle.manifest.heads
    titles = [f"{name} {MAIN[head.kind]}" for name, head in heads.items()]
    rows = [["engine", "check", "outputs differ by", *titles, "images/s"]]
    notes = []
    for spec, check in bundle.manifest.checks.items():
        passed = "reference" if "passed" not in check else "passed" if check["passed"] else "FAILED"
        figures = [_figure(check.get("metrics", {}).get(n, {}).get(MAIN[h.kind])) for n, h in heads.items()]
        speed = check.get("milliseconds")
        rows.append([spec, passed, _raw(check), *figures, f"{1000 / speed:.0f}" if speed else "-"])
        notes += [f"{spec}: {line}" for line in check.get("failures", [])]
        if "float" in check:
            notes.append(f"{spec} keeps in float: {', '.join(check['float']) or 'no layer'}")
    return [*aligned(rows), *notes]


def _raw(check: dict[str, Any]) -> str:
    """The largest difference of probabilities and scores, of boxes in pixels, of masks as a share of pixels."""
    raw = check.get("raw")
    if raw is None:
        return "-"
    groups: dict[str, float] = {}
    for name, value in raw.items():
        column = name.rpartition(".")[2]
        unit = {"boxes": "px", "mask": "of pixels"}.get(column, "")
        groups[unit] = max(groups.get(unit, 0.0), float("inf") if value is None else value)
    return ", ".join(f"{value:.1g} {unit}".strip() for unit, value in groups.items())


def score_table(columns: dict[str, dict[str, dict[str, float]]], split: str, images: int) -> str:
    """Every metric of every head, one column for each title with its scores."""
    rows = [["head", "metric", *columns]]
    for name, values in next(iter(columns.values())).items():
        rows += [[name, metric, *(_figure(s[name].get(metric)) for s in columns.values())] for metric in values]
    return "\n".join([f"{images} images of the {split} split", "", *aligned(rows), ""])


def _figure(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"  # noqa: PLR0124  # NaN


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines of columns: the first left, the others right where they are figures."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

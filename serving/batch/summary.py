"""summary.json and the printed table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.bundle import Manifest
from serving.batch.progress import rate
from serving.batch.tally import Tally


@dataclass(slots=True)
class Timing:
    """How this process spent its time; of a resumed run, only what it did itself.

    Attributes:
        images: that this process answered or tried.
        seconds: from start to end.
        stages: busy seconds by stage, added over all threads.
    """

    images: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Images a second, whole and of each stage: what one thread would do of it alone."""
        stages = {name: _rounded(self.images / spent) for name, spent in sorted(self.stages.items()) if spent > 0}
        return {
            "images": self.images,
            "seconds": round(self.seconds, 2),
            "images_per_second": _rounded(self.images / self.seconds) if self.seconds else 0.0,
            "images_per_second_by_stage": stages,
        }


def _rounded(value: float) -> float:
    """To one place, or two digits where that would leave less."""
    return round(value, 1) if value >= 1 else float(f"{value:.2g}")


def summary_of(tally: Tally, manifest: Manifest, run: dict[str, Any], scores: dict[str, Any] | None) -> dict[str, Any]:
    """The content of summary.json but for `timing`: the same for the same files, model and options.

    Args:
        tally: the counts.
        manifest: the model's.
        run: source, options and engine, as in the journal.
        scores: metrics by head where labels were at hand.
    """
    heads: dict[str, Any] = {}
    for name, head in tally.heads.items():
        order = {label: at for at, label in enumerate(manifest.heads[name].classes)}
        known = sorted(head.counts, key=lambda label: order.get(label, len(order)))
        heads[name] = {"kind": head.kind, "counts": {label: head.counts[label] for label in known}}
        if head.kind == "mask":
            heads[name]["pixels"] = {label: head.pixels[label] for label in known}
    found: dict[str, Any] = {
        "images": {
            "found": tally.answered + tally.failed,
            "answered": tally.answered,
            "failed": tally.failed,
            "skipped": tally.skipped,
        },
        "heads": heads,
        "errors": dict(sorted(tally.errors.items())),
        "skipped": dict(sorted(tally.left_out.items())),
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "run_id": manifest.provenance.get("run_id"),
        },
        **run,
    }
    return found | ({"scores": scores} if scores is not None else {})


def figure(metric: str, value: float) -> str:
    """A score as text: counts whole, all else to four places."""
    return f"{value:,.0f}" if metric in {"images", "unanswered"} else f"{value:.4f}"


def printed(summary: dict[str, Any], out: str) -> str:
    """The summary as a table for people."""
    images, model, timing = summary["images"], summary["model"], summary["timing"]
    lines = [f"{images['answered']} of {images['found']} images answered, {images['failed']} not"]
    if images["skipped"]:
        lines[0] += f"; {images['skipped']} other files left out"
    unit = {"boxes": "boxes", "mask": "images with it"}
    for name, head in summary["heads"].items():
        lines.append(f"  {name} ({head['kind']})")
        counts = sorted(head["counts"].items(), key=lambda pair: -pair[1])
        width = max((len(label) for label, _ in counts[:20]), default=0)
        lines += [
            f"    {label:<{width}} {count:>9,} {unit.get(head['kind'], 'images')}" for label, count in counts[:20]
        ]
        if len(counts) > 20:
            lines.append(f"    and {len(counts) - 20} more classes")
        for metric, value in summary.get("scores", {}).get(name, {}).items():
            lines.append(f"    {metric} {figure(metric, value)}")
    lines += [f"  error: {kind}: {count}" for kind, count in summary["errors"].items()]
    stages = ", ".join(f"{name} {rate(speed, 0)}" for name, speed in timing["images_per_second_by_stage"].items())
    speed = f"  {timing['images']} images in {timing['seconds']:.1f} s, {rate(timing['images_per_second'])} a second"
    lines.append(speed + (f" (one thread: {stages})" if stages else ""))
    lines.append(f"  model {model['name']} {model['version']}, run {model['run_id'] or 'unknown'}, {summary['engine']}")
    lines.append(f"  {out}")
    return "\n".join(lines) + "\n"

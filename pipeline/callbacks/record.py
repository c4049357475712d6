"""CurvePictures: the heads' confusion, reliability and precision-recall drawn when training or a test ends."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L


class CurvePictures(L.Callback):
    """Draws what each head's metrics offer as `curves()` into `curves/<stage>/` of the run."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The curves of the last validation."""
        self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The curves of the test."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        place = getattr(trainer.checkpoint_callback, "dirpath", None)
        folder = Path(place or trainer.default_root_dir) / "curves" / stage
        for head, own in cast("dict[str, Any]", getattr(pl_module, "metrics", {})).items():
            if not any(key.startswith(f"{stage}/{head}/") for key in trainer.callback_metrics):
                continue
            curves = own.curves()  # on every rank: the metrics may gather from the others
            if not trainer.is_global_zero:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for name, image in draw_curves(head, curves).items():
                file = folder / f"{head.replace('/', '_')}_{name}.png"
                file.write_bytes(image)
                for logger in cast("list[Any]", trainer.loggers):
                    if hasattr(logger, "log_file"):
                        logger.log_file(file, f"curves/{stage}")


def draw_curves(head: str, curves: Mapping[str, Any]) -> dict[str, bytes]:
    """PNG bytes by name of the curves that one looks at: confusion, reliability, precision_recall."""
    from matplotlib.figure import Figure

    drawers = {"confusion": _confusion, "reliability": _reliability, "precision_recall": _precision_recall}
    images = {}
    for name, draw in drawers.items():
        if not curves.get(name):
            continue
        figure = Figure(figsize=(6, 5), dpi=110, layout="constrained")
        axes = figure.subplots()
        draw(axes, curves)
        axes.set_title(f"{head}: {name.replace('_', ' ')}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        images[name] = buffer.getvalue()
    return images


def _confusion(axes: Any, curves: Mapping[str, Any]) -> None:
    """Shares of each true class; numbers where they fit."""
    rows = curves["confusion"]
    names = list(curves.get("classes", range(len(rows))))
    shares = [[value / max(1, sum(row)) for value in row] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(rows) > 25:
        return
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if len(rows) <= 12 and rows[i][j]:
                colour = "white" if share > 0.5 else "black"
                axes.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=8, color=colour)


def _reliability(axes: Any, curves: Mapping[str, Any]) -> None:
    """Accuracy over confidence; on the diagonal the network is as sure as it should be."""
    points = [row[:2] for row in curves["reliability"]]
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot([p[0] for p in points], [p[1] for p in points], marker="o")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))


def _precision_recall(axes: Any, curves: Mapping[str, Any]) -> None:
    """Precision over recall (of boxes at IoU 0.5), a line a class."""
    for name, precision in curves["precision_recall"].items():
        recall = [i / max(1, len(precision) - 1) for i in range(len(precision))]
        axes.plot(recall, [max(0.0, p) for p in precision], label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    if len(curves["precision_recall"]) <= 12:
        axes.legend(fontsize=8)

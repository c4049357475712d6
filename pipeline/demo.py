"""The demo: trains, tests, pictures and exports the three-task network on the built-in data, and says what to type next."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


def main(argv: list[str]) -> int:
    """`lightning demo [--out DIR] [fit options]`: writes pictures and `summary.json`; returns the exit code."""
    from pipeline.cli_options import head_options
    from pipeline.cli_train import run
    from pipeline.export.register import log_to_run
    from pipeline.export.run import ExportOptions, export

    parser = argparse.ArgumentParser(prog="lightning demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), help="folder of pictures and summary")
    given, rest = parser.parse_known_args(argv)
    started = time.monotonic()
    folder = ["--trainer.default_root_dir", str(given.out)]
    cli: Any = run(["fit", "--config", str(CONFIG), *folder, *head_options(rest)])
    best = cli.trainer.checkpoint_callback.best_model_path
    tested = cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best, verbose=False)[0]
    given.out.mkdir(parents=True, exist_ok=True)
    picture = draw_predictions(cli.model, cli.datamodule, given.out / "predictions.png")
    bundle = export(ExportOptions(Path(best), given.out / "bundle"), _quiet)
    log_to_run(bundle, _quiet)
    summary = {
        "metrics": by_head(tested),
        "run_id": cli.trainer.logger.run_id,
        "seconds": round(time.monotonic() - started, 1),
        "checkpoint": best,
        "pictures": [str(picture)],
        "bundle": str(bundle.path),
    }
    part = given.out / "summary.json.part"
    part.write_text(json.dumps(summary, indent=1))
    part.replace(given.out / "summary.json")
    sys.stdout.write(describe(summary, cli.trainer.logger.tracking_uri))
    return 0


def _quiet(line: str) -> None:
    """The demo's own lines say enough."""


def by_head(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """`test/<head>/<metric>` figures as a mapping of heads."""
    out: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        _, _, rest = name.partition("/")
        head, _, metric = rest.partition("/")
        if metric:
            out.setdefault(head, {})[metric] = round(float(value), 4)
    return out


def describe(summary: dict[str, Any], uri: str) -> str:
    """The closing lines: figures, where the run is, what to type next."""
    shown = {"accuracy", "AP", "AP50", "mIoU"}
    lines = ["", f"Done in {summary['seconds']:.0f} s. On the test split:"]
    for head, metrics in summary["metrics"].items():
        figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if name in shown)
        lines.append(f"  {head:<10} {figures}")
    lines += [
        f"Pictures: {', '.join(summary['pictures'])}",
        f"Checkpoint: {summary['checkpoint']}",
        f"Bundle: {summary['bundle']}",
        f"Run: {summary['run_id']} in {uri}",
        "Next:",
        f"  .venv/bin/mlflow ui --backend-store-uri {uri}",
        f"  .venv/bin/lightning serve {summary['bundle']}",
        f"  .venv/bin/lightning batch-predict YOUR_PICTURES --model {summary['bundle']} --out answers",
        "  .venv/bin/lightning check-data --data.root YOUR_DATA",
        "  .venv/bin/lightning fit --config configs/multitask.yaml --data.root YOUR_DATA",
        "",
    ]
    return "\n".join(lines)


def draw_predictions(module: Any, data: Any, path: Path, images: int = 12) -> Path:
    """A sheet of test images with the network's answers drawn over them."""
    import torch

    from pipeline.imaging.draw import draw_answer, sheet, write_png

    module.eval()
    tiles: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    with torch.no_grad():
        for batch in data.test_dataloader():
            predictions = module.predict_step(batch, 0)
            for i in range(len(batch)):
                pixels = batch.images[i].permute(1, 2, 0).numpy()
                tiles.append(draw_answer(pixels, _one(predictions, i), module.spaces))
            if len(tiles) >= images:
                break
    write_png(path, sheet(tiles[:images], 4))
    return path


def _one(predictions: dict[str, Any], at: int) -> dict[str, dict[str, Any]]:
    """One image's predictions as NumPy arrays, by head and column."""
    return {
        name: {column: getattr(value, column)[at].float().numpy() for column in value._fields}
        for name, value in predictions.items()
    }

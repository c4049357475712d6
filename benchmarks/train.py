"""Training speed on this machine, as ratios of ways that are timed in turn in one process.

    python benchmarks/train.py fit         our `fit` against a hand-written loop over the same network, data and precision
    python benchmarks/train.py precision   bf16 and channels_last against plain float32
    python benchmarks/train.py sharing     one three-task step against three separate ones
    python benchmarks/train.py allocator   the command's allocator setting against glibc's own, each in a process of its own

Options: --size 320 --batch 8 --backbone resnet18 --rounds 7 --device cpu|cuda.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import lightning as L
import torch
from torch import Tensor

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.callbacks.ema import AverageWeights
from pipeline.callbacks.failures import CountFailures
from pipeline.callbacks.track import TrackRun
from pipeline.data.module import VisionData
from pipeline.records import Batch
from pipeline.tracking import RunLogger
from tasks.head import labelled
from tasks.multitask import MultiTaskModule
from tasks.network import VisionNetwork

Given = argparse.Namespace


def losses(network: VisionNetwork, batch: Batch, bf16: bool, channels_last: bool) -> Tensor:
    """The plain sum of the heads' losses, as anyone would write it."""
    images = batch.images.contiguous(memory_format=torch.channels_last) if channels_last else batch.images
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        raw = network(images)
    parts: list[Tensor] = []
    for name, head in network.named_heads().items():
        if (target := batch.targets.get(name)) is not None and labelled(target):
            parts += head.loss(raw[name], target).values()
    return torch.stack(parts).sum()


def hand_step(network: VisionNetwork, optimizer: torch.optim.Optimizer, batch: Batch, bf16: bool, last: bool) -> None:
    """One training step without a framework."""
    optimizer.zero_grad()
    losses(network, batch, bf16, last).backward()  # type: ignore[no-untyped-call]  # torch's own
    torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()


def data_of(given: Given, images: int) -> VisionData:
    return VisionData(shapes={"images": images, "size": given.size}, size=given.size, batch_size=given.batch, seed=0)


def network_of(given: Given, data: VisionData, fields: set[str] | None = None, channels_last: bool = True) -> Any:
    spaces = {name: space for name, space in data.label_spaces.items() if fields is None or name in fields}
    module = MultiTaskModule(given.backbone, spaces=spaces, channels_last=channels_last)
    return module.network.to(given.device).train()


class Alternate(L.Callback):
    """Times every epoch of the trainer, and after each runs and times one of the hand-written loop."""

    def __init__(self, hand: Callable[[], None]) -> None:
        self.hand, self.start = hand, 0.0
        self.seconds: dict[str, list[float]] = {"fit": [], "hand-written loop": []}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds["fit"].append(time.perf_counter() - self.start)
        start = time.perf_counter()
        self.hand()
        self.seconds["hand-written loop"].append(time.perf_counter() - start)


def fit(given: Given) -> dict[str, float]:
    """With everything that `lightning fit` has on by default: averaged weights, tracking, checkpoints."""
    data = data_of(given, given.batch * 20)
    loader = data.train_dataloader()
    network = network_of(given, data)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)

    def hand() -> None:
        for batch in loader:
            hand_step(network, optimizer, batch.to(torch.device(given.device)), True, True)

    turns = Alternate(hand)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if given.device == "cuda" else given.device,
            devices=1,
            precision="bf16-mixed",
            max_epochs=given.rounds + 1,
            gradient_clip_val=10.0,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=10,
            default_root_dir=folder,
            use_distributed_sampler=False,
            logger=RunLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifacts=f"{folder}/artifacts"),
            callbacks=[turns, AverageWeights(), CountFailures(), TrackRun(), Checkpoints()],
        )
        trainer.fit(MultiTaskModule(given.backbone, spaces=data.label_spaces), data)
    images = len(data.records("train"))
    found = {name: images / statistics.median(seconds[1:]) for name, seconds in turns.seconds.items()}
    return {**found, "fit / hand-written loop": found["fit"] / found["hand-written loop"]}


def timed(ways: dict[str, Callable[[], None]], given: Given) -> dict[str, float]:
    """Images a second of each way: median over rounds, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(given.rounds + 2):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if given.device == "cuda":
                torch.cuda.synchronize()
            if turn > 1:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: given.batch / statistics.median(values) for name, values in seconds.items()}


def stepper(
    given: Given, data: VisionData, bf16: bool, last: bool, fields: set[str] | None = None
) -> Callable[[], None]:
    network = network_of(given, data, fields, last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    batch = next(iter(data.train_dataloader())).to(torch.device(given.device))
    return lambda: hand_step(network, optimizer, batch, bf16, last)


def precision(given: Given) -> dict[str, float]:
    data = data_of(given, 4 * given.batch)
    ways = {
        "float32": stepper(given, data, False, False),
        "float32, channels_last": stepper(given, data, False, True),
        "bf16, channels_last": stepper(given, data, True, True),
    }
    found = timed(ways, given)
    return {**found, "bf16, channels_last / float32": found["bf16, channels_last"] / found["float32"]}


def sharing(given: Given) -> dict[str, float]:
    data = data_of(given, 4 * given.batch)
    fields = {"labels": {"scene", "daytime"}, "boxes": {"objects"}, "mask": {"surface"}}
    ways = {"three tasks": stepper(given, data, True, True)}
    ways |= {f"{name} alone": stepper(given, data, True, True, names) for name, names in fields.items()}
    found = timed(ways, given)
    separate = sum(1 / found[f"{name} alone"] for name in fields)
    return {**found, "time of a shared step / sum of three": 1 / found["three tasks"] / separate}


def allocator(given: Given) -> dict[str, float]:
    from pipeline.cli import ALLOCATOR

    plain = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    speeds: dict[str, list[float]] = {"glibc's own": [], "as the command sets it": []}
    options = ["--size", str(given.size), "--batch", str(given.batch), "--backbone", given.backbone, "--rounds", "5"]
    for _ in range(max(2, given.rounds // 2)):
        for name, environment in (("glibc's own", plain), ("as the command sets it", {**plain, **ALLOCATOR})):
            command = [sys.executable, __file__, "one", *options]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            speeds[name].append(float(done.stdout.split()[-1]))
    found = {name: statistics.median(values) for name, values in speeds.items()}
    return {**found, "gain": found["as the command sets it"] / found["glibc's own"]}


def one(given: Given) -> dict[str, float]:
    return timed({"bf16, channels_last": stepper(given, data_of(given, 4 * given.batch), True, True)}, given)


def main() -> None:
    ways = {"fit": fit, "precision": precision, "sharing": sharing, "allocator": allocator, "one": one}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(ways))
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    given = parser.parse_args()
    torch.manual_seed(0)
    for name, value in ways[given.what](given).items():
        unit = "" if "/" in name or name == "gain" else "images/s"
        sys.stdout.write(f"{name:40} {unit:9} {value:.3f}\n")


if __name__ == "__main__":
    main()

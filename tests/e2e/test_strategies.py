"""Several processes on the real command: the same metrics as one, no hang where a head has no label; FSDP; overlays compose."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import distributed as dist

from tasks.multitask import MultiTaskModule
from tests.e2e.commands import ROOT, TINY, lightning, runs_of

TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
QUICK = [*TINY, "--data.shapes", "{images: 50, size: 64}", "--data.batch_size", "6", "--trainer.max_epochs", "1"]


def test_two_processes_give_the_metrics_of_one(tmp_path):
    done = lightning("fit", *QUICK, *TWO, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    client, (trained,) = runs_of(tmp_path)  # one run, however many processes
    assert trained.info.status == "FINISHED"
    assert {"val/score", "train/loss", "val/objects/AP50"} <= set(trained.data.metrics)
    curves = {item.path for item in client.list_artifacts(trained.info.run_id, "curves/val")}
    assert {"curves/val/objects.json", "curves/val/objects_precision_recall.png"} <= curves
    found = []
    for devices in ([], TWO):
        done = lightning("test", *QUICK, *devices, "--ckpt_path", "last", cwd=tmp_path, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(client.get_run(runs_of(tmp_path)[1][0].info.run_id).data.metrics)
    one, two = ({name: value for name, value in row.items() if name.startswith("test/")} for row in found)
    assert len(one) > 10
    # Means of losses weigh batches, which are others; everything measured on pictures must be equal.
    exact = [name for name in one if not name.endswith("/loss")]
    assert {name: two[name] for name in exact} == pytest.approx({name: one[name] for name in exact}, abs=1e-6)


def test_a_head_without_labels_in_one_process_does_not_hang(tmp_path):
    """Every image has the label `kind`, one in twelve the label `rare`: most batches of two train one head only."""
    rng, root = np.random.default_rng(0), tmp_path / "data"
    root.mkdir()
    with (root / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "kind", "rare", "split"])
        for number in range(24):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(root / f"{number}.png")
            rare = "xy"[number // 12] if number % 12 == 0 else ""
            rows.writerow([f"{number}.png", "ab"[number % 2], rare, "val" if number >= 20 else "train"])
    options = ["--config", str(ROOT / "configs" / "multitask.yaml"), "--data.root", str(root), "--data.size", "32"]
    options += ["--data.batch_size", "2", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]
    done = lightning("fit", *options, *TWO, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = runs_of(tmp_path)[1][0].data.metrics
    assert np.isfinite([metrics["train/kind/loss"], metrics["train/rare/loss"]]).all()


@pytest.fixture
def process_group(tmp_path):
    """One process that calls itself a group."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_the_network_trains_sharded():
    """Wrapped as Lightning's FSDP strategy wraps it: forward, backward, clipping and a step change the weights."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    spaces = {
        "scene": {"name": "scene", "kind": "classes", "names": ["a", "b"]},
        "objects": {"name": "objects", "kind": "boxes", "names": ["a", "b"]},
        "surface": {"name": "surface", "kind": "mask", "names": ["a", "b"]},
    }
    module = MultiTaskModule(spaces=spaces, channels_last=False)
    sharded = FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = torch.optim.AdamW(sharded.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in sharded.parameters()]
    raw = sharded(torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8))
    floats = [tensor for value in raw.values() for tensor in _tensors(value)]
    torch.stack([tensor.float().square().mean() for tensor in floats]).sum().backward()
    assert torch.isfinite(sharded.clip_grad_norm_(1.0))
    optimizer.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, sharded.parameters(), strict=True)]
    assert all(changed)


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (tuple, list)) else []


def test_every_overlay_composes_with_a_task(capsys):
    """The last config wins, and what it does not name stays."""
    from pipeline.cli import main

    overlays = sorted((ROOT / "configs" / "trainer").glob("*.yaml"))
    assert {"cpu", "gpu", "multi_gpu", "multi_node", "fsdp", "debug"} == {path.stem for path in overlays}
    for overlay in overlays:
        wanted = yaml.safe_load(overlay.read_text())["trainer"]
        configs = ["--config", str(ROOT / "configs" / "multitask.yaml"), "--config", str(overlay)]
        with pytest.raises(SystemExit) as left:
            main(["fit", *configs, "--print_config"])
        assert left.value.code == 0
        trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
        assert {key: trainer[key] for key in wanted} == wanted
        assert trainer["gradient_clip_val"] == 10.0
        assert trainer["max_epochs"] == wanted.get("max_epochs", 50)


def test_every_shipped_config_is_one_the_command_takes(capsys):
    """Presets of networks lie over a task's config; examples stand alone."""
    from pipeline.cli import main

    task = ["--config", str(ROOT / "configs" / "multitask.yaml")]
    given = {path: [*task, "--config", str(path)] for path in sorted((ROOT / "configs" / "model").glob("*.yaml"))}
    given |= {path: ["--config", str(path)] for path in sorted((ROOT / "configs" / "examples").glob("*.yaml"))}
    given |= {path: ["--config", str(path)] for path in sorted((ROOT / "configs").glob("*.yaml"))}
    assert len(given) >= 10
    for path, configs in given.items():
        wanted = yaml.safe_load(path.read_text())["model"]["init_args"]
        with pytest.raises(SystemExit) as left:
            main(["fit", *configs, "--print_config"])
        assert left.value.code == 0, path
        model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
        assert {key: model[key] for key in wanted} == wanted, path

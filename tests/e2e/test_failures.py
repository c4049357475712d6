"""What goes wrong in a run: bad images, bad data, NaN, a full disk, Ctrl-C, kill -9; each told in a line, none loses work."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.e2e.commands import ROOT, TINY, lightning, runs_of

SMALL = ["--data.size", "32", "--data.batch_size", "8", "--data.workers", "0", "--trainer.accelerator", "cpu"]
SMALL += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
CLASSES = ["--config", str(ROOT / "configs" / "classification.yaml"), *SMALL]


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command in the background."""
    command = [str(Path(sys.executable).parent / "lightning"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A suite that runs in the background may have Ctrl-C switched off, which children inherit.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heard)  # noqa: PLW1509


def wait_for(condition, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def last_checkpoint(folder: Path) -> Path | None:
    return next(iter(folder.glob("outputs/runs/*/last.ckpt")), None)


def epoch_of(folder: Path) -> int:
    file = last_checkpoint(folder)
    return -1 if file is None else torch.load(file, weights_only=True)["epoch"]


def pictures(root: Path, good: int, bad: int) -> Path:
    """Two classes, dark and bright, with `bad` truncated JPEGs among them."""
    rng = np.random.default_rng(0)
    for number in range(good + bad):
        kind = number % 2
        file = root / ("bright" if kind else "dark") / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 90, (40, 40, 3)) + 150 * kind).astype(np.uint8)).save(file)
        if number >= good:
            file.write_bytes(file.read_bytes()[:200])
    return root


def test_kill_9_in_mid_epoch_then_last_ends_as_an_unbroken_run(tmp_path):
    options = [*TINY, "--trainer.max_epochs", "3", "--data.shapes", "{images: 180, size: 64}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = lightning("fit", *options, cwd=whole)
    assert done.returncode == 0, done.stderr[-2000:]
    process = start("fit", *options, cwd=broken)
    wait_for(lambda: epoch_of(broken) >= 0)
    time.sleep(0.3)  # into the next epoch
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert epoch_of(broken) < 2
    done = lightning("fit", *options, "--ckpt_path", "last", cwd=broken)
    assert done.returncode == 0, done.stderr[-2000:]
    ends = [torch.load(last_checkpoint(folder), weights_only=True) for folder in (whole, broken)]
    assert ends[0]["global_step"] == ends[1]["global_step"]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name
    (run,) = runs_of(broken)[1]
    assert run.info.status == "FINISHED"


def test_a_finished_run_goes_on_with_more_epochs_and_another_learning_rate(tmp_path):
    first = lightning("fit", *TINY, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-2000:]
    more = ["--trainer.max_epochs", "2", "--model.lr", "1e-4", "--model.schedule", "constant", "--ckpt_path", "last"]
    again = lightning("fit", *TINY, *more, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert epoch_of(tmp_path) == 1
    client, (run,) = runs_of(tmp_path)
    rates = [m.value for m in client.get_metric_history(run.info.run_id, "lr")]
    assert rates[-1] == pytest.approx(1e-4)
    assert run.data.tags["changed.model.init_args.lr"] == "0.0001"


def test_an_unreadable_image_is_replaced_counted_and_named(command, tmp_path):
    root = pictures(tmp_path / "data", good=119, bad=1)
    code, _, err = command("fit", *CLASSES, "--data.root", str(root), "--trainer.max_epochs", "2")
    assert code == 0, err[-2000:]
    assert "119.jpg" in err
    assert "1 images could not be read and were replaced" in err


def test_more_than_one_in_a_hundred_unreadable_stops_the_run(command, tmp_path):
    root = pictures(tmp_path / "data", good=60, bad=20)
    code, _, err = command("fit", *CLASSES, "--data.root", str(root), "--trainer.max_epochs", "2")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error:")
    assert "could not be read, more than 1%" in last
    assert "check-data" in last


@pytest.mark.parametrize("case", ["empty", "nothing", "one class"])
def test_data_that_cannot_train_is_refused_with_a_remedy(case, command, tmp_path):
    root = tmp_path / "data"
    if case == "one class":
        for number in range(6):
            file = root / "dark" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40)).save(file)
    elif case == "empty":
        root.mkdir()
    code, _, err = command("fit", *CLASSES, "--data.root", str(root))
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error:")
    assert {"empty": "no known labels", "nothing": "is not a folder", "one class": "only one class"}[case] in last


def test_a_missing_split_names_the_setting(command, tmp_path):
    root = pictures(tmp_path / "data", good=24, bad=0)
    options = ["--data.root", str(root), "--data.split", "[0.8, 0.2, 0.0]"]
    code, _, err = command("fit", *CLASSES, *options, "--trainer.max_epochs", "1")
    assert code == 0, err[-2000:]
    code, _, err = command("test", *CLASSES, *options, "--ckpt_path", "last")
    assert code == 1
    assert "no test images" in err.strip().splitlines()[-1]
    assert "data.split" in err.strip().splitlines()[-1]


def test_a_loss_that_is_nan_stops_at_once_and_names_head_and_files(command, tmp_path):
    options = ["--model.lr", "1e20", "--model.warmup", "0", "--trainer.gradient_clip_val", "null"]
    code, _, err = command("fit", *TINY, *options)
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert "became NaN or infinite at step" in last
    assert any(head in last for head in ("objects", "surface", "scene", "daytime"))
    assert "batch files: shapes" in last
    (run,) = runs_of(tmp_path)[1]
    assert run.info.status == "FAILED"


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    process = start("fit", *TINY, "--trainer.max_epochs", "500", cwd=tmp_path)
    wait_for(lambda: last_checkpoint(tmp_path) is not None)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # as if a megabyte were left
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: checkpoint")
    assert "the previous one is intact" in last
    assert "Traceback" not in err
    assert epoch_of(tmp_path) >= 0  # whole and readable
    assert not list(tmp_path.glob("outputs/runs/*/*.part"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_marks_the_run_and_sets_the_exit_code(tmp_path, number, code):
    process = start("fit", *TINY, "--trainer.max_epochs", "500", cwd=tmp_path)
    wait_for(lambda: last_checkpoint(tmp_path) is not None)
    time.sleep(0.5)
    process.send_signal(signal.SIGSTOP)  # so that none but the signal's own checkpoint can take the old one's place
    before = torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"]
    last_checkpoint(tmp_path).unlink()
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err[-2000:]
    assert "Traceback" not in err
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] >= before
    (run,) = runs_of(tmp_path)[1]
    assert run.info.status == "KILLED"

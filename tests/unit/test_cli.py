"""The command before its work: where settings come from and which wins; mistakes of the small commands; the allocator."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import cli
from pipeline.callbacks.checkpoints import require_readable
from pipeline.errors import ConfigError
from tests.e2e.commands import ROOT


def printed(capsys, *arguments):
    """What `fit --print_config` shows."""
    with pytest.raises(SystemExit) as left:
        cli.main(["fit", "--config", str(ROOT / "configs" / "multitask.yaml"), *arguments, "--print_config"])
    assert left.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_environment_then_configs_in_order_then_the_command_line(tmp_path, monkeypatch, capsys):
    for name, content in {"one": "data: {batch_size: 3, seed: 5}", "two": "data: {batch_size: 4}"}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    overlays = ["--config", str(tmp_path / "one.yaml"), "--config", str(tmp_path / "two.yaml")]
    monkeypatch.setenv("TRIFOCAL_FIT__DATA__WORKERS", "7")
    monkeypatch.setenv("TRIFOCAL_FIT__DATA__BATCH_SIZE", "9")
    data = printed(capsys, *overlays)["data"]
    assert (data["workers"], data["batch_size"], data["seed"], data["size"]) == (7, 4, 5, 320)
    data = printed(capsys, *overlays, "--data.batch_size", "5", "--data.workers=1")["data"]
    assert (data["workers"], data["batch_size"], data["seed"]) == (1, 5, 5)


def test_every_argument_of_the_network_and_the_logger_is_settable_from_the_environment(monkeypatch, capsys):
    for name, value in {"MODEL__WARMUP": "0.3", "MODEL__LR": "9", "MODEL__HEADS__DETECTION__WIDTH": "32"}.items():
        monkeypatch.setenv(f"TRIFOCAL_FIT__{name}", value)
    monkeypatch.setenv("TRIFOCAL_FIT__TRAINER__LOGGER__EXPERIMENT", "mine")
    found = printed(capsys, "--model.momentum", "0.8")
    model = found["model"]["init_args"]
    assert (model["warmup"], model["lr"], model["momentum"]) == (0.3, 0.001, 0.8)  # the config's rate wins
    assert model["heads"] == {"detection": {"width": 32}}
    assert found["trainer"]["logger"]["init_args"]["experiment"] == "mine"


def test_what_several_places_say_of_heads_is_joined(tmp_path, monkeypatch, capsys):
    """An overlay's or the command line's option of a head leaves its other options, and the other heads, alone."""
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {heads: {scene: {dropout: 0.5}, objects: {width: 24, bins: 8}}}}")
    heads = "model: {init_args: {heads: {objects: {strides: [8, 16], width: 64}, surface: {}}}}"
    (tmp_path / "first.yaml").write_text(heads)
    configs = ["--config", str(tmp_path / "first.yaml"), "--config", str(overlay)]
    joined = {"objects": {"strides": [8, 16], "width": 24, "bins": 8}, "surface": {}, "scene": {"dropout": 0.5}}
    assert printed(capsys, *configs)["model"]["init_args"]["heads"] == joined
    monkeypatch.setenv("TRIFOCAL_FIT__MODEL__HEADS__OBJECTS__BINS", "12")
    found = printed(capsys, *configs, "--model.heads.objects.width=48", "--model.heads.scene type.dropout", "0.1")
    joined = {**joined, "objects": {"bins": 8, "strides": [8, 16], "width": 48}, "scene type": {"dropout": 0.1}}
    assert found["model"]["init_args"]["heads"] == joined
    # A whole head, another kind of head, or all heads at once are said anew.
    assert printed(capsys, *configs, "--model.heads.objects", "{}")["model"]["init_args"]["heads"]["objects"] == {}
    overlay.write_text("model: {init_args: {heads: {objects: {kind: yolo-v1}}}}")
    assert printed(capsys, *configs)["model"]["init_args"]["heads"]["objects"] == {"kind": "yolo-v1"}
    found = printed(capsys, *configs, "--model.heads", "{scene: {}}", "--model.heads.scene.dropout=0.2")
    assert found["model"]["init_args"]["heads"] == {"scene": {"dropout": 0.2}}


@pytest.mark.parametrize("option", ["--model.heads.objects=wide", "--model.heads.objects.width={"])
def test_an_option_of_a_head_that_is_none_is_one_line(option, capsys):
    assert cli.main(["fit", option]) == ConfigError.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {option.split('=')[0]}")


def test_a_wrong_value_in_the_environment_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("TRIFOCAL_FIT__DATA__WORKERS", "many")
    assert cli.main(["fit", "--config", str(ROOT / "configs" / "multitask.yaml")]) == ConfigError.exit_code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error:")
    assert "workers" in line
    assert "many" in line


def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.zeros(3)}, "weights.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {}, "more": torch.zeros(9999)}, "whole.ckpt")
    Path("cut.ckpt").write_bytes(Path("whole.ckpt").read_bytes()[:-500])
    Path("text.ckpt").write_text("no checkpoint")
    Path("empty.ckpt").touch()
    told = {"weights": "is no checkpoint of this project", "none": "does not exist"}
    for name in ("weights", "cut", "text", "empty", "none"):
        arguments = ["--config", str(ROOT / "configs" / "multitask.yaml"), "--ckpt_path", f"{name}.ckpt"]
        assert cli.main(["test", *arguments]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error:")
        assert f"{name}.ckpt {told.get(name, 'cannot be read')}" in line
    assert cli.main(["test", *arguments[:2]]) == ConfigError.exit_code  # an untrained network is nothing to measure
    assert "--ckpt_path best" in capsys.readouterr().err
    require_readable(Path("whole.ckpt"))
    assert not Path("mlruns").exists()  # told before a run is opened


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export", "--chkpt", "x", "--out", "y"], "unknown option --chkpt; did you mean '--ckpt'"),
        (["export", "--ckpt", "x"], "--out"),
        (["evaluate", "b", "--data.rot", "x"], "did you mean '--data.root'"),
        (["evaluate", "b", "--data.shapes", "[1"], "'[1' is no mapping"),
        (["describe"], "bundle"),
    ],
)
def test_a_mistake_of_a_small_command_is_one_line(arguments, told, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_tune_process", lambda: None)
    assert cli.main(arguments) == ConfigError.exit_code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error:")
    assert told in line


def test_the_command_keeps_large_buffers_by_one_start_anew(monkeypatch):
    """glibc reads its settings at start only; who has set them, or was started anew, is left alone."""
    started = []
    monkeypatch.setattr(os, "execve", lambda path, words, env: started.append((path, words, env)))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", [__file__, "fit"])
    for name in cli.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    cli._tune_process()
    ((path, words, environment),) = started
    assert (path, words) == (sys.executable, [sys.executable, __file__, "fit"])
    assert environment["MALLOC_MMAP_MAX_"] == "0"
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) >= 1 << 30
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) >= 1 << 30
    for name, value in (("TRIFOCAL_TUNED", "1"), ("MALLOC_MMAP_THRESHOLD_", "65536")):
        with monkeypatch.context() as own:
            own.setenv(name, value)
            cli._tune_process()
    assert len(started) == 1


def test_a_name_cannot_break_the_line_of_an_error(capsys):
    assert cli.main(["describe", "one\ntwo\x1b[2J\udcff"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: one\\ntwo\\x1b[2J\\udcff is no bundle")
    assert told.count("\n") == 1

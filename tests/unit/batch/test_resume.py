"""A run that is stopped, at any moment, goes on to the same bytes; and what has changed meanwhile is noticed."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bundle import read_bundle
from pipeline.errors import ConfigError, DataError
from pipeline.export.folder import write_manifest
from serving.batch.local import LocalRun
from serving.batch.plan import Item, Part
from serving.batch.progress import Progress
from serving.batch.run import exit_code
from serving.batch.work import Done, Read
from serving.batch.writers.registry import FORMATS
from tests.unit.batch.helpers import content, fill, interrupted, picture, predict
from tests.unit.bundles import known_bundle

ROOT = Path(__file__).parents[3]
EVERYTHING = {"formats": FORMATS, "overlay": True, "crops": True}
OPTIONS = ["--engine", "onnxruntime", "--part", "4", "--format", ",".join(FORMATS), "--overlay", "--crops"]
DIES = """
import os, sys
left, real = int(sys.argv.pop(1)), os.replace
def replace(*names):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    real(*names)
os.replace = replace
from pipeline.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The command in a process that vanishes, as by kill -9, in front of its Nth renaming."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = fill(tmp_path_factory.mktemp("pictures") / "in", 30)
    (place / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    return place


@pytest.fixture(scope="module")
def unbroken(folder, model, tmp_path_factory):
    """What an unbroken run wrote."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    predict(folder, model, out, part=4, **EVERYTHING)
    return content(out)


def start(folder, model, out, *before):
    command = [
        sys.executable,
        *before,
        "batch-predict",
        str(folder),
        "--model",
        str(model),
        "--out",
        str(out),
        *OPTIONS,
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TRIFOCAL_TUNED": "1"}
    # A suite that runs in the background may have Ctrl-C switched off, which children inherit.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heard)  # noqa: PLW1509


@pytest.mark.parametrize("renamings", [0, 1, 40, 133, 141])
def test_a_run_that_vanishes_between_two_steps_goes_on_to_the_same_bytes(renamings, folder, model, unbroken, tmp_path):
    out = tmp_path / "out"
    with start(folder, model, out, "-c", DIES, str(renamings)) as process:
        assert process.wait(60) == 9
    stood = len(list((out / ".batch" / "parts").glob("*.arrow")))
    summary, lines = predict(folder, model, out, part=4, **EVERYTHING)
    assert content(out) == unbroken
    assert summary["timing"]["images"] == max(0, 31 - 4 * stood)
    assert any("going on" in line for line in lines) == bool(stood)


def test_kill_minus_nine_at_any_moment(folder, model, unbroken, tmp_path):
    out, kills = tmp_path / "out", 0
    for parts in (1, 4):
        with start(folder, model, out, "-m", "pipeline.cli") as process:
            until = time.monotonic() + 60
            while len(list(out.glob(".batch/parts/*.arrow"))) < parts and time.monotonic() < until:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            kills += process.wait(60) == -9
    assert kills
    predict(folder, model, out, part=4, **EVERYTHING)
    assert content(out) == unbroken


def test_no_file_has_its_name_before_it_is_on_disk(folder, model, unbroken, tmp_path, monkeypatch):
    """A name without content is what power that goes would leave."""
    stored, named, sync, replace = set(), [], os.fsync, os.replace

    def seen(handle):
        stored.add(os.fstat(handle).st_ino)
        sync(handle)

    def renamed(source, target):
        assert os.stat(source).st_ino in stored, target
        named.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "replace", renamed)
    predict(folder, model, tmp_path / "out", part=4, **EVERYTHING)
    assert len(named) > len(unbroken)
    assert content(tmp_path / "out") == unbroken


def test_the_bar_counts_only_what_this_process_answers_as_its_speed():
    now = iter(range(100))
    progress = Progress(100, lambda line: None, terminal=True)
    task = progress._bar.tasks[0]
    progress._bar.get_time = lambda: next(now)
    for _ in range(3):
        progress.resumed(10)
    assert (task.completed, task.speed) == (30, None)
    for _ in range(3):
        progress.add(4, 1)
    assert task.completed == 42
    assert task.speed < 10
    assert task.fields["errors"] == 3


def test_ctrl_c_is_told_to_be_no_loss(folder, model, unbroken, tmp_path):
    out = tmp_path / "out"
    with start(folder, model, out, "-m", "pipeline.cli") as process:
        until = time.monotonic() + 60
        while not list(out.glob(".batch/parts/*.arrow")) and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert told.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert "Traceback" not in told
    predict(folder, model, out, part=4, **EVERYTHING)
    assert content(out) == unbroken


def test_ctrl_c_at_the_end_begins_nothing_that_still_waits():
    begun, told = [], []

    class Slow:
        def read(self, items):
            return Read([None for _ in items], 0.0)

        def stop(self):
            told.append(len(begun))

        def process(self, items, contents):
            begun.extend(items)
            if len(begun) == 1:
                time.sleep(0.3)  # until the last batch has been handed over
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.3)
            return Done()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            LocalRun(Slow(), 1, 1, lambda part, done: None).run(
                [Part("x", (Item(b"a"), Item(b"b"), Item(b"c")))], False
            )
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.7)
    assert begun == [Item(b"a")]
    assert told[0] == 1  # at once, not when the batch under way had ended


def test_an_emptied_state_is_one_line(folder, model, tmp_path):
    out = tmp_path / "out"
    predict(folder, model, out, part=4)
    (out / ".batch" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run.json is broken; start anew with --restart"):
        predict(folder, model, out, part=4)
    predict(folder, model, out, part=4, restart=True)


def test_workers_do_not_change_the_answers(folder, model, unbroken, tmp_path):
    predict(folder, model, tmp_path / "out", part=4, workers=1, **EVERYTHING)
    assert content(tmp_path / "out") == unbroken


def test_errors_so_far_are_those_of_the_whole_run(model, tmp_path, monkeypatch):
    folder, out = fill(tmp_path / "in", 8), tmp_path / "out"
    for name in ("000.jpg", "001.jpg", "zzz.jpg"):
        (folder / name).write_bytes(b"\xff\xd8\xff")
    (folder / "000.txt").write_text("no image is no error")
    interrupted(folder, model, out, monkeypatch, workers=1)
    _, lines = predict(folder, model, out, part=4)
    assert re.match(r"12 of 12 files, .* 3 errors", lines[-1])


def test_changed_files_are_noticed_and_only_they_are_answered_anew(model, tmp_path, monkeypatch):
    folder, out = fill(tmp_path / "in", 20), tmp_path / "out"
    interrupted(folder, model, out, monkeypatch, after=3)
    (folder / "001.png").write_bytes(picture(99, 50, 50))
    (folder / "019.png").unlink()
    (folder / "zzz.png").write_bytes(picture(98))
    summary, lines = predict(folder, model, out, part=4)
    assert any("1 files were added, 1 removed and 1 changed" in line and "001.png" in line for line in lines)
    predict(folder, model, tmp_path / "fresh", part=4)
    assert content(out) == content(tmp_path / "fresh")
    assert summary["timing"]["images"] <= 20 - 4  # one finished part at least did not change


def test_changed_options_and_model_are_told_by_name(folder, model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupted(folder, model, out, monkeypatch)
    with pytest.raises(ConfigError, match=r"holds a run with part 4 instead of 5, threshold None instead of 0.3"):
        predict(folder, model, out, part=5, threshold=0.3)
    with pytest.raises(ConfigError, match="the source "):
        predict(fill(tmp_path / "other", 1), model, out, part=4)
    other = known_bundle(tmp_path / "other_model")
    write_manifest(other, replace(read_bundle(other).manifest, version="2"))
    with pytest.raises(ConfigError, match=r"another model .known 1."):
        predict(folder, other, out, part=4)
    state = json.loads((out / ".batch" / "run.json").read_text())
    (out / ".batch" / "run.json").write_text(json.dumps(state | {"engine": "onnxruntime:fp32 0.1"}))
    with pytest.raises(ConfigError, match=r"begun on engine onnxruntime:fp32 0.1"):
        predict(folder, model, out, part=4)


def test_a_lost_list_of_files_is_made_anew(folder, model, unbroken, tmp_path, monkeypatch):
    """Power went before the list was on disk."""
    for number, damage in enumerate((lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\0" * 5000))):
        out = tmp_path / str(number)
        interrupted(folder, model, out, monkeypatch, **EVERYTHING)
        (out / "overlay" / "gone.jpg").write_bytes(b"of a picture that is no more")
        damage(out / ".batch" / "plan.sqlite")
        _, lines = predict(folder, model, out, part=4, **EVERYTHING)
        assert any("list of files that this run began with is lost" in line for line in lines)
        assert content(out) == unbroken


def test_clearing_goes_on_where_it_was_interrupted(folder, model, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict(fill(tmp_path / "other", 2), model, out, overlay=True)

    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("serving.batch.journal.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(folder, model, out, part=4, restart=True, **EVERYTHING)
    assert (out / "overlay" / "001.jpg").exists()
    predict(folder, model, out, part=4, **EVERYTHING)
    assert content(out) == unbroken


def test_a_changed_threshold_of_the_model_is_noticed(model, tmp_path):
    folder, other = fill(tmp_path / "in", 2), known_bundle(tmp_path / "other")
    predict(folder, model, tmp_path / "out")
    manifest = read_bundle(other).manifest
    heads = manifest.heads | {"things": replace(manifest.heads["things"], threshold=0.95)}
    write_manifest(other, replace(manifest, heads=heads))
    with pytest.raises(ConfigError, match=r"another model .known 1."):
        predict(folder, other, tmp_path / "out")


def test_two_runs_do_not_share_a_folder(folder, model, tmp_path, monkeypatch):
    import serving.batch.run as running

    real = running.assemble
    told = []

    def second(*arguments):
        try:
            predict(folder, model, tmp_path / "out")
        except ConfigError as error:
            told.append(str(error))
        real(*arguments)

    monkeypatch.setattr(running, "assemble", second)
    predict(folder, model, tmp_path / "out")
    assert len(told) == 1
    assert "another batch-predict is writing there" in told[0]


def test_a_full_disk_is_told_and_the_run_goes_on_later(folder, model, unbroken, tmp_path, monkeypatch):
    import serving.batch.run as running

    out = tmp_path / "out"

    def full(*arguments):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(running, "write_part", full)
        with pytest.raises(
            DataError, match=f"{out} cannot be written: No space left on device; .*the same command goes on"
        ):
            predict(folder, model, out, part=4, **EVERYTHING)
    assert content(out).items() < unbroken.items()
    summary, _ = predict(folder, model, out, part=4, **EVERYTHING)
    assert content(out) == unbroken
    assert exit_code(summary) == 3

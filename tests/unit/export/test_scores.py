"""What export measures: thresholds, files that cannot be read, and data that lacks what only training needs."""

from __future__ import annotations

import json
import pickle
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.data.module import VisionData
from pipeline.errors import CheckpointError, ConfigError, ExportError
from pipeline.export.cli import evaluate_command
from pipeline.export.graph import load_trained
from pipeline.export.run import ExportOptions, data_of
from pipeline.export.scoring import sample_images, served_scores
from pipeline.imaging.draw import write_png
from pipeline.labels import LabelSpace
from serving.predictor import Predictor
from tasks.multitask import MultiTaskModule
from tests.unit.bundles import HEADS, known_bundle

RED, BLUE = (200, 0, 0), (0, 0, 200)


@pytest.fixture
def folder(tmp_path):
    """Six labelled pictures of one colour; two of them are no pictures any more."""
    lines = ["file,colour,split"]
    for number in range(6):
        write_png(tmp_path / "data" / f"{number}.png", np.full((40, 40, 3), RED if number % 2 else BLUE, np.uint8))
        lines.append(f"{number}.png,{'red' if number % 2 else 'blue'},{'train' if number == 5 else 'val'}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def spoil(folder):
    """Once the labels are read: one file is damaged, another is gone."""
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "1.png").unlink()


def data_in(folder):
    data = VisionData(root=str(folder), size=32, batch_size=3, workers=0)
    data.align({"colour": HEADS["colour"].space})
    return data


def test_files_that_cannot_be_read_do_not_count_and_do_not_stop_it(folder, tmp_path):
    predictor = Predictor.load(known_bundle(tmp_path / "known"), "onnxruntime")
    data = data_in(folder)
    whole = served_scores(predictor, data)
    assert whole["colour"]["accuracy"] == 1.0
    spoil(folder)
    assert served_scores(predictor, data)["colour"] == pytest.approx(whole["colour"], abs=1e-6)
    images = sample_images(data, (32, 32), 5)
    assert [tuple(image[16, 16]) for image in images] == [BLUE, RED, BLUE, BLUE, RED]  # the three left, repeated
    for number in range(6):
        (folder / f"{number}.png").unlink(missing_ok=True)
    with pytest.raises(ExportError, match="none of the val images can be read; `lightning check-data`"):
        sample_images(data, (32, 32), 5)


def test_a_multilabel_heads_own_threshold_counts(tmp_path):
    """Softmax of a red picture's means of 10, 0 and 0 is about (0.9999, 0, 0); of a grey one a third each."""
    kind = replace(HEADS["colour"], kind="multilabel", threshold=0.3)
    predictor = Predictor.load(known_bundle(tmp_path / "known"), "onnxruntime")
    lines = ["file,colour,split"]
    for number, (pixels, labels) in enumerate([((255, 0, 0), "red"), ((90, 90, 90), "red|green|blue")]):
        write_png(tmp_path / "data" / f"{number}.png", np.full((32, 32, 3), pixels, np.uint8))
        lines.append(f"{number}.png,{labels},val")
    write_png(tmp_path / "data" / "2.png", np.full((32, 32, 3), 9, np.uint8))
    (tmp_path / "data" / "labels.csv").write_text("\n".join([*lines, "2.png,red|green,train"]) + "\n")
    data = VisionData(root=str(tmp_path / "data"), size=32, batch_size=2, workers=0)
    data.align({"colour": LabelSpace("multilabel", kind.classes)})
    for threshold, accuracy in ((0.3, 1.0), (0.5, 0.5)):
        predictor.heads = {"colour": replace(kind, threshold=threshold)}
        assert served_scores(predictor, data)["colour"]["accuracy"] == accuracy


def test_figures_that_are_none_are_null_in_json(folder, tmp_path, capsys):
    """A class that no picture shows has no figure; JSON knows no NaN."""
    for number in range(6):
        (folder / f"{number}.png").write_bytes(b"")
    file = tmp_path / "scores.json"
    known = str(known_bundle(tmp_path / "known"))
    given = [known, "--data.root", str(folder), "--split", "val", "--engine", "onnxruntime", "--json", str(file)]
    assert evaluate_command(given) == 0
    found = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))
    assert found["metrics"]["colour"]["accuracy"] is None
    assert "colour  accuracy  -" in capsys.readouterr().out


def test_other_data_needs_nothing_that_only_training_used(folder, tmp_path):
    settings = VisionData(size=32, workers=0).settings
    settings = {**settings, "augment": [{"NoSuchTransform": {}}], "balance": "scene"}
    network = SimpleNamespace(named_heads=lambda: {"colour": SimpleNamespace(space=HEADS["colour"].space)})
    trained = SimpleNamespace(data=settings, network=network)
    options = ExportOptions(tmp_path / "best.ckpt", tmp_path / "out", data={"root": str(folder)})
    assert len(data_of(trained, options).records("val")) == 5
    with pytest.raises(ConfigError, match=r"--data\.format is that of a folder; name it by --data\.root"):
        data_of(trained, replace(options, data={"format": "coco"}))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--data.format", "coco"), "--data.format is that of a folder"),
        (("--data.root", "a", "--data.shapes", '{"images": 9}'), "give --data.root or --data.shapes, not both"),
        (("--data.shapes", "9"), "'9' is no mapping such as"),
        (("--data.root", "a", "--data.shapes", "{images: 9}"), "give --data.root or --data.shapes, not both"),
        (("--engine", "openvyno"), "unknown engine 'openvyno'; did you mean 'openvino'?"),
    ],
)
def test_what_evaluate_cannot_do_is_one_line(command, tmp_path, options, told):
    known_bundle(tmp_path / "known")
    code, _, error = command("evaluate", "known", *options)
    assert code == (1 if "engine" in told else 2)
    assert told in error
    assert len(error.strip().splitlines()) == 1


def test_checkpoints_that_hold_code_or_settings_of_another_version(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("the file's code was run",)

    torch.save({"state_dict": Bomb()}, tmp_path / "code.ckpt")
    with pytest.raises(CheckpointError, match=r"code.ckpt cannot be read: it holds code, which is not run"):
        load_trained(tmp_path / "code.ckpt")
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Bomb(), protocol=4))
    with pytest.raises(CheckpointError, match=r"pickle.ckpt cannot be read: it holds code, which is not run; copy it"):
        load_trained(tmp_path / "pickle.ckpt")  # a warning of torch's would be an error here
    (tmp_path / "empty.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"empty.ckpt cannot be read: it ends too early"):
        load_trained(tmp_path / "empty.ckpt")
    for data in (b"root:x:0:0\n", b"\x08\x0a\x12\x07pytorch", b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "other.ckpt").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"other.ckpt cannot be read: it is no file of PyTorch; copy it"):
            load_trained(tmp_path / "other.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "model.ts.pt")
    with pytest.raises(CheckpointError, match=r"model.ts.pt cannot be read: it is a TorchScript file"):
        load_trained(tmp_path / "model.ts.pt")
    module = MultiTaskModule("light", spaces={"colour": HEADS["colour"].space.to_dict()})
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    settings = content["hyper_parameters"]
    for changed, told in (
        ({"hyper_parameters": {**settings, "telepathy": True}}, "settings that this version does not know: telepathy"),
        ({"hyper_parameters": [1]}, "is no checkpoint of this project"),
        ({"module_class": 7}, "is no checkpoint of this project"),
    ):
        torch.save({**content, **changed}, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match=told):
            load_trained(tmp_path / "other.ckpt")

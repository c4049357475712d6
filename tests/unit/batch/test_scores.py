"""Answers scored by labels: the same figures as the trainer's own metrics, and COCO's numbers kept."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.batch_scores import LabelScorer
from pipeline.bundle import read_bundle
from pipeline.errors import ConfigError, DataError
from pipeline.export.folder import write_manifest
from pipeline.export.scoring import EVERYTHING, as_prediction, metrics_for
from pipeline.records import BoxTarget, ClassTarget, MaskTarget
from serving.batch.run import BatchRun
from serving.batch.summary import printed
from serving.predictor import Predictor
from tests.unit.batch.helpers import settings_for
from tests.unit.bundles import HEADS, known_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return known_bundle(tmp_path_factory.mktemp("model") / "known")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twelve pictures with random labels of all three kinds: COCO boxes, index masks, a table."""
    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for folder in ("images", "masks", "annotations"):
        (root / folder).mkdir()
    entries, boxes, table, truth = [], [], ["file,colour"], []
    for number in range(12):
        height, width = int(rng.integers(30, 70)), int(rng.integers(30, 70))
        name = f"{number:02d}.png"
        cv2.imwrite(str(root / "images" / name), rng.integers(0, 255, (height, width, 3)).astype(np.uint8))
        mask = rng.integers(0, 2, (height, width)).astype(np.uint8)
        mask[:3] = 255
        cv2.imwrite(str(root / "masks" / name), mask)
        entries.append({"id": 700 + number, "file_name": name, "width": width, "height": height})
        scale = 32 / max(height, width)
        known = np.asarray([8, 16, 24, 32]) - np.tile([(32 - width * scale) / 2, (32 - height * scale) / 2], 2)
        corners = np.clip(known / scale + rng.normal(0, 2, 4), 0, [width, height, width, height])
        kind, colour = int(rng.integers(0, 2)), int(rng.integers(0, 3))
        xywh = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
        boxes.append({
            "id": number + 1, "image_id": 700 + number, "category_id": [4, 9][kind],
            "bbox": [float(v) for v in xywh], "area": float(xywh[2] * xywh[3]), "iscrowd": 0,
        })  # fmt: skip
        table.append(f"images/{name},{('red', 'green', 'blue')[colour]}")
        truth.append((name, colour, corners.astype(np.float32), kind, mask))
    categories = [{"id": 4, "name": "thing"}, {"id": 9, "name": "other"}]
    coco = {"images": entries, "categories": categories, "annotations": boxes}
    (root / "annotations" / "instances.json").write_text(json.dumps(coco))
    (root / "classes.txt").write_text("warm\ncold\n")
    (root / "labels.csv").write_text("\n".join(table) + "\n")
    return root, truth


def scored(source, model, out, labels, form="auto", **options):
    settings = settings_for(source, model, out, labels=str(labels), part=5, **options)
    return BatchRun(
        settings, read_bundle(model), lambda line: None, False, partial(LabelScorer, Path(labels), form)
    ).run()


def test_scores_are_those_of_the_trainers_metrics(labelled, model, tmp_path):
    root, truth = labelled
    found = scored(root / "images", model, tmp_path / "out", root)["scores"]
    predictor = Predictor.load(model, "onnxruntime")
    wanted = {name: metrics_for(head.space) for name, head in HEADS.items()}
    yes = torch.ones(1, dtype=torch.bool)
    for name, colour, box, kind, mask in truth:
        (answer,) = predictor.predict([root / "images" / name], EVERYTHING)
        targets = {
            "colour": ClassTarget(torch.eye(3)[colour][None], yes),
            "things": BoxTarget(
                torch.from_numpy(box)[None, None], torch.tensor([[kind]]), torch.zeros(1, 1, dtype=torch.bool), yes
            ),
            "ground": MaskTarget(torch.from_numpy(mask)[None], yes),
        }
        for head, metric in wanted.items():
            metric.update(as_prediction(answer.heads[head]), targets[head], [None])
    assert set(found) == set(HEADS)
    for head, metric in wanted.items():
        figures = metric.compute()
        assert found[head]["images"] == 12
        compared = [key for key in found[head] if key != "images"]
        assert {"colour": "F1", "things": "AP50/other", "ground": "IoU/cold"}[head] in compared
        for key in compared:
            assert found[head][key] == pytest.approx(figures[key], abs=1e-5), (head, key)
    assert 0.05 < found["things"]["AP50"] < 1


def test_labels_of_several_classes_count_from_the_threshold(tmp_path, monkeypatch):
    from pipeline.cli_batch import main
    from serving.batch.writers import overlay

    model, root, drawn = known_bundle(tmp_path / "known", heads=("colour",)), tmp_path / "in", []
    manifest = read_bundle(model).manifest
    write_manifest(model, replace(manifest, heads={"colour": replace(manifest.heads["colour"], kind="multilabel")}))
    root.mkdir()
    for number in range(4):  # of red alone, with probability 0.42: the two others have 0.29
        cv2.imwrite(str(root / f"{number}.png"), np.full((32, 32, 3), (100, 100, 109.6), np.uint8))
    (root / "labels.csv").write_text("file,colour\n" + "".join(f"{n}.png,red|\n" for n in range(4)))
    draw = overlay.draw_answer
    monkeypatch.setattr(
        overlay, "draw_answer", lambda *given: (drawn.append(given[1]["colour"]["labels"]), draw(*given))[1]
    )
    for number, (options, chosen, accuracy) in enumerate(
        ((("--threshold", "0.2"), [0, 1, 2], 1 / 3), (("--threshold", "0.4"), [0], 1), ((), [], 2 / 3))
    ):
        out = tmp_path / f"out{number}"
        given = ["--data.root", str(root), "--overlay", "--engine", "onnxruntime", "--workers", "1", *options]
        assert main([str(root), "--model", str(model), "--out", str(out), *given]) == 0
        summary = json.loads((out / "summary.json").read_text())
        assert sorted(summary["heads"]["colour"]["counts"]) == sorted(("red", "green", "blue")[i] for i in chosen)
        assert summary["scores"]["colour"]["accuracy"] == pytest.approx(accuracy)
        assert drawn == [chosen] * 4
        drawn.clear()


def test_a_coco_file_keeps_its_numbers_and_pycocotools_agrees(labelled, model, tmp_path, capsys):
    root, _ = labelled
    truth = root / "annotations" / "instances.json"
    summary = scored(root / "images", model, tmp_path / "out", truth, formats=("coco",))
    known = COCO(str(truth))
    judge = COCOeval(known, known.loadRes(str(tmp_path / "out" / "coco" / "things.json")), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    capsys.readouterr()
    assert set(summary["scores"]) == {"things"}
    assert summary["scores"]["things"]["AP"] == pytest.approx(judge.stats[0], abs=1e-6)
    assert summary["scores"]["things"]["AP50"] == pytest.approx(judge.stats[1], abs=1e-6)
    images = json.loads((tmp_path / "out" / "coco" / "images.json").read_text())
    assert {c["name"]: c["id"] for c in images["categories"] if c["supercategory"] == "things"} == {
        "thing": 4,
        "other": 9,
    }


def test_images_that_a_coco_file_names_without_their_folder_keep_its_numbers(labelled, model, tmp_path):
    root, _ = labelled
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "linked").symlink_to(root / "images")
    summary = scored(
        tmp_path / "in", model, tmp_path / "out", root / "annotations" / "instances.json", formats=("coco",)
    )
    assert summary["scores"]["things"]["images"] == 12
    images = json.loads((tmp_path / "out" / "coco" / "images.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [
        (700 + n, f"deep/linked/{n:02d}.png") for n in range(12)
    ]


def test_classes_that_a_coco_file_does_not_have_take_none_of_its_numbers(labelled, model, tmp_path):
    root, _ = labelled
    content = json.loads((root / "annotations" / "instances.json").read_text())
    content["categories"] = [{"id": 2, "name": "thing"}]  # the model's `other` is its second class
    content["annotations"] = [row | {"category_id": 2} for row in content["annotations"] if row["category_id"] == 4]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    scored(root / "images", model, tmp_path / "out", tmp_path / "truth.json", formats=("coco",))
    found = json.loads((tmp_path / "out" / "coco" / "things.json").read_text())
    assert {row["category_id"] for row in found} == {2, 4}
    listed = json.loads((tmp_path / "out" / "coco" / "images.json").read_text())["categories"]
    assert {c["name"]: c["id"] for c in listed if c["supercategory"] == "things"} == {"thing": 2, "other": 4}


def test_labels_that_changed_since_the_end_are_told(labelled, model, tmp_path):
    root, _ = labelled
    truth, out = tmp_path / "truth.json", tmp_path / "out"
    truth.write_bytes((root / "annotations" / "instances.json").read_bytes())
    first = scored(root / "images", model, out, truth)
    assert scored(root / "images", model, out, truth) == first
    truth.write_text(truth.read_text() + " ")
    with pytest.raises(ConfigError, match=r"truth.json has changed since .*out was scored by it; .*--restart"):
        scored(root / "images", model, out, truth)
    scored(root / "images", model, tmp_path / "whole", root)
    with pytest.raises(ConfigError, match=r"data\.format None instead of coco"):
        scored(root / "images", model, tmp_path / "whole", root, "coco", labels_format="coco")


def test_labelled_images_without_an_answer_are_counted(labelled, model, tmp_path):
    root, _ = labelled
    source = tmp_path / "in"
    source.mkdir()
    content = json.loads((root / "annotations" / "instances.json").read_text())
    for number, entry in enumerate(content["images"]):
        data = (root / "images" / entry["file_name"]).read_bytes()
        entry["file_name"] = f"ünï {number}.png"
        (source / entry["file_name"]).write_bytes(b"" if number == 3 else data)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    summary = scored(source, model, tmp_path / "out", tmp_path / "truth.json", formats=("coco",))
    assert summary["scores"]["things"]["images"] == 11
    assert summary["scores"]["things"]["unanswered"] == 1
    images = json.loads((tmp_path / "out" / "coco" / "images.json").read_text())["images"]
    assert sorted(image["id"] for image in images) == [700 + n for n in range(12) if n != 3]
    assert "images 11\n" in printed(summary, "out")


def test_labels_that_do_not_fit_are_told_before_any_work(labelled, model, tmp_path):
    root, _ = labelled
    with pytest.raises(DataError, match="not a folder"):
        scored(root / "images", model, tmp_path / "out", tmp_path / "nowhere")
    other = tmp_path / "other"
    (other / "labels").mkdir(parents=True)
    content = json.loads((root / "annotations" / "instances.json").read_text())
    content["categories"][0]["name"] = "cat"
    (other / "coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="class 'cat' is unknown to the model, which knows thing, other"):
        scored(root / "images", model, tmp_path / "out", other / "coco.json")
    with pytest.raises(DataError, match=r"no label field .* is what a head answers"):
        scored(root / "images", model, tmp_path / "out", root, "coco", heads=("colour",))
    assert not (tmp_path / "out" / "predictions.parquet").exists()
    with pytest.raises(ConfigError, match="on this machine only"):
        LabelScorer(root, "auto", object(), HEADS)


def test_labels_of_other_images_are_told(labelled, model, tmp_path):
    root, _ = labelled
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes((root / "images" / "00.png").read_bytes())
    with pytest.raises(DataError, match="labels none of the images"):
        scored(tmp_path / "in", model, tmp_path / "out", root)
    assert not list((tmp_path / "out" / ".batch" / "parts").iterdir())

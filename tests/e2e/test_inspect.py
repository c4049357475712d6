"""`lightning inspect` as a person types it: a backbone as JSON, a trained run as a page with its artifacts, mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.inspect.command import LOOKS
from pipeline.inspect.run import TAKEN
from tests.e2e.commands import TINY, runs_of

QUICK = ["--data.shapes", "{images: 30, size: 64}", "--model.backbone", "light", "--trainer.max_epochs", "1"]


def test_a_backbone_as_json(command, tmp_path):
    code, out, err = command("inspect", "--backbone", "resnet18", "--size", "64x96", "--json", "-")
    assert code == 0, err
    told = json.loads(out)
    assert told["name"] == "resnet18"
    costs = told["costs"]
    assert costs["parameters"] == 11_176_512
    assert costs["size"] == [64, 96]
    layers = {layer["name"]: layer for layer in costs["layers"]}
    assert layers["conv1"]["multiply_adds"] == 32 * 48 * 64 * 147
    assert layers["layer4.1.conv2"]["receptive_field"] == [435, 435]
    assert layers["layer4.1.conv2"]["milliseconds"] > 0
    assert not (tmp_path / "outputs").exists()


def test_a_run_is_looked_into_and_keeps_the_page(command, tmp_path):
    code, _, err = command("fit", *TINY, *QUICK)
    assert code == 0, err[-2000:]
    client, (run,) = runs_of(tmp_path)
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (50, 70, 3), np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    checkpoint = next((tmp_path / "outputs").glob("runs/*/best.ckpt"))
    code, _, err = command(
        "inspect", "--ckpt", str(checkpoint), "--images", "photos", "--out", "page", "--count", "3", "--repeats", "1",
        "--track",
    )  # fmt: skip
    assert code == 0, err[-2000:]
    figures = json.loads((tmp_path / "page" / "inspect.json").read_text())
    assert set(figures) == {"name", *LOOKS}
    assert set(figures["gradcam"]) == {"scene", "daytime", "objects", "surface"}
    assert any(name.startswith("surface: ") for name in figures["shift"])
    assert {look["nan_check"] for look in figures["fields"].values()} == {"agrees"}
    page = (tmp_path / "page" / "index.html").read_text()
    assert all(f'<section id="{name}">' in page for name in LOOKS)
    assert page.count("<img ") == len(list((tmp_path / "page").glob("*.png")))
    kept = {item.path for item in client.list_artifacts(run.info.run_id, "inspect")}
    assert {"inspect/index.html", "inspect/gradcam.png", "inspect/inspect.json"} <= kept
    assert client.get_run(run.info.run_id).data.metrics["inspect/parameters"] == figures["costs"]["parameters"]
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    # The same by the run's name, on the images it was validated on.
    code, out, err = command("inspect", "--ckpt", f"runs:/{run.info.run_id}", "--looks", "gradcam", "--json", "-")
    assert code == 0, err[-2000:]
    assert json.loads(out)["gradcam"]["objects"]["layer"].startswith("backbone.body.stages.")


def test_a_backbone_gets_a_run_of_its_own(command, tmp_path):
    (tmp_path / "outputs" / "inspect").mkdir(parents=True)
    (tmp_path / "outputs" / "inspect" / "private.txt").write_text("not of this page")
    code, _, err = command(
        "inspect", "--backbone", "light", "--size", "64", "--looks", "costs,filters", "--repeats", "0", "--track"
    )
    assert code == 0, err
    client, (run,) = runs_of(tmp_path)
    assert run.info.run_name == "inspect light"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["inspect/multiply_adds"] > 1e6
    assert {item.path for item in client.list_artifacts(run.info.run_id, "inspect")} == {
        "inspect/index.html",
        "inspect/inspect.json",
        "inspect/filters.png",
    }


def test_the_help_and_the_looks_agree(command):
    assert LOOKS.keys() == TAKEN.keys()
    with pytest.raises(SystemExit) as leaving:
        command("inspect", "--help")
    assert leaving.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give either --ckpt PATH or --backbone NAME"),
        (["--backbone", "light", "--ckpt", "x"], "give either"),
        (["--backbone", "ligth"], "did you mean 'light'"),
        (["--backbone", "light", "--looks", "cost"], "did you mean 'costs'"),
        (["--backbone", "light", "--looks", "gradcam"], "needs heads: --ckpt"),
        (["--backbone", "light", "--looks", "patches", "--images", "nowhere"], "neither a picture nor a folder"),
        (["--backbone", "light", "--size", "big"], "argument --size"),
        (["--backbone", "light", "--size", "64x"], "argument --size"),
        (["--backbone", "light", "--count", "0"], "--count must be at least 1"),
        (["--backbone", "light", "--layer", "stem"], "did you mean --layers"),
        (["--ckpt", "nowhere.ckpt"], "checkpoint nowhere.ckpt does not exist"),
        (["--ckpt", "nowhere.ckpt", "--channels", "1"], "--channels goes with --backbone"),
        (["--backbone", "light", "--out", "file/page"], "--out file/page cannot be written"),
        (["--backbone", "light", "--json", "none/figures.json"], "--json none/figures.json cannot be written"),
    ],
)
def test_a_mistake_is_one_line(command, tmp_path, arguments, told):
    (tmp_path / "file").touch()
    code, out, err = command("inspect", *arguments)
    assert code in {1, 2}
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error:")
    assert told in last.replace("'--", "--").replace("--layers'", "--layers")

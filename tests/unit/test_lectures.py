"""The lectures' experiments: every variant builds, one runs by the command, and the checked-in tables are of these configs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lectures():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("lectures")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def built(words):
    """Data and network as `lightning fit` would build them."""
    from pipeline.cli_options import head_options
    from pipeline.cli_train import TrifocalCLI
    from pipeline.data.module import VisionData
    from tasks.module import VisionModule

    class Builder(TrifocalCLI):
        def before_instantiate_classes(self):
            """Without a subcommand there is no checkpoint to look for."""

    cli = Builder(
        VisionModule,
        VisionData,
        subclass_mode_model=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        run=False,
        args=head_options(words),
    )
    return cli.datamodule, cli.model


def test_every_variant_builds_the_network_it_is_named_for(lectures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {}
    for experiment in lectures.EXPERIMENTS:
        for variant in experiment.variants:
            words = lectures.command_of(experiment, variant, 1)[1:]
            words = [word for word in words if "{start}" not in word and "weights_stages" not in word]
            data, model = built(words)
            assert (data.shapes or data.signals)["seed"] == data.seed == 1
            head = (variant.metric or experiment.metric).partition("/")[0]
            assert head in model.network.heads
            sizes[f"{experiment.name}/{variant.name}"] = sum(p.numel() for p in model.network.parameters())
    assert sizes["signals/convolutional"] == 2050
    assert sizes["signals/fully connected, as many units"] == 59065
    assert sizes["signals/fully connected, wide"] == 150185
    assert sizes["depth/plain56"] == sizes["depth/resnet56"] > 2 * sizes["depth/resnet20"]
    assert sizes["separable/separable"] < sizes["separable/dense"] / 5
    assert sizes["kernels/four 3x3"] < sizes["kernels/two 5x5"]
    assert sizes["skips/without"] == sizes["upsampling/transposed"] < sizes["skips/with skips"]


def test_the_command_runs_an_experiment_and_goes_on_where_it_stopped(lectures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lectures, "TEST", {"images": 100, "seed": 1000})
    text = (ROOT / "docs" / "lectures.md").read_text()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "lectures.md").write_text(text)
    small = [lectures.EXPERIMENTS[0].__class__("transfer", "surface/mIoU", (0,), lectures.EXPERIMENTS[-1].variants[:3])]
    monkeypatch.setattr(lectures, "EXPERIMENTS", (*lectures.EXPERIMENTS[:-1], *small))
    given = ["transfer", "--out", "out", "--docs", "docs", "--limit", "1"]
    assert lectures.main(given) == 0
    first = json.loads((tmp_path / "docs" / "lectures.json").read_text())
    assert set(first["runs"]) == {f"transfer/{v.name}/0" for v in small[0].variants}
    assert all(0 <= run["value"] <= 1 and run["multiply_adds"] > 1e6 for run in first["runs"].values())
    changed = (tmp_path / "docs" / "lectures.md").read_text()
    assert "| the start: image labels | " in changed
    monkeypatch.setattr(lectures, "measure", lambda *_: pytest.fail("a finished variant was trained again"))
    assert lectures.main(given) == 0
    assert json.loads((tmp_path / "docs" / "lectures.json").read_text()) == first
    assert (tmp_path / "docs" / "lectures.md").read_text() == changed
    with pytest.raises(pytest.fail.Exception):
        lectures.main([*given[:-1], "2"])


def test_the_tables_in_the_docs_are_those_of_the_checked_in_results(lectures):
    text = (ROOT / "docs" / "lectures.md").read_text()
    results = lectures.load(ROOT / "docs" / "lectures.json")
    assert lectures.rendered(text, results) == text
    for experiment in lectures.EXPERIMENTS:
        assert f"configs/lectures/{experiment.name}.yaml" in text
        for variant in experiment.variants:
            assert f"| {variant.name} | " in text
            for seed in experiment.seeds:
                run = results["runs"][lectures.key_of(experiment, variant, seed)]
                assert run["given"] == lectures.given_of(experiment, variant, seed), "run `make lectures` again"


def test_every_config_is_an_experiment(lectures):
    files = {path.stem for path in (ROOT / "configs" / "lectures").glob("*.yaml")}
    assert files == {experiment.name for experiment in lectures.EXPERIMENTS}


def test_a_table_tells_mean_and_spread_and_leaves_out_what_was_not_run(lectures):
    experiment = next(e for e in lectures.EXPERIMENTS if e.name == "separable")
    run = {"metric": "accuracy", "train_loss": 0.5, "parameters": 1234, "multiply_adds": 5_600_000, "ms": 0.25}
    runs = {f"separable/dense/{seed}": {**run, "value": value} for seed, value in enumerate((0.8, 0.9))}
    header, _, *rows = lectures.table(experiment, {"runs": runs}).splitlines()
    assert header.startswith("| variant | accuracy | ")
    (row,) = rows
    assert row.startswith("| dense | 0.850 ± 0.071 | 0.500 ± 0.000 | 1,234 | 5.6 M | 0.25 | ")


def test_a_document_without_a_tables_place_is_told(lectures):
    with pytest.raises(SystemExit, match="the document has no part <!-- summary -->"):
        lectures.rendered("# Nothing\n", {"machine": {}, "runs": {}})

"""Every mistake in a config is told in one line: what, where, and the nearest right spelling."""

from __future__ import annotations

import pytest
from lightning import Trainer

from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.cli_options import environment_options
from pipeline.config_errors import diagnose, locate
from pipeline.data.module import VisionData
from tasks.multitask import DetectionModule, MultiTaskModule

SCHEMA = {"data": VisionData, "trainer": Trainer, "checkpoints": Checkpoints}
MODELS = {"MultiTaskModule": MultiTaskModule, "DetectionModule": DetectionModule}

MISTAKES = {
    "dta: {size: 64}": ("'dta'", "'data'", 1),
    "data:\n  batchsize: 4": ("'batchsize'", "'batch_size'", 2),
    "data: {size: abc}": ("'abc'", "a whole number", 1),
    "data:\n  split: [0.5, 0.5]": ("[0.5, 0.5]", "a list of 3", 2),
    "data: {augment: stong}": ("'stong'", "'strong'", 1),
    "model: {class_path: MultiTaskModul}": ("'MultiTaskModul'", "'MultiTaskModule'", 1),
    "model:\n  class_path: DetectionModule\n  init_args:\n    backbon: x": ("'backbon'", "'backbone'", 4),
    "model: {init_args: {schedule: cosin}}": ("'cosin'", "'cosine'", 1),
    "model: {init_args: {lr: fast}}": ("'fast'", "a number", 1),
    "trainer: {max_epocs: 3}": ("'max_epocs'", "'max_epochs'", 1),
    "trainer: {precision: bf61}": ("'bf61'", "'bf16'", 1),
    "trainer:\n  callbacks:\n  - class_path: EarlyStoping": ("'EarlyStoping'", "'EarlyStopping'", 3),
    "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {moniter: x}": ("'moniter'", "'monitor'", 4),
    "model: [a": ("not valid YAML", "", 1),
    "lr: 0.1": ("'lr'", "'model.lr'", 1),
    "model: {init_args: {lr: .nan}}": ("model.lr: nan", "a number", 1),
    "data:\n  augment: [HorizontalFlip]": ("['HorizontalFlip']", "a list of mappings", 2),
    "data:\n  sources:\n  - {root: x, wieght: 3}": ("'wieght'", "'weight'", 3),
    "data:\n  sources: [x]": ("'x'", "a mapping of root", 2),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_line(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    wrong, remedy, line = MISTAKES[text]
    told = diagnose(["fit", "--config", str(file)], SCHEMA, MODELS)
    assert told is not None
    assert wrong in told
    assert remedy in told
    assert f"in {file}, line {line}" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("option", "remedy"),
    {
        ("--data.bath_size=3",): "batch_size",
        ("--trainer.max_epochs", "many"): "a whole number or null",
        ("--trainer.logger.experimnt=x",): "experiment",
        ("--trainer.callbacks+=EarlyStoping",): "EarlyStopping",
    }.items(),
)
def test_a_mistake_on_the_command_line_is_named(option, remedy):
    told = diagnose(["fit", *option], SCHEMA, MODELS)
    assert told is not None
    assert remedy in told
    assert told.endswith("(on the command line)")


def test_a_right_config_has_no_mistakes(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {class_path: MultiTaskModule, init_args: {lr: 1e-3, heads: {objects: {width: 3}}}}\n"
        "data: {size: [64, 96], augment: [{class_name: HorizontalFlip}], split: [0.5, 0.3, 0.2]}\n"
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/score}}], precision: bf16-mixed}\n"
    )
    assert diagnose(["fit", "--config", str(file), "--trainer.max_epochs=3"], SCHEMA, MODELS) is None


@pytest.mark.parametrize("text", ["", "- a", "text"])
def test_a_config_without_sections_is_told(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    told = diagnose(["fit", "--config", str(file)], SCHEMA, MODELS)
    assert told == f"a config is a mapping of sections such as `data: {{size: 320}}` (in {file})"


def test_a_mistake_in_the_environment_is_named_with_its_variable():
    variables = environment_options("fit", {"TRIFOCAL_FIT__DATA__BACHSIZE": "3", "TRIFOCAL_TEST__DATA__X": "1"})
    told = diagnose(["fit"], SCHEMA, MODELS, variables)
    assert "'batch_size'" in told
    assert told.endswith("(in the environment, TRIFOCAL_FIT__DATA__BACHSIZE)")
    told = locate("unknown backbone 'x81'", ["fit"], {"TRIFOCAL_FIT__MODEL__BACKBONE": "--model.backbone=x81"})
    assert told.endswith("(in the environment, TRIFOCAL_FIT__MODEL__BACKBONE)")


def test_a_setting_out_of_its_range_is_found_and_remedies_are_no_places(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  init_args:\n    backbone: resnet18\ndata:\n  flip: 3\n")
    config = ["fit", "--config", str(file)]
    assert locate("data.flip must be from 0 to 1, not 3.0", config).endswith(f"(in {file}, line 5)")
    wrong = "unknown backbone 'resnet81'; did you mean 'resnet18'?"
    assert locate(wrong, [*config, "--model.backbone=torchvision/resnet81"]) == f"{wrong} (on the command line)"
    assert locate(wrong, config) == wrong


def test_a_word_of_a_message_is_found_where_it_stands(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: 1\nmodel: {init_args: {heads: {objects: {widht: 3}}}}\n")
    told = locate("head 'objects': unknown option 'widht'; did you mean 'width'?", ["--config", str(file)])
    assert told.endswith(f"(in {file}, line 2)")
    assert locate("unknown backbone 'x81'", ["--model.backbone=x81"]).endswith("(on the command line)")
    assert locate("no 'word' anywhere", []) == "no 'word' anywhere"

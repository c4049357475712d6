"""Callbacks: averaged weights, frozen stages, unreadable images, whole checkpoints, pictures of curves."""

from __future__ import annotations

import errno
import json
import math
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from pipeline.callbacks.checkpoints import Checkpoints, WholeFileIO
from pipeline.callbacks.ema import AverageWeights
from pipeline.callbacks.failures import CountFailures
from pipeline.callbacks.freeze import Freeze
from pipeline.callbacks.pictures import Pictures, as_answer, errors
from pipeline.callbacks.record import draw_curves
from pipeline.errors import CheckpointError, ConfigError, TooManyBadImagesError
from pipeline.labels import LabelSpace
from pipeline.records import Batch, BoxTarget, ClassTarget, MaskTarget
from tasks.classification import ClassPrediction
from tests.unit.toy import Toy, trainer

HEAD = "network.head.weight"


@pytest.fixture(autouse=True)
def _keep_signals():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def load(path):
    return torch.load(path, weights_only=True)


def by_hand(raw, decay=0.9, tau=4.0):
    """The averages of a list of weights, one per step: the first is a copy."""
    average = raw[0]
    for count, weight in enumerate(raw[1:], 1):
        average = average + (1 - decay * (1 - math.exp(-(count + 1) / tau))) * (weight - average)
    return average


class Raw(Checkpoints):
    """Notes the raw head after every step."""

    def on_train_batch_end(self, trainer, pl_module, *args, **kwargs):
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        self.raw = [*getattr(self, "raw", []), pl_module.network.head.weight.detach().clone()]


def test_a_checkpoint_holds_the_average_and_the_raw_weights(tmp_path):
    keep = Raw()
    module = Toy()
    trainer(tmp_path, [AverageWeights(0.9, 4.0), keep]).fit(module)
    saved = load(keep.last_model_path)
    torch.testing.assert_close(saved["state_dict"][HEAD], by_hand(keep.raw))
    torch.testing.assert_close(saved["current_model_state"][HEAD], keep.raw[-1])
    torch.testing.assert_close(module.network.head.weight.detach(), by_hand(keep.raw))


def test_a_checkpoint_after_training_still_holds_both(tmp_path):
    keep = Raw()
    made = trainer(tmp_path, [AverageWeights(0.9, 4.0), keep])
    made.fit(Toy())
    made.save_checkpoint(tmp_path / "after.ckpt")
    torch.testing.assert_close(load(tmp_path / "after.ckpt")["state_dict"][HEAD], by_hand(keep.raw))
    torch.testing.assert_close(load(tmp_path / "after.ckpt")["current_model_state"][HEAD], keep.raw[-1])


def test_an_interrupt_while_validating_does_not_mix_the_weights_up(tmp_path):
    keep = Raw()
    with pytest.raises(SystemExit):
        trainer(tmp_path, [AverageWeights(0.9, 4.0), keep]).fit(Toy(stop=("val", 4, KeyboardInterrupt())))
    (last,) = tmp_path.glob("**/last.ckpt")
    torch.testing.assert_close(load(last)["state_dict"][HEAD], by_hand(keep.raw))
    torch.testing.assert_close(load(last)["current_model_state"][HEAD], keep.raw[-1])


def test_resumed_training_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    torch.manual_seed(0)
    start = Toy().state_dict()
    ends = []
    for name, stages in (("whole", [4]), ("broken", [2, 4])):
        last = None
        for epochs in stages:
            module, keep = Toy(), Checkpoints()
            module.load_state_dict(start)
            made = trainer(tmp_path / name, [AverageWeights(0.9, 4.0), keep], epochs=epochs)
            made.fit(module, ckpt_path=last)
            last = keep.last_model_path
        ends.append(module.state_dict())
    for key in ends[0]:
        assert torch.equal(ends[0][key], ends[1][key]), key


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AverageWeights(decay=1.5), r"ema\.decay must be from 0 to 1, not 1\.5"),
        (lambda: AverageWeights(tau=0.0), r"ema\.tau"),
        (lambda: Checkpoints(every_n_epochs=0), r"checkpoints\.every_n_epochs must be 1 or more, not 0"),
        (lambda: Checkpoints(every_minutes=-1), r"checkpoints\.every_minutes"),
    ],
)
def test_numbers_out_of_their_range_are_told(make, told):
    with pytest.raises(ConfigError, match=told):
        make()


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    io = WholeFileIO()
    io.save_checkpoint({"step": 1}, tmp_path / "last.ckpt")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", full)
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*No space left.*previous one is intact"):
        io.save_checkpoint({"step": 2}, tmp_path / "last.ckpt")
    assert load(tmp_path / "last.ckpt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_fast_dev_run_puts_a_stand_in_for_the_logger(tmp_path):
    trainer(tmp_path, [Checkpoints()], logger=CSVLogger(tmp_path), fast_dev_run=1).fit(Toy())
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_without_validation_only_the_last_is_kept(tmp_path):
    trainer(tmp_path, [Checkpoints()], limit_val_batches=0).fit(Toy())
    assert [path.name for path in tmp_path.glob("**/*.ckpt")] == ["last.ckpt"]


def test_frozen_stages_keep_weights_and_statistics(tmp_path):
    module = Toy()
    before = {k: v.clone() for k, v in module.network.backbone.state_dict().items()}
    trainer(tmp_path, [Freeze(stages=1)], enable_checkpointing=False).fit(module)
    after = module.network.backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("one"))
    assert not torch.equal(before["two.weight"], after["two.weight"])


def test_the_backbone_trains_from_its_epoch_on(tmp_path):
    module = Toy()
    before = module.network.backbone.one[0].weight.detach().clone()
    counted = module.network.backbone.one[1].num_batches_tracked
    trainer(tmp_path, [Freeze(until_epoch=1)], enable_checkpointing=False).fit(module)
    assert not torch.equal(before, module.network.backbone.one[0].weight)
    assert counted.item() == 4  # the norm saw the second epoch only


def test_more_stages_than_there_are_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="1 to 2"):
        trainer(tmp_path, [Freeze(stages=3)], enable_checkpointing=False).fit(Toy())


def test_too_many_unreadable_images_stop_the_run_and_are_named(tmp_path, capsys):
    bad = ["a.jpg: truncated", "b.jpg: truncated", "c.jpg: truncated"]
    with pytest.raises(TooManyBadImagesError, match="3 of 4"):
        trainer(tmp_path, [CountFailures()], enable_checkpointing=False).fit(Toy(failures=bad))
    assert "a.jpg" in capsys.readouterr().err


def test_two_unreadable_images_are_only_named(tmp_path, capsys):
    trainer(tmp_path, [CountFailures()], enable_checkpointing=False).fit(Toy(failures=["a.jpg: x", "b.jpg: y"]))
    assert "2 images could not be read" in capsys.readouterr().err


def test_an_image_predicted_as_labelled_has_no_error_and_an_unlabelled_one_none_either():
    yes = torch.tensor([True, False])
    targets = {
        "scene": ClassTarget(torch.eye(2), yes),
        "objects": BoxTarget(
            torch.tensor([[[1.0, 1, 5, 5]]] * 2), torch.zeros(2, 1).long(), torch.zeros(2, 1).bool(), yes
        ),
        "surface": MaskTarget(torch.ones(2, 8, 8, dtype=torch.uint8), yes),
    }
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), targets, ["a", "b"], [None, None])

    class Answer:
        def __init__(self, **fields):
            self.__dict__.update({k: torch.as_tensor(v)[None] for k, v in fields.items()})

    right = {name: Answer(**as_answer(target, 0)) for name, target in targets.items()}
    assert errors(batch, right) == [0.0, 0.0]
    wrong = {**right, "surface": Answer(mask=torch.zeros(8, 8, dtype=torch.uint8))}
    assert errors(batch, wrong)[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("stage", "every", "epochs", "drawn"),
    [
        ("validation", 1, (0, 4, 6), {"epoch_0004.png", "epoch_0006.png"}),
        # No epoch is validated that is a multiple of five, and the last one is not validated at all.
        ("validation", 3, (2, 5), {"epoch_0005.png"}),
        ("test", 1, (0,), set()),
    ],
)
def test_the_fixed_sample_and_the_worst_are_drawn_the_very_worst_first(stage, every, epochs, drawn, tmp_path):
    space = LabelSpace("classes", ("a", "b"))
    module = SimpleNamespace(network=SimpleNamespace(named_heads=lambda: {"scene": SimpleNamespace(space=space)}))
    kept = []
    logger = SimpleNamespace(log_file=lambda file, folder: kept.append((file.name, folder)))
    made = SimpleNamespace(
        max_epochs=7, sanity_checking=False, is_global_zero=True, checkpoint_callback=None,
        default_root_dir=str(tmp_path), loggers=[logger], early_stopping_callbacks=[], callbacks=[], max_steps=-1,
        check_val_every_n_epoch=every,
    )  # fmt: skip
    callback = Pictures(every_n_epochs=5, count=3, worst=2)
    for epoch in epochs:
        kept.clear()
        made.current_epoch = epoch
        getattr(callback, f"on_{stage}_epoch_start")(made, module)
        for number in range(2):
            truth = ClassTarget(torch.eye(2)[torch.tensor([0, 0])], torch.ones(2).bool())
            names = [f"{number}{i}.png" for i in range(2)]
            batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {"scene": truth}, names, [None, None])
            sure = torch.tensor([0.9 - 0.4 * number, 0.7 - 0.4 * number])  # errors 0.1, 0.3, then 0.5, 0.7
            outputs = {"scene": ClassPrediction(torch.stack([sure, 1 - sure], 1))}
            getattr(callback, f"on_{stage}_batch_end")(made, module, outputs, batch, number)
        getattr(callback, f"on_{stage}_epoch_end")(made, module)
        wanted = {f"epoch_{epoch:04}.png"} & drawn if stage == "validation" else {"test_worst.png", "test_worst.json"}
        assert {name for name, _ in kept} == wanted
        assert all(folder == "pictures" for _, folder in kept)
    if stage == "validation":
        callback.on_train_end(made, module)
        assert {name for name, _ in kept} >= {"val_worst.png", "val_worst.json"}
    short = {"validation": "val"}.get(stage, stage)
    told = json.loads((tmp_path / "pictures" / f"{short}_worst.json").read_text())
    assert told == [{"image": "11.png", "error": 0.7}, {"image": "10.png", "error": 0.5}]


def test_a_run_without_a_store_has_a_folder_of_its_own_and_goes_on_in_it(tmp_path):
    folders = []
    for going_on in (False, False, True):
        keep = Checkpoints()
        keep.resumes = f"{folders[0]}/last.ckpt" if going_on else None
        trainer(tmp_path, [keep], epochs=1).fit(Toy())
        folders.append(keep.dirpath)
    assert [Path(folder).name for folder in folders] == ["run", "run-2", "run"]


def test_each_curve_becomes_a_picture():
    curves = {"confusion": [[3, 1], [0, 4]], "classes": ["a", "b"], "reliability": [[0.5, 0.4, 7]]}
    images = draw_curves("scene", {**curves, "precision_recall": {"a": [1.0, 0.5, -1]}})
    assert set(images) == {"confusion", "reliability", "precision_recall"}
    assert all(data.startswith(b"\x89PNG") for data in images.values())


def test_testing_after_training_takes_the_average(tmp_path):
    keep = Raw()
    module = Toy()
    module.test_step = module.validation_step
    module.test_dataloader = module.val_dataloader
    made = trainer(tmp_path, [AverageWeights(0.9, 4.0), keep])
    made.fit(module)
    made.test(module, ckpt_path=keep.last_model_path, verbose=False)
    torch.testing.assert_close(module.network.head.weight.detach(), by_hand(keep.raw))

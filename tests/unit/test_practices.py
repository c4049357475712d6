"""Practices of the lectures, one by one: schedules, initialisation, penalties, ten crops, errors, taking part of a network."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn, optim

from pipeline.backbones.build import build_backbone
from pipeline.errors import CheckpointError, ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import Batch, ClassTarget
from tasks.classification import ClassificationHead, ClassMetrics, ClassPrediction
from tasks.crops import ten_crop_labels, ten_crops
from tasks.init import initialise
from tasks.multitask import ClassificationModule
from tasks.network import build_network
from tasks.optim import (
    build_optimizer,
    build_schedule,
    carry_over,
    parameter_groups,
    warmup_steps,
    weight_penalty,
)

SPACE = LabelSpace("classes", ("a", "b", "c", "d", "e", "f", "g"))
DEFAULTS = {"warmup": 0.0, "final_lr": 0.01, "milestones": None, "drop": 0.1, "patience": 2}


def test_the_step_schedule_drops_at_its_milestones():
    factor = warmup_steps(100, 0, (0.5, 0.75), 0.1)
    assert [round(factor(step), 4) for step in (0, 49, 50, 74, 75, 99)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    warm = warmup_steps(100, 10, (0.5,), 0.5)
    assert warm(0) < warm(5) < warm(10) == 1
    weight = nn.Parameter(torch.zeros(1))
    optimizer = optim.SGD([weight], lr=2.0)
    made = build_schedule(optimizer, {**DEFAULTS, "schedule": "step"}, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([2.0, 2.0, 0.2, 0.02])


def test_the_plateau_schedule_waits_and_drops():
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = build_schedule(optimizer, {**DEFAULTS, "schedule": "plateau"}, 4)
    assert made["lr_scheduler"]["monitor"] == "val/score"
    for score in (0.5, 0.6, 0.6, 0.6):
        made["lr_scheduler"]["scheduler"].step(score)
    assert optimizer.param_groups[0]["lr"] == 1.0
    made["lr_scheduler"]["scheduler"].step(0.6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_between_validations_the_plateau_has_no_score_to_go_by():
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = build_schedule(optimizer, {**DEFAULTS, "schedule": "plateau"}, 4, validated_every=3)
    assert made["lr_scheduler"]["frequency"] == 3


def test_channels_that_the_data_has_not_are_told_at_construction():
    with pytest.raises(ConfigError, match="in_channels is 4, but the data gives RGB"):
        ClassificationModule("light", spaces={"label": SPACE.to_dict()}, in_channels=4)


def test_a_precision_that_loses_too_much_is_told_before_training_starts():
    module = ClassificationModule("light", spaces={"label": SPACE.to_dict()})
    module._trainer = SimpleNamespace(precision="bf16-true", world_size=1)
    with pytest.raises(ConfigError, match="precision is bf16-true; take 32-true, bf16-mixed or 16-mixed"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"milestones": [0.7, 0.5]}, "rising shares"),
        ({"milestones": [30, 60]}, "between 0 and 1"),
        ({"drop": 1.5}, "model.drop"),
        ({"lr": -1.0}, r"model\.lr must be 0 or more, not -1\.0"),
        ({"warmup": 1.5}, r"model\.warmup must be from 0 to 1"),
        ({"momentum": 1.0}, r"model\.momentum must be"),
        ({"weight_decay": -0.1}, r"model\.weight_decay"),
        ({"patience": -1}, r"model\.patience"),
        ({"init": "kaiming"}, "unknown initialisation"),
    ],
)
def test_bad_values_are_told_at_once(options, told):
    with pytest.raises(ConfigError, match=told):
        ClassificationModule("light", spaces={"scene": SPACE.to_dict()}, **options)


def test_momentum_is_plain_or_nesterovs_and_resumes_as_given_now():
    weight = nn.Parameter(torch.tensor([1.0]))
    for nesterov, wanted in ((False, 1 - 0.1 - (0.9 * 0.1 + 0.1)), (True, 1 - 0.19 - (0.9 * 0.19 + 0.1))):
        with torch.no_grad():
            weight.fill_(1.0)
        optimizer = build_optimizer("sgd", [{"params": [weight]}], 0.1, 0.9, nesterov=nesterov)
        for _ in range(2):
            weight.grad = torch.ones(1)
            optimizer.step()
        assert float(weight) == pytest.approx(wanted, abs=2e-3)
    old = {"optimizer": "sgd", "schedule": "constant", "lr": 0.1, "backbone_lr_factor": 1.0}
    group = {"name": "heads", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0}
    checkpoint = {"hyper_parameters": old, "global_step": 7, "optimizer_states": [{"param_groups": [group]}]}
    carry_over(checkpoint, {**old, "schedule": "step", "momentum": 0.8, "nesterov": False, "weight_decay": 0.1})
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, False, 0.1)
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 7


def test_patience_and_drop_given_now_win_over_the_checkpoints():
    """Lightning and torch would restore the checkpoint's without a word."""
    old = {"optimizer": "sgd", "schedule": "plateau", "lr": 0.1, "backbone_lr_factor": 1.0, "patience": 5, "drop": 0.1}
    now = {**old, "patience": 2, "drop": 0.5, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    stop = EarlyStopping("val/score", patience=3)
    checkpoint = {
        "hyper_parameters": old,
        "optimizer_states": [],
        "lr_schedulers": [optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.1, 5).state_dict()],
        "callbacks": {stop.state_key: EarlyStopping("val/score", patience=9).state_dict()},
    }
    carry_over(checkpoint, now, [stop])
    schedule = build_schedule(optimizer, now, 4)["lr_scheduler"]["scheduler"]
    schedule.load_state_dict(checkpoint["lr_schedulers"][0])
    assert (schedule.patience, schedule.factor) == (2, 0.5)
    stop.load_state_dict(checkpoint["callbacks"][stop.state_key])
    assert stop.patience == 3


def test_norms_and_biases_do_not_decay_and_the_backbone_learns_slower():
    module = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "head": nn.Linear(4, 2)})
    groups = {g["name"]: g for g in parameter_groups(module, module["backbone"], 1.0, 0.1, 0.05)}
    found = {name: (g["lr"], g["weight_decay"], len(g["params"])) for name, g in groups.items()}
    assert found == {
        "backbone": (0.1, 0.05, 1),
        "backbone_no_decay": (0.1, 0.0, 3),
        "heads": (1.0, 0.05, 1),
        "heads_no_decay": (1.0, 0.0, 1),
    }


def test_penalties_by_hand_leave_biases_and_frozen_weights_out():
    network = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -3.0]]))
        network[1].weight.fill_(5.0)
        network[0].bias.fill_(100.0)
    network[1].weight.requires_grad_(False)
    assert float(weight_penalty(network, 0.1, 0.0).detach()) == pytest.approx(0.4)
    assert float(weight_penalty(network, 0.1, 0.01).detach()) == pytest.approx(0.4 + 0.1)
    assert weight_penalty(network, 0.0, 0.0) == 0


def test_dropout_drops_while_training_only():
    torch.manual_seed(0)
    head = ClassificationHead(SPACE, (8,) * 5, dropout=0.5)
    features = [torch.ones(1, 8, 2, 2)] * 5
    with torch.no_grad():
        head.train()
        assert not torch.equal(head(features, (64, 64)).logits, head(features, (64, 64)).logits)
        head.eval()
        assert torch.equal(head(features, (64, 64)).logits, head(features, (64, 64)).logits)


@pytest.mark.parametrize(("how", "variance"), [("he", 2 / (64 * 9)), ("xavier", 2 / (64 * 9 + 128 * 9))])
def test_initial_weights_have_the_papers_variance(how, variance):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128))
    network[1].weight.data.fill_(3.0)
    initialise(network, how)
    assert float(network[0].weight.var()) == pytest.approx(variance, rel=0.05)
    assert not network[0].bias.any()
    assert (network[1].weight == 3).all()


def test_he_keeps_the_signal_of_a_deep_network_alive_and_the_default_lets_it_die():
    torch.manual_seed(0)
    deep = nn.Sequential(*[layer for _ in range(20) for layer in (nn.Linear(256, 256), nn.ReLU())])
    x = torch.randn(64, 256)
    dying = float(deep(x).std())
    initialise(deep, "he")
    assert dying < 0.1 < 0.3 < float(deep(x).std()) < 3


def test_the_option_reaches_the_backbone_and_spares_loaded_weights(tmp_path):
    heads = {"scene": {}}
    torch.manual_seed(0)
    plain = build_network("resnet18", 3, None, heads, {"scene": SPACE})
    xavier = build_network("resnet18", 3, None, heads, {"scene": SPACE}, init="xavier")
    assert xavier.backbone.body.conv1.weight.abs().max() < plain.backbone.body.conv1.weight.abs().max()
    torch.save(plain.backbone.body.state_dict(), tmp_path / "weights.pt")
    loaded = build_network("resnet18", 3, str(tmp_path / "weights.pt"), heads, {"scene": SPACE}, init="xavier")
    assert torch.equal(loaded.backbone.body.conv1.weight, plain.backbone.body.conv1.weight)


def checkpoint_of(folder, name="light"):
    """A checkpoint as the command writes it, of a classification network."""
    module = ClassificationModule(name, spaces={"scene": SPACE.to_dict()})
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, folder / "best.ckpt")
    return module, folder / "best.ckpt"


def test_a_checkpoints_backbone_is_taken_whole_or_its_first_stages(tmp_path):
    torch.manual_seed(1)
    module, file = checkpoint_of(tmp_path)
    theirs = module.network.backbone.body.state_dict()
    whole = build_backbone("light", weights=str(file)).body.state_dict()
    assert all(torch.equal(whole[key], value) for key, value in theirs.items())
    part = build_backbone("light", weights=str(file), stages=2)
    taken = [key for key, value in part.body.state_dict().items() if torch.equal(value, theirs[key]) and value.ndim > 1]
    assert taken
    assert all(key.startswith(("stem.", "stages.0.")) for key in taken)
    assert not any(key.startswith("stages.1.") for key in taken)


def test_safetensors_are_taken_and_broken_files_told(tmp_path):
    from safetensors.torch import save_file

    theirs = build_backbone("light").body.state_dict()
    save_file(theirs, tmp_path / "weights.safetensors")
    taken = build_backbone("light", weights=str(tmp_path / "weights.safetensors")).body.state_dict()
    assert all(torch.equal(taken[key], value) for key, value in theirs.items())
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").touch()
    for name in ("tensor.pt", "cut.safetensors", "text.safetensors", "text.pt", "empty.pt"):
        with pytest.raises(CheckpointError, match=rf"weights file .*{name} (cannot be read|holds no state dict)"):
            build_backbone("light", weights=str(tmp_path / name))


def test_what_cannot_be_taken_is_told(tmp_path):
    _, file = checkpoint_of(tmp_path)
    with pytest.raises(ConfigError, match="weights_stages is 9; backbone 'light' has 1 to 5"):
        build_backbone("light", weights=str(file), stages=9)
    with pytest.raises(CheckpointError, match="does not fit backbone 'resnet18'"):
        build_backbone("resnet18", weights=str(file), stages=1)
    with pytest.raises(ConfigError, match="weights_stages takes part of a file or run"):
        build_backbone("light", stages=1)


def test_a_grey_network_takes_weights_for_colour_and_what_is_left_is_told(tmp_path, caplog):
    from safetensors.torch import save_file

    colour = build_backbone("light").body.state_dict()
    save_file(colour, tmp_path / "colour.safetensors")
    grey = build_backbone("light", 1, weights=str(tmp_path / "colour.safetensors")).body.state_dict()
    first = next(key for key, value in grey.items() if value.ndim == 4)
    assert torch.equal(grey[first], colour[first].sum(1, keepdim=True))
    assert not caplog.records
    del colour[first]
    save_file(colour, tmp_path / "part.safetensors")
    build_backbone("light", weights=str(tmp_path / "part.safetensors"))
    (told,) = caplog.messages
    assert told.endswith(f"{len(grey) - 1} of {len(grey)} tensors of 'light'; left at random: {first}")


def test_a_network_that_took_part_of_another_reloads_from_its_own_checkpoint(tmp_path):
    from pipeline.export.graph import load_trained

    _, file = checkpoint_of(tmp_path)
    module = ClassificationModule("light", weights=str(file), weights_stages=2, spaces={"scene": SPACE.to_dict()})
    content = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "own.ckpt")
    file.unlink()
    assert load_trained(tmp_path / "own.ckpt").settings["weights_stages"] is None


@pytest.mark.parametrize("names", [("b", "a", "c", "d", "e", "f", "g"), ("a", "b")])
def test_a_checkpoint_of_other_classes_is_refused(names):
    """Of as many, too: `a` would be called `b`."""
    trained = ClassificationModule("light", spaces={"label": SPACE.to_dict()})
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    trained.on_load_checkpoint(checkpoint)
    other = ClassificationModule("light", spaces={"label": LabelSpace("classes", names).to_dict()})
    with pytest.raises(CheckpointError, match=r"'label' was trained for 7 classes \(a, b, c, d, e\)"):
        other.on_load_checkpoint(checkpoint)


def test_ten_crops_are_corners_middle_and_mirrors():
    images = torch.arange(64.0).reshape(1, 1, 8, 8)
    crops = ten_crops(images)
    assert crops.shape == (10, 1, 1, 8, 8)
    assert torch.equal(crops[5:], crops[:5].flip(-1))
    assert crops[0, 0, 0, 0, 0] == 0  # the upper left crop begins in the corner
    assert crops[3, 0, 0, -1, -1] == 63
    constant = ten_crops(torch.full((2, 3, 32, 64), 7, dtype=torch.uint8))
    assert (constant == 7).all()


def test_ten_crop_labels_are_the_mean_over_the_crops():
    torch.manual_seed(0)
    network = build_network("light", 3, None, {"scene": {}}, {"scene": SPACE}).eval()
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = ten_crop_labels(network, images)["scene"].probabilities
        each = [network.decode(network(crop))["scene"].probabilities for crop in ten_crops(images)]
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(2), atol=1e-5)


def test_the_test_and_only_the_test_uses_ten_crops(monkeypatch):
    module = ClassificationModule("light", spaces={"scene": SPACE.to_dict()}, ten_crop=True).eval()
    sure = torch.zeros(1, 7)
    sure[0, 3] = 1
    monkeypatch.setattr("tasks.module.ten_crop_labels", lambda network, images: {"scene": ClassPrediction(sure)})
    target = ClassTarget(torch.eye(7)[3:4], torch.tensor([True]))
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    batch = Batch(images, {"scene": target}, ["a"], [None])
    with torch.no_grad():
        assert module._evaluate(batch, "test")["scene"].probabilities[0, 3] == 1
        assert module._evaluate(batch, "val")["scene"].probabilities[0, 3] < 1


def test_top_one_and_top_five_errors():
    metrics = ClassMetrics(SPACE)
    p = torch.tensor([[0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05]]).repeat(4, 1)
    wanted = torch.eye(7)[[0, 1, 4, 6]]  # first, second, fifth, seventh
    metrics.update(ClassPrediction(p), ClassTarget(wanted, torch.ones(4, dtype=torch.bool)), [None] * 4)
    found = metrics.compute()
    assert (found["top1_error"], found["top5_error"]) == (0.75, 0.25)
    assert found["accuracy"] + found["top1_error"] == 1

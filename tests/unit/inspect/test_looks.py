"""Each look finds what a network was built to show."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.backbones.build import Backbone
from pipeline.errors import ConfigError, DataError, ImageError
from pipeline.imaging.draw import write_png
from pipeline.inspect.activations import look_at_activations
from pipeline.inspect.filters import filter_tiles, first_convolution, look_at_filters
from pipeline.inspect.gradcam import cam_maps, explain, look_at_answers
from pipeline.inspect.layers import captured
from pipeline.inspect.look import Look, NotHereError, Wish
from pipeline.inspect.page import Picture, Section, Table, to_json, write_page
from pipeline.inspect.patches import look_at_patches
from pipeline.inspect.receptive import look_at_fields
from pipeline.inspect.run import take_looks
from pipeline.inspect.shift import look_at_shifts, moved_images, movement
from pipeline.inspect.subject import Subject, find_images, named_backbone
from pipeline.labels import LabelSpace
from tasks.classification import ClassificationHead, ClassPrediction
from tasks.detection.decode import BoxPrediction
from tasks.multitask import DenoisingModule
from tasks.network import VisionNetwork
from tasks.segmentation import MaskPrediction

SIZE = (64, 64)


class Colours(nn.Module):
    """Five maps whose channels are the image's red and blue, averaged over 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.pick = nn.Conv2d(3, 2, 8, 8, bias=False)
        with torch.no_grad():
            self.pick.weight.zero_()
            self.pick.weight[0, 0], self.pick.weight[1, 2] = 1 / 64, 1 / 64
        self.out = nn.ReLU()

    def forward(self, x):
        return [self.out(self.pick(x))] * 5


def spots():
    """Two images on black: a red spot at the top left, and one at the bottom right with a blue one at the top right."""
    first, second = np.zeros((*SIZE, 3), np.uint8), np.zeros((*SIZE, 3), np.uint8)
    first[8:16, 8:16, 0], second[48:56, 48:56, 0], second[0:8, 56:64, 2] = 200, 255, 255
    return [("first", first), ("second", second)]


@pytest.fixture
def subject():
    """A network that calls an image red or blue by which of them it has more of."""
    space = LabelSpace("classes", ("red", "blue"))
    backbone = Backbone(Colours(), (2, 2, 2, 2, 2), "colours", ("out",))
    head = ClassificationHead(space, backbone.channels)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(2) * 50)
        head.linear.bias.zero_()
    network = VisionNetwork(backbone, {"colour": head}).eval().requires_grad_(False)
    return Subject("toy", network, 3, SIZE, {"colour": space})


@pytest.fixture
def look(subject):
    return Look(subject, spots, Wish(count=2))


def test_filters_are_drawn_as_colours(look):
    section = look_at_filters(look)
    assert section.figures["shape"] == [2, 3, 8, 8]
    red, blue = filter_tiles(look.subject.network.backbone.body.pick.weight)
    assert red.shape == (32, 32, 3)
    assert red.mean((0, 1)).tolist() == [255, 0, 0]
    assert blue.mean((0, 1)).tolist() == [0, 0, 255]
    assert filter_tiles(torch.randn(4, 1, 5, 5))[0].shape == (35, 35, 3)
    with pytest.raises(NotHereError, match="convolution"):
        first_convolution(nn.Linear(2, 2))


def test_activations_tell_dead_channels_and_the_liveliest(look):
    with torch.no_grad():
        look.subject.network.backbone.body.pick.weight[1] = -1
        look.subject.network.backbone.body.pick.weight[1, 2] = -9  # the normalised pixels cannot make it answer
    torch_images = [("white", np.full((*SIZE, 3), 255, np.uint8)), spots()[0]]
    section = look_at_activations(Look(look.subject, lambda: [torch_images[0]], Wish(count=2)))
    assert section.figures["backbone.body.out"]["dead"] == 1
    section = look_at_activations(look)
    assert section.figures["backbone.body.out"]["channels"] == 2
    assert len(section.pictures) == 1


def test_what_is_kept_of_a_layer_is_what_it_gave_not_what_became_of_it():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True))
    with torch.no_grad():
        network[0].weight.fill_(-1)
        network[0].bias.zero_()
        with captured({"conv": network[0]}) as held:
            network(torch.ones(1, 1, 2, 2))
    assert (held["conv"] == -1).all()


def test_patches_are_where_the_channel_answers_most(look):
    figures = look_at_patches(look).figures["backbone.body.out"]
    red, blue = figures["0"], figures["1"]
    assert red[0]["image"] == "second"  # the brighter spot
    assert red[0]["box"] == [48, 48, 56, 56]
    assert red[1]["image"] == "first"
    assert red[1]["box"] == [8, 8, 16, 16]
    assert blue[0]["box"] == [56, 0, 64, 8]
    assert red[0]["value"] > red[1]["value"]


def test_grad_cam_points_at_the_cause(look):
    """With pooling and one linear layer, Grad-CAM is the class activation map of Zhou et al. 2016: the weighted channels."""
    subject = look.subject
    images = subject.batch([pixels for _, pixels in spots()[:1]])
    maps, told = cam_maps(subject.network, "colour", subject.layer("backbone.body.out"), images)
    assert maps.shape == (1, *SIZE)
    assert told[0].startswith("red ")
    row, column = np.unravel_index(maps[0].argmax(), SIZE)
    assert 8 <= row < 16
    assert 8 <= column < 16
    assert maps[0, 40:, 40:].max() < 0.05
    section = look_at_answers(look)
    assert section.figures["colour"]["layer"] == "backbone.body.out"
    assert set(section.figures["colour"]["explained"]) == {"first", "second"}


def test_grad_cam_takes_the_last_layer_asked_for_that_the_answer_depends_on(subject):
    subject.network.backbone.body.idle = nn.Conv2d(3, 2, 8, 8)
    body = "backbone.body"
    look = Look(subject, spots, Wish((f"{body}.pick", f"{body}.idle", "heads.colour.linear"), 2))
    assert look_at_answers(look).figures["colour"]["layer"] == f"{body}.pick"
    look = Look(subject, spots, Wish((f"{body}.idle", "heads.colour.linear"), 2))
    with pytest.raises(NotHereError, match="a stage that reaches colour by a gradient: name one by --layers"):
        look_at_answers(look)


@pytest.mark.parametrize(("kind", "found"), [("boxes", "one"), ("mask", "one"), ("classes", "two")])
def test_boxes_and_masks_are_explained_where_there_are_places(subject, monkeypatch, kind, found):
    """A cell of the coarsest map is a quarter of the picture."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 2, 8, 8), nn.Conv2d(2, 2, 4, 4)

        def forward(self, x):
            return [self.two(self.one(x))] * 5

    head, body = subject.network.heads["colour"], Backbone(Stages(), (2, 2, 2, 2, 2), "stages", ("one", "two"))
    network = VisionNetwork(body, {"colour": head}).eval().requires_grad_(False)
    space = LabelSpace(kind, head.space.names)
    monkeypatch.setattr(
        "pipeline.inspect.gradcam.explain", lambda raw, prediction, space: (raw.logits[:, 0], ["x"] * 2)
    )
    monkeypatch.setattr(head, "space", space)
    look = Look(Subject("stages", network, 3, SIZE, {"colour": space}), spots, Wish(count=2))
    assert look_at_answers(look).figures["colour"]["layer"] == f"backbone.body.{found}"


def test_layers_with_their_channels_last_are_looked_at_as_others_are(subject):
    """As Swin's stages: rows, columns, channels."""

    class Last(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    class Turned(Colours):
        def __init__(self):
            super().__init__()
            self.last = Last()

        def forward(self, x):
            return [self.last(self.out(self.pick(x))).permute(0, 3, 1, 2)] * 5

    backbone = Backbone(Turned(), (2, 2, 2, 2, 2), "turned", ("last",))
    network = VisionNetwork(backbone, {"colour": subject.network.heads["colour"]}).eval().requires_grad_(False)
    look = Look(Subject("turned", network, 3, SIZE, subject.spaces), spots, Wish(count=2))
    name = "backbone.body.last"
    assert look_at_activations(look).figures[name]["channels"] == 2
    assert look_at_patches(look).figures[name]["0"][0]["box"] == [48, 48, 56, 56]
    white = Look(look.subject, lambda: [("white", np.full((*SIZE, 3), 255, np.uint8))], Wish())
    assert look_at_fields(white).figures[name] == {
        "theory": (8, 8), "stride": (8, 8), "effective": 8.0, "nan_check": "agrees",
    }  # fmt: skip
    maps, _ = cam_maps(network, "colour", look.subject.layer(name), look.subject.batch([spots()[0][1]]))
    row, column = np.unravel_index(maps[0].argmax(), SIZE)
    assert 8 <= row < 16
    assert 8 <= column < 16


def test_a_head_whose_answer_has_no_gradient_is_left_out(look, monkeypatch):
    monkeypatch.setattr(
        "pipeline.inspect.gradcam.explain", lambda raw, prediction, space: (raw.logits.detach()[:, 0], ["x"])
    )
    with pytest.raises(NotHereError, match="a stage that reaches colour"):
        look_at_answers(look)


def test_what_grad_cam_explains_of_each_kind_of_head():
    classes = LabelSpace("mask", ("ground", "tree", "house"))
    p = torch.zeros(1, 3, 4, 4)
    p[:, 0], p[:, 2, :2] = 0.4, 0.9
    p.requires_grad_()
    score, told = explain(p, MaskPrediction(p.argmax(1).to(torch.uint8), p), classes)
    assert told == ["house 50%"]
    (gradient,) = torch.autograd.grad(score.sum(), p)
    assert gradient.sum() == 8  # the logit of each of the class' own pixels
    assert gradient[0, 2, :2].sum() == 8
    scores = torch.tensor([[0.8, 0.1]], requires_grad=True)
    boxes = BoxPrediction(torch.zeros(1, 2, 4), scores, torch.tensor([[1, 0]]))
    score, told = explain(None, boxes, LabelSpace("boxes", ("disc", "bar")))
    assert told == ["bar 0.80"]
    assert float(score[0].detach()) == pytest.approx(np.log(4), abs=1e-5)
    assert torch.autograd.grad(score.sum(), scores)[0][0, 1] == 0


def test_shifts_of_a_known_network(look):
    plain = np.zeros((2, *SIZE, 3), np.uint8)
    plain[0, ..., 0], plain[1, ..., 2] = 255, 255
    figures = look_at_shifts(Look(look.subject, lambda: [("red", plain[0]), ("blue", plain[1])], Wish())).figures
    assert set(figures["colour: same class"].values()) == {1}
    assert figures["colour: change"][1] < figures["colour: change"][24] + 1e-6
    assert 32 not in figures["colour: change"]  # half of the picture would be gone
    signal = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 1, 4)
    assert moved_images(signal, 1).flatten().tolist() == [114, 0, 1, 2]
    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert moved_images(images, 1)[0, 0].tolist() == [[114] * 4, [114, 0, 1, 2], [114, 4, 5, 6], [114, 8, 9, 10]]


def test_movement_of_every_kind_of_answer():
    plane = torch.randint(0, 3, (1, 16, 16), dtype=torch.uint8)
    follows = torch.zeros_like(plane)
    follows[:, 4:, 4:] = plane[:, :-4, :-4]
    mask = MaskPrediction(plane, plane.float())
    assert movement(mask, MaskPrediction(follows, plane.float()), 4, (16, 16)) == {"agreement": 1.0}
    assert movement(mask, mask, 4, (16, 16))["agreement"] < 0.7
    box = BoxPrediction(torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0.9]]), torch.tensor([[1]]))
    moved = box._replace(boxes=box.boxes + 4)
    assert movement(box, moved, 4, (16, 16)) == {"IoU": 1.0}
    assert movement(box, box, 4, (16, 16))["IoU"] == pytest.approx(16 / 112)
    assert movement(box, moved._replace(classes=torch.tensor([[0]])), 4, (16, 16)) == {"IoU": 0.0}
    assert np.isnan(movement(box, moved, 10, (16, 16))["IoU"])  # over the border
    none = box._replace(scores=torch.tensor([[0.1]]))
    assert np.isnan(movement(none, box, 4, (16, 16))["IoU"])
    labels = ClassPrediction(torch.tensor([[0.8, 0.2]])), ClassPrediction(torch.tensor([[0.4, 0.6]]))
    assert movement(*labels, 4, (16, 16)) == {"same class": 0.0, "change": pytest.approx(0.4)}


def test_every_look_that_can_be_taken_is_taken(subject, tmp_path):
    told = []
    sections = take_looks(None, subject, spots, Wish(count=2, repeats=1), told.append)
    assert list(sections) == ["costs", "filters", "activations", "patches", "gradcam", "fields", "shift"]
    assert any(line.startswith("left out: samples needs the data") for line in told)
    files = write_page(tmp_path / "out", "toy <1>", sections)
    assert set(files) == set((tmp_path / "out").iterdir())
    page = files[0].read_text()
    assert page.count("data:image/png;base64,") == sum(len(section.pictures) for section in sections.values())
    assert "toy &lt;1&gt;" in page
    assert 'src="http' not in page
    figures = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert figures["fields"]["backbone.body.out"]["theory"] == [8, 8]
    assert figures["fields"]["backbone.body.out"]["nan_check"] == "agrees"
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".json", ".html"}


def test_a_head_that_only_mends_images_has_nothing_to_explain():
    module = DenoisingModule("light").eval().requires_grad_(False)
    spaces = {name: head.space for name, head in module.network.named_heads().items()}
    look = Look(Subject("start", module.network, 3, SIZE, spaces), spots, Wish(count=2))
    with pytest.raises(NotHereError, match="heads that answer"):
        look_at_shifts(look)
    with pytest.raises(NotHereError, match="needs heads"):
        look_at_answers(look)
    assert look_at_activations(look).figures.keys() == {
        f"backbone.body.{name}" for name in module.network.backbone.stage_names
    }


def test_what_is_asked_for_by_name_and_cannot_be_had_is_an_error(subject):
    backbone = named_backbone("light", 3, (64, 64))
    with pytest.raises(ConfigError, match="--looks gradcam needs heads"):
        take_looks(["gradcam"], backbone, list, Wish(), print)
    with pytest.raises(ConfigError, match="--looks patches needs pictures"):
        take_looks(["patches"], backbone, list, Wish(), print)
    with pytest.raises(ConfigError, match=r"no layer 'stages.1.0.frist'; did you mean 'stages.1.0.first'"):
        take_looks(["fields"], backbone, list, Wish(("stages.1.0.frist",)), print)


def test_images_are_found_and_letterboxed(subject, tmp_path):
    write_png(tmp_path / "b" / "two.png", np.full((40, 80, 3), 9, np.uint8))
    write_png(tmp_path / "a.png", np.full((64, 64, 3), 9, np.uint8))
    told = []
    found = find_images(subject, tmp_path, 5, told.append)
    assert [name.rsplit("/", 1)[-1] for name, _ in found] == ["a.png", "two.png"]
    assert {pixels.shape for _, pixels in found} == {(64, 64, 3)}
    assert found[1][1][0, 0].tolist() == [114] * 3  # the letterbox's border
    (tmp_path / "A.png").write_text("no picture")
    assert [name for name, _ in find_images(subject, tmp_path, 1, told.append)] == [str(tmp_path / "a.png")]
    assert len(told) == 1
    assert told[0].startswith(f"left out: {tmp_path / 'A.png'}: not an image")
    with pytest.raises(ImageError, match=r"A.png: not an image"):
        find_images(subject, tmp_path / "A.png", 1, told.append)
    with pytest.raises(DataError, match="neither a picture nor a folder"):
        find_images(subject, tmp_path / "none", 1, print)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        find_images(subject, tmp_path / "empty", 1, print)


def test_figures_are_strict_json():
    assert json.loads(to_json({"a": float("nan"), 1: (1, float("inf"))})) == {"a": None, "1": [1, None]}


def test_the_page_escapes_and_aligns(tmp_path):
    table = Table(("name", "n"), [("<b>", 1234567), ("x", float("nan"))])
    section = Section("A & B", "lead", [Picture("p", np.zeros((2, 2, 3), np.uint8), "a 'c'")], [table])
    page = write_page(tmp_path, "t", {"s": section})[0].read_text()
    assert "A &amp; B" in page
    assert "<td>&lt;b&gt;</td>" in page
    assert '<td class="number">1,234,567</td>' in page
    assert '<td class="number"></td>' in page

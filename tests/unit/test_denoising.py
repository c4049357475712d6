"""Denoising: each noise spoils what it says, the loss counts where it is asked, and a network learns to mend."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.data.formats.detect import detect, read_source
from pipeline.errors import ConfigError, DataError, ExportError
from pipeline.export.graph import Trained, build_graph
from pipeline.imaging.draw import draw_answer, write_png
from pipeline.labels import LabelSpace
from pipeline.records import ImageTarget
from tasks.denoising import DenoisingHead, ImagePrediction
from tasks.multitask import DenoisingModule, SegmentationModule
from tasks.network import IMAGE_SPACE, build_network, select_heads
from tasks.noise import fixed_draws, random_draws, spoil

SURFACE = {"surface": LabelSpace("mask", ("ground", "disc"))}


def draws():
    return torch.Generator().manual_seed(3)


def pictures(count=4, size=64):
    """Smooth colours."""
    coarse = torch.rand(count, 3, 4, 4, generator=draws()) * 255
    return F.interpolate(coarse, (size, size), mode="bilinear").to(torch.uint8)


def test_gaussian_noise_has_its_deviation_and_asks_everywhere():
    images = pictures()
    found = spoil(images, "gaussian", 0.1, draws())
    assert float((found.images - images.float()).std()) == pytest.approx(25.5, rel=0.02)
    assert found.asked.all()


def test_masked_squares_are_asked_and_nothing_else_changes():
    images = pictures()
    found = spoil(images, "masked", 0.3, draws())
    hidden = found.asked.bool().expand_as(images)
    assert 0.15 < float(found.asked.mean()) < 0.45
    assert torch.equal(found.images[~hidden], images.float()[~hidden])
    assert torch.equal(F.max_pool2d(found.asked, 8), -F.max_pool2d(-found.asked, 8))  # whole squares
    assert not torch.equal(found.images[hidden], images.float()[hidden])


def test_blind_spots_hold_a_neighbours_value():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(2, 3, 1, 1)
    found = spoil(images, "blind", 0.5, draws())
    changed = found.asked.bool()
    assert torch.equal((found.images != images)[:, :1], changed)
    away = (found.images - images)[:, :1, 1:-1, 1:-1][changed[..., 1:-1, 1:-1]].abs().unique().tolist()
    assert set(away) <= {1.0, 7.0, 8.0, 9.0}


def test_the_noise_of_a_measurement_is_the_same_every_time():
    images = pictures(2)
    first, second = (spoil(images, "gaussian", 0.1, fixed_draws(["a", "b"])).images for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, spoil(images, "gaussian", 0.1, fixed_draws(["a", "c"])).images)
    torch.manual_seed(0)
    one, two = random_draws(), random_draws()
    assert one.initial_seed() != two.initial_seed()


def test_the_loss_is_a_share_of_the_noise_and_counts_only_where_asked():
    head = DenoisingHead(IMAGE_SPACE, (8, 8, 8, 8, 8))
    clean = torch.full((2, 3, 4, 4), 100.0)
    spoilt = clean + 20
    asked = torch.zeros(2, 1, 4, 4)
    asked[:, :, :2] = 1
    target = ImageTarget(clean, spoilt, asked, torch.tensor([True, False]))
    idle = spoilt / 255 - 0.5
    assert float(head.loss(idle, target)["pixel"]) == pytest.approx(1)
    half = idle.clone()
    half[0, :, :2] -= 10 / 255
    half[0, :, 2:] += 5  # not asked
    half[1] += 5  # not spoilt
    assert float(head.loss(half, target)["pixel"]) == pytest.approx(0.25)
    metrics = head.metrics()
    metrics.update(ImagePrediction((half + 0.5) * 255), target, [None, None])
    found = metrics.compute()
    assert found["removed"] == pytest.approx(0.75)
    assert found["PSNR"] == pytest.approx(found["PSNR_spoilt"] + 20 * torch.log10(torch.tensor(2.0)).item(), abs=1e-3)


def test_a_network_learns_to_mend_one_batch():
    torch.manual_seed(0)
    network = build_network("light", 3, None, select_heads(None, {}, ("image",)), {}).train()
    head, images = network.named_heads()["denoising"], pictures(4, 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    given, targets = network.spoilt(images, ["a", "b", "c", "d"], training=False)
    for _ in range(25):
        loss = head.loss(network(given)["denoising"], targets["denoising"])["pixel"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.6


def test_a_share_of_the_batch_is_left_clean_for_the_other_heads():
    head = DenoisingHead(IMAGE_SPACE, (8, 8, 8, 8, 8), share=0.5)
    torch.manual_seed(0)
    images = pictures(16, 32)
    spoilt, target = head.spoil(images, [str(i) for i in range(16)], training=True)
    assert 2 <= int(target.present.sum()) <= 14
    for i in range(16):
        assert torch.equal(spoilt[i], images[i].float()) != bool(target.present[i])
    assert head.spoil(images, ["x"] * 16, training=False)[1].present.all()


def test_heads_are_chosen_beside_the_datas_fields():
    kinds = SegmentationModule.kinds
    assert select_heads(None, SURFACE, kinds) == {"surface": {}}
    assert select_heads({"denoising": {"strength": 0.2}}, SURFACE, kinds) == {
        "surface": {},
        "denoising": {"strength": 0.2},
    }
    assert select_heads({"segmentation": {}, "denoising": None}, SURFACE, kinds) == {"surface": {}, "denoising": {}}
    assert select_heads(None, SURFACE, ("image",)) == {"denoising": {}}
    with pytest.raises(ConfigError, match="neither a label field nor a kind"):
        select_heads({"denoisng": {}}, SURFACE, kinds)
    with pytest.raises(ConfigError, match="no labels of kind mask;"):
        select_heads(None, {"scene": LabelSpace("classes", ("a", "b"))}, kinds)


@pytest.mark.parametrize(
    ("options", "told"), [({"strength": 0}, "strength"), ({"decoder_channels": [8]}, "four widths")]
)
def test_bad_options_are_told(options, told):
    with pytest.raises(ConfigError, match=told):
        build_network("light", 3, None, {"denoising": options}, {})
    with pytest.raises(ConfigError, match=r"denoising needs maps at strides .*backbone 'alexnet'"):
        build_network("alexnet", 3, None, {"denoising": {}}, {})
    head = DenoisingHead(IMAGE_SPACE, (8, 8, 8, 8, 8))
    with pytest.raises(ConfigError, match="the images have 4"):
        head.spoil(torch.zeros(1, 4, 32, 32), ["a"], training=True)


def test_a_denoising_head_is_left_out_of_an_export():
    module = SegmentationModule(
        "light", heads={"denoising": {}}, spaces={"surface": SURFACE["surface"].to_dict()}
    ).eval()
    graph = build_graph(Trained(module, None, None, module.settings, 0))
    assert graph.names == ["surface.mask", "surface.probabilities"]
    start = DenoisingModule("light").eval()
    with pytest.raises(ExportError, match=r"give its checkpoint as model\.weights"):
        build_graph(Trained(start, None, None, start.settings, 0))


def test_pictures_without_labels_are_read_only_when_asked_for(tmp_path):
    image = pictures(1, 32)[0].permute(1, 2, 0).numpy()
    for name in ("one.png", "deep/two.png", "val/three.png"):
        write_png(tmp_path / name, image)
    found = read_source(tmp_path, "images")
    assert found.spaces == {}
    assert sorted((record.image.path.name, record.split) for record in found.records) == [
        ("one.png", None),
        ("three.png", "val"),
        ("two.png", None),
    ]
    assert "images" not in detect(tmp_path).split("+")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        read_source(tmp_path / "empty", "images")


def test_the_mended_picture_is_drawn_in_the_pictures_place():
    mended = torch.full((3, 32, 32), 200.0)
    drawn = draw_answer(
        pictures(1, 32)[0].permute(1, 2, 0).numpy(),
        {"denoising": {"image": mended.numpy()}},
        {"denoising": IMAGE_SPACE},
    )
    assert (drawn == 200).all()

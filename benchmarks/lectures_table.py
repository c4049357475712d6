"""The lectures' experiments: which variants of which config are compared, and by which figure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        name: as the table tells it.
        options: of `lightning fit`, after the config; `{start}` is the checkpoint of the variant `after`.
        after: the variant of the same experiment that must be trained first.
        metric: what the row measures, where it is not what the experiment measures.
    """

    name: str
    options: tuple[str, ...] = ()
    after: str | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Experiment:
    """One table: `configs/lectures/<name>.yaml` and its variants.

    Attributes:
        name: of the config, and of the table in the docs.
        metric: `<head>/<figure>` on the test scenes.
        seeds: with which each variant is trained; a seed sets the weights, the order and the training pictures.
        variants: the rows.
    """

    name: str
    metric: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]


def backbones(*names: str) -> tuple[Variant, ...]:
    """One variant for each of some backbones."""
    return tuple(Variant(name, (f"--model.backbone={name}",)) for name in names)


def options(**given: str) -> tuple[Variant, ...]:
    """Variants of the backbone's options."""
    return tuple(
        Variant(name.replace("_", " "), tuple(f"--model.backbone_options.{option}" for option in text.split()))
        for name, text in given.items()
    )


LINEAR = "--model.heads={classification: {}}"
UNET = "--model.heads.surface.decoder=unet"
DECODER = "--model.heads.surface.decoder_options={{batch_norm: true, skips: {skips}, upsampling: {how}}}"
MASKS = "--model.heads.surface={decoder: smp-unet, decoder_channels: [64, 48, 32, 16]}"
DENOISING = "--model.heads.denoising={decoder_channels: [64, 48, 32, 16], share: 0.5, weight: 0.5}"
LABELS = ("--model.heads.scene={}", "--model.heads.daytime={}")
BOXES = "--model.heads.objects={strides: [8, 16], width: 32}"
START = ("--data.shapes.images=1000", "--data.batch_size=20", "--trainer.max_epochs=15")
START += ("--trainer.check_val_every_n_epoch=15",)
FREEZE = "--trainer.callbacks+={class_path: pipeline.callbacks.freeze.Freeze, init_args: {stages: 5}}"


def unet(name: str, skips: str, how: str) -> Variant:
    """A U-Net's decoder."""
    return Variant(name, (UNET, DECODER.format(skips=skips, how=how)))


EXPERIMENTS = (
    Experiment(
        "signals",
        "shape/accuracy",
        (0, 1),
        (
            Variant("convolutional"),
            Variant(
                "fully connected, as many units",
                ("--model.backbone=mlp", "--model.backbone_options={hidden: [285, 135, 60]}", LINEAR),
            ),
            Variant("fully connected, wide", ("--model.backbone=mlp", LINEAR)),
        ),
    ),
    Experiment("depth", "scene/accuracy", (0, 1), backbones("plain20", "resnet20", "plain56", "resnet56")),
    Experiment(
        "kernels",
        "scene/accuracy",
        (0, 1),
        (
            *options(two_5x5="kernel=5 convolutions=2", four_3x3="kernel=3 convolutions=4"),
            *options(two_3x3="kernel=3 convolutions=2"),
        ),
    ),
    Experiment(
        "shrinking",
        "scene/accuracy",
        (0, 1),
        options(pooled="down=pooled", strided="down=strided", all_convolutional="down=convolution"),
    ),
    Experiment("separable", "scene/accuracy", (0, 1), options(dense="separable=false", separable="separable=true")),
    Experiment(
        "upsampling",
        "surface/mIoU",
        (0, 1),
        (
            unet("duplicate", "false", "nearest"),
            unet("bilinear", "false", "bilinear"),
            unet("unpooling", "false", "unpooling"),
            unet("transposed", "false", "transposed"),
        ),
    ),
    Experiment(
        "skips",
        "surface/mIoU",
        (0, 1),
        (unet("with skips", "true", "transposed"), unet("without", "false", "transposed")),
    ),
    Experiment(
        "little_data",
        "scene/accuracy",
        (0, 1),
        (
            Variant("nothing"),
            Variant("augmentation, light", ("--data.augment=light",)),
            Variant("augmentation, standard", ("--data.augment=standard",)),
            Variant("dropout 0.5", ("--model.heads.scene.dropout=0.5",)),
            Variant("weight decay 0.5", ("--model.weight_decay=0.5",)),
            Variant(
                "all three",
                ("--data.augment=standard", "--model.heads.scene.dropout=0.5", "--model.weight_decay=0.5"),
            ),
        ),
    ),
    Experiment(
        "multitask",
        "surface/mIoU",
        (0, 1),
        (
            Variant("masks alone"),
            Variant("and denoising", (MASKS, DENOISING)),
            Variant("and image labels", (MASKS, *LABELS)),
            Variant("and boxes", (MASKS, BOXES)),
            Variant("and image labels and boxes", (MASKS, *LABELS, BOXES)),
        ),
    ),
    Experiment(
        "transfer",
        "surface/mIoU",
        (0, 1),
        (
            Variant(
                "the start: image labels", ("--model.heads={scene: {}, daytime: {}}", *START), None, "scene/accuracy"
            ),
            Variant("from scratch"),
            Variant("all stages", ("--model.weights={start}",), "the start: image labels"),
            Variant(
                "the first three", ("--model.weights={start}", "--model.weights_stages=3"), "the start: image labels"
            ),
            Variant("all stages, kept", ("--model.weights={start}", FREEZE), "the start: image labels"),
        ),
    ),
)
"""In the order in which they are run and told."""

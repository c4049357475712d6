"""VisionModule: backbone, heads and balancing under Lightning; the only training_step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, optim

from pipeline.balancing import GradientAggregation, build_balancer, gradient_figures
from pipeline.errors import CheckpointError, ConfigError
from pipeline.labels import LabelSpace
from pipeline.records import Batch, ImageTarget, Target
from tasks.crops import ten_crop_labels
from tasks.head import HeadMetrics, Losses, labelled, require_finite
from tasks.init import Init
from tasks.network import build_network, require_classes, require_rgb, select_heads
from tasks.optim import (
    align_schedules,
    build_optimizer,
    build_schedule,
    carry_over,
    check_numbers,
    clip_here,
    parameter_groups,
    weight_penalty,
)
from tasks.sync import Means, touch


class VisionModule(L.LightningModule):
    """Trains any number of heads on one backbone.

    Args:
        backbone: name of the shared network, e.g. `resnet18`, `tu-<timm model>`, `torchvision/<model>`.
        backbone_options: options of that network (docs/networks.md), e.g. `output_stride: 8`.
        in_channels: 3, or 1 for a network on grey pixels.
        weights: None, a local file (a checkpoint too), a run's checkpoint (`runs:/RUN_ID`, or `models:/NAME@ALIAS` for
            the run behind a registered model), or the hub's name of a weight set (`imagenet`).
        weights_stages: take only this many of the backbone's stages from `weights`; None = all that fits.
        init: how the backbone's weights are drawn where none are loaded: `default` (the library's), `xavier` or `he`.
        heads: options by label field or by kind of head; none = a head for every label field of the data.
        spaces: label fields, filled from the data.
        size: (height, width) of the input, filled from the data; the network is checked to fit it.
        train_size: (height, width) of the training views, filled from the data; checked likewise.
        balancing: how the losses become one: `fixed`, `uncertainty`, `dwa`, an aggregator of torchjd, or a mapping
            with `kind` and its options.
        optimizer: `adamw`, or `sgd`.
        lr: learning rate at the end of warm-up.
        momentum: SGD's momentum, or AdamW's first beta.
        nesterov: SGD's momentum in Nesterov's form instead of the plain one.
        weight_decay: decay of weights, not of norms and biases; decoupled in AdamW, an L2 penalty in SGD.
        schedule: `cosine`, `step` (at `milestones`), `plateau` (of `val/score`) or `constant`.
        warmup: share of all steps spent in warm-up, 0 to 1.
        final_lr: where the cosine ends, as a factor of `lr`.
        milestones: where `step` multiplies the rate by `drop`, as shares of the training; None = 0.5 and 0.75.
        drop: what `step` and `plateau` multiply the rate by.
        patience: validations without a better score before `plateau` drops the rate.
        backbone_lr_factor: the backbone's learning rate as a factor of `lr`.
        l1: L1 penalty on the weights.
        l2: L2 penalty on the weights, added to the loss.
        channels_last: keep images and weights with channels innermost; faster with bf16 and on GPUs.
        ten_crop: in `test`, average image labels over ten crops.
        compile: compile the network by torch.compile.
        log_gradients_every: steps between measurements of each head's gradient norm and cosine; 0 = never.
        seed: seeds what is random inside the network (dropout), step by step.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classes", "multilabel", "boxes", "mask", "image")

    def __init__(
        self,
        backbone: str = "resnet18",
        backbone_options: dict[str, Any] | None = None,
        in_channels: int = 3,
        weights: str | None = None,
        weights_stages: int | None = None,
        init: Init = "default",
        heads: dict[str, dict[str, Any] | None] | None = None,
        spaces: dict[str, dict[str, Any]] | None = None,
        size: tuple[int, int] | None = None,
        train_size: tuple[int, int] | None = None,
        balancing: str | dict[str, Any] = "fixed",
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 1e-3,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.05,
        schedule: Literal["cosine", "step", "plateau", "constant"] = "cosine",
        warmup: float = 0.05,
        final_lr: float = 0.01,
        milestones: list[float] | None = None,
        drop: float = 0.1,
        patience: int = 5,
        backbone_lr_factor: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        channels_last: bool = True,
        ten_crop: bool = False,
        compile: bool = False,  # noqa: A002  # the field's name for it
        log_gradients_every: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not spaces and self.kinds != ("image",):
            raise ConfigError("the network needs the data's label fields: give `data.root`, or `spaces`")
        self.settings = {k: v for k, v in locals().items() if k not in {"self", "__class__"} and not k.startswith("_")}
        self.spaces = {name: LabelSpace.from_dict(plain) for name, plain in (spaces or {}).items()}
        chosen = select_heads(heads, self.spaces, self.kinds)
        check_numbers(self.settings)
        require_rgb(in_channels)
        self.network = build_network(
            backbone,
            in_channels,
            weights,
            chosen,
            self.spaces,
            backbone_options,
            size,
            weights_stages,
            init,
            train_size,
        )
        self.balancer = build_balancer(balancing, list(chosen))
        self.optimizer_name, self.lr, self.momentum, self.weight_decay = optimizer, lr, momentum, weight_decay
        self.ten_crop = ten_crop
        self.backbone_lr_factor, self.l1, self.l2 = backbone_lr_factor, l1, l2
        self.channels_last, self.log_gradients_every, self.seed = channels_last, log_gradients_every, seed
        self.metrics: dict[str, HeadMetrics] = {n: head.metrics() for n, head in self.network.named_heads().items()}
        self._means, self._eval_means = Means(), Means()
        self._head_losses: dict[str, Tensor] = {}
        self._penalty: Tensor | float = 0.0
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Pixels uint8 (B, C, H, W) to each head's raw outputs."""
        given = images.contiguous(memory_format=torch.channels_last) if self.channels_last else images
        raw: dict[str, Any] = self.network(given)
        return raw

    # --- training -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuses what cannot work together."""
        if not str(self.trainer.precision).startswith(("32", "16-mixed", "bf16-mixed")):
            raise ConfigError(f"trainer.precision is {self.trainer.precision}; take 32-true, bf16-mixed or 16-mixed")
        if stage == "fit" and self.balancer.aggregates and self.trainer.world_size > 1:
            raise ConfigError("balancing by gradients runs in one process; take 'uncertainty' or 'dwa', or devices: 1")

    def on_train_start(self) -> None:
        """Takes over a rate that a learning-rate finder has set after the schedule was built."""
        align_schedules(self.trainer.optimizers, self.lr_schedulers(), self.lr, self.backbone_lr_factor)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Seeds the step, so that a resumed run draws what an unbroken one would have drawn."""
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 64 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002
        """The balanced loss of the heads that are labelled in the batch."""
        images, own = self.network.spoilt(batch.images, batch.names, training=True)
        raw = self(images)
        terms = self._losses(raw, {**batch.targets, **own})
        self._head_losses = {name: torch.stack(list(parts.values())).sum() for name, parts in terms.items()}
        require_finite(self._head_losses, self.global_step, batch.names)
        if self.log_gradients_every and self.global_step % self.log_gradients_every == 0:
            shared = [p for p in self.network.backbone.stages()[-1].parameters() if p.requires_grad]
            self.log_dict(gradient_figures(self._head_losses, shared), on_step=False, on_epoch=True)
        loss = self.balancer.combine(self._head_losses) if terms else batch.images.new_zeros((), dtype=torch.float32)
        self._penalty = weight_penalty(self.network, self.l1, self.l2)
        loss = loss + self._penalty
        if self.trainer.world_size > 1 or not terms:
            loss = loss + touch(raw, set(terms))
        self._means.add("loss", loss)
        for name, parts in terms.items():
            self._means.add(f"{name}/loss", self._head_losses[name])
            for part, value in parts.items():
                self._means.add(f"{name}/{part}", value)
        self.log("train/loss_step", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """One backward pass, or one per head whose gradients are then aggregated."""
        if not isinstance(self.balancer, GradientAggregation) or not self._head_losses:
            super().backward(loss, *args, **kwargs)
            return
        # The trainer may have scaled the loss (accumulated batches, float16); the heads' losses follow.
        own = {name: list(head.parameters()) for name, head in self.network.named_heads().items()}
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        factor = (1.0 if scaler is None else float(scaler.get_scale())) / self.trainer.accumulate_grad_batches
        losses = {name: value * factor for name, value in self._head_losses.items()}
        self.balancer.backward(losses, list(self.network.backbone.parameters()), own, self._penalty * factor)

    def _losses(self, raw: dict[str, Any], targets: Mapping[str, Target | ImageTarget]) -> dict[str, Losses]:
        """Every labelled head's named losses, computed in float32."""
        out = {}
        with torch.autocast(self.device.type, enabled=False):
            for name, head in self.network.named_heads().items():
                target = targets.get(name)
                if target is not None and labelled(target):
                    out[name] = head.loss(raw[name], target)
        return out

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's mean losses and the heads' weights."""
        means = self._means.all()
        self.log_dict({f"train/{name}": value for name, value in means.items()})
        heads = {n: means[f"{n}/loss"] for n in self.network.keys if f"{n}/loss" in means}
        self.balancer.end_epoch(heads)
        weights = self.balancer.weights({name: torch.zeros((), device=self.device) for name in self.network.keys})
        self.log_dict({f"weight/{name}": value.detach() for name, value in weights.items()})
        self._means.reset()

    # --- evaluation ---------------------------------------------------------------------------------------------

    def _evaluate(self, batch: Batch, stage: str) -> dict[str, Any]:
        raw = self(batch.images)
        images, own = self.network.spoilt(batch.images, batch.names, training=False)
        if own:  # the other heads are measured on the images as they are
            mended = self(images)
            raw |= {name: mended[name] for name in own}
        targets: dict[str, Any] = {**batch.targets, **own}
        predictions = self.network.decode(raw)
        for name, terms in self._losses(raw, targets).items():
            self._eval_means.add(f"{stage}/{name}/loss", torch.stack(list(terms.values())).sum(), len(batch))
        if self.ten_crop and stage == "test":
            predictions |= ten_crop_labels(self.network, batch.images)
        for name, metrics in self.metrics.items():
            if name in targets:
                metrics.update(predictions[name], targets[name], batch.frames)
        return predictions

    def _report(self, stage: str) -> None:
        scores = []
        self.log_dict(self._eval_means.all())
        for name, metrics in self.metrics.items():
            values = metrics.compute()
            self.log_dict({f"{stage}/{name}/{key}": value for key, value in values.items() if not math.isnan(value)})
            main = values[self.network.named_heads()[name].main_metric]
            scores += [] if math.isnan(main) else [main]
        # Never a loss, least of all the weighted sum: learned weights make it fall without learning.
        self.log(f"{stage}/score", sum(scores) / len(scores) if scores else 0.0, prog_bar=True)

    def _forget(self) -> None:
        self._eval_means.reset()
        for metrics in self.metrics.values():
            metrics.reset()

    def on_validation_epoch_start(self) -> None:
        """Starts the metrics afresh."""
        self._forget()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Predictions of every head; feeds the metrics."""
        return self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Logs `val/<head>/<metric>` and `val/score`."""
        self._report("val")

    def on_test_epoch_start(self) -> None:
        """Starts the metrics afresh."""
        self._forget()

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Predictions of every head; feeds the metrics."""
        return self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Logs `test/<head>/<metric>` and `test/score`."""
        self._report("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Each head's final predictions in input pixels."""
        return self.network.decode(self(batch.images))

    def configure_gradient_clipping(
        self, optimizer: optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips as the trainer asks, also where Lightning itself would refuse."""
        if gradient_clip_val and not clip_here(self.trainer, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # --- optimiser and checkpoint -------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser with its schedule."""
        groups = parameter_groups(self, self.network.backbone, self.lr, self.backbone_lr_factor, self.weight_decay)
        # With float16 the gradients are unscaled before they are clipped, which fused kernels would do too late.
        fused = not str(self.trainer.precision).startswith("16")
        nesterov = bool(self.settings["nesterov"])
        optimizer = build_optimizer(self.optimizer_name, groups, self.lr, self.momentum, fused, nesterov)
        total, every = int(self.trainer.estimated_stepping_batches), self.trainer.check_val_every_n_epoch or 1
        return build_schedule(optimizer, self.settings, total, every)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what builds the network again, as plain values; reloading never downloads."""
        checkpoint["hyper_parameters"] = {**self.settings, "weights": None, "weights_stages": None}
        checkpoint["module_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses another network's or other classes' checkpoint; lets the values given now win over the checkpoint's."""
        require_classes(self.spaces, checkpoint["hyper_parameters"].get("spaces") or {})
        own, theirs = self.state_dict(), checkpoint["state_dict"]
        unlike = sorted(set(own) ^ set(theirs)) or [k for k in own if own[k].shape != theirs[k].shape]
        if unlike:
            raise CheckpointError(
                f"the checkpoint is of another network: {len(unlike)} weights differ, first {unlike[0]!r};"
                f" use the config it was trained with (backbone {checkpoint['hyper_parameters'].get('backbone')!r})"
            )
        if self._trainer is not None and self.trainer.state.fn == "fit":
            carry_over(checkpoint, self.settings, self.trainer.early_stopping_callbacks)

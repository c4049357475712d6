"""Optimisers and learning-rate schedules: no decay on norms and biases, a slower backbone, warm-up; cosine, steps, plateau."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn, optim

from pipeline.errors import CheckpointError, ConfigError
from pipeline.ranges import require_between


def parameter_groups(
    module: nn.Module, backbone: nn.Module, lr: float, backbone_lr_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Up to four groups: backbone or not, decayed (weights of two or more dimensions) or not."""
    shared = {id(p) for p in backbone.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        groups.setdefault((id(parameter) in shared, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": members,
            "lr": lr * (backbone_lr_factor if is_shared else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
            "name": f"{'backbone' if is_shared else 'heads'}{'' if decayed else '_no_decay'}",
        }
        for (is_shared, decayed), members in groups.items()
    ]


def build_optimizer(
    name: Literal["adamw", "sgd"],
    groups: list[dict[str, Any]],
    lr: float,
    momentum: float,
    fused: bool = False,
    nesterov: bool = True,
) -> optim.Optimizer:
    """AdamW (betas `momentum`, 0.999), or SGD with (Nesterov's) momentum; `fused` steps all weights in one kernel."""
    if name == "sgd":
        return optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0, fused=fused)
    return optim.AdamW(groups, lr=lr, betas=(momentum, 0.999), fused=fused)


def warmup_cosine(total: int, warmup: int, final: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 0 over `warmup` steps, then a cosine down to `final`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warmup_steps(total: int, warmup: int, milestones: Sequence[float], drop: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear over `warmup` steps, then times `drop` at each milestone.

    Milestones are shares of all steps; ResNet's training on CIFAR took 0.1 at 0.5 and 0.75 (He et al. 2015).
    """
    at = [share * total for share in milestones]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return float(drop ** sum(step >= milestone for milestone in at))

    return factor


def build_schedule(
    optimizer: optim.Optimizer, given: dict[str, Any], total: int, validated_every: int = 1
) -> OptimizerLRScheduler:
    """The optimiser with its schedule, as Lightning takes them.

    Args:
        optimizer: whose rates are moved.
        given: VisionModule's `schedule`, `warmup`, `final_lr`, `milestones`, `drop` and `patience`.
        total: steps of the whole training.
        validated_every: epochs from one validation to the next; between them there is no score to go by.
    """
    if given["schedule"] == "constant":
        return optimizer
    if given["schedule"] == "plateau":
        plateau = optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=given["drop"], patience=given["patience"]
        )
        stepped: Any = {"scheduler": plateau, "monitor": "val/score", "frequency": validated_every}
        return {"optimizer": optimizer, "lr_scheduler": stepped}
    warmup = round(given["warmup"] * total)
    if given["schedule"] == "step":
        factor = warmup_steps(total, warmup, given["milestones"] or (0.5, 0.75), given["drop"])
    else:
        factor = warmup_cosine(total, warmup, given["final_lr"])
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


RANGES = {
    "lr": (0.0, math.inf),
    "momentum": (0.0, 0.9999),
    "weight_decay": (0.0, math.inf),
    "warmup": (0.0, 1.0),
    "final_lr": (0.0, math.inf),
    "backbone_lr_factor": (0.0, math.inf),
    "patience": (0, math.inf),
    "l1": (0.0, math.inf),
    "l2": (0.0, math.inf),
    "log_gradients_every": (0, math.inf),
}
"""Smallest and largest value of VisionModule's numbers."""


def check_numbers(settings: dict[str, Any]) -> None:
    """Raises ConfigError for a number out of its range, milestones that are no rising shares, or a drop that is none."""
    for name, (low, high) in RANGES.items():
        require_between(f"model.{name}", settings[name], low, high)
    given, drop = list(settings["milestones"] or []), settings["drop"]
    if given != sorted(set(given)) or any(not 0 < share < 1 for share in given):
        raise ConfigError(f"model.milestones are rising shares of the training between 0 and 1, not {given}")
    if not 0 < drop < 1:
        raise ConfigError(f"model.drop is the factor of the rate at each step, between 0 and 1, not {drop}")


def align_schedules(optimizers: list[optim.Optimizer], schedules: Any, lr: float, backbone_lr_factor: float) -> None:
    """Makes schedules aim at `lr` (the backbone's groups at its factor), where they were built for another rate."""
    found = schedules if isinstance(schedules, list) else [schedules]
    for optimizer, schedule in zip(optimizers, found, strict=False):
        if not isinstance(schedule, optim.lr_scheduler.LambdaLR):
            continue
        for i, group in enumerate(optimizer.param_groups):
            base = lr * (backbone_lr_factor if str(group["name"]).startswith("backbone") else 1.0)
            if not math.isclose(schedule.base_lrs[i], base):
                schedule.base_lrs[i] = group["initial_lr"] = base
                group["lr"] = base * schedule.lr_lambdas[i](schedule.last_epoch)


def carry_over(checkpoint: dict[str, Any], given: dict[str, Any], stopping: Sequence[EarlyStopping] = ()) -> None:
    """Makes a checkpoint's optimiser, schedule and early stopping go on with the values given now; changes it in place.

    Args:
        checkpoint: Lightning's, with the `hyper_parameters` it was trained with.
        given: `lr`, `backbone_lr_factor`, `schedule`, `optimizer`, `momentum`, `nesterov`, `weight_decay`, `drop` and
            `patience` of this run.
        stopping: this run's early stopping, whose patience Lightning would replace by the checkpoint's.

    Raises:
        CheckpointError: another optimiser, whose state cannot be carried over.
    """
    old = checkpoint["hyper_parameters"]
    if old["optimizer"] != given["optimizer"]:
        raise CheckpointError(
            f"the checkpoint was trained with optimizer {old['optimizer']!r}, whose state {given['optimizer']!r} cannot"
            f" take up; go on with model.optimizer {old['optimizer']}, or start a new run"
        )
    _keep_patience(checkpoint.get("callbacks", {}), stopping)
    restarted = old["schedule"] != given["schedule"]
    groups = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
    for group in groups:
        shared = str(group["name"]).startswith("backbone")
        base, new = (v["lr"] * (v["backbone_lr_factor"] if shared else 1.0) for v in (old, given))
        group["lr"] = new if restarted or base == 0 else group["lr"] * new / base
        if "initial_lr" in group:
            group["initial_lr"] = new
        if "betas" in group:
            group["betas"] = (given["momentum"], group["betas"][1])
        else:
            group["momentum"] = given["momentum"]
            group["nesterov"] = given["nesterov"] and given["momentum"] > 0
        if not str(group["name"]).endswith("no_decay"):
            group["weight_decay"] = given["weight_decay"]
    if restarted:
        step, rates = checkpoint["global_step"], [group["lr"] for group in groups]
        cosine = {"last_epoch": step, "_step_count": step + 1, "base_lrs": rates, "_last_lr": rates}
        fresh = [cosine | {"lr_lambdas": [None] * len(groups)}]
        checkpoint["lr_schedulers"] = fresh if given["schedule"] in {"cosine", "step"} else []
        return
    for state in checkpoint.get("lr_schedulers", []):
        if "base_lrs" in state:
            state["base_lrs"] = [group["initial_lr"] for group in groups]
        else:
            state |= {"factor": given["drop"], "patience": given["patience"]}


def _keep_patience(states: dict[str, Any], stopping: Sequence[EarlyStopping]) -> None:
    for callback in stopping:
        if callback.state_key in states:
            states[callback.state_key]["patience"] = callback.patience


def weight_penalty(network: nn.Module, l1: float, l2: float) -> Tensor | float:
    """l1 * sum |w| + l2 * sum w^2 over trained weights of two or more dimensions; 0 where both factors are."""
    if l1 == 0 and l2 == 0:
        return 0.0
    weights = [p for p in network.parameters() if p.ndim > 1 and p.requires_grad]
    one = torch.stack([w.abs().sum() for w in weights]).sum() if l1 else 0.0
    two = torch.stack([w.square().sum() for w in weights]).sum() if l2 else 0.0
    return l1 * one + l2 * two


def clip_here(trainer: L.Trainer, optimizer: optim.Optimizer, limit: float, algorithm: Any) -> bool:
    """Clips gradients where Lightning would refuse; False where it can do it itself.

    It refuses a fused optimiser under bfloat16, which needs no scaler, and any clipping by norm of sharded weights.
    """
    by_value = str(algorithm or "norm").endswith("value")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(trainer.strategy, FSDPStrategy) and not by_value:
        sharded: Any = trainer.strategy.model
        sharded.clip_grad_norm_(limit)  # over the shards of all processes
        return True
    plugin = trainer.precision_plugin
    if not isinstance(plugin, MixedPrecision) or plugin.scaler is not None:
        return False
    if by_value:
        nn.utils.clip_grad_value_(parameters, limit)
    else:
        nn.utils.clip_grad_norm_(parameters, limit)
    return True

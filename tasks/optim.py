"""Optimisers and learning-rate schedules: no decay on norms and biases, a slower backbone, warm-up then cosine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import nn, optim


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
    name: Literal["adamw", "sgd"], groups: list[dict[str, Any]], lr: float, momentum: float
) -> optim.Optimizer:
    """AdamW (betas `momentum`, 0.999), or SGD with Nesterov momentum."""
    if name == "sgd":
        return optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
    return optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))


def warmup_cosine(total: int, warmup: int, final: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear from 0 over `warmup` steps, then a cosine down to `final`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor

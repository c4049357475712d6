"""How the heads' losses become one: fixed and learned weights, dynamic averaging, gradient aggregation by torchjd."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import combinations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError, nearest


class Balancer(nn.Module, ABC):
    """Turns the losses of the heads that are labelled in a batch into one; a head that is missing counts nowhere.

    Attributes:
        aggregates: whether `backward` combines gradients itself instead of one backward pass over the sum.
    """

    aggregates: ClassVar[bool] = False

    def __init__(self, heads: list[str]) -> None:
        super().__init__()
        self.heads = heads

    @abstractmethod
    def weights(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weight of each head in `losses` (scalar tensors)."""

    def combine(self, losses: dict[str, Tensor]) -> Tensor:
        """The one loss: the weighted sum, and what a learned weighting adds."""
        weights = self.weights(losses)
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def end_epoch(self, means: dict[str, float]) -> None:
        """Told the mean loss of each head over the epoch."""


class FixedWeights(Balancer):
    """λ1 L1 + λ2 L2 + …: a weight per head from the config, 1 where none is given."""

    def __init__(self, heads: list[str], weights: dict[str, float] | None = None) -> None:
        super().__init__(heads)
        for name in weights or {}:
            if name not in heads:
                raise ConfigError(f"balancing: weight for unknown head {name!r}{nearest(name, heads)}")
        for name, weight in (weights or {}).items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
                raise ConfigError(
                    f"balancing: the weight of head {name!r} must be a number of 0 or more, not {weight!r}"
                )
        self.given = {name: float((weights or {}).get(name, 1.0)) for name in heads}

    def weights(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The config's weights."""
        return {name: loss.new_tensor(self.given[name]) for name, loss in losses.items()}


class UncertaintyWeights(Balancer):
    """Learned weights exp(-s) with penalty s / 2 per head (Kendall et al. 2018, https://arxiv.org/abs/1705.07115).

    Only heads labelled in the batch pay their penalty, or the weight of an unlabelled head would run away.
    """

    def __init__(self, heads: list[str]) -> None:
        super().__init__(heads)
        self.log_variance = nn.Parameter(torch.zeros(len(heads)))

    def weights(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """exp(-s) / 2 of each head."""
        return {name: 0.5 * torch.exp(-self.log_variance[self.heads.index(name)]) for name in losses}

    def combine(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum and half of each labelled head's log variance; may be negative."""
        penalty = torch.stack([self.log_variance[self.heads.index(name)] / 2 for name in losses]).sum()
        return super().combine(losses) + penalty


class DynamicAverage(Balancer):
    """Dynamic weight averaging (Liu et al. 2019, https://arxiv.org/abs/1803.10704): slow learners get more weight.

    Args:
        heads: the heads' names.
        temperature: softness of the softmax over the loss ratios of the last two epochs.
    """

    def __init__(self, heads: list[str], temperature: float = 2.0) -> None:
        super().__init__(heads)
        if not 0 < temperature < math.inf:
            raise ConfigError(f"balancing 'dwa': temperature must be above 0, not {temperature!r}")
        self.temperature = temperature
        self.register_buffer("history", torch.full((2, len(heads)), math.nan))

    def weights(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Softmax of the loss ratios times the number of heads; 1 each until two epochs are known."""
        history = self.get_buffer("history")
        ratio = history[1] / history[0].clamp(min=1e-12)
        share = torch.softmax(torch.nan_to_num(ratio, nan=1.0) / self.temperature, 0) * len(self.heads)
        return {name: share[self.heads.index(name)] for name in losses}

    def end_epoch(self, means: dict[str, float]) -> None:
        """Moves the epoch's mean losses into the history; a head without any keeps its last."""
        history = self.get_buffer("history")
        latest = history[1].clone()
        for name, mean in means.items():
            latest[self.heads.index(name)] = mean
        history[0], history[1] = history[1].clone(), latest


class GradientAggregation(Balancer):
    """Combines the heads' gradients on the shared weights through torchjd (an optional extra).

    Args:
        heads: the heads' names.
        method: torchjd's name of an aggregator: PCGrad, UPGrad, MGDA, CAGrad, …
    """

    aggregates = True

    def __init__(self, heads: list[str], method: str = "UPGrad") -> None:
        super().__init__(heads)
        try:
            from torchjd import aggregation
        except ImportError as error:
            raise ConfigError(
                "balancing by gradients needs the extra 'torchjd': pip install 'trifocal[torchjd]'"
            ) from error
        known = [name for name in dir(aggregation) if isinstance(getattr(aggregation, name), type)]
        if method not in known:
            raise ConfigError(f"unknown aggregator {method!r}{nearest(method, known)}")
        try:
            self.aggregator = getattr(aggregation, method)()
        except TypeError as error:
            raise ConfigError(
                f"aggregator {method!r} needs arguments of its own, which a config cannot give; take UPGrad, PCGrad or MGDA"
            ) from error

    def weights(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """1 each: the gradients are what is balanced."""
        return {name: torch.ones_like(loss) for name, loss in losses.items()}

    def backward(
        self,
        losses: dict[str, Tensor],
        shared: list[nn.Parameter],
        own: dict[str, list[nn.Parameter]],
        penalty: Tensor | float = 0.0,
    ) -> None:
        """Fills `.grad`: each head's own weights by its own loss, the shared ones by the aggregate; adds a penalty's."""
        rows, shared = [], [p for p in shared if p.requires_grad]
        for name, loss in losses.items():
            mine = [p for p in own[name] if p.requires_grad]
            grads = torch.autograd.grad(loss, [*shared, *mine], retain_graph=True, allow_unused=True)
            rows += [flatten_gradients(grads[: len(shared)], shared)] if shared else []
            for parameter, grad in zip(mine, grads[len(shared) :], strict=True):
                if grad is not None:
                    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        if rows:  # none where the whole backbone is frozen
            self._share_out(torch.stack(rows), shared)
        if isinstance(penalty, Tensor):  # it belongs to no head, so there is nothing to balance
            torch.autograd.backward(penalty)

    def _share_out(self, rows: Tensor, shared: list[nn.Parameter]) -> None:
        """Adds the aggregate of the heads' gradients (heads, weights) to `.grad` of the shared weights."""
        # Overflow of float16 is passed on: the scaler skips such a step, an aggregator would break down.
        whole = self.aggregator(rows) if bool(rows.isfinite().all()) else rows.sum(0)
        for parameter, grad in zip(shared, whole.split([p.numel() for p in shared]), strict=True):
            shaped = grad.view_as(parameter)
            parameter.grad = shaped if parameter.grad is None else parameter.grad + shaped


def flatten_gradients(grads: Iterable[Tensor | None], parameters: list[nn.Parameter]) -> Tensor:
    """One float vector of all gradients, zeros where there is none."""
    pairs = zip(grads, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])


def gradient_figures(losses: dict[str, Tensor], shared: list[nn.Parameter]) -> dict[str, Tensor]:
    """Each head's gradient norm on the shared parameters, and the cosine of each pair, by the name they are logged under."""
    if not shared:
        return {}
    grads = {n: torch.autograd.grad(x, shared, retain_graph=True, allow_unused=True) for n, x in losses.items()}
    flat = {name: flatten_gradients(grad, shared) for name, grad in grads.items()}
    figures = {f"gradients/{name}/norm": vector.norm() for name, vector in flat.items()}
    for one, other in combinations(flat, 2):
        cosine = nn.functional.cosine_similarity(flat[one], flat[other], dim=0)
        figures[f"gradients/{one}+{other}/cosine"] = cosine
    return figures


BALANCERS: dict[str, type[Balancer]] = {
    "fixed": FixedWeights,
    "uncertainty": UncertaintyWeights,
    "dwa": DynamicAverage,
    "gradients": GradientAggregation,
}


def build_balancer(given: str | dict[str, Any], heads: list[str]) -> Balancer:
    """A balancer from its config: a name, or `{kind: name, option: value}`. Torchjd's names stand for themselves.

    Raises:
        ConfigError: an unknown name or option.
    """
    options = {"kind": given} if isinstance(given, str) else dict(given)
    kind = str(options.pop("kind", "fixed"))
    if kind not in BALANCERS:
        try:
            return GradientAggregation(heads, kind)
        except ConfigError as error:
            if "unknown aggregator" not in str(error):
                raise
        raise ConfigError(
            f"unknown balancing {kind!r}{nearest(kind, BALANCERS)} or an aggregator of torchjd (UPGrad, …)"
        )
    known = [key for key in inspect.signature(BALANCERS[kind]).parameters if key != "heads"]
    for key in options:
        if key not in known:
            raise ConfigError(f"balancing {kind!r}: unknown option {key!r}{nearest(key, known)}")
    try:
        return BALANCERS[kind](heads, **options)
    except TypeError as error:
        raise ConfigError(f"balancing {kind!r}: {error}") from error

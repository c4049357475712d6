"""Image labels: pooled features, dropout, linear; softmax or multi-label; cross-entropy or focal; accuracy, F1, ECE."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.build import Backbone
from pipeline.backbones.traits import Demand
from pipeline.errors import ConfigError
from pipeline.imaging.geometry import Letterbox
from pipeline.labels import LabelSpace
from pipeline.records import ClassTarget
from tasks.head import Head, Losses, register


class ClassPrediction(NamedTuple):
    """Probabilities float32 (B, C): they sum to 1 per image, or each stands alone when multi-label."""

    probabilities: Tensor


class RawLabels(NamedTuple):
    """Logits float32 (B, C), and while training those of the classifiers along the way."""

    logits: Tensor
    along: list[Tensor]


@register("classification")
class ClassificationHead(Head):
    """Global average pooling of the coarsest map, dropout, one linear layer; or the network's published classifier.

    Args:
        space: the classes; kind `classes` (softmax) or `multilabel` (a sigmoid each).
        channels: the backbone's channels at strides 2 to 32.
        backbone: what has a published classifier.
        size: the input's (height, width).
        classifier: `pooled`, or `published`: the fully connected layers the backbone was published with, and their
            own dropout.
        auxiliary: weight in the loss of the classifiers along the way, which are there for training only: 0.3 as
            published with `googlenet`; 0 leaves them out.
        dropout: share of features dropped while training, 0 to 1.
        label_smoothing: share of the target spread over all classes, 0 to 1 (Szegedy et al. 2016).
        class_weights: `balanced` (inverse frequency in the training split, mean 1), one weight a class, or None.
        loss: `cross_entropy`, or `focal` (Lin et al. 2017, https://arxiv.org/abs/1708.02002).
        focal_gamma: how much focal loss looks away from easy images, >= 0.
        threshold: probability from which a multi-label class counts as present.
    """

    kind = "classes"
    main_metric = "accuracy"

    def __init__(
        self,
        space: LabelSpace,
        channels: tuple[int, ...],
        backbone: Backbone | None = None,
        size: tuple[int, int] | None = None,
        classifier: Literal["pooled", "published"] = "pooled",
        auxiliary: float = 0.0,
        dropout: float = 0.1,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        loss: Literal["cross_entropy", "focal"] = "cross_entropy",
        focal_gamma: float = 2.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__(space)
        self.multilabel = space.kind == "multilabel"
        self.dropout = nn.Dropout(dropout)
        self.coarsest = max(i for i, width in enumerate(channels) if width)
        self.linear: nn.Module = nn.Linear(channels[self.coarsest], len(space.names))
        self.published = classifier == "published"
        if self.published:
            self.linear, self.demand = published_classifier(backbone, len(space.names))
            if size is not None:
                self.demand.check(size)
        self.auxiliary = auxiliary
        self.along = nn.ModuleList(along_the_way(backbone, auxiliary, len(space.names)))
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma if loss == "focal" else 0.0
        self.threshold = threshold
        self.register_buffer("weights", class_weight_tensor(space, class_weights), persistent=False)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> RawLabels:  # noqa: ARG002  # the size is other heads' need
        """Logits from the coarsest map, and while training from those along the way."""
        last = features[self.coarsest]
        logits: Tensor = self.linear(last if self.published else self.dropout(last.mean((2, 3))))
        beside = getattr(features, "along", []) if self.training and len(self.along) else []
        along = [classifier(maps).float() for classifier, maps in zip(self.along, beside, strict=False)]
        return RawLabels(logits.float(), along)

    def loss(self, raw: RawLabels, target: ClassTarget) -> Losses:
        """`label`: mean cross-entropy (focal when gamma > 0) of the labelled images; `auxiliary`: that along the way."""
        out = {"label": self._term(raw.logits, target)}
        if raw.along:
            out["auxiliary"] = self.auxiliary * torch.stack([self._term(logits, target) for logits in raw.along]).sum()
        return out

    def _term(self, raw: Tensor, target: ClassTarget) -> Tensor:
        logits, scores = raw[target.present], target.scores[target.present]
        weights = self.weights if isinstance(self.weights, Tensor) else None
        measure = multilabel_loss if self.multilabel else soft_cross_entropy
        return measure(logits, scores, weights, self.label_smoothing, self.focal_gamma)

    def decode(self, raw: RawLabels) -> ClassPrediction:
        """Probabilities from logits (B, C)."""
        return ClassPrediction(raw.logits.sigmoid() if self.multilabel else raw.logits.softmax(1))

    def metrics(self) -> ClassMetrics:
        """Top-1, top-5, per class, F1, ECE."""
        return ClassMetrics(self.space, self.threshold)


def along_the_way(backbone: Backbone | None, weight: float, classes: int) -> list[nn.Module]:
    """A network's classifiers along the way; none where their weight is 0. Raises ConfigError where it has none."""
    if weight == 0:
        return []
    if backbone is None or not backbone.traits.along:
        name = repr(backbone.name) if backbone is not None else "None"
        raise ConfigError(
            f"auxiliary: {weight}, but backbone {name} has no classifiers along the way; leave auxiliary out, or take"
            " 'googlenet'"
        )
    return [build(classes) for build in backbone.traits.along]


def published_classifier(backbone: Backbone | None, classes: int) -> tuple[nn.Module, Demand]:
    """The classifier a backbone was published with, its coarsest map to logits (B, classes), and the input it needs.

    Raises:
        ConfigError: it has none of its own.
    """
    published = backbone.traits.published if backbone is not None else None
    if backbone is None or published is None:
        name = repr(backbone.name) if backbone is not None else "None"
        raise ConfigError(
            f"classifier: published, but backbone {name} has no fully connected layers of its own; take classifier:"
            " pooled, or one of 'lenet5', 'alexnet', 'vgg-a' to 'vgg-e', 'conv1d', 'mlp'"
        )
    needed = Demand(
        f"the published classifier of {backbone.name!r}", published.smallest, backbone.traits.multiple, published.exact
    )
    return published.build(classes), needed


def class_weight_tensor(space: LabelSpace, weights: Literal["balanced"] | list[float] | None) -> Tensor | None:
    """Class weights float32 (C,); `balanced` is inverse frequency with mean 1 over the classes that occur.

    Raises:
        ConfigError: not one weight a class.
    """
    if weights is None:
        return None
    if weights == "balanced":
        counts = torch.tensor(space.counts or (1,) * len(space.names), dtype=torch.float32)
        inverse = torch.where(counts > 0, 1 / counts.clamp(min=1), 0)
        return inverse * (counts > 0).sum() / inverse.sum().clamp(min=1e-12)
    if len(weights) != len(space.names):
        raise ConfigError(
            f"class_weights has {len(weights)} weights for {len(space.names)} classes ({', '.join(space.names)})"
        )
    return torch.tensor(weights, dtype=torch.float32)


def soft_cross_entropy(
    logits: Tensor, scores: Tensor, weights: Tensor | None, smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Mean cross-entropy of logits (B, C) against a distribution scores (B, C), with (1 - p)^gamma as focal factor.

    Class weights act as in torch's cross_entropy: the weighted sum over the sum of the targets' weights.
    """
    log_p = logits.float().log_softmax(1)
    soft = scores * (1 - smoothing) + smoothing / scores.shape[1]
    focal = (1 - log_p.exp()) ** gamma if gamma > 0 else torch.ones_like(log_p)
    weight = torch.ones_like(log_p) if weights is None else weights.expand_as(log_p)
    norm = (weight * scores).sum()
    return -(weight * focal * soft * log_p).sum() / norm.clamp(min=1e-12)


def multilabel_loss(
    logits: Tensor, scores: Tensor, weights: Tensor | None, smoothing: float = 0.0, gamma: float = 0.0
) -> Tensor:
    """Mean binary cross-entropy of logits (B, C) against scores (B, C) in 0 to 1, with the focal factor."""
    soft = scores * (1 - smoothing) + smoothing / 2
    loss = F.binary_cross_entropy_with_logits(logits.float(), soft, reduction="none")
    if gamma > 0:
        loss = loss * (logits.sigmoid() - scores).abs() ** gamma
    return (loss * weights).mean() if weights is not None else loss.mean()


class ClassMetrics:
    """Accuracy (top-1), top-5, macro F1, per-class recall, expected calibration error, confusion matrix.

    For multi-label, accuracy is the share of right decisions over images and classes.
    """

    def __init__(self, space: LabelSpace, threshold: float = 0.5) -> None:
        from tasks.sync import Gathered

        self.space = space
        self.threshold = threshold
        self.rows = Gathered("probabilities", "scores")

    def update(self, prediction: ClassPrediction, target: ClassTarget, frames: list[Letterbox | None]) -> None:  # noqa: ARG002
        """Adds the labelled images of a batch."""
        keep = target.present
        self.rows.add(prediction.probabilities[keep].float().cpu(), target.scores[keep].float().cpu())

    def reset(self) -> None:
        """Forgets everything."""
        self.rows.reset()

    def compute(self) -> dict[str, float]:
        """accuracy, top5 and their errors, F1, ECE and recall/<class>."""
        from torchmetrics.functional import calibration_error
        from torchmetrics.functional import classification as tm

        p, scores = self.rows.all()
        names, count = self.space.names, len(self.space.names)
        if len(p) == 0:
            return dict.fromkeys(("accuracy", "F1"), float("nan"))
        if self.space.kind == "multilabel":
            wanted = (scores > 0.5).long()
            f1 = tm.multilabel_f1_score(p, wanted, count, threshold=self.threshold, average="none")
            accuracy = ((p > self.threshold).long() == wanted).float().mean()
            out = {"accuracy": float(accuracy), "F1": float(f1.mean())}
            return out | {f"F1/{name}": float(f1[i]) for i, name in enumerate(names)}
        wanted = scores.argmax(1)
        hits = confusion(p.argmax(1), wanted, count)
        support = hits.sum(1)
        recall = hits.diagonal() / support.clamp(min=1)
        precision = hits.diagonal() / hits.sum(0).clamp(min=1)
        f1 = 2 * recall * precision / (recall + precision).clamp(min=1e-12)
        top = p.topk(min(5, count), 1).indices
        first, five = (
            float((p.argmax(1) == wanted).float().mean()),
            float((top == wanted[:, None]).any(1).float().mean()),
        )
        out = {
            "accuracy": first,
            "top5": five,
            "top1_error": 1 - first,
            "top5_error": 1 - five,
            "F1": float(f1[support > 0].mean()),
            "ECE": float(calibration_error(p, wanted, task="multiclass", num_classes=count, n_bins=15))
            if count > 1
            else 0.0,
        }
        return out | {f"recall/{name}": float(recall[i]) for i, name in enumerate(names) if support[i] > 0}

    def curves(self) -> dict[str, Any]:
        """`confusion`: rows are the truth; `reliability`: 15 bins of (confidence, accuracy, images).

        For multi-label `precision_recall`: precision over 101 recalls of each class that occurs.
        """
        p, scores = self.rows.all()
        if len(p) == 0:
            return {}
        if self.space.kind == "multilabel":
            named = {n: (p[:, i], scores[:, i] > 0.5) for i, n in enumerate(self.space.names)}
            return {"precision_recall": {n: precision_over_recall(*rows) for n, rows in named.items() if rows[1].any()}}
        wanted = scores.argmax(1)
        confidence, guess = p.max(1)
        bins = (confidence * 15).long().clamp(max=14)
        reliability = [
            [
                float(confidence[bins == i].mean()),
                float((guess == wanted)[bins == i].float().mean()),
                int((bins == i).sum()),
            ]
            for i in range(15)
            if (bins == i).any()
        ]
        matrix = confusion(guess, wanted, len(self.space.names))
        return {"confusion": matrix.long().tolist(), "classes": list(self.space.names), "reliability": reliability}


def precision_over_recall(scores: Tensor, wanted: Tensor) -> list[float]:
    """The best precision at recalls of at least 0, 0.01, …, 1: scores float (N,), wanted bool (N,) with one true or more."""
    hits = wanted[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    precision = hits / torch.arange(1, len(hits) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)
    at = torch.searchsorted(hits / hits[-1], torch.linspace(0, 1, 101, dtype=torch.float64) - 1e-9)
    return [float(value) for value in best[at]]


def confusion(guess: Tensor, wanted: Tensor, classes: int) -> Tensor:
    """Confusion matrix float (C, C), rows the truth, of two int tensors of one shape."""
    flat = wanted.long().flatten() * classes + guess.long().flatten()
    return torch.bincount(flat, minlength=classes * classes).reshape(classes, classes).float()

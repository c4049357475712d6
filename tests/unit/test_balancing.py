"""Balancers by hand: fixed, learned and averaged weights, aggregated gradients; a head without labels counts nowhere."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pipeline.balancing import build_balancer, gradient_figures
from pipeline.data.module import VisionData
from pipeline.errors import ConfigError
from tasks.multitask import MultiTaskModule

HEADS = ["scene", "objects", "surface"]


def losses(*values):
    return {name: torch.tensor(float(value)) for name, value in zip(HEADS, values, strict=False)}


def test_fixed_weights_are_the_weighted_sum():
    balancer = build_balancer({"kind": "fixed", "weights": {"objects": 2.0}}, HEADS)
    assert float(balancer.combine(losses(1, 3, 5))) == 1 + 2 * 3 + 5
    assert float(balancer.combine(losses(1, 3))) == 1 + 2 * 3


def test_uncertainty_is_kendalls_formula_and_may_go_negative():
    balancer = build_balancer("uncertainty", HEADS)
    with torch.no_grad():
        balancer.log_variance.copy_(torch.tensor([0.0, 1.0, -4.0]))
    wanted = 0.5 * 2 + (0.5 * math.exp(-1) * 3 + 0.5) + (0.5 * math.exp(4) * 0.01 - 2)
    assert float(balancer.combine(losses(2, 3, 0.01)).detach()) == pytest.approx(wanted, rel=1e-5)
    assert float(balancer.combine({"surface": torch.tensor(0.01)}).detach()) < 0


def test_a_head_without_labels_keeps_its_learned_weight():
    """Counted as 0, its loss would let the weight run away: to 148 in a hundred steps."""
    balancer = build_balancer("uncertainty", HEADS)
    optimizer = torch.optim.AdamW(balancer.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(100):
        optimizer.zero_grad()
        balancer.combine(losses(1.0, 0.2)).backward()
        optimizer.step()
    weights = {name: float(value.detach()) for name, value in balancer.weights(losses(1, 1, 1)).items()}
    assert weights["surface"] == 0.5
    assert weights["scene"] == pytest.approx(0.5, abs=0.02)  # the optimum is 1 / (2 L)
    assert weights["objects"] == pytest.approx(2.5, abs=0.1)


def test_dynamic_averaging_gives_slow_learners_more():
    balancer = build_balancer({"kind": "dwa", "temperature": 2.0}, HEADS)
    balancer.end_epoch({"scene": 2.0, "objects": 1.0, "surface": 4.0})
    assert [float(w) for w in balancer.weights(losses(1, 1, 1)).values()] == pytest.approx([1, 1, 1])
    balancer.end_epoch({"scene": 2.0, "objects": 0.5, "surface": 1.0})
    shares = [math.exp(ratio / 2) for ratio in (1.0, 0.5, 0.25)]
    wanted = [3 * share / sum(shares) for share in shares]
    assert [float(w) for w in balancer.weights(losses(1, 1, 1)).values()] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", ["PCGrad", "UPGrad", "Sum"])
def test_gradients_that_conflict_are_aggregated(method):
    """Gradients (1, 0) and (-1, 1) conflict: their sum does not help the first head, an aggregate does."""
    pytest.importorskip("torchjd")
    shared, own = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(3.0))
    given = {"scene": shared[0] + 2 * own, "objects": -shared[0] + shared[1]}
    build_balancer(method, HEADS).backward(given, [shared], {"scene": [own], "objects": []}, 0.5 * own.square())
    gains = [float(shared.grad @ torch.tensor(gradient)) for gradient in ((1.0, 0.0), (-1.0, 1.0))]
    if method == "Sum":
        assert gains == pytest.approx([0.0, 1.0], abs=1e-5)
    else:
        assert min(gains) > 0.1
    assert float(own.grad) == 2 + 3  # its own loss, and the penalty


def test_an_overflow_is_passed_on_to_the_scaler():
    pytest.importorskip("torchjd")
    shared = nn.Parameter(torch.ones(2))
    given = {"scene": shared.sum() * float("inf"), "objects": shared.square().sum()}
    build_balancer("UPGrad", HEADS).backward(given, [shared], {"scene": [], "objects": []})
    assert not shared.grad.isfinite().any()


def test_a_frozen_backbone_leaves_the_heads_their_own_gradients():
    pytest.importorskip("torchjd")
    shared, own = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.tensor(3.0))
    build_balancer("UPGrad", HEADS).backward({"scene": 2 * own}, [shared], {"scene": [own], "objects": []})
    assert float(own.grad) == 2
    assert shared.grad is None


def test_aggregation_follows_the_trainers_scaling_and_keeps_the_penalty():
    """float16 scales the loss and accumulation divides it; both must reach the heads' gradients and the penalty's."""
    pytest.importorskip("torchjd")
    data = VisionData(shapes={"images": 10, "size": 32}, size=32, batch_size=4, workers=0, augment="none")
    found = []
    for scale, accumulate, l2 in ((1.0, 1, 0.0), (1024.0, 2, 0.0), (1.0, 1, 1.0)):
        torch.manual_seed(0)
        module = MultiTaskModule("light", spaces=data.label_spaces, balancing="UPGrad", l2=l2)
        scaler = SimpleNamespace(get_scale=lambda scale=scale: scale) if scale > 1 else None
        plugin = SimpleNamespace(scaler=scaler)
        module._trainer = SimpleNamespace(
            accumulate_grad_batches=accumulate, precision_plugin=plugin, world_size=1, global_step=0
        )
        module.log = lambda *_, **__: None
        module.eval()  # no dropout, no batch statistics
        batch = next(iter(data.train_dataloader()))
        module.backward(module.training_step(batch, 0))
        found.append({name: p.grad.clone() for name, p in module.network.named_parameters() if p.grad is not None})
        weights = dict(module.network.named_parameters())
    plain, scaled, penalised = found
    assert len(plain) > 20
    name = next(name for name in plain if name.startswith("backbone") and plain[name].ndim > 1)
    torch.testing.assert_close(scaled[name], 512 * plain[name], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(penalised[name] - plain[name], 2 * weights[name].detach(), rtol=1e-3, atol=1e-3)


def test_gradient_figures_by_hand():
    shared = nn.Parameter(torch.zeros(2))
    figures = gradient_figures({"scene": 3 * shared[0], "objects": 4 * shared[0] + 4 * shared[1]}, [shared])
    assert float(figures["gradients/scene/norm"]) == 3
    assert float(figures["gradients/scene+objects/cosine"]) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("uncertanty", "did you mean 'uncertainty'"),
        ({"kind": "fixed", "weights": {"objcts": 2}}, "did you mean 'objects'"),
        ({"kind": "dwa", "temprature": 1}, "balancing 'dwa': .*temprature.*did you mean 'temperature'"),
        ({"kind": "dwa", "temperature": 0}, "temperature must be above 0"),
        ({"kind": "fixed", "weights": {HEADS[0]: -1}}, "must be a number of 0 or more"),
        ({"kind": "fixed", "weights": {HEADS[0]: "big"}}, "not 'big'"),
        ("Krum", "'Krum' needs arguments"),
    ],
)
def test_mistakes_are_told(given, told):
    with pytest.raises(ConfigError, match=told):
        build_balancer(given, HEADS)

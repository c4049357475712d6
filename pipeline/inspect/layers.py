"""A network's layers in the order the image passes them: names, shapes, weights, multiply-adds, reach."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError
from pipeline.inspect.fields import Field, FieldMode

WIDE = 4096
"""Side of the image on which reach is measured: no field told is wider than three quarters of it; without numbers it
costs nothing.
"""


@dataclass(slots=True)
class Layer:
    """One layer: a module that has none inside.

    Attributes:
        name: its path in the network.
        kind: its class.
        input: shape of its first input, without the batch; of its last call where one pass uses it several times.
        output: shape of its output likewise.
        parameters: its trained numbers.
        multiply_adds: of one image; those of convolutions and matrix products, which are all that weigh.
        activation_bytes: its output's size in float32 for one image; 0 where it works in place.
        calls: how often one pass uses it.
        receptive_field: (height, width) in pixels that one position depends on; None = the whole image.
        stride: pixels between neighbouring positions, (rows, columns); None where there are none.
        milliseconds: measured, of one image; NaN until measured.
    """

    name: str
    kind: str
    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    activation_bytes: int = 0
    calls: int = 0
    receptive_field: tuple[int, int] | None = None
    stride: tuple[float, float] | None = None
    milliseconds: float = field(default=float("nan"))


@dataclass(frozen=True, slots=True)
class Listing:
    """A network's layers and their sums.

    Attributes:
        size: (height, width) of the image.
        parameters: all trained numbers, also those that no single layer owns.
        multiply_adds: of one image, also those outside layers (attention).
        layers: in the order the image passes them.
    """

    size: tuple[int, int]
    parameters: int
    multiply_adds: int
    layers: list[Layer]

    @property
    def activation_bytes(self) -> int:
        """What training keeps of one image's outputs, in float32: their sum."""
        return sum(layer.activation_bytes for layer in self.layers)


def list_layers(network: nn.Module, channels: int, size: tuple[int, int], prefix: str = "") -> Listing:
    """Every layer that one image of `channels` and `size` (height, width) passes.

    Shapes alone are computed, no numbers: VGG takes as long as LeNet. `prefix` is left out of the names.

    Raises:
        ConfigError: the network does not take images of that size.
    """
    layers: dict[str, Layer] = {}

    def enter(name: str, module: nn.Module, given: Any, out: Any) -> None:
        layer = layers.setdefault(name, Layer(name.removeprefix(prefix), type(module).__name__))
        layer.input, layer.output = _shape(given), _shape(out)
        layer.parameters = sum(p.numel() for p in module.parameters())
        layer.calls += 1
        if not getattr(module, "inplace", False) and not isinstance(module, _DropoutNd):
            layer.activation_bytes += 4 * sum(t.numel() for t in _flat(out))

    counter = FlopCounterMode(display=False)
    _fake_pass(network, channels, size, enter, counter)
    root = type(network).__name__
    for name, counts in counter.get_flop_counts().items():
        own = layers.get(name.removeprefix(f"{root}."))
        if own is not None:
            own.multiply_adds = sum(counts.values()) // 2  # a multiplication and an addition are two operations
    _measure_reach(network, channels, size, layers)
    total = sum(p.numel() for p in network.parameters())
    return Listing(size, total, counter.get_total_flops() // 2, list(layers.values()))


def _measure_reach(network: nn.Module, channels: int, size: tuple[int, int], layers: dict[str, Layer]) -> None:
    """Fills `receptive_field` and `stride`."""
    modules = leaves(network)
    wide, fields = _fields_of_wide(network, {name: modules[name] for name in layers}, channels, size)
    for name, found in fields.items():
        if found is not None:
            layers[name].receptive_field, layers[name].stride = _middle(found, wide)


def fields_of(
    network: nn.Module, modules: dict[str, nn.Module], channels: int, size: tuple[int, int]
) -> dict[str, Field | None]:
    """What each position of some modules' outputs depends on, in an image of `channels` and `size`.

    None where an output has no rows and columns; modules that the image does not pass are left out. Raises ConfigError
    for a size the network does not take.
    """
    mode = FieldMode()
    found: dict[str, Field | None] = {}

    def enter(name: str, module: nn.Module, given: Any, out: Any) -> None:  # noqa: ARG001  # as list_layers' own
        tensor = next(_flat(out), None)
        found[name] = None if tensor is None else mode.field(tensor)

    _fake_pass(network, channels, size, enter, mode, modules)
    return found


def field_size(
    network: nn.Module, module: nn.Module, channels: int, size: tuple[int, int]
) -> tuple[tuple[int, int] | None, tuple[float, float]]:
    """Receptive field (None = the whole image) and stride of a module with rows and columns."""
    wide, fields = _fields_of_wide(network, {"it": module}, channels, size)
    found = fields["it"]
    assert found is not None
    return _middle(found, wide)


def _fields_of_wide(
    network: nn.Module, modules: dict[str, nn.Module], channels: int, size: tuple[int, int]
) -> tuple[tuple[int, int], dict[str, Field | None]]:
    """The fields in an image so wide that few of them fill it, or in one of `size` for networks that take no other."""
    try:
        return (WIDE, WIDE), fields_of(network, modules, channels, (WIDE, WIDE))
    except ConfigError:
        return size, fields_of(network, modules, channels, size)


def _middle(found: Field, size: tuple[int, int]) -> tuple[tuple[int, int] | None, tuple[float, float]]:
    """Receptive field and stride of the map's middle; no field where it reaches an edge of the image."""
    sides, steps, edge = [], [], False
    for reach, whole in zip((found.rows, found.columns), size, strict=True):
        count = len(reach)
        if whole == 1:  # a signal: nothing to tell of its one row
            sides.append(1)
            steps.append(1.0)
            continue
        # Behind an enlargement positions come in pairs, or in fours: a distance of 32 is of whole periods.
        half = min(16, count // 6)
        part = slice(count // 2 - half, count // 2 + half + 1)
        low, high = reach.low[part], reach.high[part]
        outside = bool((low <= 0).any() or (high >= whole - 1).any())
        edge = edge or outside
        sides.append(int((high - low).max()) + 1)
        centre = (reach.low + reach.high) / 2
        inside = centre[part] if half else centre[(reach.low > 0) & (reach.high < whole - 1)]
        told = len(inside) > 1 and not outside
        steps.append(float(inside[-1] - inside[0]) / (len(inside) - 1) if told else whole / count)
    return (None if edge else (sides[0], sides[1])), (round(steps[0], 3), round(steps[1], 3))


Enter = Callable[[str, nn.Module, Any, Any], None]


def _fake_pass(
    network: nn.Module,
    channels: int,
    size: tuple[int, int],
    enter: Enter,
    mode: Any,
    modules: dict[str, nn.Module] | None = None,
) -> None:
    """One image's pass by shapes alone under a mode, `enter` called after each of the modules, or every layer."""
    modules = leaves(network) if modules is None else modules
    try:
        with quiet_shapes(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), hooked(modules, enter):
            images = torch.zeros(1, channels, *size)
            if isinstance(mode, FieldMode):
                mode.mark(images)
            with mode:
                network(images)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ConfigError(
            f"the network does not take images of {size[0]} x {size[1]} pixels: {lines[0][:200]}"
        ) from error


@contextmanager
def quiet_shapes() -> Iterator[None]:
    """Keeps torch from logging a traceback for a size that does not fit, which is told by the error anyway."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def leaves(network: nn.Module) -> dict[str, nn.Module]:
    """The layers by path: what has no layers inside, or is a convolution or linear layer whatever it has inside."""
    found: dict[str, nn.Module] = {}

    def visit(name: str, module: nn.Module) -> None:
        children = list(module.named_children())
        if isinstance(module, nn.Identity):
            return
        if not children or isinstance(module, (_ConvNd, nn.Linear)):
            found[name] = module
            return
        for child, inner in children:
            visit(f"{name}.{child}" if name else child, inner)

    visit("", network)
    return found


@contextmanager
def hooked(modules: dict[str, nn.Module], enter: Enter) -> Iterator[None]:
    """Calls `enter(name, module, inputs, output)` after each of the modules while the block runs."""
    handles = []
    for name, module in modules.items():

        def after(module: nn.Module, given: Any, out: Any, name: str = name) -> None:
            enter(name, module, given, out)

        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured(modules: dict[str, nn.Module], copies: bool = True) -> Iterator[dict[str, Tensor]]:
    """The first output tensor of each of the modules, kept as they are passed while the block runs.

    Copies, since a ReLU behind may work in place; without `copies` the tensors that the network goes on with.
    """
    held: dict[str, Tensor] = {}

    def enter(name: str, module: nn.Module, given: Any, out: Any) -> None:  # noqa: ARG001  # as `hooked` calls it
        tensor = next(_flat(out), None)
        if tensor is not None:
            held[name] = tensor.clone() if copies else tensor

    with hooked(modules, enter):
        yield held


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _flat(item)


def _shape(value: Any) -> tuple[int, ...]:
    tensor = next(_flat(value), None)
    return () if tensor is None else tuple(tensor.shape[1:])

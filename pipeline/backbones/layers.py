"""Parts that several historical networks share: widths, initialisation, and fully connected layers as convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.errors import ConfigError


def scaled(channels: int, width: float, unit: int = 4) -> int:
    """Channels times a width factor, as a multiple of `unit`, at least one `unit`; 1.0 leaves them as published.

    Raises:
        ConfigError: a width that is not above 0.
    """
    if not width > 0:
        raise ConfigError(f"width is {width}; it is a factor above 0, and 1.0 is the network as published")
    return channels if width == 1 else max(unit, round(channels * width / unit) * unit)


def he_initialised(network: nn.Module) -> None:
    """Weights for layers followed by ReLU, biases 0 (He et al. 2015, https://arxiv.org/abs/1502.01852), in place."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def response_norm() -> nn.LocalResponseNorm:
    """AlexNet's normalisation over five neighbouring channels, k 2, alpha 1e-4, beta 0.75 (section 3.3).

    The paper multiplies the sum by alpha, torch the mean: hence five times alpha.
    """
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


class ConvolutionalClassifier(nn.Module):
    """Fully connected layers as convolutions: maps (B, C, H, W) to logits (B, classes).

    On a map of `kernel` pixels square it is exactly the published fully connected classifier. On a larger one it sees
    every place, and the logits are averaged: the dense evaluation of Simonyan and Zisserman 2015, section 3.2.

    Args:
        channels: of the map.
        kernel: side of the map that the first layer sees at once.
        hidden: units of the hidden layers.
        classes: number of answers.
        activation: after each hidden layer.
        dropout: share of the hidden units dropped while training.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        hidden: Sequence[int],
        classes: int,
        activation: type[nn.Module] = nn.ReLU,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for units, side in zip((*hidden, classes), (kernel, *[1] * len(hidden)), strict=True):
            layers += [nn.Conv2d(channels, units, side), activation(), nn.Dropout(dropout)]
            channels = units
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, maps: Tensor) -> Tensor:
        """Logits averaged over the places where the first layer fits."""
        logits: Tensor = self.layers(maps)
        return logits.mean((2, 3))

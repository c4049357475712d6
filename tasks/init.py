"""Initial weights by name: Xavier (Glorot and Bengio 2010) and He (He et al. 2015, https://arxiv.org/abs/1502.01852)."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pipeline.errors import ConfigError, nearest

Init = Literal["default", "xavier", "he"]


def initialise(network: nn.Module, how: Init) -> None:
    """Draws the weights of every convolution and linear layer anew, biases 0; `default` leaves all as it was built.

    `xavier`: uniform with variance 2 / (inputs + outputs), made for tanh. `he`: normal with variance 2 / inputs, which
    keeps the variance through ReLUs. Norm layers stay as they are.

    Raises:
        ConfigError: an unknown name.
    """
    if how not in get_args(Init):
        raise ConfigError(f"model.init: unknown initialisation {how!r}{nearest(str(how), get_args(Init))}")
    if how == "default":
        return
    for module in network.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            if how == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

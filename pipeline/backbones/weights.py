"""A network's weights from a local file: safetensors, a state dict, or a checkpoint of this project."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

SUFFIXES = {".safetensors", ".pt", ".pth", ".ckpt"}


def is_local(weights: str) -> bool:
    """Whether weights are named by a file rather than by the hub's name of a set."""
    return Path(weights).suffix in SUFFIXES


def load_weights(body: nn.Module, name: str, stage_names: tuple[str, ...], path: Path, stages: int | None) -> None:
    """Fills a backbone's body from a local file, of which heads and what does not fit are left out; the latter is told.

    A first convolution for colour is taken by a grey network as the sum over its channels, as if all three were alike.

    Args:
        body: is changed.
        name: the backbone's.
        stage_names: of its children, in the order the image passes them.
        path: the file.
        stages: take only this many stages, all of whose weights must be there; None = all that fits.

    Raises:
        ConfigError: the backbone has fewer stages.
        CheckpointError: the file is missing or cannot be read, or fewer than half of the backbone's weights are in it.
    """
    state = read_state(path)
    own = body.state_dict()
    _take_grey(state, own)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if stages is not None:
        if not 0 < stages <= len(stage_names):
            raise ConfigError(f"weights_stages is {stages}; backbone {name!r} has 1 to {len(stage_names)}")
        own = {k: v for k, v in own.items() if k.startswith(tuple(f"{stage}." for stage in stage_names[:stages]))}
        fitting = {key: value for key, value in fitting.items() if key in own}
    if len(fitting) < (len(own) if stages is not None else len(own) / 2):
        raise CheckpointError(f"{path} does not fit backbone {name!r}: {len(fitting)} of {len(own)} tensors fit")
    body.load_state_dict(fitting, strict=False)
    left = [key for key in own if key not in fitting]
    if left:
        more = ", ..." if len(left) > 3 else ""
        log.warning(
            "%s fills %d of %d tensors of %r; left at random: %s%s",
            path,
            len(fitting),
            len(own),
            name,
            ", ".join(left[:3]),
            more,
        )


def _take_grey(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Turns a file's first convolution of three channels into that of a network with one."""
    first = next((key for key, value in own.items() if value.ndim >= 3), None)
    if first in state and own[first].shape[1] == 1 and state[first].shape[1] == 3:
        state[first] = state[first].sum(1, keepdim=True)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors by their path in a backbone's body, read without unpickling code; raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    state: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader of damaged files fails in any way it likes
        reason = "it holds code, which is not run" if isinstance(error, pickle.UnpicklingError) else str(error)
        raise CheckpointError(
            f"weights file {path} cannot be read: {(reason.splitlines() or ['?'])[0][:200]}"
        ) from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict):
        raise CheckpointError(f"weights file {path} holds no state dict: save model.state_dict(), not the model")
    plain = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    return {key.removeprefix("network.backbone.").removeprefix("body."): value for key, value in plain.items()}

"""The network as one graph: uint8 RGB pixels (B, H, W, 3) in, every head's final answers out."""

from __future__ import annotations

import importlib
import inspect
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.bundle import HeadSpec
from pipeline.errors import CheckpointError, ExportError
from tasks.module import VisionModule
from tasks.network import VisionNetwork

DETECTION_THRESHOLD = 0.4
"""Score from which a box is shown unless the user says otherwise."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a checkpoint holds: the module with its averaged weights in evaluation mode, and where it came from."""

    module: VisionModule
    data: dict[str, Any] | None
    run_id: str | None
    settings: dict[str, Any]
    epoch: int

    @property
    def network(self) -> VisionNetwork:
        """The network alone."""
        return self.module.network


def load_trained(path: Path) -> Trained:
    """Reads a checkpoint of this project without unpickling code; raises CheckpointError naming the file."""
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; `lightning fit` writes outputs/runs/RUN/best.ckpt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is then refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader of damaged files fails in any way it likes
        reason = "it holds code, which is not run" if isinstance(error, pickle.UnpicklingError) else str(error)
        reason = (reason.strip() or "it ends too early").splitlines()[0].split(". ")[0].removesuffix(".")
        if not isinstance(error, OSError) and path.stat().st_size and not _looks_saved(path):
            reason = "it is no file of PyTorch"
        elif _looks_scripted(path):
            reason = "it is a TorchScript file, which holds no settings to build a network from"
        raise CheckpointError(
            f"checkpoint {path} cannot be read: {reason[:200]}; copy it again, or take another"
        ) from error
    parts = {"hyper_parameters": dict, "module_class": str, "state_dict": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in parts.items()):
        raise CheckpointError(
            f"{path} is no checkpoint of this project: it does not say how the network is built;"
            " `lightning fit` writes outputs/runs/RUN/best.ckpt"
        )
    settings = dict(content["hyper_parameters"])
    # What only training needs must not be needed here: a compiler, or a library of gradient aggregators.
    needed = {**settings, "compile": False, "balancing": "fixed"}
    kind = _module_class(content["module_class"], path)
    unknown = sorted(set(needed) - set(inspect.signature(kind).parameters))
    if unknown:
        raise CheckpointError(f"checkpoint {path} has settings that this version does not know: {', '.join(unknown)}")
    module = kind(**needed)
    state = {k.removeprefix("network."): v for k, v in content["state_dict"].items() if k.startswith("network.")}
    try:
        module.network.load_state_dict(state)
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"checkpoint {path} does not fit the network that this version builds by its settings: export it with the"
            f" version that wrote it, or train again; {found}"
        ) from error
    module.eval().requires_grad_(False)
    data = content.get("VisionData")
    return Trained(module, data, content.get("mlflow_run_id"), settings, int(content.get("epoch", 0)))


def _looks_saved(path: Path) -> bool:
    """Whether a file begins as torch.save's do: as a zip archive, or a pickle."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _looks_scripted(path: Path) -> bool:
    """Whether a file is a TorchScript archive, such as a bundle's own model.ts.pt."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # noqa: BLE001  # of a damaged archive it fails in any way it likes
        return False


def _module_class(name: str, path: Path) -> type[VisionModule]:
    package, _, kind = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(package), kind) if package.startswith("tasks.") else None
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is of {name}, which this version does not have") from error
    if not (isinstance(found, type) and issubclass(found, VisionModule)):
        raise CheckpointError(f"checkpoint {path} is of {name}, which is no module of this project")
    return found


class AnswerGraph(nn.Module):
    """What is exported: pixels in, answers out, as a flat tuple in the order of `names`.

    Args:
        network: in evaluation mode, on the CPU.
        mask_probabilities: whether masks come with their probabilities, which make full-size masks smooth.
    """

    def __init__(self, network: VisionNetwork, mask_probabilities: bool = True) -> None:
        super().__init__()
        self.network = network
        self.columns: dict[str, tuple[str, ...]] = {}
        with torch.no_grad():
            shown = network.decode(network(torch.zeros(1, 3, *(network.size or (64, 64)), dtype=torch.uint8)))
        for name, prediction in shown.items():
            kept = [
                c
                for c in prediction._fields
                if c != "probabilities" or mask_probabilities or "mask" not in prediction._fields
            ]
            self.columns[name] = tuple(kept)

    @property
    def names(self) -> list[str]:
        """`<head>.<column>` of every output."""
        return [f"{head}.{column}" for head, columns in self.columns.items() for column in columns]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """RGB uint8 (B, H, W, 3) to the answers."""
        answers = self.network.decode(self.network(images.permute(0, 3, 1, 2)))
        return tuple(getattr(answers[head], column) for head, columns in self.columns.items() for column in columns)

    def specs(self) -> dict[str, HeadSpec]:
        """Each head's manifest entry."""
        out = {}
        for name, head in self.network.named_heads().items():
            threshold = DETECTION_THRESHOLD if head.space.kind == "boxes" else float(getattr(head, "threshold", 0.0))
            outputs = tuple(f"{name}.{column}" for column in self.columns[name])
            out[name] = HeadSpec(head.space.kind, head.space.names, outputs, threshold)
        return out


def build_graph(trained: Trained, mask_probabilities: bool = True) -> AnswerGraph:
    """The graph of a trained module, less the heads that only help training.

    Raises:
        ExportError: no head that answers.
    """
    heads = {name: head for name, head in trained.network.named_heads().items() if head.space.kind != "image"}
    if not heads:
        raise ExportError(
            "this network only mends images, which is a start for training: give its checkpoint as model.weights"
        )
    whole = trained.network
    return AnswerGraph(VisionNetwork(whole.backbone, heads, whole.in_channels, whole.size), mask_probabilities).eval()

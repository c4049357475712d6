"""fit, validate, test and predict: Lightning's own CLI over our modules, with errors of one line."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import tasks.multitask  # noqa: F401  # makes the modules reachable by bare name
from pipeline.callbacks.checkpoints import Checkpoints, newest_checkpoint
from pipeline.callbacks.ema import AverageWeights
from pipeline.callbacks.failures import CountFailures
from pipeline.callbacks.pictures import Pictures
from pipeline.callbacks.record import CurvePictures
from pipeline.data.module import VisionData
from pipeline.errors import CheckpointError, ConfigError, TrifocalError, nearest
from pipeline.tracking import RunLogger, TrackRun, run_of
from tasks.module import VisionModule


class ConfigToRun(SaveConfigCallback):
    """Hands the resolved config to the run instead of a log folder, which MLflow's stores do not have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Logs `config.yaml`, which `lightning fit --config` runs again, and the values a person would compare."""
        text = self.parser.dump(self.config, skip_none=False, skip_link_targets=True)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.log_config(text)


class TrifocalCLI(LightningCLI):
    """Lightning's CLI with the data's label fields linked to the network."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links and defaults."""
        parser.link_arguments("data.label_spaces", "model.init_args.spaces", apply_on="instantiate")
        parser.set_defaults(
            {
                "model": "MultiTaskModule",
                "trainer.logger": {"class_path": "pipeline.tracking.RunLogger"},
                "trainer.max_epochs": 50,
                "trainer.log_every_n_steps": 10,
                "trainer.num_sanity_val_steps": 0,
                "trainer.use_distributed_sampler": False,
                "trainer.default_root_dir": "outputs",
            }
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(AverageWeights, "ema")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyper-parameters win silently; here what is given wins."""

    def before_instantiate_classes(self) -> None:
        """Turns `--ckpt_path last` into the newest run's last checkpoint."""
        config = self.config[self.subcommand]
        path = config.get("ckpt_path")
        if path in {"last", "best"}:
            config["ckpt_path"] = str(newest_checkpoint(Path(config["trainer"]["default_root_dir"]), path))
        elif path and not Path(path).is_file():
            raise CheckpointError(f"checkpoint {path} does not exist; `--ckpt_path last` finds the newest run's")
        # Known before anything is logged: the logger opens its run long before Lightning reads the checkpoint.
        logger = config["trainer"].get("logger")
        if config.get("ckpt_path") and isinstance(logger, Namespace) and "init_args" in logger:
            given = logger["init_args"]
            if "run_id" in given and given["run_id"] is None:
                given["run_id"] = run_of(Path(config["ckpt_path"]))


def main(argv: list[str]) -> int:
    """Runs one of Lightning's subcommands; returns the exit code."""
    # Loaders without workers are chosen on purpose where the data is drawn, not read.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*tensorboardX.*|.*isinstance.treespec.*|.*LeafSpec.*")
    run(head_options(argv))
    return 0


def run(argv: list[str]) -> TrifocalCLI:
    """The CLI run over arguments; raises TrifocalError for a user's mistakes."""
    captured = io.StringIO()
    try:
        with _stderr_of_parsing(captured) as restore:
            return TrifocalCLI(
                VisionModule,
                VisionData,
                subclass_mode_model=True,
                save_config_callback=ConfigToRun,
                trainer_defaults={
                    "callbacks": [_restoring(restore), CountFailures(), TrackRun(), Pictures(), CurvePictures()]
                },
                seed_everything_default=0,
                parser_kwargs={"default_env": True, "env_prefix": "TRIFOCAL"},
                args=argv,
            )
    except SystemExit as leaving:
        text = captured.getvalue()
        if leaving.code != 2 or not text.strip():  # the parser's own exit code; 143 is SIGTERM's
            raise
        raise ConfigError(explain(text, argv)) from None
    except (TypeError, ValueError) as error:
        # jsonargparse wraps what a constructor raises.
        told = _inner(error)
        if told is None:
            raise
        raise told from None


def _inner(error: BaseException) -> TrifocalError | None:
    """The TrifocalError that a chain of wrapped errors, or jsonargparse's text about a union, holds."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, TrifocalError):
            return link
        link = link.__cause__ or link.__context__
    told = re.search(r"Errors:\s*\n\s*- (.+)", str(error))
    return ConfigError(told.group(1)) if told else None


@contextlib.contextmanager
def _stderr_of_parsing(captured: io.StringIO) -> Any:
    """Catches what the parser prints, until the trainer starts."""
    real = sys.stderr
    sys.stderr = captured
    try:
        yield lambda: setattr(sys, "stderr", real)
    finally:
        sys.stderr = real


def _restoring(restore: Any) -> Any:
    from lightning.pytorch import Callback

    class Restore(Callback):
        """Gives stderr back once the trainer runs."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
            restore()

    return Restore()


def head_options(argv: list[str]) -> list[str]:
    """Turns `--model.heads.objects.max_boxes=50` into one `--model.heads+` value that the parser understands."""
    heads: dict[str, dict[str, Any]] = {}
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        match = re.fullmatch(r"--model\.(?:init_args\.)?heads\.(\w+)(?:\.(\w+))?(?:=(.*))?", item, re.DOTALL)
        if match is None:
            rest.append(item)
            continue
        name, option, value = match.groups()
        value = next(items, "") if value is None else value
        if option is None:
            heads[name] = yaml.safe_load(value) or {}
        else:
            heads.setdefault(name, {})[option] = yaml.safe_load(value)
    for name, options in heads.items():
        rest += [f"--model.init_args.heads.{name}", yaml.safe_dump(options, default_flow_style=True).strip()]
    return rest


def explain(text: str, argv: list[str]) -> str:
    """One line out of jsonargparse's report: the key or value, the file it stands in, the nearest spelling."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if not line.lower().startswith(("usage:", "tip:", "warning"))]
    at = next((i for i, line in enumerate(told) if line.startswith("error:")), 0)
    message = " ".join(told[at:]).removeprefix("error:").strip()
    wrong = re.search(r"[Kk]ey ['\"]([\w.]+)['\"] is not expected|[Uu]nrecognized arguments?:? -*([\w.]+)", message)
    if wrong:
        key = (wrong.group(1) or wrong.group(2)).rsplit(".", 1)[-1]
        return f"unknown key {key!r}{nearest(key, _known_keys())}{_where(key, argv)}"
    return (message[:400] + (" …" if len(message) > 400 else "")) + _where(None, argv)


def _known_keys() -> list[str]:
    import inspect

    from lightning import Trainer

    return [name for kind in (VisionModule, VisionData, Trainer) for name in inspect.signature(kind).parameters]


def _where(key: str | None, argv: list[str]) -> str:
    """` (in FILE)` for the config file that holds the key, or the command line."""
    files = [argv[i + 1] for i, item in enumerate(argv[:-1]) if item in {"-c", "--config"}]
    files += [item.split("=", 1)[1] for item in argv if item.startswith("--config=")]
    if key is None:
        return ""
    for file in files:
        path = Path(file)
        if path.is_file():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.match(rf"\s*-?\s*{re.escape(key)}\s*:", line):
                    return f" (in {file}, line {number})"
    return " (on the command line)"


def plain(config: Namespace) -> dict[str, Any]:
    """A parsed config as plain values."""
    return dict(config.as_dict())

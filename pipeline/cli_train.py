"""fit, validate, test and predict: Lightning's own CLI over our modules, with errors of one line."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

import tasks.multitask  # makes the modules reachable by bare name
from pipeline.callbacks.checkpoints import Checkpoints, newest_checkpoint, require_readable
from pipeline.callbacks.ema import AverageWeights
from pipeline.callbacks.failures import CountFailures
from pipeline.callbacks.freeze import Freeze
from pipeline.callbacks.pictures import Pictures
from pipeline.callbacks.progress import EpochLines
from pipeline.callbacks.record import CurvePictures
from pipeline.callbacks.track import TrackRun
from pipeline.cli_options import PREFIX, environment_options, join_options
from pipeline.config_errors import config_files, diagnose, locate
from pipeline.data.module import VisionData
from pipeline.errors import CheckpointError, ConfigError, TrifocalError, nearest
from pipeline.hardware import cpu_limit
from pipeline.tracking import RunLogger, run_of
from tasks.module import VisionModule

BY_NAME = (Freeze,)
"""Callbacks that a config may add by their bare names."""

MODULES = (
    tasks.multitask.MultiTaskModule,
    tasks.multitask.ClassificationModule,
    tasks.multitask.DetectionModule,
    tasks.multitask.SegmentationModule,
    tasks.multitask.DenoisingModule,
)


class ConfigToRun(SaveConfigCallback):
    """Hands the resolved config to the run instead of a log folder, which MLflow's stores do not have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Logs `config.yaml`, which `lightning fit --config` runs again, and the values a person would compare.

        Another command that goes on in the run logs its own as `config_test.yaml`, beside that of the training.
        """
        config = self.config.clone()
        if stage == "fit":  # what is run again starts anew, in a run of its own
            config["ckpt_path"] = None
            _set_run(config, None)
        text = self.parser.dump(config, skip_none=False, skip_link_targets=True)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger) and stage == "fit":
                logger.log_config(text)
            elif isinstance(logger, RunLogger):
                logger.log_text(text, f"config_{TrainerFn(stage).value}.yaml")


class TrifocalCLI(LightningCLI):
    """Lightning's CLI with the data's label fields linked to the network."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links and defaults."""
        parser.link_arguments("data.label_spaces", "model.init_args.spaces", apply_on="instantiate")
        parser.link_arguments("data.size", "model.init_args.size", apply_on="instantiate")
        parser.link_arguments("data.train_size", "model.init_args.train_size", apply_on="instantiate")
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
        if config.get("weights_only") is None:
            config["weights_only"] = True  # a checkpoint is never unpickled
        if path in {"last", "best"}:
            config["ckpt_path"] = str(newest_checkpoint(Path(config["trainer"]["default_root_dir"]), path))
        elif path and not Path(path).is_file():
            raise CheckpointError(f"checkpoint {path} does not exist; `--ckpt_path last` finds the newest run's")
        elif not path and self.subcommand != "fit":
            raise ConfigError(f"{self.subcommand} needs a checkpoint: give --ckpt_path best, last or a file's path")
        if config.get("ckpt_path"):
            require_readable(Path(config["ckpt_path"]))
            # Known before anything is logged: the logger opens its run long before Lightning reads the checkpoint.
            if _logger_options(config).get("run_id") is None:
                _set_run(config, run_of(Path(config["ckpt_path"])))

    def instantiate_classes(self) -> None:
        """Leaves `weights` alone where a checkpoint replaces them: they may be gone by now, or would be downloaded."""
        config: Any = self.config[self.subcommand] if self.subcommand else {}
        given: Any = config["model"]["init_args"] if config.get("ckpt_path") else {}
        kept = {name: given[name] for name in ("weights", "weights_stages") if name in given}
        for name in kept:
            given[name] = None
        super().instantiate_classes()
        for name, value in kept.items():  # for the run's record
            given[name] = value
        for callback in self.trainer.checkpoint_callbacks if config.get("ckpt_path") else ():
            if isinstance(callback, Checkpoints):
                callback.resumes = config["ckpt_path"]


def _logger_options(config: Namespace) -> Any:
    """The arguments of a config's one logger; empty where there is none, or several."""
    logger = config["trainer"].get("logger")
    return logger.get("init_args", {}) if isinstance(logger, Namespace) else {}


def _set_run(config: Namespace, run: str | None) -> None:
    """Sets the MLflow run that a config goes on in."""
    options = _logger_options(config)
    if "run_id" in options:
        options["run_id"] = run


def main(argv: list[str]) -> int:
    """Runs one of Lightning's subcommands; returns the exit code."""
    # Loaders without workers are chosen on purpose where the data is drawn, not read.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # What an epoch has learnt is logged at its end, however few its steps; norms of frozen stages are kept in eval mode.
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*|.*in eval mode at the start.*")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")  # of a resumed run
    warnings.filterwarnings("ignore", message=".*using a custom batch sampler `EvalBatches`.*")  # which leaves none out
    warnings.filterwarnings("ignore", message=".*tensorboardX.*|.*isinstance.treespec.*|.*LeafSpec.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpu_limit())
    run(argv)
    return 0


def run(argv: list[str]) -> TrifocalCLI:
    """The CLI run over arguments; raises TrifocalError for a user's mistakes."""
    captured = io.StringIO()
    variables = environment_options(argv[0], os.environ) if argv else {}
    _refuse_two_starts(argv)
    files = [*config_files(list(variables.values())), *config_files(argv)]
    try:
        words = join_options(argv, variables, files)
        with _stderr_of_parsing(captured) as restore:
            return TrifocalCLI(
                VisionModule,
                VisionData,
                subclass_mode_model=True,
                auto_configure_optimizers=False,
                save_config_callback=ConfigToRun,
                trainer_defaults={
                    "callbacks": [
                        _restoring(restore),
                        CountFailures(),
                        TrackRun(),
                        Pictures(),
                        CurvePictures(),
                        EpochLines(),
                    ]
                },
                seed_everything_default=0,
                parser_kwargs={"default_env": True, "env_prefix": PREFIX},
                args=words,
            )
    except SystemExit as leaving:
        if leaving.code != 2 or captured.closed or not captured.getvalue().strip():  # 2 is the parser's exit code
            raise
        raise ConfigError(explain(captured.getvalue(), argv, variables)) from None
    except ConfigError as error:
        raise ConfigError(locate(str(error), argv, variables)) from None
    except RuntimeError as error:
        raise (unlogged(error) or error) from None
    except (TypeError, ValueError, MisconfigurationException) as error:
        # jsonargparse wraps what a constructor raises; before the trainer runs, only the config can be wrong.
        told = _inner(error)
        if told is None and (isinstance(error, MisconfigurationException) or not captured.closed):
            told = ConfigError(" ".join(str(error).split())[:400])
        if told is None:
            raise
        raise (ConfigError(locate(str(told), argv, variables)) if isinstance(told, ConfigError) else told) from None


def _refuse_two_starts(argv: list[str]) -> None:
    """Raises ConfigError for weights and a checkpoint on one command line: the checkpoint's would replace them."""
    names = {word.split("=")[0] for word in argv}
    if "--ckpt_path" in names and names & {"--model.weights", "--model.init_args.weights"}:
        raise ConfigError("model.weights and ckpt_path both say where the weights come from; leave one of them out")


def unlogged(error: RuntimeError) -> ConfigError | None:
    """What early stopping says of a metric that is never logged, in one line; None for another error."""
    told = re.search(r"conditioned on metric `([^`]+)`", str(error))
    if told is None:
        return None
    logged = re.findall(r"`((?:val|train)/[^`]+|lr)`", str(error)[told.end() :])
    return ConfigError(
        f"trainer.callbacks: EarlyStopping monitors {told[1]!r}, which is not logged{nearest(told[1], logged)}"
    )


def _inner(error: BaseException) -> TrifocalError | None:
    """The TrifocalError at the root of a chain of wrapped errors, or what a missing package says."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, TrifocalError):
            return link
        if isinstance(link, ImportError):
            return ConfigError(" ".join(str(link).split()))
        link = link.__cause__ or link.__context__
    told = re.search(r"Errors:\s*\n\s*- (.+(?:\n\s{6,}.+)*)", str(error))
    return ConfigError(" ".join(told.group(1).split())) if told else None


@contextlib.contextmanager
def _stderr_of_parsing(captured: io.StringIO) -> Any:
    """Catches what the parser prints, until the trainer starts."""
    real = sys.stderr
    sys.stderr = captured

    def restore() -> None:
        captured.close()
        sys.stderr = real

    try:
        yield restore
    finally:
        sys.stderr = real


def _restoring(restore: Any) -> Any:
    from lightning.pytorch import Callback

    class Restore(Callback):
        """Gives stderr back once the trainer runs."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
            restore()

    return Restore()


def explain(text: str, argv: list[str], variables: dict[str, str]) -> str:
    """One line out of what the parser printed: the mistake itself where it can be found, else the parser's words."""
    models: dict[str, type] = {kind.__name__: kind for kind in MODULES}
    schema: dict[str, type] = {
        "data": VisionData,
        "trainer": Trainer,
        "checkpoints": Checkpoints,
        "ema": AverageWeights,
    }
    told = diagnose(argv, schema, models, variables)
    if told is not None:
        return told
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if line.startswith("error:")), 0)
    message = " ".join(lines[at:]).removeprefix("error:").strip()
    if wrong := re.match(r'Parser key "([^"]+)": .*Given value: (.*)', message):
        message = f"{wrong[1]}: {wrong[2]!r} is not what it takes"
    return locate(message[:400] + (" …" if len(message) > 400 else ""), argv, variables)

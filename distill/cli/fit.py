"""``distill fit | validate | test``: LightningCLI with a run folder and the probes."""

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from rich.console import Console

from cache_tools import ConfigError
from distill.data.module import DistillData
from distill.evaluation.baselines import before
from distill.evaluation.during import ProbeDuring
from distill.evaluation.origin import about
from distill.evaluation.prepared import Students
from distill.evaluation.protocol import Evaluation
from distill.export.write import export_of
from distill.records import FOLDER, Results
from distill.report import sections as report
from distill.report import tables
from distill.run_folder import RunFolder
from distill.training.conflict import Conflict
from distill.training.distiller import Distiller

log = logging.getLogger(__name__)


USAGE = "distill {} --config configs/mol.yaml [--KEY VALUE ...]   (every key: distill {} --help)"

COMMANDS = ("fit", "validate", "test")

BETTER = {"val": "min", "loss": "min", "nll": "min", "r2": "max", "cosine": "max", "nats": "max", "probe": "max"}


def run(arguments: list[str]) -> None:
    """Run one of the three commands, with all that it needs to know.

    Args:
        arguments: ``fit``, ``validate`` or ``test``, and the words that follow it on the command line.
    """
    DistillCLI(
        Distiller,
        DistillData,
        args=arguments,
        seed_everything_default=0,
        parser_kwargs={name: {"usage": USAGE.format(name, name)} for name in COMMANDS},
        parser_class=Parser,
        # only a fit writes the run's configuration: that of a test would take its place
        save_config_callback=SaveConfig if arguments[:1] == ["fit"] else None,
        save_config_kwargs={"overwrite": True},
    )


class Parser(LightningArgumentParser):
    """Says what is wrong with a class or its options in words that a user typed."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = re.sub(r"^  - Expected a path but .*\n", "", message, flags=re.MULTILINE)
        message = re.sub(r"Namespace\(class_path='([^']+)', init_args=Namespace\((.*)\)\)", r"\1(\2)", message)
        if found := re.match(r'(?s)Parser key "([\w.]+)":.*Option .* is not accepted. Got value: ([\w.]+)\(', message):
            message += f"\n  Its options: distill fit --{found[1]}.help {found[2]}"
        super().error(message, ex)


class DistillCLI(LightningCLI):
    """LightningCLI with a run folder and the probes."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run", type=Path, default=Path("runs/mol"), help="folder of this run")
        parser.add_argument("--checkpoint_every", type=PositiveInt, default=1000, help="steps between two last.ckpt")
        parser.add_argument(
            "--monitor", default="val/loss", help="what best.ckpt is best in; probe/mean or probe/TASK, too"
        )
        parser.add_argument(
            "--conflict",
            type=NonNegativeInt,
            default=0,
            help="steps between two looks at the teachers' gradients; 0: never",
        )
        parser.add_class_arguments(Evaluation, "probe")
        parser.link_arguments("data.statistics", "model.statistics", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            config = self.config["fit"]
            if not config["ckpt_path"]:
                config["run"], config["ckpt_path"] = _place(Path(config["run"]), os.environ)
            else:
                checkpoint = Path(config["ckpt_path"])
                if not checkpoint.is_file():
                    raise ConfigError(f"no checkpoint at {checkpoint.absolute()}: expected RUN/checkpoints/last.ckpt")
                config["run"] = checkpoint.absolute().parents[1]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        run = self._get(self.config, "run")
        kwargs["default_root_dir"] = run
        kwargs["use_distributed_sampler"] = False  # BatchOrder already knows ranks
        chosen = self._get(self.config_init, "trainer")
        fitting = self.subcommand == "fit"
        callbacks = list(chosen["callbacks"] or [])
        if chosen["enable_progress_bar"] is not False:
            callbacks.append(RichProgressBar(refresh_rate=10, leave=fitting))  # each refresh waits for the GPU
        probing = self._get(self.config_init, "probe")
        if fitting and probing.every:
            callbacks.append(ProbeDuring(probing))
        if not fitting:
            return super().instantiate_trainer(logger=False, callbacks=callbacks, **kwargs)
        if chosen["enable_checkpointing"] is not False:
            callbacks += self._checkpoints(run / "checkpoints", probing)
        if every := self._get(self.config, "conflict"):
            callbacks.append(Conflict(every))
        RunFolder(run).keep_metrics()
        kwargs["logger"] = [TensorBoardLogger(run, "", ""), CSVLogger(run, "", "")]
        kwargs["plugins"] = [*_listed(chosen["plugins"]), WholeCheckpoints()]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _checkpoints(self, folder: Path, probing: Evaluation) -> list[ModelCheckpoint]:
        """best.ckpt, and last.ckpt at every validation and every so many steps."""
        monitor = self._get(self.config, "monitor")
        kind, _, name = monitor.partition("/")
        if kind not in BETTER or (kind == "probe" and not probing.every):
            known = ", ".join(f"{each}/..." for each in BETTER)
            raise ConfigError(f"monitor is {monitor}, expected one of {known}; probe/... needs probe.every")
        if kind == "probe" and name.split()[0] not in (probed := ["mean", *probing.during]):
            raise ConfigError(f"monitor is {monitor}; probed during the fit are: probe/{', probe/'.join(probed)}")
        mode, epochs = BETTER[kind], probing.every if kind == "probe" else None
        steps = self._get(self.config, "checkpoint_every")
        return [  # without version counters: a moved run keeps one file of each
            ModelCheckpoint(
                folder, "best", monitor, save_last=True, mode=mode, every_n_epochs=epochs, enable_version_counter=False
            ),
            ModelCheckpoint(folder, "last", every_n_train_steps=steps, enable_version_counter=False),
        ]

    def before_fit(self) -> None:
        teachers = ", ".join(self.model.teachers)
        if self.trainer.is_global_zero:
            log.info("fit: %s; teachers: %s", self.trainer.default_root_dir, teachers)

    def after_fit(self) -> None:
        best = Path(self.trainer.default_root_dir) / "checkpoints" / "best.ckpt"
        if self.trainer.checkpoint_callbacks and not best.exists():
            self.trainer.save_checkpoint(best)  # it ended before its first validation
        if self.trainer.is_global_zero and best.exists():
            log.info("written: %s; next: distill test --run %s", best, self.trainer.default_root_dir)
        if self.trainer.received_sigterm:
            sys.exit(143)  # not 0: what was asked for is not done

    def before_test(self) -> None:
        self.evaluation: Evaluation = self._get(self.config_init, "probe")
        others = self.evaluation.students
        if lost := [at for at in others.values() if not at.exists()]:
            raise ConfigError(
                f"probe.students: no {lost[0].absolute()}; expected a folder of `distill export` or a checkpoint"
            )
        self.evaluation.students = {name: at if at.is_dir() else export_of(at) for name, at in others.items()}
        self.evaluation.prepare(self.datamodule.parts)
        spec = self._get(self.config, "model").student.as_dict()
        self.before = before(self.model.student, spec)  # the checkpoint is loaded later, by the trainer

    def after_test(self) -> None:
        if not self.trainer.is_global_zero:
            return
        students: Students = {"student": self.model.student, **self.before}
        run, device = Path(self.trainer.default_root_dir), str(self.trainer.strategy.root_device)
        with TemporaryDirectory(prefix=f".{FOLDER}", dir=run) as temporary:  # an earlier test's stay until these are whole
            folder = Path(temporary) / FOLDER
            folder.mkdir()
            records = self.evaluation.run(students, device, keep=folder)
            costs, checkpoint = self.evaluation.costs(students, device), str(self.trainer.ckpt_path)
            made = about(checkpoint, device, self.datamodule.parts, self.evaluation.left_out)
            Results(folder, records, costs, made).save()
            if (run / FOLDER).exists():
                (run / FOLDER).rename(Path(temporary) / "before")
            folder.rename(run / FOLDER)
        results = {"student": [Results.load(run)]}
        by_split = report.write(run / FOLDER, f"Probes of {run}", results, f"Checkpoint `{checkpoint}`.")
        for split, found in by_split.items():
            Console().print(tables.table(found, f"{checkpoint}: probes, {split} split"))
        Console().print(f"written: {run / FOLDER}/report.html, report.md, results.json, predictions/")


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml when training begins: a checkpoint that is refused leaves the run's own."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.config["ckpt_path"] = None  # else a new run of this configuration would go on with an old one
        data, parts = self.config["data"], trainer.datamodule.parts  # type: ignore[attr-defined]
        # by name, so that a column that the cache gets later is no teacher of this run
        for place, part in zip(data["corpora"] or [data], parts, strict=True):
            place["teachers"], place["input"] = list(part.teachers), part.inputs.name
        super().setup(trainer, pl_module, "fit")


class WholeCheckpoints(TorchCheckpointIO):
    """A checkpoint is there whole or not at all: Lightning's comes from the temporary folder, perhaps on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        beside = Path(path).with_name(f".{Path(path).name}.tmp")
        super().save_checkpoint(checkpoint, beside, storage_options)
        beside.replace(path)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given else []


def _place(run: Path, environment: Mapping[str, str]) -> tuple[Path, str | None]:
    """Folder of a new run, and the checkpoint that it goes on from.

    A folder is ``run``, or ``run-2``, ``run-3`` ... when a run is there already; under SLURM it is named for the job. A job
    that SLURM or torchrun started again goes on in the folder that it had.
    """
    if job := environment.get("SLURM_JOB_ID"):
        run = run.with_name(f"{run.name}-{job}")
    restarts = max(int(environment.get(f"{each}_RESTART_COUNT", 0)) for each in ("SLURM", "TORCHELASTIC"))
    candidates = [run, *(run.with_name(f"{run.name}-{number}") for number in range(2, 10_000))]
    number = next(number for number, each in enumerate(candidates) if not (each / "config.yaml").exists())
    last = candidates[number - 1] / "checkpoints" / "last.ckpt"
    if restarts and number and last.is_file():
        return candidates[number - 1], str(last)
    return candidates[number], None

"""``distill fit | validate | test``: LightningCLI with a run folder and the probes."""

import argparse
import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Self

import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from cache_tools import CommandParser, ConfigError, TrainingError, flush_denormals
from distill.cli.callbacks import InterruptBetweenSteps, SaveConfig, WholeCheckpoints
from distill.cli.progress import FitProgress, figures
from distill.cli.ranks import facts_of, follow_rank_zero, is_rank_zero, place
from distill.cli.requirements import add_requirements, check, require
from distill.data.module import DistillData
from distill.evaluation.baselines import undistilled
from distill.evaluation.during import ProbeDuring
from distill.evaluation.origin import about
from distill.evaluation.prepared import Students
from distill.evaluation.protocol import Evaluation
from distill.evaluation.search import search_recall
from distill.evaluation.tasks.base import Task
from distill.export.spaces import teacher_spaces
from distill.records import Results
from distill.run_folder import TERMINATED, RunFolder, newest_run
from distill.training.checkpoint import read_checkpoint, student_of
from distill.training.conflict import Conflict
from distill.training.distiller import Distiller
from distill.training.precision import RunTrainer, as_trained, choose_precision

log = logging.getLogger(__name__)

USAGE = "distill {} --config configs/mol.yaml [--KEY VALUE ...]"
COMMANDS = {  # what each does, for its help
    "fit": "Train a student to predict the cached embeddings of its teachers.",
    "validate": "Measure on held-out rows how well the heads of a run predict each teacher.",
    "test": "Probe a run on the tasks of its configuration, beside its teachers, and write the report.",
}

# how a checkpoint is compared by each kind of figure that a fit logs
BETTER = {"val": "min", "loss": "min", "nll": "min", "r2": "max", "cosine": "max", "nats": "max", "probe": "max"}


def main(arguments: list[str]) -> None:
    """Entry point of ``distill fit``, ``validate`` and ``test``.

    Args:
        arguments: ``fit``, ``validate`` or ``test``, and the words that follow it on the command line.

    Raises:
        ConfigError: when a configuration or checkpoint is missing, or they do not fit together.
    """
    run_command(arguments)


def run_command(arguments: Sequence[str], tasks: Mapping[str, Task] | None = None, exit_on_error: bool = True) -> Trainer:
    """Run ``distill fit``, ``validate`` or ``test``.

    Args:
        arguments: the command, and the words that follow it on the command line.
        tasks: to probe, instead of those of the configuration.
        exit_on_error: a wrong key ends the program; otherwise it is raised.

    Returns:
        The trainer at its end; its ``default_root_dir`` is the run's folder.

    Raises:
        ConfigError: when a configuration or checkpoint is missing, or they do not fit together.
        ArgumentError: when a key is wrong.
    """
    arguments = complete(list(arguments))
    command = arguments[0]
    flush_denormals()
    logging.getLogger("lightning").handlers.clear()  # it would say everything a second time
    options = {"exit_on_error": exit_on_error}
    of_command = {"usage": USAGE.format(command), "description": COMMANDS[command], **options}
    try:
        trainer: Trainer = DistillCLI.of(command, tasks)(
            Distiller,
            DistillData,
            args=arguments,
            seed_everything_default=0,
            trainer_class=RunTrainer,
            parser_kwargs={"prog": "distill", command: of_command, **options},
            parser_class=Parser,
            # only a fit writes the run's configuration: that of a test would take its place
            save_config_callback=SaveConfig if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
        ).trainer
        return trainer
    except SIGTERMException:
        sys.exit(TERMINATED)  # not 0: what was asked for is not finished
    except RuntimeError as error:
        if isinstance(error, DistError) or re.search(r"gloo|NCCL|onnection (closed|reset) by peer", str(error)):
            reason = str(error).partition(" This is")[0][-200:]
            raise TrainingError(
                f"another process of this command ended or cannot be reached, see what it printed above: {reason}"
            ) from None
        if "loading state_dict" not in str(error):
            raise
        raise ConfigError(
            "the checkpoint's student and heads are not those of the configuration; name its own, "
            f"RUN/config.yaml: {' '.join(str(error).split())[:400]}"
        ) from None


def complete(arguments: list[str]) -> list[str]:
    """Fill in what ``distill test`` or ``validate`` leaves out: the newest run, its configuration, its best checkpoint.

    Raises:
        ConfigError: when there is no run, or no such checkpoint, or its configuration is damaged.
        CacheError: when its configuration would let a model run its own code, and the command does not allow it.
    """
    if arguments[0] == "fit" or {"-h", "--help", "--print_config"} & set(arguments):
        return arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # jsonargparse parses all words or none
    parser.add_argument("-c", "--config", action="append", default=[], type=Path)
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--probe.trust_remote_code", dest="trust", default="false")
    given, _ = parser.parse_known_args(arguments[1:])
    checkpoint = given.ckpt_path or (RunFolder(given.run) if given.run else newest_run(_run_of(given.config))).best
    read_checkpoint(checkpoint)
    run = RunFolder(checkpoint.parent.parent) if checkpoint.parent.name else RunFolder.of_checkpoint(checkpoint)
    log.info("%s: %s", arguments[0], checkpoint)
    added = []  # first, so that other keys win over it; no file of a run, perhaps somebody else's, allows a model's code
    if run.config.is_file():
        run.configuration(given.trust.lower() == "true")
        added = ["--config", str(run.config), "--probe.trust_remote_code", "false"]
    return [
        arguments[0],
        *added,
        *arguments[1:],
        *([] if given.ckpt_path else ["--ckpt_path", str(checkpoint)]),
        *([] if given.run else ["--run", str(run.path)]),
    ]


def _run_of(configs: list[Path]) -> Path | None:
    """The run that the last of the configurations with one names."""
    contents = [yaml.safe_load(path.read_text()) or {} for path in configs if path.is_file()]
    runs = [content["run"] for content in contents if content.get("run")]
    return Path(runs[-1]) if runs else None


class Parser(CommandParser, LightningArgumentParser):
    """LightningCLI's parser that takes whole keys only and says what was probably meant."""


class DistillCLI(LightningCLI):
    """LightningCLI with a run folder and the probes."""

    lock: IO[str] | None = None
    tasks: Mapping[str, Task] | None = None

    @classmethod
    def of(cls, command: str, tasks: Mapping[str, Task] | None = None) -> type[Self]:
        """The same with one command, since the parsers of all of them take a second; and with other tasks to probe."""
        commands = {command: cls.subcommands()[command]}
        return type(cls.__name__, (cls,), {"subcommands": staticmethod(lambda: commands), "tasks": tasks})

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
        add_requirements(parser)
        parser.add_class_arguments(Evaluation, "probe")
        parser.link_arguments("data.statistics", "model.statistics", apply_on="instantiate")

    def _parse_ckpt_path(self) -> None:
        """Read no hyperparameters in the checkpoint, as Lightning does; refuse one of another program."""
        command = self.config["subcommand"]
        if (checkpoint := self.config[command]["ckpt_path"]) and is_rank_zero():
            content = read_checkpoint(Path(checkpoint))
            if command == "fit" and "optimizer_states" not in content:
                raise ConfigError(
                    f"{checkpoint} has weights and no state of the optimiser, as start.ckpt and average.ckpt: a fit goes "
                    "on from RUN/checkpoints/last.ckpt"
                )

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            config = self.config["fit"]
            if not config["ckpt_path"]:
                config["run"], config["ckpt_path"] = place(Path(config["run"]), os.environ)
            if config["ckpt_path"] and is_rank_zero():
                checkpoint = Path(config["ckpt_path"])
                run = RunFolder.of_checkpoint(checkpoint)
                if not run.config.is_file():
                    raise ConfigError(
                        f"no {run.config}: a checkpoint must lie in its run's folder, as RUN/checkpoints/last.ckpt"
                    )
                config["run"] = run.path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        kwargs["use_distributed_sampler"] = False  # BatchOrder already knows ranks
        chosen = self._get(self.config_init, "trainer")
        checkpoint = self._get(self.config, "ckpt_path")
        run = RunFolder.of_checkpoint(Path(checkpoint)) if checkpoint else None
        precision = choose_precision(chosen["precision"], self.model.student, chosen["accelerator"], run)
        kwargs["precision"], self.why_precision = precision
        fitting = self.subcommand == "fit"
        callbacks = [*(chosen["callbacks"] or []), InterruptBetweenSteps()]
        if chosen["enable_model_summary"] is None:  # a line says it, see before_fit
            kwargs["enable_model_summary"] = False
        if chosen["enable_progress_bar"] is not False and fitting:
            callbacks.append(FitProgress())
        kwargs["enable_progress_bar"] = fitting and chosen["enable_progress_bar"]  # of held-out rows, for seconds: none
        probing = self._get(self.config_init, "probe")
        if fitting:
            self._require_input()
        if fitting and probing.tasks and not self._get(self.config, "ckpt_path"):  # a run of an earlier version may go on
            probing.check_names(self.datamodule.corpora)
            probing.check_paths()
        if fitting and probing.every:
            callbacks.append(ProbeDuring(probing))
        if not fitting:
            kwargs["default_root_dir"] = Path(self._get(self.config, "run"))
            return self._trainer(logger=False, callbacks=callbacks, **kwargs)
        with ExitStack() as undo:
            run = self._take_folder(undo)
            if chosen["enable_checkpointing"] is not False:
                callbacks += self._checkpoints(run, probing)
            if every := self._get(self.config, "conflict"):
                callbacks.append(Conflict(every))
            kwargs["default_root_dir"] = run.path
            kwargs["logger"] = [TensorBoardLogger(run.path, "", ""), CSVLogger(run.path, "", "")]
            kwargs["plugins"] = [*_listed(chosen["plugins"]), WholeCheckpoints()]
            trainer = self._trainer(callbacks=callbacks, **kwargs)
            facts = facts_of(self.config["fit"].as_dict(), self.datamodule, str(trainer.precision))
            self.config_init["fit"]["ckpt_path"] = follow_rank_zero(trainer, self._get(self.config, "ckpt_path"), facts)
            undo.pop_all()
        return trainer

    def _require_input(self) -> None:
        """Refuse a corpus whose input the student does not read, before a folder is made."""
        for part in self.datamodule.corpora:
            if not self.model.student.reads(part.inputs.name):
                holds = f"{part.columns.corpus} holds {part.corpus.modality}s, of which data.input is {part.inputs.name}"
                raise ConfigError(
                    f"{holds}; a {type(self.model.student).__name__} does not read it: choose another one of the two"
                )

    def _trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())[:400]
            raise ConfigError(f"the options `trainer` suit neither this machine nor each other: {reason}") from None

    def _take_folder(self, undo: ExitStack) -> RunFolder:
        """The folder that this fit alone writes: a new one, or that of its checkpoint.

        Rank zero takes it. The other ranks may know another name, since they write nothing and Lightning sends them where
        checkpoints are.

        Args:
            undo: removes a new folder.
        """
        config = self.config["fit"]
        run = RunFolder(Path(config["run"]))
        if not is_rank_zero():
            return run
        if not config["ckpt_path"]:
            run = RunFolder.claim(run.path)
            undo.callback(shutil.rmtree, run.path)
        self.lock, config["run"] = run.lock(), run.path
        run.keep_metrics()
        return run

    def _checkpoints(self, run: RunFolder, probing: Evaluation) -> list[ModelCheckpoint]:
        """best.ckpt, and last.ckpt at every validation and every so many steps."""
        monitor = self._get(self.config, "monitor")
        kind, _, name = monitor.partition("/")
        if kind not in BETTER or (kind == "probe" and not probing.every):
            kinds = ", ".join(f"{kind}/..." for kind in BETTER)
            raise ConfigError(f"monitor is {monitor}, expected one of {kinds}; probe/... needs probe.every")
        if kind == "probe" and name.split()[0] not in (probed := ["mean", *probing.during]):
            raise ConfigError(f"monitor is {monitor}; probed during the fit are: probe/{', probe/'.join(probed)}")
        mode, epochs = BETTER[kind], probing.every if kind == "probe" else None
        steps = self._get(self.config, "checkpoint_every")
        return [  # without version counters: a moved run keeps one file of each
            ModelCheckpoint(
                run.checkpoints,
                run.best.stem,
                monitor,
                save_last=True,
                mode=mode,
                every_n_epochs=epochs,
                enable_version_counter=False,
            ),
            ModelCheckpoint(run.checkpoints, run.last.stem, every_n_train_steps=steps, enable_version_counter=False),
        ]

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        finally:
            if subcommand == "fit" and self.lock:
                self.lock.close()  # a notebook goes on after a fit

    def before_fit(self) -> None:
        if self.trainer.is_global_zero:
            log.info("fit: %s; teachers: %s", self.trainer.default_root_dir, ", ".join(self.model.teachers))
            log.info("precision: %s, %s", self.trainer.precision, self.why_precision)
            parts = [self.model.student], [self.model.heads, self.model.prefixes]
            sizes = [sum(each.numel() for part in group for each in part.parameters()) for group in parts]
            log.info("parameters: student %s, heads %s", *(f"{size:,}" for size in sizes))

    def after_fit(self) -> None:
        run = RunFolder(Path(self.trainer.default_root_dir))
        if self.trainer.checkpoint_callbacks and not self.trainer.strategy.broadcast(run.best.exists()):
            self.trainer.save_checkpoint(run.best)  # it ended before its first validation
        if self.trainer.is_global_zero:
            run.finish(self.trainer.current_epoch, self.trainer.global_step)
            if run.best.exists():
                log.info("written: %s; next: distill test --run %s", run.best, run.path)
        if self.trainer.received_sigterm:  # behind the last step
            sys.exit(TERMINATED)

    def after_validate(self) -> None:
        if self.trainer.is_global_zero:
            log.info("next: distill test --run %s", self.trainer.default_root_dir)

    def before_test(self) -> None:
        check(self._get(self.config, "require"))
        self.config_init["test"]["verbose"] = False  # Lightning's table has three lines for each teacher
        self.evaluation: Evaluation = self._get(self.config_init, "probe")
        self.evaluation.tasks = dict(self.tasks or self.evaluation.tasks)
        self.evaluation.prepare(self.datamodule.corpora)
        spec = self._get(self.config, "model").student.as_dict()
        run = RunFolder.of_checkpoint(Path(self.trainer.ckpt_path or self._get(self.config, "ckpt_path")))
        saved = student_of(read_checkpoint(run.start)) if run.start.is_file() else None
        # the checkpoint is loaded later, by the trainer
        self.undistilled = undistilled(self.model.student, spec, self.datamodule.corpora, saved)

    def after_test(self) -> None:
        if not self.trainer.is_global_zero:
            return
        from distill.report import sections, tables  # here, since a fit draws nothing

        log.info("held-out rows: %s", figures(self.trainer.callback_metrics))
        run, device = RunFolder(Path(self.trainer.default_root_dir)), str(self.trainer.strategy.root_device)
        checkpoint = str(self.trainer.ckpt_path)
        with TemporaryDirectory(prefix=f".{run.probes.name}", dir=run.path) as temporary:
            results = self._probe(RunFolder(run.path, Path(temporary) / run.probes.name), device, checkpoint)
            title, origin, margin = f"Probes of {run.path}", f"Checkpoint `{checkpoint}`.", results.about["margin"]
            try:
                summary = sections.write(results.run.probes, title, {"student": [results]}, origin, margin=margin)
            finally:  # results are kept, also when they cannot be drawn
                run.publish_probes(results.run.probes)
        tables.print_scores(*summary, f"{run.probes}/report.html, report.md, results.json", f"{checkpoint}: probes, ")
        log.info("next: distill export --ckpt_path %s --out FOLDER", checkpoint)
        require(self._get(self.config, "require"), summary.answers)

    def _probe(self, run: RunFolder, device: str, checkpoint: str) -> Results:
        """Write the results of the probes into the run."""
        students: Students = {"student": self.model.student, **self.undistilled}
        run.probes.mkdir()
        with as_trained(self.trainer):
            dims = self.model.bank.dims
            records = self.evaluation.run(students, device, keep=run.probes, dims=dims)
            costs = self.evaluation.costs(students, device, dims)
            spaces, _ = teacher_spaces(self.model.bank, self.datamodule.statistics)
            found = search_recall(self.model.student, spaces, self.datamodule.val_dataloader(), device)
        facts = {"search": found, "margin": self._get(self.config, "margin")}
        facts |= about(checkpoint, device, self.datamodule.corpora, self.evaluation.left_out)
        results = Results(run, records, costs, facts)
        results.save()
        return results


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given else []

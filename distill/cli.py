"""``distill fit | validate | test | compare | export | predict | study | mteb | specialise``."""

import argparse
import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import yaml
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
from rich.console import Console

from cache_tools.console import start
from cache_tools.errors import ConfigError, QuorumError
from distill import report, scores
from distill.conflict import Conflict
from distill.data import DistillData
from distill.evaluate import Evaluation
from distill.export import export_of
from distill.module import Distiller
from distill.prepared import Students
from distill.probing import ProbeDuring
from distill.results import FOLDER, Results, about
from distill.systems import before

log = logging.getLogger(__name__)

USAGE = "distill {} --config configs/mol.yaml [--KEY VALUE ...]   (every key: distill {} --help)"
HELP = """usage: distill COMMAND [--KEY VALUE ...]

  fit         train a student: --config configs/mol.yaml
              a killed one goes on: --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
  test        probe a run on the tasks of its configuration: the newest one, or --run RUN, or --ckpt_path FILE
  validate    what its heads tell of each teacher on held-out rows
  compare     probes of several runs in one report: RUN RUN ...; of several studies: --studies FOLDER FOLDER ...
  export      the newest run, or --ckpt_path FILE, as a folder that needs nothing else: --out FOLDER
  predict     a student's embeddings as a column of a cache: --corpus cache/mol
  study       several methods, seeds and sets of teachers: --config configs/studies/methods.yaml
  mteb        an exported student of texts on tasks of MTEB: --student FOLDER
  specialise  tune a teacher on a labelled task, for its logits: --config configs/specialists/tiny20.yaml --out FILE

Every key of a command: distill COMMAND --help"""
COMMANDS = ("fit", "validate", "test")
BETTER = {"val": "min", "loss": "min", "nll": "min", "r2": "max", "cosine": "max", "nats": "max", "probe": "max"}


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
        _keep_metrics(run)
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
            Console().print(scores.table(found, f"{checkpoint}: probes, {split} split"))
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


def _keep_metrics(run: Path) -> None:
    """Move the metrics.csv of a run that goes on out of the new one's way, to metrics-1.csv, metrics-2.csv ..."""
    with suppress(FileNotFoundError):  # there is none, or another rank did it
        (run / "metrics.csv").rename(run / f"metrics-{1 + len(list(run.glob('metrics-*.csv')))}.csv")


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


def complete(arguments: list[str]) -> list[str]:
    """Fill in what ``distill test`` or ``validate`` leaves out: the newest run, its configuration, its best checkpoint.

    Raises:
        ConfigError: when there is no run, or no such checkpoint.
    """
    if not arguments or arguments[0] not in ("test", "validate") or {"-h", "--help", "--print_config"} & set(arguments):
        return arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--run", type=Path)
    given, _ = parser.parse_known_args(arguments[1:])
    named = given.run / "checkpoints" / "best.ckpt" if given.run else None
    checkpoint = given.ckpt_path or named or _newest_checkpoint(_run_of(given.config))
    if not checkpoint.is_file():
        where = checkpoint.absolute()
        raise ConfigError(f"no checkpoint at {where}: expected RUN/checkpoints/best.ckpt of a `distill fit`")
    run = checkpoint.parents[1]
    log.info("%s: %s", arguments[0], checkpoint)
    mine = run / "config.yaml"
    added = ["--config", str(mine)] if mine.is_file() else []  # first, so that other keys win over it
    return [
        arguments[0],
        *added,
        *arguments[1:],
        *([] if given.ckpt_path else ["--ckpt_path", str(checkpoint)]),
        *([] if given.run else ["--run", str(run)]),
    ]


def _run_of(configs: list[str]) -> Path | None:
    read = [yaml.safe_load(Path(each).read_text()) or {} for each in configs if Path(each).is_file()]
    runs = [config["run"] for config in read if config.get("run")]
    return Path(runs[-1]) if runs else None


def _newest_checkpoint(run: Path | None) -> Path:
    """The best checkpoint of the newest of ``run``, ``run-2`` ..., or of all runs."""
    if run:
        mine = re.compile(re.escape(run.name) + r"(-\d+)*")
        folders = [path for path in run.parent.glob("*") if mine.fullmatch(path.name)]
        every = [path / "checkpoints" / "best.ckpt" for path in folders]
    else:
        every = list(Path("runs").glob("**/checkpoints/best.ckpt"))
    found = sorted((path for path in every if path.is_file()), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no finished run at {run or 'runs/'}: train one with `distill fit --config configs/mol.yaml`")
    return found[-1]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``distill``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        Console(width=130, highlight=False).print(HELP, markup=False)
        return
    start()
    try:
        if arguments[:1] == ["study"]:
            from distill.study import main as study

            return study(arguments[1:])
        if arguments[:1] == ["specialise"]:
            from distill.specialise import main as specialise

            return specialise(arguments[1:])
        if arguments[:1] == ["mteb"]:
            from distill.mteb import main as mteb

            return mteb(arguments[1:])
        if arguments[:1] == ["compare"]:
            from distill.compare import main as compare

            return compare(arguments[1:])
        if arguments[:1] in (["export"], ["predict"]):
            from distill.export import main as use

            given = {each.partition("=")[0] for each in arguments}
            newest = [] if given & {"--ckpt_path", "--student", "-h", "--help"} else [str(_newest_checkpoint(None))]
            return use([*arguments, *(f"--ckpt_path={each}" for each in newest)])
        arguments = complete(arguments)
        usage = {name: {"usage": USAGE.format(name, name)} for name in COMMANDS}
        DistillCLI(
            Distiller,
            DistillData,
            args=arguments,
            seed_everything_default=0,
            parser_kwargs=usage,
            parser_class=Parser,
            # only a fit writes the run's configuration: that of a test would take its place
            save_config_callback=SaveConfig if arguments[:1] == ["fit"] else None,
            save_config_kwargs={"overwrite": True},
        )
    except QuorumError as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        what = " ".join(str(error).split())[:400]
        sys.exit(
            "error: the checkpoint's student and heads are not those of the configuration; name its own, "
            f"RUN/config.yaml: {what}"
        )


if __name__ == "__main__":
    main()

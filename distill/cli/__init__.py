"""``distill fit | validate | test | compare | export | predict | study | mteb | specialise``."""

import argparse
import logging
import re
import sys
from pathlib import Path

import yaml
from rich.console import Console

from cache_tools import ConfigError, QuorumError, start_console
from distill.cli import fit

log = logging.getLogger(__name__)

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
    start_console()
    try:
        if arguments[:1] == ["study"]:
            from distill.study.study import main as study

            return study(arguments[1:])
        if arguments[:1] == ["specialise"]:
            from distill.study.specialise import main as specialise

            return specialise(arguments[1:])
        if arguments[:1] == ["mteb"]:
            from distill.evaluation.mteb import main as mteb

            return mteb(arguments[1:])
        if arguments[:1] == ["compare"]:
            from distill.report.compare import main as compare

            return compare(arguments[1:])
        if arguments[:1] in (["export"], ["predict"]):
            from distill.cli.export import main as use

            given = {each.partition("=")[0] for each in arguments}
            newest = [] if given & {"--ckpt_path", "--student", "-h", "--help"} else [str(_newest_checkpoint(None))]
            return use([*arguments, *(f"--ckpt_path={each}" for each in newest)])
        fit.run(complete(arguments))
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

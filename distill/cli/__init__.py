"""The command ``distill``: shows the help, runs the module of the command that was named, and says errors in words."""

import errno
import sys
from importlib import import_module

from cache_tools import (
    Interruptible,
    QuorumError,
    choose_command,
    install_hint,
    read_configurations,
    start_console,
    with_packaged,
)
from distill.cli import light

HELP = """usage: distill COMMAND [--KEY VALUE ...]

  fit         train a student: --config configs/mol.yaml, or mol, which comes with this package
              its recipes: mol-{tiny,small,base}, text-{tiny,small,base}, vision-{tiny,small,base}
              continue a stopped fit: --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
  test        probe a run on the tasks of its configuration: the newest run, or --run RUN, or --ckpt_path FILE
  validate    measure on held-out rows how well the heads predict each teacher
  average     average a student with the pretrained weights that it began with: --run RUN --share 0.5
  compare     put the probes of several runs into one report: RUN RUN ...; of several studies: --studies FOLDER FOLDER ...
  export      write a student to a folder that needs nothing else: --out FOLDER; of the newest run, or --ckpt_path FILE
  embed       embed a table or a folder: --student NAME or FOLDER --input x.csv --column smiles --out y.parquet
  students    list the students that come with this package, with size, speed, verdict and licence
  predict     write a student's embeddings as a column of a cache: --corpus cache/mol
  study       train and compare several methods, seeds and sets of teachers: --config configs/study.yaml
  mteb        score an exported student of texts on tasks of MTEB: --student FOLDER
  specialise  tune a teacher on a labelled task, for its logits: --config configs/specialist.yaml --out FILE

Every key of a command: distill COMMAND --help; the version: distill --version"""

MODULES = {  # command -> module of this package
    **dict.fromkeys(("fit", "validate", "test"), "fit"),
    "compare": "compare",
    "study": "study",
    "students": "students",
    **dict.fromkeys(("average", "embed", "export", "predict", "mteb", "specialise"), "functions"),
}


ADVICE = {  # what to do about an error of the system
    errno.ENOSPC: "make space on the disk, then continue",
    errno.EDQUOT: "make space in your share of the disk, then continue",
    errno.EFBIG: "files cannot be this large here: raise `ulimit -f`, then continue",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "give this user the right to use it (`ls -l` shows its owner), or choose another folder",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``distill``.

    Args:
        arguments: the words after ``distill``; those of the command line when not given.
    """
    arguments = with_packaged(sys.argv[1:] if arguments is None else arguments)
    module = MODULES[choose_command(HELP, MODULES, arguments)]
    with Interruptible("interrupted"):
        start_console(arguments)
        light.install()
        try:
            if module == "fit":
                import_module("distill.cli.keys").check_keys(arguments)
            else:
                list(read_configurations(arguments))  # a missing or broken file is told with its line
            import_module(f"distill.cli.{module}").main(arguments if module in ("fit", "functions") else arguments[1:])
        except QuorumError as error:
            sys.exit(f"error: {error}")
        except ModuleNotFoundError as error:
            if not (hint := install_hint(str(error))):
                raise
            sys.exit(f"error: {error}{hint}")
        except OSError as error:
            if error.errno is None:  # not of the system
                raise
            advice = ADVICE.get(error.errno, "then run the same command again")
            sys.exit(f"error: {error.filename or 'a file that was written'}: {error.strerror}: {advice}")

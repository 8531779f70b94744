"""``distill export | predict``."""

from jsonargparse import auto_cli

from distill.export.write import export, predict
from distill.run_folder import newest_run

GIVEN = {"--ckpt_path", "--student", "-h", "--help"}  # with one of these the newest run is not looked for


def main(arguments: list[str]) -> None:
    """Entry point of ``distill export`` and ``distill predict``; without a checkpoint or student, of the newest run's.

    Args:
        arguments: ``export`` or ``predict``, and the words that follow it on the command line.
    """
    keys = {word.partition("=")[0] for word in arguments}
    newest = [] if keys & GIVEN else [f"--ckpt_path={newest_run().best}"]
    auto_cli({"export": export, "predict": predict}, args=[*arguments, *newest], as_positional=False)

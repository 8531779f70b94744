"""``distill export | predict``."""

from jsonargparse import auto_cli

from distill.export.write import export, predict


def main(arguments: list[str]) -> None:
    """Entry point of ``distill export`` and ``distill predict``."""
    auto_cli({"export": export, "predict": predict}, args=arguments, as_positional=False)

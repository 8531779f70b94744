"""``distill mteb``."""

from jsonargparse import auto_cli

from distill.evaluation.mteb import mteb


def main(arguments: list[str]) -> None:
    """Entry point of ``distill mteb``."""
    auto_cli(mteb, args=arguments, as_positional=False, prog="distill mteb")

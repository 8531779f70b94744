"""``distill specialise``."""

from jsonargparse import auto_cli

from distill.study.specialise import specialise


def main(arguments: list[str]) -> None:
    """Entry point of ``distill specialise``."""
    auto_cli(specialise, args=arguments, as_positional=False, prog="distill specialise")

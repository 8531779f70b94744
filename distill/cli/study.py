"""``distill study``: fit and probe one student under several methods, seeds and subsets of its teachers."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path

from jsonargparse import auto_cli

from cache_tools import Cluster, CommandParser, ConfigError, Resources
from distill.study.attribution import Subsets
from distill.study.run import Sweep
from distill.study.slurm import write_array
from distill.study.study import Study, make

log = logging.getLogger(__name__)

NOT_PLANNED = ("only", "slurm", "sweep", "ray", "ray_resources")  # arguments that say how and where, not what


def study(
    base: list[Path] | Path,
    methods: dict[str, list[Path] | Path],
    out: Path,
    runs: Path = Path("runs/study"),
    seeds: list[int] | None = None,
    jobs: int = 1,
    teachers: list[str] | None = None,
    subsets: Subsets | None = None,
    sweep: Sweep | None = None,
    redraw: bool = True,
    only: int | None = None,
    slurm: bool = False,
    ray: str | None = None,
    ray_resources: Resources = Resources(),  # noqa: B008 - frozen
) -> None:
    """Fit and probe every method with every seed and subset of the teachers, then write the report.

    A study that was killed continues where it stopped.

    Args:
        base: configuration that all methods share, or several in order.
        methods: name -> configuration of the method, or several, laid over ``base``.
        out: a folder for report.html, report.md and figures.
        runs: a folder per run goes here.
        seeds: each one is a run's seed, and with ``redraw`` the seed of its probes' splits; 0, 1 and 2 when not given.
        jobs: runs at a time; they share the cores.
        teachers: columns of one ``data.corpus``, to measure what each of them contributes.
        subsets: of ``teachers``. ``leave-one-out``: all, and all but each. ``all``: every subset, which gives exact Shapley
            values. A number: those of so many random orders in which the teachers join, which gives estimates.
        sweep: a learning rate that every method is tried with before its runs, by the first seed; all of its runs have the
            one with the least loss on held-out rows.
        redraw: each seed draws its own splits. False: all runs are probed on the splits of the first seed, and teachers and
            other systems that depend on no fit are probed once, not once per seed.
        only: make this one run, counted from 0, and no report.
        slurm: write a SLURM array of all runs into ``runs`` and print how to submit it, instead of making them here.
        ray: let a Ray cluster make the runs, whose nodes share this folder: ``local`` starts one on this machine, ``auto``
            finds the one that this machine belongs to, ``HOST:PORT`` is that of a head node. ``jobs`` runs wait at a time.
        ray_resources: what Ray keeps for one run.

    Raises:
        ConfigError: when the arguments do not go together.
        QuorumError: when runs failed; all others are done then.
    """
    settings = {key: value for key, value in locals().items() if key not in NOT_PLANNED}
    settings |= {"sweep": asdict(sweep)} if sweep else {}
    planned = Study(base, methods, runs, [0, 1, 2] if seeds is None else seeds, teachers, subsets, sweep, redraw)
    planned.require_corpora()
    if only is not None:
        return planned.make_one(only)
    planned.require_different_methods(resolve)
    if slurm:
        return write_array(settings, runs, len(planned.grid))
    log.info("%s: %d runs", runs, len(planned.grid))
    with nullcontext() if ray is None else Cluster(ray, ray_resources) as cluster:
        make(planned.grid, jobs, cluster)
    planned.report(out)
    log.info(
        "next: distill compare --studies %s OTHER, or distill export --ckpt_path %s/RUN/checkpoints/best.ckpt", out, runs
    )


def resolve(configs: Sequence[Path]) -> str:
    """Everything that ``distill fit`` reads from its configuration files, defaults included, as YAML.

    Raises:
        ConfigError: when it refuses them.
    """
    from distill.cli.fit import main as fit

    printed, errors = StringIO(), StringIO()
    words = [word for path in configs for word in ("--config", str(path))]
    try:
        with redirect_stdout(printed), redirect_stderr(errors):
            fit(["fit", *words, "--print_config"])
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(errors.getvalue().rpartition("error: ")[2].strip() or str(stop.code)) from None
    return printed.getvalue()


def main(arguments: list[str]) -> None:
    """Entry point of ``distill study``."""
    auto_cli(study, args=arguments, as_positional=False, prog="distill study", parser_class=CommandParser)

"""The runs of a study as an array of a SLURM cluster."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

ARRAY = """#!/bin/bash
# One element per run of a study. This submits it, and the report for when all elements are done:
#   {submit}
# Add the options of your cluster (--time, --partition, --gpus ...) after each `sbatch`; finished runs are not repeated.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={output}
cd {here} && exec {study} --only "$SLURM_ARRAY_TASK_ID"
"""


def write_array(settings: Mapping[str, Any], runs: Path, count: int) -> None:
    """Write a SLURM array of a study's runs, and print how to submit it and the report.

    Args:
        settings: arguments of the study; elements read a copy in ``runs``, so that the study's own file may change.
        runs: the study's folder.
        count: how many runs there are.
    """
    runs.mkdir(parents=True, exist_ok=True)
    config, script = runs / "array.yaml", runs / "array.sh"
    config.write_text(yaml.safe_dump(json.loads(json.dumps(settings, default=str)), sort_keys=False))
    command = shlex.join([sys.executable, "-m", "distill.cli", "study", "--config", str(config)])
    here, output = shlex.quote(os.getcwd()), shlex.quote(str(runs.absolute() / "array-%a.log"))
    report = f"sbatch --dependency=afterok:$job --kill-on-invalid-dep=yes --wrap {shlex.quote(f'cd {here} && {command}')}"
    submit = f"job=$(sbatch --parsable {shlex.quote(str(script))}) && {report}"
    facts = {"name": shlex.quote(runs.name), "last": count - 1, "output": output, "here": here, "study": command}
    script.write_text(ARRAY.format(submit=submit, **facts))
    Console().print(
        f"written: {script}, {count} runs; to submit them and the report:\n{submit}", soft_wrap=True, markup=False
    )

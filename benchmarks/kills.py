"""Kill builds and fits with SIGKILL at random moments, go on each time, and compare the end with an undisturbed one.

    python benchmarks/kills.py FOLDER [--builds 26] [--fits 12]

A build is killed 26 times. Whenever one ends by itself, every file of its cache must equal the undisturbed one's and
`distill-cache verify` must find nothing; then a new one begins. Fits with one rank and with two (gloo) are killed 12
times in all, the first process or another rank. They go on from last.ckpt; weights and the optimiser must be equal.

FOLDER/kills.csv gets a line per kill. The script itself can be stopped: the same command goes on from there.
"""

import argparse
import csv
import filecmp
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

MOLECULE = "cache_tools.teachers.molecule"
BUILD = {
    "corpus": {"class_path": "cache_tools.RdkitSamples", "init_args": {"limit": 1500}},
    "teachers": {
        "descriptors": {"class_path": f"{MOLECULE}.RdkitDescriptors"},
        "maccs": {"class_path": f"{MOLECULE}.Maccs"},
    },
    "inputs": {"graph": {"class_path": "cache_tools.inputs.MoleculeGraph"}},
    "settings": {"shard_rows": 64, "batch_size": 32, "workers": 2, "device": "cpu"},
    "name": "mol",
}
FIT: dict[str, Any] = {
    "trainer": {"max_epochs": 8, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 5},
    "checkpoint_every": 3,
    "data": {"batch_size": 32, "held_out": 100},
    "model": {
        "student": {"class_path": "distill.students.molecule.GraphStudent", "init_args": {"layers": 2, "width": 32}},
        "head": {"class_path": "distill.heads.GaussianHead"},
    },
    "probe": {"tasks": {}},
}
TWO_RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "16"]  # rows in all as with one


class Trial:
    """Processes that are killed, and the table of them.

    Args:
        folder: where everything is written.
    """

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "kills.csv"
        folder.mkdir(parents=True, exist_ok=True)

    def kills(self, kind: str) -> list[dict[str, str]]:
        """The kills of this kind so far."""
        if not self.log.exists():
            return []
        with self.log.open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["kind"] == kind]

    def run(self, module: str, *words: str, kind: str = "", within: float = 0.0) -> bool:
        """Run a command to its end, or kill it at a random moment ``within`` so many seconds.

        Returns:
            Whether it ended by itself, without an error.
        """
        with (self.folder / "output.txt").open("a") as output:
            command = [sys.executable, "-m", module, *words]
            process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "1"})
            if not within:
                if process.wait():
                    sys.exit(f"{' '.join(command)} ended with {process.returncode}, see {output.name}")
                return True
            delay = random.uniform(0.2, 1.0) * within
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                ranks = children(process.pid, module)
                victim = random.choice([process.pid, *ranks])
                os.kill(victim, signal.SIGKILL)
                process.wait()
                for child in ranks:  # they end by themselves
                    until_over(child)
                self.note(kind, delay, "first process" if victim == process.pid else "another rank")
                return False
            if process.returncode:
                sys.exit(f"{' '.join(command)} ended with {process.returncode}, see {output.name}")
            return True

    def note(self, kind: str, delay: float, victim: str) -> None:
        """Write a line of the table."""
        new = not self.log.exists()
        with self.log.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["kind", "after, s", "killed"])
            writer.writerow([kind, f"{delay:.1f}", victim])


def children(process: int, module: str) -> list[int]:
    """The processes of the same command that a process started: ranks."""
    words = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [
        int(line.split()[0]) for line in words.stdout.splitlines() if module.replace(".", "/") in line.replace(".", "/")
    ]


def until_over(process: int) -> None:
    """Wait until a process of another process has ended.

    Raises:
        SystemExit: when it still runs after a minute.
    """
    for _ in range(600):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
        if state.stdout.strip()[:1] in ("", "Z"):
            return
        time.sleep(0.1)
    sys.exit(f"process {process} still runs a minute after the first process was killed")


def differences(one: Path, other: Path) -> list[str]:
    """Paths of files that are not the same in two folders, or in one of them only."""
    files = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (one, other)]
    alone = files[0] ^ files[1]
    return [
        str(path)
        for path in sorted(files[0] | files[1])
        if path in alone or not filecmp.cmp(one / path, other / path, False)
    ]


def builds(trial: Trial, kills: int) -> str:
    """Kill builds; what was compared."""
    config = trial.folder / "build.yaml"
    config.write_text(yaml.safe_dump(BUILD))

    def words(cache: Path) -> list[str]:
        return ["build", "--config", str(config), "--cache", str(cache)]

    whole, killed = trial.folder / "whole", trial.folder / "killed"
    started = time.monotonic()
    trial.run("cache_tools.cli", *words(whole))
    seconds = trial.folder / "seconds"
    if not seconds.exists():
        seconds.write_text(f"{time.monotonic() - started:.1f}")
    while len(trial.kills("build")) < kills or killed.exists():
        within = float(seconds.read_text()) if len(trial.kills("build")) < kills else 0.0
        if trial.run("cache_tools.cli", *words(killed), kind="build", within=within):
            if different := differences(whole, killed):
                sys.exit(f"{killed} differs from {whole}: {different}")
            trial.run("cache_tools.cli", "verify", "--cache", str(killed))
            trial.note("build, equal", 0, "")
            shutil.rmtree(killed)
    files = sum(path.is_file() for path in whole.rglob("*"))
    return f"{len(trial.kills('build, equal'))} finished caches: all {files} files equal, verify finds nothing"


def fits(trial: Trial, kills: int, ranks: int) -> str:
    """Kill fits with so many ranks; what was compared."""
    kind, options = f"fit, {ranks} ranks" if ranks > 1 else "fit, 1 rank", TWO_RANKS if ranks > 1 else []
    config = trial.folder / "fit.yaml"
    config.write_text(yaml.safe_dump(FIT | {"data": FIT["data"] | {"corpus": str(trial.folder / "whole" / "mol")}}))
    whole, killed = trial.folder / f"whole-{ranks}", trial.folder / f"killed-{ranks}"
    seconds = trial.folder / f"seconds-{ranks}"
    if not seconds.exists():
        shutil.rmtree(whole, ignore_errors=True)
        started = time.monotonic()
        trial.run("distill.cli", "fit", "--config", str(config), "--run", str(whole), *options)
        seconds.write_text(f"{time.monotonic() - started:.1f}")
    while len(trial.kills(kind)) < kills or killed.exists():
        last = killed / "checkpoints" / "last.ckpt"
        if last.is_file():
            words = ["--config", str(killed / "config.yaml"), "--ckpt_path", str(last)]
        else:
            shutil.rmtree(killed, ignore_errors=True)
            words = ["--config", str(config), "--run", str(killed), *options]
        within = float(seconds.read_text()) if len(trial.kills(kind)) < kills else 0.0
        if trial.run("distill.cli", "fit", *words, kind=kind, within=within):
            for name in ("best.ckpt", "last.ckpt"):
                compare(killed / "checkpoints" / name, whole / "checkpoints" / name)
            trial.note(f"{kind}, equal", 0, "")
            shutil.rmtree(killed)
    return f"{len(trial.kills(f'{kind}, equal'))} finished fits: weights and optimiser equal"


def compare(one: Path, other: Path) -> None:
    """Compare the weights and the optimiser of two checkpoints.

    A fit that continued within its last two steps writes last.ckpt once more at its end; then only best.ckpt tells.

    Raises:
        SystemExit: when they are not equal.
    """
    saved = [torch.load(path, weights_only=True) for path in (one, other)]
    if one.name == "last.ckpt" and saved[0]["global_step"] == saved[1]["global_step"] + 1:
        return
    for key, of in {"weights": "state_dict", "optimiser": "optimizer_states", "step": "global_step"}.items():
        contents = [checkpoint[of] for checkpoint in saved]
        if of == "optimizer_states":
            contents = [[optimiser["state"] for optimiser in content] for content in contents]
        try:
            torch.testing.assert_close(*contents, rtol=0, atol=0, equal_nan=True)
        except AssertionError as error:
            sys.exit(f"{one} and {other} differ in {key}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--builds", type=int, default=26, help="how often builds are killed")
    parser.add_argument("--fits", type=int, default=12, help="how often fits are killed")
    given = parser.parse_args()
    trial = Trial(given.folder.absolute())
    results = {"build": builds(trial, given.builds)}
    results["fit, 1 rank"] = fits(trial, given.fits // 2, 1)
    results["fit, 2 ranks"] = fits(trial, given.fits - given.fits // 2, 2)
    for kind, result in results.items():
        print(f"| {kind} | {len(trial.kills(kind))} kills | {result} |")


if __name__ == "__main__":
    main()

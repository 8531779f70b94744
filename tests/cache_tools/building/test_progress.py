import logging

import pytest

from cache_tools.building import progress
from cache_tools.building.launch import Place, place


def test_without_a_terminal_plain_lines_say_rows_speed_and_time_left(caplog, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), progress.Meter("mol, gin", 1000) as meter:
        for rows in (100, 200, 300):
            meter.at(rows, rows * 1000)
    assert len(caplog.messages) >= 1, "a line every half minute, not one for each batch"
    assert len(caplog.messages) < 3
    assert caplog.messages[0].startswith("mol, gin: ")
    for word in ("of 1000 rows", "rows/s", "kB/s", "s left"):
        assert word in caplog.messages[0]


def test_only_one_writer_speaks(caplog, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with caplog.at_level(logging.INFO), progress.Meter("mol, gin", 1000, shown=False) as meter:
        meter.at(500, 1000)
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place(0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(5, 8, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, Place(3, 4, 1)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}, Place(2, 3, 0)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "4",
                "SLURM_ARRAY_TASK_STEP": "4",
                "SLURM_ARRAY_TASK_COUNT": "2",
                "SLURM_NTASKS": "2",
                "SLURM_PROCID": "1",
            },
            Place(3, 4, 0),
        ),
    ],
)
def test_torchrun_srun_and_slurm_arrays_are_understood(environment, expected):
    assert place(environment=environment) == expected
    assert place(1, 2, environment)[:2] == (1, 2), "arguments win"

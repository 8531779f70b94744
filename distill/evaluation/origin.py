"""The origin of results: command, device, versions, and the fingerprints of corpora and teachers."""

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from cache_tools import library_versions
from distill.data.columns import CorpusColumns


def about(checkpoint: str, device: str, corpora: Sequence[CorpusColumns], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The origin of results that are made now; ``left_out`` are teachers that could not embed the tasks."""
    fingerprints = {
        str(columns.columns.corpus): {
            "rows": columns.corpus.rows,
            "fingerprint": columns.corpus.fingerprint,
            "teachers": {name: column.manifest["producer"]["fingerprint"] for name, column in columns.teachers.items()},
        }
        for columns in corpora
    }
    accelerator = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "checkpoint": checkpoint,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["distill", *sys.argv[1:]]),
        "device": f"{device} ({accelerator}), {torch.get_num_threads()} threads",
        "versions": {
            "quorum-distill": version("quorum-distill"),
            "python": platform.python_version(),
            **library_versions(),
        },
        "corpora": fingerprints,
        "left_out": list(left_out),
    }

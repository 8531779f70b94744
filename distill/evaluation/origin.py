"""How results were made: command, device, versions, and the fingerprints of what was read."""

import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from cache_tools import library_versions
from distill.data.columns import CorpusColumns


def about(checkpoint: str, device: str, parts: Sequence[CorpusColumns], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """How results are made, here and now; ``left_out`` are teachers that could not embed the tasks."""
    corpora = {
        str(part.columns.corpus): {
            "rows": part.corpus.rows,
            "fingerprint": part.corpus.fingerprint,
            "teachers": {name: column.manifest["producer"]["fingerprint"] for name, column in part.teachers.items()},
        }
        for part in parts
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
        "corpora": corpora,
        "left_out": list(left_out),
    }

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import Trainer

from distill.data.module import DistillData


@pytest.fixture
def data(cache: Path) -> DistillData:
    return DistillData(cache / "mol", batch_size=32, held_out=64)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes one that trains on the CPU, says nothing and keeps nothing."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return lambda **options: Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet, **options)

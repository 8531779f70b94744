"""What a fit of the command line does beside training: keeps its configuration, ends on Ctrl-C, publishes checkpoints."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.plugins import TorchCheckpointIO
from torch.distributed import broadcast_object_list, get_rank, is_initialized

from cache_tools import Interruptible, QuorumError
from distill.evaluation.baselines import starts_at_random
from distill.run_folder import RunFolder

log = logging.getLogger(__name__)


class SaveConfig(SaveConfigCallback):
    """Writes config.yaml when training begins, so that a checkpoint that is refused leaves the run's own file.

    From then on the run is not finished; when its fit stops before its end, the command that continues it is shown.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.config["ckpt_path"] = None  # else a new run of this configuration would continue an old one
        self.config["probe"]["trust_remote_code"] = False  # each command says it again
        self.config["trainer"]["precision"] = trainer.precision  # what `auto` is, so that a continued run computes the same
        data, parts = self.config["data"], trainer.datamodule.corpora  # type: ignore[attr-defined]
        # by name, so that a column that the cache gets later is no teacher of this run
        for place, part in zip(data["corpora"] or [data], parts, strict=True):
            place["teachers"], place["input"] = list(part.teachers), part.inputs.name
        if trainer.is_global_zero:
            RunFolder(Path(trainer.default_root_dir)).finished.unlink(missing_ok=True)
        super().setup(trainer, pl_module, "fit")
        spec = self.config["model"]["student"].as_dict()
        if not trainer.ckpt_path and trainer.checkpoint_callbacks and not starts_at_random(pl_module.student, spec):  # type: ignore[arg-type]
            trainer.save_checkpoint(RunFolder(Path(trainer.default_root_dir)).start, weights_only=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        run = RunFolder(Path(trainer.default_root_dir))
        if isinstance(exception, QuorumError) or not trainer.is_global_zero or not self.already_saved:
            return  # an error of our own says what to do
        command = f"distill fit --config {run.config} --ckpt_path {run.last}; in Python: distill.resume({str(run.path)!r})"
        again = command if run.last.is_file() else "begin again"
        log.warning("the fit stopped after step %d and is not finished; to continue: %s", trainer.global_step, again)


class InterruptBetweenSteps(Callback):
    """Lets a Ctrl-C take effect between two batches, when no library is in the middle of its own work."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if Interruptible.current:
            Interruptible.current.asking = True

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if Interruptible.current:
            Interruptible.current.check()

    on_validation_batch_start = on_test_batch_start = on_train_batch_start

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if Interruptible.current:
            Interruptible.current.asking = False


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then renames it: Lightning's temporary folder may be on another disk.

    Rank zero reads a checkpoint for all ranks, since only its node is sure to have the file.
    """

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not is_initialized():
            return super().load_checkpoint(path, *args, **kwargs)
        content = [super().load_checkpoint(path, *args, **kwargs) if get_rank() == 0 else None]
        broadcast_object_list(content)
        assert content[0] is not None
        return content[0]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content, beside = io.BytesIO(), Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
        torch.save(checkpoint, content)
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(content.getbuffer())
            beside.replace(path)
        except OSError as error:  # a failed write names no file
            raise OSError(error.errno, error.strerror, str(path)) from None
        finally:
            beside.unlink(missing_ok=True)

"""One student of several modalities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cache_tools import ConfigError, Featuriser
from distill.students.base import Student


class MixedStudent(Student):
    """One encoder per modality and a trunk that all of them share, as in the paper's last experiment.

    A linear map brings each encoder's embedding to the width of the trunk, a residual MLP.

    Args:
        encoders: name -> a student of one modality; every encoder reads its own input column.
        dim: width of the embedding and of the trunk.
        layers: residual blocks of the trunk.

    Raises:
        ConfigError: when two encoders read the same column.
    """

    def __init__(self, encoders: dict[str, Student], dim: int = 512, layers: int = 2):
        super().__init__()
        columns = [encoder.input for encoder in encoders.values()]
        if repeated := {column for column in columns if columns.count(column) > 1}:
            raise ConfigError(
                f"two encoders read the input column {repeated.pop()}: give every modality one encoder and its own column"
            )
        self.dim = dim
        self.encoders = nn.ModuleDict(encoders)
        self.gains_from_bf16 = any(encoder.gains_from_bf16 for encoder in encoders.values())
        self.columns = dict(zip(columns, encoders, strict=True))
        self.maps = nn.ModuleDict({name: nn.Linear(encoder.dim, dim) for name, encoder in encoders.items()})
        self.trunk = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
            for _ in range(layers)
        )

    def checkpoint_activations(self) -> None:
        for encoder in self.encoders.values():
            encoder.checkpoint_activations()  # type: ignore[operator]

    def reads(self, column: str) -> bool:
        return column in self.columns

    @property
    def widths(self) -> list[int]:
        return [self.dim] * (len(self.trunk) + 1)

    def embeddings(self, rows: Mapping[str, Any]) -> list[Tensor]:
        parts = []
        for column in rows:
            if column not in self.columns:
                columns = ", ".join(self.columns)
                raise ConfigError(f"no encoder of the student reads the input column {column}; they read: {columns}")
            name = self.columns[column]
            parts.append(self.maps[name](self.encoders[name](rows)))
        out = [torch.cat(parts)]  # (batch, dim): the rows of one column after those of another, in the order of ``rows``
        for block in self.trunk:
            out.append(out[-1] + block(out[-1]))
        return out

    def all_embeddings(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        return self.embeddings(inputs)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.embeddings(inputs)[-1]

    def random_start(self, init_args: Mapping[str, Any]) -> dict[str, Any]:
        encoders = {}
        for name, spec in init_args["encoders"].items():
            encoder = cast(Student, self.encoders[name])
            encoders[name] = {**spec, "init_args": encoder.random_start(spec.get("init_args") or {})}
        return {**init_args, "encoders": encoders}

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        encoders = {}
        for name, spec in init_args["encoders"].items():
            encoder = cast(Student, self.encoders[name])
            encoders[name] = {**spec, "init_args": encoder.portable(spec.get("init_args") or {}, folder / name)}
        return {**init_args, "encoders": encoders}

    def traceable(self, featuriser: Featuriser) -> None:
        """None: a batch of several modalities is no fixed list of tensors."""

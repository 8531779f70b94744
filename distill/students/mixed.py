"""One student of several modalities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from cache_tools import ConfigError, Featuriser
from distill.students.base import Student


class MixedStudent(Student):
    """An encoder per modality and a trunk that all share, as in the paper's last experiment.

    The trunk is a residual MLP on the encoders' embeddings, each mapped to its width.

    Args:
        encoders: name -> a student of one modality; each reads its own input column.
        dim: of the embedding.
        layers: residual blocks of the trunk.

    Raises:
        ConfigError: when two encoders read the same column.
    """

    def __init__(self, encoders: dict[str, Student], dim: int = 512, layers: int = 2):
        super().__init__()
        names = [each.input for each in encoders.values()]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"two encoders read the input column {twice.pop()}: an encoder per modality, a column each")
        self.dim = dim
        self.encoders = nn.ModuleDict(encoders)
        self.columns = {each.input: name for name, each in encoders.items()}
        self.maps = nn.ModuleDict({name: nn.Linear(each.dim, dim) for name, each in encoders.items()})
        self.trunk = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
            for _ in range(layers)
        )

    def checkpoint_activations(self) -> None:
        for each in self.encoders.values():
            each.checkpoint_activations()  # type: ignore[operator]

    @property
    def widths(self) -> list[int]:
        return [self.dim] * (len(self.trunk) + 1)

    def embeddings(self, rows: Mapping[str, Any]) -> list[Tensor]:
        parts = []
        for column, each in rows.items():
            if column not in self.columns:
                known = ", ".join(self.columns)
                raise ConfigError(f"no encoder of the student reads the input column {column}; they read: {known}")
            name = self.columns[column]
            parts.append(self.maps[name](self.encoders[name]({column: each})))
        out = [torch.cat(parts)]  # (batch, dim), rows in the order of the columns
        for block in self.trunk:
            out.append(out[-1] + block(out[-1]))
        return out

    def all_embeddings(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        return self.embeddings(inputs)

    def forward(self, inputs: Mapping[str, Any]) -> Tensor:
        return self.embeddings(inputs)[-1]

    def portable(self, init_args: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        encoders = {}
        for name, spec in init_args["encoders"].items():
            encoder = cast(Student, self.encoders[name])
            encoders[name] = {**spec, "init_args": encoder.portable(spec.get("init_args") or {}, folder / name)}
        return {**init_args, "encoders": encoders}

    def traceable(self, featuriser: Featuriser) -> None:
        """None: a batch of several modalities is no fixed list of tensors."""

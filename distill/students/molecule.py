"""Students of molecules."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.nn import GINEConv
from torch_geometric.nn.aggr import Set2Set
from torch_geometric.utils.smiles import e_map, x_map

from cache_tools import Ragged
from distill.students.base import Student, recomputed

ATOM_SIZES = [len(values) for values in x_map.values()]
BOND_SIZES = [len(values) for values in e_map.values()]

Pooling = Literal["mean", "sum", "mean+sum", "set"]
WIDE: dict[Pooling, int] = {"mean": 1, "sum": 1, "mean+sum": 2, "set": 2}  # a pooled molecule, in widths of an atom
READS = 3  # of all atoms, by Set2Set
BF16_WIDTH = 256  # a fit of a narrower network gains a fifth by bfloat16, or nothing: docs/training.md
Norm = Literal["batch", "layer", "none"]


class CategorySum(nn.Module):
    """The sum of one embedding per column: (rows, columns) of categories, small integers, to (rows, width)."""

    first: Tensor

    def __init__(self, sizes: list[int], width: int):
        super().__init__()
        self.table = nn.EmbeddingBag(sum(sizes), width, mode="sum")
        nn.init.normal_(self.table.weight, std=len(sizes) ** -0.5)
        self.register_buffer("first", torch.tensor([0, *sizes[:-1]]).cumsum(0))

    def forward(self, categories: Tensor) -> Tensor:
        out: Tensor = self.table(categories.long() + self.first)
        return out


class Graphs(NamedTuple):
    """A batch of graphs whose atoms are numbered from the first graph to the last."""

    edges: Tensor  # (2, bonds): the two atoms of a bond
    graph: Tensor  # (atoms,): the graph of an atom
    atoms: Tensor  # (batch,): the number of atoms in a graph


class GraphStudent(Student):
    """A GINE network (Hu et al., ICLR 2020) on flat graph batches; the paper's student is ``layers=10, width=512``.

    Args:
        layers: the number of message-passing blocks.
        width: of an atom's embedding.
        dim: width of the molecule's embedding; ``width`` when not given.
        norm: the normalisation after each block.
        pooling: how atoms become the molecule's embedding; ``mean+sum`` concatenates both before the projection, ``set``
            attends to the atoms three times (Set2Set; Vinyals et al., ICLR 2016), with the same weights after every block.
        virtual_node: add a node that every atom of a molecule writes to and reads from between blocks.
        dropout: the share of values that are set to zero after each block, in training.
        jumping: concatenate the pooled atoms before the first and after every block, normalise and project them, instead of
            those after the last block alone (jumping knowledge; Xu et al., ICML 2018).
    """

    input = "graph"
    recompute = False

    def __init__(
        self,
        layers: int = 10,
        width: int = 512,
        dim: int | None = None,
        norm: Norm = "batch",
        pooling: Pooling = "mean",
        virtual_node: bool = False,
        dropout: float = 0.0,
        jumping: bool = False,
    ):
        super().__init__()
        self.dim, self.pooling, self.jumping = dim or width, pooling, jumping
        self.gains_from_bf16 = width >= BF16_WIDTH
        self.atoms = CategorySum(ATOM_SIZES, width)
        self.bonds = nn.ModuleList([CategorySum(BOND_SIZES, width) for _ in range(layers)])
        self.blocks = nn.ModuleList([GINEConv(_update(width, norm), train_eps=True) for _ in range(layers)])
        self.norms = nn.ModuleList([_norm(norm, width) for _ in range(layers)])
        self.virtual = nn.ModuleList([_update(width, norm) for _ in range(layers - 1)] if virtual_node else [])
        self.dropout = nn.Dropout(dropout)
        self.reader = Set2Set(width, READS) if pooling == "set" else None
        self.pooled = WIDE[pooling] * width
        pooled = self.pooled * (1 + layers if jumping else 1)
        self.project: nn.Module = nn.Identity() if pooled == self.dim else nn.Linear(pooled, self.dim)
        if jumping:
            self.project = nn.Sequential(_norm(norm, pooled), nn.Linear(pooled, self.dim))

    @property
    def widths(self) -> list[int]:
        return [self.pooled] * (len(self.blocks) - 1) + [self.dim]

    def embeddings(self, rows: dict[str, Ragged]) -> list[Tensor]:
        graphs, x = self._start(rows)
        pooled = [self._pool(atoms, graphs) for atoms in [x, *self._blocks(x, rows["bonds"].values, graphs)]]
        return [*pooled[1:-1], self.project(torch.cat(pooled, 1) if self.jumping else pooled[-1])]

    def encode(self, rows: dict[str, Ragged]) -> Tensor:
        graphs, x = self._start(rows)
        blocks = [x, *self._blocks(x, rows["bonds"].values, graphs)]
        pooled = [self._pool(atoms, graphs) for atoms in (blocks if self.jumping else blocks[-1:])]
        out: Tensor = self.project(torch.cat(pooled, 1))
        return out

    def _start(self, rows: dict[str, Ragged]) -> tuple[Graphs, Tensor]:
        atoms, edges = rows["atoms"], rows["edges"]
        first = atoms.counts.cumsum(0) - atoms.counts  # (batch,): the number of a molecule's first atom
        shift = torch.repeat_interleave(first, edges.counts, output_size=len(edges.values))
        number = torch.arange(len(first), device=first.device)
        graph = torch.repeat_interleave(number, atoms.counts, output_size=len(atoms.values))
        return Graphs((edges.values + shift.unsqueeze(1)).T, graph, atoms.counts), self.atoms(atoms.values)

    def checkpoint_activations(self) -> None:
        self.recompute = True

    def _blocks(self, x: Tensor, bonds: Tensor, graphs: Graphs) -> list[Tensor]:
        out = []
        for number in range(len(self.blocks)):
            again = self.recompute and self.training
            x = recomputed(self, self._block, number, x, bonds, graphs) if again else self._block(number, x, bonds, graphs)
            out.append(x)  # (atoms, width)
        return out

    def _block(self, number: int, x: Tensor, bonds: Tensor, graphs: Graphs) -> Tensor:
        if self.virtual and number:
            x = x + self.virtual[number - 1](_mean(x, graphs))[graphs.graph]
        x = self.norms[number](self.blocks[number](x, graphs.edges, self.bonds[number](bonds)))
        out: Tensor = self.dropout(x if number == len(self.blocks) - 1 else x.relu())
        return out

    def _pool(self, x: Tensor, graphs: Graphs) -> Tensor:
        if self.reader:
            out: Tensor = self.reader(x, graphs.graph, dim_size=len(graphs.atoms))
            return out
        parts = {"mean": [_mean], "sum": [_sum], "mean+sum": [_mean, _sum]}[self.pooling]
        return torch.cat([part(x, graphs) for part in parts], 1)  # (batch, pooled)


def _sum(x: Tensor, graphs: Graphs) -> Tensor:
    return x.new_zeros(len(graphs.atoms), x.shape[1]).index_add_(0, graphs.graph, x)


def _mean(x: Tensor, graphs: Graphs) -> Tensor:
    return _sum(x, graphs) / graphs.atoms.unsqueeze(1).clamp_min(1)


def _norm(norm: Norm, width: int) -> nn.Module:
    kinds: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
    return kinds[norm](width)


def _update(width: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), _norm(norm, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

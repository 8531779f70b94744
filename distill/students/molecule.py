"""Students of molecules."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn.functional import embedding
from torch_geometric.nn import GINEConv
from torch_geometric.nn.aggr import Set2Set
from torch_geometric.utils.smiles import e_map, x_map

from cache_tools import Featuriser, MoleculeGraph, Ragged
from distill.students.base import LARGEST, Student, Traceable, recomputed
from distill.students.rows import RowTable

ATOM_SIZES = [len(values) for values in x_map.values()]
BOND_SIZES = [len(values) for values in e_map.values()]

Pooling = Literal["mean", "sum", "mean+sum", "set"]
WIDE: dict[Pooling, int] = {"mean": 1, "sum": 1, "mean+sum": 2, "set": 2}  # a pooled molecule, in widths of an atom
READS = 3  # of all atoms, by Set2Set
BF16_WIDTH = 256  # a fit of a narrower network gains a fifth by bfloat16, or nothing: docs/training.md
Norm = Literal["batch", "layer", "none"]

RADIUS = 2  # bonds around an atom, as in ECFP4
COUNTED_ATOM = [list(x_map).index(name) for name in ("atomic_num", "degree", "formal_charge", "num_hs", "is_in_ring")]
COUNTED_BOND = list(e_map).index("bond_type")
PRIME = 2**31 - 1

ATOMS = 2**24  # of a batch, and bonds, that a traced program accepts


class CategorySum(nn.Module):
    """The sum of one embedding per column: (rows, columns) of categories, small integers, to (rows, width)."""

    first: Tensor

    def __init__(self, sizes: list[int], width: int):
        super().__init__()
        self.table = nn.EmbeddingBag(sum(sizes), width, mode="sum")
        nn.init.normal_(self.table.weight, std=len(sizes) ** -0.5)
        self.register_buffer("first", torch.tensor([0, *sizes[:-1]]).cumsum(0))

    def forward(self, categories: Tensor) -> Tensor:
        numbers = categories.long() + self.first
        if is_exporting():  # ONNX has no bags of rows
            return embedding(numbers, self.table.weight).sum(1)
        out: Tensor = self.table(numbers)
        return out


class Graphs(NamedTuple):
    """A batch of graphs whose atoms are numbered from the first graph to the last."""

    edges: Tensor  # (2, bonds): the two atoms of a bond
    graph: Tensor  # (atoms,): the graph of an atom
    atoms: Tensor  # (batch,): the number of atoms in a graph


class CircularCounts(nn.Module):
    """The circular environments of a molecule's atoms, as ECFP counts them, through a table and a norm: (batch, width).

    An environment is an atom with all atoms and bonds at most two bonds away (Rogers and Hahn, Extended-connectivity
    fingerprints, J. Chem. Inf. Model. 2010). Two are the same if elements, degrees, charges, hydrogens, ring membership and
    types of bonds agree. A hash of the environment names a row of the table; the rows of a molecule are summed, each
    weighted by log(1 + count). ECFP leaves out an environment that covers the same bonds as another one; here it counts.

    Args:
        rows: of the table; environments may share a row.
        width: of a row.
        norm: the normalisation of the sums, before a ReLU.
    """

    def __init__(self, rows: int, width: int, norm: Norm):
        super().__init__()
        self.rows = rows
        self.table = RowTable(rows, width)
        nn.init.normal_(self.table.weight, std=0.1)  # small, so that training moves rows far in a few steps
        self.norm = _norm(norm, width)

    def forward(self, atoms: Tensor, bonds: Tensor, graphs: Graphs) -> Tensor:
        named = [graphs.graph * self.rows + numbers % self.rows for numbers in environments(atoms, bonds, graphs)]
        keys, counts = torch.cat(named).unique(return_counts=True)  # molecule by molecule
        weights = counts.to(self.table.weight.dtype).log1p()
        if is_exporting():  # ONNX has no bags of rows
            weighted = embedding(keys % self.rows, self.table.weight) * weights.unsqueeze(1)
            sums = weighted.new_zeros(graphs.atoms.shape[0], weighted.shape[1]).index_add(0, keys // self.rows, weighted)
        else:
            first = torch.searchsorted(keys, self.rows * torch.arange(len(graphs.atoms), device=keys.device))
            sums = self.table(keys % self.rows, first, weights)  # (batch, width)
        out: Tensor = self.norm(sums).relu()
        return out


def environments(atoms: Tensor, bonds: Tensor, graphs: Graphs) -> list[Tensor]:
    """The environment of each atom within 0, 1 and 2 bonds, as a number below 2^31 - 1: (atoms,) for each radius.

    Args:
        atoms: categories (atoms, 9), as :class:`cache_tools.inputs.MoleculeGraph` has them.
        bonds: categories (bonds, 3).
        graphs: the molecules.
    """
    number = torch.zeros_like(graphs.graph)
    for column in COUNTED_ATOM:
        number = _hashed(number, atoms[:, column].long())
    out, (source, target) = [number], graphs.edges.long()
    for radius in range(1, RADIUS + 1):
        messages = _hashed(number[source], bonds[:, COUNTED_BOND].long())
        around = torch.zeros_like(number).index_add_(0, target, messages)  # integers: their order does not matter
        number = _hashed(_hashed(number, around), around.new_tensor(radius))
        out.append(number)
    return out


def _hashed(number: Tensor, key: Tensor) -> Tensor:
    """A hash of two whole numbers; for each key a permutation of those below the prime, as in the cipher MiMC."""
    for constant in (1_013_904_223, 362_437_069):
        x = (number + key % PRIME + constant) % PRIME
        square = x * x % PRIME  # of two numbers below the prime: no overflow
        number = square * square % PRIME * x % PRIME
    return number


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
        fingerprint: width of a fingerprint that joins the pooled atoms, :class:`CircularCounts`; 0 for none.
        fingerprint_rows: of its table.
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
        fingerprint: int = 0,
        fingerprint_rows: int = 4096,
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
        pooled = self.pooled * (1 + layers if jumping else 1) + fingerprint
        self.circular = CircularCounts(fingerprint_rows, fingerprint, norm) if fingerprint else None
        self.project: nn.Module = nn.Identity() if pooled == self.dim else nn.Linear(pooled, self.dim)
        if jumping:
            self.project = nn.Sequential(_norm(norm, pooled), nn.Linear(pooled, self.dim))

    @property
    def widths(self) -> list[int]:
        return [self.pooled] * (len(self.blocks) - 1) + [self.dim]

    def embeddings(self, rows: dict[str, Ragged]) -> list[Tensor]:
        atoms, bonds, graphs = flat(rows)
        x = self.atoms(atoms)
        pooled = [self._pool(each, graphs) for each in [x, *self._blocks(x, bonds, graphs)]]
        return [*pooled[1:-1], self._joined(pooled, atoms, bonds, graphs)]

    def encode(self, rows: dict[str, Ragged]) -> Tensor:
        return self.encode_flat(*flat(rows))

    def encode_flat(self, atoms: Tensor, bonds: Tensor, graphs: Graphs) -> Tensor:
        """The embedding (batch, dim) of categories of atoms (atoms, 9) and bonds (bonds, 3), and the molecules of both."""
        x = self.atoms(atoms)
        blocks = [x, *self._blocks(x, bonds, graphs)]
        pooled = [self._pool(each, graphs) for each in (blocks if self.jumping else blocks[-1:])]
        return self._joined(pooled, atoms, bonds, graphs)

    def _joined(self, pooled: list[Tensor], atoms: Tensor, bonds: Tensor, graphs: Graphs) -> Tensor:
        parts = pooled if self.jumping else pooled[-1:]
        if self.circular:
            parts = [*parts, self.circular(atoms, bonds, graphs)]
        out: Tensor = self.project(torch.cat(parts, 1))
        return out

    def checkpoint_activations(self) -> None:
        self.recompute = True

    def traceable(self, featuriser: Featuriser) -> Traceable | None:
        """This student as torch.export can trace it: a batch as flat arrays, all int64, to (batch, dim).

        It takes ``atoms`` (atoms, 9); ``edges`` (bonds, 2), which number the atoms through the batch; ``bonds`` (bonds, 3);
        and ``counts`` (batch,), the atoms of each molecule.
        """
        if not isinstance(featuriser, MoleculeGraph):
            return None
        from torch.export import Dim

        atoms, bonds = Dim("atoms", min=1, max=ATOMS), Dim("bonds", min=0, max=ATOMS)
        edges = torch.tensor([[0, 1], [1, 0], [2, 3], [3, 2], [3, 4], [4, 3]])  # of two molecules, of 2 and 3 atoms
        example = edges.new_zeros(5, len(ATOM_SIZES)), edges, edges.new_ones(6, len(BOND_SIZES)), torch.tensor([2, 3])
        shapes = {0: atoms}, {0: bonds}, {0: bonds}, {0: Dim("batch", min=1, max=LARGEST)}
        return Traceable(_FlatEncoder(self), example, shapes, _tensors)

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
            out: Tensor = self.reader(x, graphs.graph, dim_size=graphs.atoms.shape[0])
            return out
        parts = {"mean": [_mean], "sum": [_sum], "mean+sum": [_mean, _sum]}[self.pooling]
        return torch.cat([part(x, graphs) for part in parts], 1)  # (batch, pooled)


class _FlatEncoder(nn.Module):
    """A student of molecules as a function of tensors."""

    def __init__(self, student: GraphStudent):
        super().__init__()
        self.student = student

    def forward(self, atoms: Tensor, edges: Tensor, bonds: Tensor, counts: Tensor) -> Tensor:
        first = counts.cumsum(0) - counts
        begins = torch.zeros_like(atoms[:, 0]).index_add(0, first, torch.ones_like(first))  # ONNX has no repeat_interleave
        return self.student.encode_flat(atoms, bonds, Graphs(edges.T, begins.cumsum(0) - 1, counts))


def flat(rows: dict[str, Ragged]) -> tuple[Tensor, Tensor, Graphs]:
    """The categories of all atoms and bonds of a batch, and their molecules."""
    atoms, edges = rows["atoms"], rows["edges"]
    first = atoms.counts.cumsum(0) - atoms.counts  # (batch,): the number of a molecule's first atom
    shift = torch.repeat_interleave(first, edges.counts, output_size=len(edges.values))
    number = torch.arange(len(first), device=first.device)
    graph = torch.repeat_interleave(number, atoms.counts, output_size=len(atoms.values))
    return atoms.values, rows["bonds"].values, Graphs((edges.values + shift.unsqueeze(1)).T, graph, atoms.counts)


def _tensors(rows: dict[str, Ragged]) -> tuple[Tensor, ...]:
    """The same as :class:`_FlatEncoder` takes it."""
    atoms, bonds, graphs = flat(rows)
    return atoms.long(), graphs.edges.T.long(), bonds.long(), graphs.atoms


def _sum(x: Tensor, graphs: Graphs) -> Tensor:
    # a shape, not a length, which torch.export would take for a constant
    return x.new_zeros(graphs.atoms.shape[0], x.shape[1]).index_add_(0, graphs.graph, x)


def _mean(x: Tensor, graphs: Graphs) -> Tensor:
    return _sum(x, graphs) / graphs.atoms.unsqueeze(1).clamp_min(1)


def _norm(norm: Norm, width: int) -> nn.Module:
    kinds: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "none": nn.Identity}
    return kinds[norm](width)


def _update(width: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), _norm(norm, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

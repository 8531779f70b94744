"""Pretrained molecular GNNs: the pretrain-gnns family (Hu et al., ICLR 2020) and MolCLR's GCN (Wang et al., 2022).

A message of these networks is a weighted sum of atoms and of bond embeddings. So two sparse products compute it, ``A @ x``
and ``C @ table`` (C counts the bond types at an atom), instead of one row per bond: five times as fast on a CPU.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cache_tools.errors import BadItem, TeacherError
from cache_tools.format.files import sha256
from cache_tools.hub import content_only, read_safetensors, weights_file
from cache_tools.items.molecule import MAX_ATOMS, parse_smiles
from cache_tools.machine import flush_denormals
from cache_tools.teachers.base import Tunable

LAYERS, WIDTH, MOLCLR_WIDTH = 5, 300, 512
CHIRALITIES, BOND_TYPES, DIRECTIONS = 3, 6, 3
SELF_LOOP = 4  # the bond type of an atom with itself


class Batch(NamedTuple):
    """Molecules as one graph, with a self loop at every atom."""

    atoms: Tensor  # (atoms, 2): atomic number - 1, chirality
    source: Tensor  # (bonds,)
    target: Tensor  # (bonds,)
    bonds: Tensor  # (bonds, 2): type, direction
    graph: Tensor  # (atoms,): the molecule of each atom
    sizes: Tensor  # (molecules,): the number of atoms


def sum_messages(batch: Batch, weight: Tensor, values: Tensor) -> Tensor:
    """``out[i] = sum over bonds j -> i of weight * values[j]``; weight (bonds,), values (atoms, width)."""
    size = (len(batch.atoms), len(batch.atoms))
    matrix = torch.sparse_coo_tensor(torch.stack([batch.target, batch.source]), weight, size, check_invariants=False)
    return matrix @ values


def sum_bonds(batch: Batch, weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``out[i] = sum over bonds at i of weight * (first[type] + second[direction])``: (atoms, width).

    Args:
        batch: the molecules.
        weight: of each bond, (bonds,).
        first: the embedding of each bond type, (types, width).
        second: the embedding of each direction, (directions, width).
    """
    total = torch.zeros(len(batch.atoms), first.shape[1], device=weight.device)
    for column, table in enumerate((first, second)):
        cell = batch.target * len(table) + batch.bonds[:, column]
        counts = torch.zeros(len(batch.atoms) * len(table), device=weight.device).index_add_(0, cell, weight)
        total = total + counts.view(len(batch.atoms), -1) @ table
    return total


class _BondTables(nn.Module):
    def __init__(self, width: int = WIDTH, types: int = BOND_TYPES):
        super().__init__()
        self.edge_embedding1 = nn.Embedding(types, width)
        self.edge_embedding2 = nn.Embedding(DIRECTIONS, width)

    def gather(self, batch: Batch, weight: Tensor, values: Tensor) -> Tensor:
        bonds = sum_bonds(batch, weight, self.edge_embedding1.weight, self.edge_embedding2.weight)
        return sum_messages(batch, weight, values) + bonds


class GcnLayer(_BondTables):
    """Symmetric degree norm over ``W x_j + e``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        degree = torch.bincount(batch.target, minlength=len(x)).float().rsqrt()
        return self.gather(batch, degree[batch.source] * degree[batch.target], self.linear(x))


class SageLayer(_BondTables):
    """Mean of ``W x_j + e``, then L2 norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        degree = torch.bincount(batch.target, minlength=len(x)).float()
        return F.normalize(self.gather(batch, 1.0 / degree[batch.target], self.linear(x)))


class GinLayer(_BondTables):
    """MLP of the sum of ``x_j + e``."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        out: Tensor = self.mlp(self.gather(batch, torch.ones(len(batch.target), device=x.device), x))
        return out


class GatLayer(_BondTables):
    """Two heads averaged, attention over ``[x_i, x_j + e]``, softmax over the bonds of a target atom."""

    heads = 2

    def __init__(self) -> None:
        super().__init__(WIDTH * self.heads)
        self.weight_linear = nn.Linear(WIDTH, WIDTH * self.heads)
        self.att = nn.Parameter(torch.zeros(1, self.heads, 2 * WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        atoms = self.weight_linear(x).view(-1, self.heads, WIDTH)  # (atoms, heads, width)
        to_target, to_source = self.att[0].split(WIDTH, dim=-1)  # (heads, width) each
        types = (self.edge_embedding1.weight.view(-1, self.heads, WIDTH) * to_source).sum(-1)  # (types, heads)
        directions = (self.edge_embedding2.weight.view(-1, self.heads, WIDTH) * to_source).sum(-1)
        score = (atoms * to_target).sum(-1)[batch.target] + (atoms * to_source).sum(-1)[batch.source]
        score = score + types[batch.bonds[:, 0]] + directions[batch.bonds[:, 1]]  # (bonds, heads)
        attention = _softmax_by_target(F.leaky_relu(score, 0.2), batch.target, len(x))
        heads = [
            sum_messages(batch, attention[:, head], atoms[:, head])
            + sum_bonds(batch, attention[:, head], *self._tables_of(head))
            for head in range(self.heads)
        ]
        return torch.stack(heads).mean(0) + self.bias

    def _tables_of(self, head: int) -> tuple[Tensor, Tensor]:
        span = slice(head * WIDTH, (head + 1) * WIDTH)
        return self.edge_embedding1.weight[:, span], self.edge_embedding2.weight[:, span]


def _softmax_by_target(score: Tensor, target: Tensor, atoms: int) -> Tensor:
    index = target.unsqueeze(1).expand_as(score)
    # the maximum of each target atom: with one maximum for the whole batch, the weights of some atoms would underflow
    highest = score.new_full((atoms, score.shape[1]), -torch.inf).scatter_reduce(0, index, score, "amax")
    weight = (score - highest[target]).exp()
    return weight / torch.zeros_like(highest).index_add_(0, target, weight)[target]


class MolClrLayer(_BondTables):
    """Sum of ``x_j W + e``, where e is one number per bond; no degree norm."""

    def __init__(self) -> None:
        super().__init__(1, BOND_TYPES - 1)
        self.weight = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return self.gather(batch, torch.ones(len(batch.target), device=x.device), x @ self.weight) + self.bias


class _Gnn(nn.Module):
    def __init__(self, layer: type[nn.Module], atom_types: int):
        super().__init__()
        self.x_embedding1 = nn.Embedding(atom_types, WIDTH)
        self.x_embedding2 = nn.Embedding(CHIRALITIES, WIDTH)
        self.gnns = nn.ModuleList([layer() for _ in range(LAYERS)])
        self.batch_norms = nn.ModuleList([nn.BatchNorm1d(WIDTH) for _ in range(LAYERS)])

    def forward(self, batch: Batch) -> Tensor:
        x = self.x_embedding1(batch.atoms[:, 0]) + self.x_embedding2(batch.atoms[:, 1])  # (atoms, width)
        for number, (layer, norm) in enumerate(zip(self.gnns, self.batch_norms, strict=True)):
            x = norm(layer(x, batch))
            if number < LAYERS - 1:
                x = F.relu(x)
        total = x.new_zeros(len(batch.sizes), WIDTH).index_add_(0, batch.graph, x)
        return torch.as_tensor(total / batch.sizes.unsqueeze(1))  # (molecules, width)


KINDS: dict[str, type[nn.Module]] = {"gcn": GcnLayer, "graphsage": SageLayer, "gat": GatLayer, "gin": GinLayer}


class _MolClr(_Gnn):
    def __init__(self, atom_types: int):
        super().__init__(MolClrLayer, atom_types)
        self.feat_lin = nn.Linear(WIDTH, MOLCLR_WIDTH)

    def forward(self, batch: Batch) -> Tensor:
        out: Tensor = self.feat_lin(super().forward(batch))
        return out


class PretrainedGnn(Tunable):
    """A GNN of the pretrain-gnns family: 5 layers, 300 wide, mean pooling.

    Args:
        weights: a safetensors file whose metadata names its ``kind``: gcn, graphsage, gat or gin. ``${WEIGHTS}`` and
            other environment variables are expanded.
        max_atoms: a molecule of more atoms is masked.

    Raises:
        TeacherError: when the file is missing or holds another network.
    """

    modality = "molecule"
    python_bound = True
    on_device = True
    max_atoms = MAX_ATOMS
    added: ClassVar[Mapping[str, Any]] = {"max_atoms": max_atoms}
    dim = WIDTH
    kinds: ClassVar[dict[str, Callable[[int], nn.Module]]] = {kind: partial(_Gnn, layer) for kind, layer in KINDS.items()}

    def __init__(self, weights: str, max_atoms: int = MAX_ATOMS):
        self.weights = self.init_args["weights"] = str(weights_file(weights))
        self.max_atoms = max_atoms

    def load(self, device: str) -> None:
        flush_denormals()  # MolCLR's weights have 109,372 of them
        state, facts = read_safetensors(Path(self.weights))
        kind = facts.get("kind", "unnamed")
        if kind not in self.kinds:
            reads = ", ".join(self.kinds)
            raise TeacherError(f"{self.weights} holds a {kind!r} network; {type(self).__name__} reads {reads}")
        try:
            network = self.kinds[kind](len(state["x_embedding1.weight"]))
            wanted = network.state_dict().keys()
            network.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})
        except (RuntimeError, KeyError) as error:
            raise TeacherError(f"{self.weights} does not fit a {kind} network: {error}") from None
        self.device, self.network = device, network.to(device).eval()

    def prepare(self, item: bytes) -> Any:
        return atoms_and_bonds(parse_smiles(item, self.max_atoms))

    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return np.asarray(self.forward(items).cpu())

    @property
    def module(self) -> nn.Module:
        return self.network

    def forward(self, items: Sequence[Any]) -> Tensor:
        embedding: Tensor = self.network(collate(items, self.device))
        return embedding

    def fingerprint(self) -> dict[str, Any]:
        return content_only(super().fingerprint()) | {"weights_sha256": sha256(Path(self.weights))}


class MolClrGcn(PretrainedGnn):
    """MolCLR's GCN: 5 layers, 300 wide, mean pooling, then a linear map to 512.

    Args:
        weights: a safetensors file of kind ``molclr_gcn``; environment variables are expanded.
        max_atoms: a molecule of more atoms is masked.

    Raises:
        TeacherError: when the file is missing or holds another network.
    """

    dim = MOLCLR_WIDTH
    kinds = {"molclr_gcn": _MolClr}


def atoms_and_bonds(molecule: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Atoms (atoms, 2) as atomic number - 1 and chirality; bonds (bonds, 4) as source, target, type and direction.

    Every bond is listed in both directions.

    Raises:
        BadItem: for an atom or bond outside the networks' tables.
    """
    from rdkit.Chem import BondDir, BondType, ChiralType

    chiralities = {
        ChiralType.CHI_UNSPECIFIED: 0,
        ChiralType.CHI_TETRAHEDRAL_CW: 1,
        ChiralType.CHI_TETRAHEDRAL_CCW: 2,
    }
    types = {BondType.SINGLE: 0, BondType.DOUBLE: 1, BondType.TRIPLE: 2, BondType.AROMATIC: 3}
    directions = {BondDir.NONE: 0, BondDir.ENDUPRIGHT: 1, BondDir.ENDDOWNRIGHT: 2}
    try:
        atoms = [(atom.GetAtomicNum() - 1, chiralities[atom.GetChiralTag()]) for atom in molecule.GetAtoms()]
        bonds = []
        for bond in molecule.GetBonds():
            begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            features = types[bond.GetBondType()], directions[bond.GetBondDir()]
            bonds += [(begin, end, *features), (end, begin, *features)]
    except KeyError as error:
        raise BadItem(f"the network has no embedding for {error}") from None
    if any(number < 0 for number, _ in atoms):
        raise BadItem("the network has no embedding for a dummy atom (*)")
    return np.array(atoms, np.int32), np.array(bonds, np.int32).reshape(-1, 4)


def collate(items: Sequence[Any], device: str) -> Batch:
    """Molecules as one graph; every atom gets its self loop."""
    sizes = np.array([len(atoms) for atoms, _ in items])
    atoms = np.concatenate([atoms for atoms, _ in items], dtype=np.int64)
    pieces = np.concatenate([bonds for _, bonds in items], dtype=np.int64)
    pieces[:, :2] += np.repeat(np.cumsum(sizes) - sizes, [len(bonds) for _, bonds in items])[:, None]
    everyone = np.arange(len(atoms))
    loops = np.stack([everyone, everyone, np.full_like(everyone, SELF_LOOP), np.zeros_like(everyone)], 1)
    bonds = torch.from_numpy(np.concatenate([pieces, loops])).to(device)
    graph = np.repeat(np.arange(len(items)), sizes)
    return Batch(
        torch.from_numpy(atoms).to(device),
        bonds[:, 0],
        bonds[:, 1],
        bonds[:, 2:],
        torch.from_numpy(graph).to(device),
        torch.from_numpy(sizes).to(device),
    )

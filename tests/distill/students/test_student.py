import pytest
import torch

from cache_tools import Ragged, open_column
from cache_tools.inputs import MoleculeGraph
from distill.students.molecule import CircularCounts, GraphStudent, environments, flat


@pytest.fixture
def column(cache):
    return open_column(cache / "mol" / "inputs" / "graph")


OPTIONS = [
    {"pooling": pooling, "norm": norm, "virtual_node": virtual}
    for pooling in ("mean", "sum", "mean+sum", "set")
    for norm in ("batch", "layer", "none")
    for virtual in (False, True)
] + [{"fingerprint": 8, "jumping": jumping} for jumping in (False, True)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_molecule_is_embedded_alike_alone_and_in_a_batch(column, options):
    torch.manual_seed(0)
    student = GraphStudent(layers=3, width=16, dim=24, **options).eval()
    together = student.encode(column.rows(torch.arange(20)))
    alone = torch.cat([student.encode(column.rows(torch.tensor([row]))) for row in range(20)])
    assert together.shape == (20, 24)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"pooling": "set"}, {"fingerprint": 8, "jumping": True}], ids=str)
def test_the_order_of_atoms_does_not_matter(column, options):
    torch.manual_seed(0)
    student = GraphStudent(layers=3, width=16, virtual_node=True, **options).eval()
    graph = column.rows(torch.tensor([7]))
    atoms, edges = graph["atoms"], graph["edges"]
    order = torch.randperm(len(atoms.values))
    new_place = order.argsort()
    shuffled = {
        **graph,
        "atoms": Ragged(atoms.values[order], atoms.counts, atoms.longest),
        "edges": Ragged(new_place[edges.values.long()].to(edges.values.dtype), edges.counts, edges.longest),
    }
    torch.testing.assert_close(student.encode(graph), student.encode(shuffled), rtol=1e-4, atol=1e-5)


def test_it_is_gine_as_torch_geometric_batches_it(column):
    """The same layers on torch_geometric's own batch of Data objects."""
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import global_mean_pool

    torch.manual_seed(0)
    student = GraphStudent(layers=2, width=16).eval()
    rows = torch.tensor([5, 3, 200, 17])
    graphs = []
    for row in rows:
        graph = column.rows(row.view(1))
        graphs.append(
            Data(x=graph["atoms"].values, edge_index=graph["edges"].values.long().T, edge_attr=graph["bonds"].values)
        )
    batch = Batch.from_data_list(graphs)
    x = student.atoms(batch.x)
    for number, (block, norm, table) in enumerate(zip(student.blocks, student.norms, student.bonds, strict=True)):
        x = norm(block(x, batch.edge_index, table(batch.edge_attr)))
        x = x.relu() if number == 0 else x
    torch.testing.assert_close(
        student({"graph": column.rows(rows)}), global_mean_pool(x, batch.batch), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "options", [{"pooling": "mean+sum"}, {"pooling": "set"}, {"pooling": "mean+sum", "fingerprint": 8}], ids=str
)
def test_it_exposes_an_embedding_after_each_block(column, options):
    student = GraphStudent(layers=4, width=16, dim=24, **{"pooling": "mean+sum", **options}).eval()
    inputs = column.rows(torch.arange(6))
    every = student.embeddings(inputs)
    assert [tuple(each.shape) for each in every] == [(6, 32)] * 3 + [(6, 24)]
    torch.testing.assert_close(every[-1], student({"graph": inputs}))


def test_the_papers_student_is_ten_layers_of_512():
    student = GraphStudent()
    assert (len(student.blocks), student.dim, student.pooling) == (10, 512, "mean")


MOLECULES = [
    "CCO",
    "CC(=O)Oc1ccccc1C(=O)O",
    "C[N+](C)(C)CC([O-])=O",
    "c1ccc2[nH]ccc2c1",
    "O=S(=O)(N)c1ccc(Cl)cc1",
    "[Na+].[Cl-]",
]


def graphs_of(smiles):
    featuriser = MoleculeGraph()
    made = [featuriser.process_item(each.encode()) for each in smiles]
    counts = {name: [len(each[name]) for each in made] for name in featuriser.fields}
    flat = {name: torch.cat([torch.from_numpy(each[name]) for each in made]) for name in featuriser.fields}
    return {name: Ragged(flat[name], torch.tensor(counts[name]), max(counts[name])) for name in flat}


def test_environments_are_those_of_rdkits_morgan_fingerprint():
    """One to one, for every atom and radius that RDKit lists."""
    from rdkit import Chem
    from rdkit.Chem.rdFingerprintGenerator import AdditionalOutput, GetMorganGenerator

    rows = graphs_of(MOLECULES)
    graphs = flat(rows)[2]
    ours = torch.stack(environments(rows["atoms"].values, rows["bonds"].values, graphs)).tolist()  # [radius][atom]
    pairs, first = set(), 0
    for smiles in MOLECULES:
        molecule, output = Chem.MolFromSmiles(smiles), AdditionalOutput()
        output.AllocateBitInfoMap()
        GetMorganGenerator(radius=2).GetSparseCountFingerprint(molecule, additionalOutput=output)
        for bit, places in output.GetBitInfoMap().items():
            pairs |= {(bit, ours[radius][first + atom]) for atom, radius in places}
        first += molecule.GetNumAtoms()
    assert len(pairs) > 50
    assert len({bit for bit, _ in pairs}) == len({number for _, number in pairs}) == len(pairs)


def test_a_fingerprint_is_the_sum_of_its_rows_weighted_by_counts():
    rows = graphs_of(MOLECULES)
    graphs = flat(rows)[2]
    counter = CircularCounts(64, 8, "none")
    numbers = torch.stack(environments(rows["atoms"].values, rows["bonds"].values, graphs)) % 64  # (radius, atoms)
    by_hand = []
    for molecule in range(len(MOLECULES)):
        counts = numbers[:, graphs.graph == molecule].flatten().bincount(minlength=64)
        by_hand.append((counts.float().log1p() @ counter.table.weight).relu())
    torch.testing.assert_close(counter(rows["atoms"].values, rows["bonds"].values, graphs), torch.stack(by_hand))


def test_only_the_rows_of_a_fingerprint_that_a_batch_reads_get_a_gradient():
    student = GraphStudent(1, 8, fingerprint=8, fingerprint_rows=1000)
    student.encode(graphs_of(MOLECULES)).square().sum().backward()
    gradient = student.circular.table.weight.grad.coalesce()
    assert 20 < len(gradient.indices()[0]) < 200

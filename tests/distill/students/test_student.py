import pytest
import torch

from cache_tools import Ragged, open_column
from distill.students.molecule import GraphStudent


@pytest.fixture
def column(cache):
    return open_column(cache / "mol" / "inputs" / "graph")


OPTIONS = [
    {"pooling": pooling, "norm": norm, "virtual_node": virtual}
    for pooling in ("mean", "sum", "mean+sum", "set")
    for norm in ("batch", "layer", "none")
    for virtual in (False, True)
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_molecule_is_embedded_alike_alone_and_in_a_batch(column, options):
    torch.manual_seed(0)
    student = GraphStudent(layers=3, width=16, dim=24, **options).eval()
    together = student.encode(column.rows(torch.arange(20)))
    alone = torch.cat([student.encode(column.rows(torch.tensor([row]))) for row in range(20)])
    assert together.shape == (20, 24)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "set"])
def test_the_order_of_atoms_does_not_matter(column, pooling):
    torch.manual_seed(0)
    student = GraphStudent(layers=3, width=16, virtual_node=True, pooling=pooling).eval()
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


@pytest.mark.parametrize("pooling", ["mean+sum", "set"])
def test_it_exposes_an_embedding_after_each_block(column, pooling):
    student = GraphStudent(layers=4, width=16, dim=24, pooling=pooling).eval()
    inputs = column.rows(torch.arange(6))
    every = student.embeddings(inputs)
    assert [tuple(each.shape) for each in every] == [(6, 32)] * 3 + [(6, 24)]
    torch.testing.assert_close(every[-1], student({"graph": inputs}))


def test_the_papers_student_is_ten_layers_of_512():
    student = GraphStudent()
    assert (len(student.blocks), student.dim, student.pooling) == (10, 512, "mean")

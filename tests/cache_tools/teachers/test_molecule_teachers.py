import csv
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache_tools import MoleculeGraph, Settings, build, open_column
from cache_tools.corpora.base import Items
from cache_tools.corpora.molecule import RdkitSamples
from cache_tools.errors import BadItem, ConfigError, TeacherError
from cache_tools.items.molecule import _parsed
from cache_tools.producer import Producer, class_path, rebuild
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.gnn import KINDS, LAYERS, WIDTH, GatLayer, MolClrGcn, PretrainedGnn, _Gnn, collate
from cache_tools.teachers.molecule import (
    AtomPairs,
    Avalon,
    HfMolecule,
    Maccs,
    Mordred,
    MorganBits,
    MorganCounts,
    RdkitDescriptors,
    TopologicalTorsions,
    raw_descriptors,
)

FINGERPRINTS = [AtomPairs(), Avalon(), Maccs(), MorganBits(), MorganCounts(), TopologicalTorsions()]
NAMES = [
    "gcn_contextpred",
    "gcn_supervised",
    "graphsage_contextpred",
    "graphsage_supervised",
    "gat_contextpred",
    "molclr_gcn",
]


def embed(teacher, smiles):
    return teacher.embed([teacher.prepare(each.encode()) for each in smiles])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.workplace
def test_pretrained_gnns_agree_with_their_published_code(shared, name):
    golden = np.load(shared / "golden" / "molecule_teachers.npz")
    cls = MolClrGcn if name == "molclr_gcn" else PretrainedGnn
    teacher = cls(str(shared / "weights" / "mol" / f"{name}.safetensors"))
    teacher.load("cpu")
    found = embed(teacher, golden["smiles"])
    assert found.shape == golden[name].shape
    assert np.abs(found - golden[name]).max() / np.abs(golden[name]).max() < 1e-4


def molecules(teacher, smiles):
    return collate([teacher.prepare(each.encode()) for each in smiles], "cpu")


@pytest.fixture
def prepare() -> PretrainedGnn:
    return PretrainedGnn.__new__(PretrainedGnn, "unused")


@pytest.mark.parametrize("kind", KINDS)
def test_a_gnn_layer_equals_a_loop_over_bonds(kind, prepare):
    """The layers use sparse products; the definition is a sum over the bonds of each atom."""
    torch.manual_seed(0)
    layer = KINDS[kind]()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = molecules(prepare, ["CC(=O)Oc1ccccc1", "C", r"F/C=C/F"])
    x = torch.randn(len(batch.atoms), WIDTH)
    out = torch.zeros(len(x), WIDTH)
    bonds = layer.edge_embedding1(batch.bonds[:, 0]) + layer.edge_embedding2(batch.bonds[:, 1])
    for atom in range(len(x)):
        mine = (batch.target == atom).nonzero().squeeze(1).tolist()
        degree = {a: (batch.target == a).sum().item() for a in [atom, *batch.source[mine].tolist()]}
        if kind == "gcn":
            h = layer.linear(x)
            out[atom] = sum(
                (degree[int(batch.source[b])] * len(mine)) ** -0.5 * (h[batch.source[b]] + bonds[b]) for b in mine
            )
        elif kind == "graphsage":
            h = layer.linear(x)
            mean = sum(h[batch.source[b]] + bonds[b] for b in mine) / len(mine)
            out[atom] = mean / mean.norm()
        elif kind == "gin":
            out[atom] = layer.mlp(sum(x[batch.source[b]] + bonds[b] for b in mine))
        else:
            h = layer.weight_linear(x).view(-1, GatLayer.heads, WIDTH)
            values = torch.stack([h[batch.source[b]] + bonds[b].view(GatLayer.heads, WIDTH) for b in mine])
            pairs = torch.cat([h[atom].expand_as(values), values], -1)
            weight = torch.nn.functional.leaky_relu((pairs * layer.att).sum(-1), 0.2).softmax(0)
            out[atom] = (weight.unsqueeze(-1) * values).sum(0).mean(0) + layer.bias
    found = layer(x, batch)
    torch.testing.assert_close(found, out, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad((each * x).sum(), list(layer.parameters())) for each in (found, out)]
    for mine, expected in zip(*gradients, strict=True):  # of sums that cancel: relative to the largest
        torch.testing.assert_close(mine / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-4)


def save_gnn(folder, kind) -> str:
    """A file of a network of random weights (unit tests only)."""
    torch.manual_seed(0)
    network = _Gnn(KINDS[kind], 120)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), folder / f"{kind}.safetensors", {"kind": kind})
    return str(folder / f"{kind}.safetensors")


def test_a_gnn_is_the_same_teacher_wherever_its_file_lies(tmp_path):
    first, other = PretrainedGnn(save_gnn(tmp_path, "gin")), PretrainedGnn(save_gnn(tmp_path, "gcn"))
    moved = PretrainedGnn(str(shutil.copy(first.weights, tmp_path / "moved")))
    assert first.fingerprint() == moved.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gnn_embeds_a_molecule_alike_alone_and_in_a_batch(tmp_path, kind):
    teacher = PretrainedGnn(save_gnn(tmp_path, kind))
    teacher.load("cpu")
    smiles = ["CCO", "c1ccccc1C(=O)NC", "C"]
    np.testing.assert_allclose(embed(teacher, smiles)[1:2], embed(teacher, smiles[1:2]), rtol=1e-4, atol=1e-6)
    assert LAYERS == 5


def test_missing_or_wrong_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("WEIGHTS", raising=False)
    with pytest.raises(TeacherError, match="a variable is not set: name the folder"):
        PretrainedGnn("${WEIGHTS}/gcn.safetensors")
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    with pytest.raises(TeacherError, match="point WEIGHTS at the folder"):
        PretrainedGnn("${WEIGHTS}/gcn.safetensors")
    (tmp_path / "gcn.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(TeacherError, match="is not a safetensors file"):
        PretrainedGnn("${WEIGHTS}/gcn.safetensors").load("cpu")
    with pytest.raises(TeacherError, match="MolClrGcn reads molclr_gcn"):
        MolClrGcn(save_gnn(tmp_path, "gcn")).load("cpu")


@pytest.mark.parametrize("teacher", FINGERPRINTS, ids=lambda each: type(each).__name__)
def test_fingerprints_of_real_molecules(teacher):
    smiles = [item.decode() for item in RdkitSamples(limit=40).read()[1]]
    embedding = embed(teacher, smiles)
    assert embedding.shape == (40, teacher.dim)
    assert len({row.tobytes() for row in embedding}) > 30
    assert set(np.unique(embedding)) == {0, 1} or not teacher.binary
    # the same molecule written in another way
    np.testing.assert_array_equal(*embed(teacher, ["OCC(N)=O", "NC(=O)CO"]))


def test_descriptors_are_rdkits_robustly_scaled_and_finite():
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    teacher = RdkitDescriptors()
    smiles = [item.decode() for item in RdkitSamples(limit=60).read()[1]]
    embedding = embed(teacher, smiles)
    assert np.isfinite(embedding).all()
    assert np.abs(embedding).max() <= 10
    position = teacher.names.index("TPSA")
    raw = np.array([Descriptors.TPSA(Chem.MolFromSmiles(each)) for each in smiles])
    expected = np.clip((raw - teacher.median[position]) / teacher.scale[position], -10, 10)
    np.testing.assert_allclose(embedding[:, position], expected, rtol=1e-5)
    assert np.isfinite(embed(teacher, ["[Na+].[Cl-]", "[H][H]"])).all()


@pytest.fixture(scope="module")
def mordred() -> Mordred:
    teacher = Mordred()
    teacher.load("cpu")
    return teacher


METHANE, SALT, CORONENE = "C", "[Na+].[Cl-]", "c1cc2ccc3ccc4ccc5ccc6ccc1c7c2c3c4c5c67"


def test_mordreds_descriptors_are_its_packages_robustly_scaled_and_zero_where_one_is_missing(mordred):
    from mordred import Calculator, descriptors
    from mordred.error import MissingValueBase
    from rdkit import Chem

    smiles = [METHANE, SALT, CORONENE, "CC(C)C(=O)N[C@H]1CCc2ccccc21", "F[P-](F)(F)(F)(F)F.CCN"]
    embedding = embed(mordred, smiles)
    assert embedding.shape == (5, 1613) == (5, mordred.dim)
    assert np.isfinite(embedding).all() and np.abs(embedding).max() <= 10
    calculator = Calculator(descriptors, ignore_3D=True)
    values = [list(calculator(Chem.MolFromSmiles(each))) for each in smiles]
    missing = np.array([[isinstance(value, MissingValueBase) for value in row] for row in values])
    assert (embedding[missing] == 0).all()
    assert missing[1].mean() > missing[3].mean() > 0, "a salt lacks more"
    position = mordred.names.index("DetourIndex")
    assert embedding[2, position] == pytest.approx(
        np.clip((values[2][position] - mordred.median[position]) / mordred.scale[position], -10, 10)
    )
    assert len({row.tobytes() for row in embedding}) == 5


def test_mordred_masks_a_molecule_of_many_rings_at_once(mordred):
    many = "C1CC1".join("C" * 21)
    with pytest.raises(BadItem, match=r"20 rings, at most 12 are read: raise max_rings"):
        mordred.prepare(many.encode())
    with pytest.raises(BadItem, match="300 atoms, at most 200"):
        mordred.prepare(b"C" * 300)
    assert Mordred(max_rings=20).prepare(many.encode()).GetNumAtoms() == 81


def test_mordred_that_is_missing_or_of_another_version_says_how_to_install_it(monkeypatch):
    class Older:
        descriptors = ("ABC",)

    monkeypatch.setattr("cache_tools.teachers.molecule.mordred_calculator", Older)
    with pytest.raises(
        TeacherError, match=r"has 1 descriptors, expected the 1,613 of version 2.0.*quorum-distill\[mordred\]"
    ):
        Mordred().load("cpu")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "mordred", None)
    with pytest.raises(TeacherError, match=r"Mordred needs mordredcommunity: pip install 'quorum-distill\[mordred\]'"):
        Mordred().load("cpu")


def test_a_build_has_the_rows_of_mordred_by_any_number_of_processes(tmp_path, mordred):
    corpus = Items([METHANE, SALT, "C1CC1".join("C" * 21), CORONENE], "molecule")
    folder = build(tmp_path, "c", corpus, {"mordred": Mordred()}, {}, Settings(workers=2, dtype="float32"))
    column = open_column(folder / "teachers" / "mordred")
    assert column.valid(torch.arange(4)).tolist() == [True, True, False, True]
    np.testing.assert_array_equal(column.rows(torch.tensor([0, 1, 3])), embed(mordred, [METHANE, SALT, CORONENE]))


@pytest.mark.parametrize("teacher", [RdkitDescriptors(), Maccs()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("smiles", [b"", b"not a molecule", b"C1CC", b"\xff"])
def test_what_is_no_molecule_is_a_bad_item(teacher, smiles):
    with pytest.raises((BadItem, UnicodeDecodeError)):
        teacher.prepare(smiles)


@pytest.mark.parametrize("smiles", [b"*CC", b"[U+6]"])
def test_a_gnn_refuses_atoms_outside_its_table_or_embeds_them(prepare, smiles):
    if smiles == b"*CC":
        with pytest.raises(BadItem, match="dummy atom"):
            prepare.prepare(smiles)
    else:
        assert prepare.prepare(smiles)[0].tolist() == [[91, 0]]


def test_a_manifest_rebuilds_its_teacher_and_nothing_else():
    from cache_tools.errors import CacheError

    teacher = MorganCounts(dim=64, radius=3)
    manifest = {"class_path": class_path(teacher), "init_args": teacher.init_args}
    again = rebuild(manifest, Teacher)
    assert (type(again), again.dim, again.radius) == (MorganCounts, 64, 3)
    with pytest.raises(CacheError, match="is no Teacher"):
        rebuild({"class_path": "os.system", "init_args": {"command": "true"}}, Teacher)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> str:
    """A folder as save_pretrained makes it: a tiny encoder with random weights (unit test only)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("roberta")
    words = ["<s>", "<pad>", "</s>", "<unk>", *"CNOFcno()=#123+-[]H"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1
    )
    RobertaModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_hf_molecule_pools_without_the_padding(roberta, pooling):
    teacher = HfMolecule(roberta, pooling)
    teacher.load("cpu")
    together, alone = embed(teacher, ["CCO", "CC(=O)NCCCCCO"]), embed(teacher, ["CCO"])
    assert together.shape == (2, teacher.dim) == (2, 16)
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)
    hidden = teacher.network.module(**teacher.tokenizer("CCO", return_tensors="pt")).last_hidden_state[0]
    expected = hidden[0] if pooling == "cls" else hidden.mean(0)
    np.testing.assert_allclose(alone[0], expected.detach(), rtol=1e-4, atol=1e-5)


def test_hf_molecule_masks_what_is_too_long_and_names_a_missing_model(roberta, tmp_path):
    teacher = HfMolecule(roberta, max_length=8)
    teacher.load("cpu")
    with pytest.raises(BadItem, match="12 tokens, at most 8"):
        teacher.prepare(b"CCCCCCCCCC")
    with pytest.raises(TeacherError, match="the path of a folder that save_pretrained made"):
        HfMolecule(str(tmp_path / "none")).load("cpu")


def test_hf_molecule_is_the_same_teacher_wherever_it_lies(roberta, tmp_path):
    import shutil

    teachers = [HfMolecule(roberta), HfMolecule(str(shutil.copytree(roberta, tmp_path / "moved")))]
    for teacher in teachers:
        teacher.load("cpu")
    assert teachers[0].fingerprint() == teachers[1].fingerprint()
    assert HfMolecule(roberta, "cls").init_args != teachers[0].init_args


def peptide(residues: int) -> str:
    from rdkit import Chem

    return Chem.MolToSmiles(Chem.MolFromSequence(("ACDEFGHIKLMNPQRSTVWY" * residues)[:residues]))


LARGE = {"a peptide": peptide(300), "waters": ".".join("O" * 2500), "a chain": "C" * 2500, "hydrogens": "[H]C" * 2500}
READERS = [RdkitDescriptors(), MoleculeGraph(), PretrainedGnn.__new__(PretrainedGnn, "unused"), *FINGERPRINTS]


@pytest.mark.parametrize("reader", READERS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("smiles", LARGE.values(), ids=LARGE)
def test_one_large_molecule_is_a_bad_item_at_once(reader, smiles):
    started = time.monotonic()
    with pytest.raises(BadItem, match=rf"2,\d\d\d atoms, at most {reader.max_atoms:,} are read: raise max_atoms"):
        reader.process_item(smiles.encode())
    assert time.monotonic() - started < 1


def test_a_large_molecule_is_masked_with_its_reason_and_the_others_are_kept(tmp_path):
    corpus = Items(["CCO", peptide(150), "C" * 2000, "c1ccccc1"], "molecule")
    readers = {"descriptors": RdkitDescriptors(), "pairs": AtomPairs(64)}
    started = time.monotonic()
    folder = build(tmp_path, "c", corpus, readers, {"graph": MoleculeGraph()}, Settings(workers=1))
    assert time.monotonic() - started < 20  # 60 s and more without the limit
    with open(folder / "teachers" / "descriptors" / "skipped.csv", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    assert reasons == [f"{count} atoms, at most 500 are read: raise max_atoms" for count in ("1,248", "2,000")]
    assert open_column(folder / "teachers" / "descriptors").valid(torch.arange(4)).tolist() == [True, False, False, True]
    assert open_column(folder / "inputs" / "graph").valid(torch.arange(4)).all()


SEVERAL = [rb"F/C=C\F", b"C[C@H](N)C(=O)O", b"[13CH4]", b"[Na+].[Cl-]", b"c1ccc2[nH]ccc2c1", b"OC[C@@H](O)C"]


@pytest.mark.parametrize("reader", READERS, ids=lambda each: type(each).__name__)
def test_a_molecule_that_was_parsed_before_gives_the_same_row(reader):
    rdkit_only = isinstance(reader, Teacher) and not isinstance(reader, PretrainedGnn)
    for smiles in SEVERAL + RdkitSamples(limit=60).read()[1]:
        _parsed.clear()
        first, again = reader.process_item(smiles), reader.process_item(smiles)
        assert first is not again
        if rdkit_only:
            first, again = reader.embed([first]), reader.embed([again])
        np.testing.assert_equal(again, first)


def test_all_columns_that_one_process_builds_share_one_parse_of_a_smiles(tmp_path, monkeypatch):
    from rdkit import Chem

    parsed, parse = [], Chem.MolFromSmiles
    monkeypatch.setattr(Chem, "MolFromSmiles", lambda smiles: parsed.append(smiles) or parse(smiles))
    _parsed.clear()
    corpus = RdkitSamples(limit=30)
    readers = {"gnn": PretrainedGnn(save_gnn(tmp_path, "gin")), "descriptors": RdkitDescriptors(), "morgan": MorganBits()}
    build(tmp_path, "c", corpus, readers, {"graph": MoleculeGraph()}, Settings(workers=1))
    assert sorted(parsed) == sorted(item.decode() for item in corpus.read()[1])


def test_a_higher_limit_reads_larger_molecules_and_makes_another_column():
    with pytest.raises(BadItem, match="600 atoms, at most 500"):
        RdkitDescriptors().prepare(b"C" * 600)
    assert RdkitDescriptors(max_atoms=600).prepare(b"C" * 600).GetNumAtoms() == 600
    assert RdkitDescriptors(max_atoms=600).fingerprint()["max_atoms"] == 600
    with pytest.raises(ConfigError, match=r"max_atoms is 40,000, expected at most 32,767"):
        MoleculeGraph(40_000)


@pytest.mark.parametrize("reader", READERS[:2] + FINGERPRINTS, ids=lambda each: type(each).__name__)
def test_the_limit_that_no_one_changed_leaves_a_column_as_version_0_1_made_it(reader):
    assert "max_atoms" not in reader.fingerprint()
    assert (
        rebuild({"class_path": class_path(reader), "init_args": reader.init_args}, Producer).max_atoms == reader.max_atoms
    )


def test_descriptors_are_bit_by_bit_those_of_rdkit_in_the_order_of_its_list():
    from rdkit import Chem
    from rdkit.Chem import Descriptors

    teacher, functions = RdkitDescriptors(), dict(Descriptors.descList)
    smiles = [item.decode() for item in RdkitSamples(limit=60).read()[1]] + [
        "[Na+].[Cl-]",
        "[H][H]",
        "C" * 150,
        peptide(20),
    ]
    expected = [
        [number(functions[name], molecule) for name in teacher.names] for molecule in map(Chem.MolFromSmiles, smiles)
    ]
    found = raw_descriptors([teacher.prepare(each.encode()) for each in smiles], teacher.names)
    np.testing.assert_array_equal(found, np.array(expected))


def number(function, molecule) -> float:
    try:
        return float(function(molecule))
    except (ValueError, ZeroDivisionError, RuntimeError, OverflowError):
        return float("nan")

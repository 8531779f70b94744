"""The static student of texts: a vector and a weight per token."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_tools import ConfigError, Ragged
from distill.students.text import StaticStudent

TEXTS = [[1, 2, 2, 5], [3], [0, 4, 6, 6, 6, 1]]


def tokens(texts):
    flat = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    return {"tokens": Ragged(flat, torch.tensor([len(text) for text in texts]), max(len(text) for text in texts))}


def padded(texts):
    longest = max(len(text) for text in texts)
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    return ids, torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])


@pytest.fixture(params=[{}, {"norm": True}, {"dim": 3}, {"norm": True, "dim": 3}], ids=["plain", "norm", "map", "both"])
def student(request):
    torch.manual_seed(0)
    made = StaticStudent(7, 5, **request.param)
    torch.nn.init.normal_(made.logits.weight)
    return made


def test_training_begins_at_the_plain_mean_of_the_tokens_vectors():
    student = StaticStudent(7, 5)
    by_hand = torch.stack([student.token_table()[text].mean(0) for text in TEXTS])
    torch.testing.assert_close(student.encode(tokens(TEXTS)), by_hand)


def test_a_text_is_the_weighted_mean_of_its_tokens_vectors():
    torch.manual_seed(0)
    student = StaticStudent(7, 5)
    torch.nn.init.normal_(student.logits.weight)
    vectors, logits = student.vectors.weight.detach().numpy(), student.logits.weight.detach().numpy().ravel()
    weights = 1 / (1 + np.exp(-logits))
    by_hand = np.stack([np.average(vectors[text], axis=0, weights=weights[text]) for text in TEXTS])
    np.testing.assert_allclose(student.encode(tokens(TEXTS)).detach().numpy(), by_hand, rtol=1e-5, atol=1e-6)


def test_padding_and_other_texts_change_no_text(student):
    together = student.encode(tokens(TEXTS))
    alone = torch.cat([student.encode(tokens([text])) for text in TEXTS])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(student.encode_padded(*padded(TEXTS)), together)
    assert together.shape == (3, student.dim) and student.widths == [student.dim]


def test_every_parameter_gets_a_gradient_and_of_a_table_the_rows_that_were_read(student):
    student.encode(tokens([[1, 2], [2]])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    for table in (student.vectors, student.logits):
        assert table.weight.grad.is_sparse
        assert sorted(set(table.weight.grad.coalesce().indices()[0].tolist())) == [1, 2]


def test_gradients_of_some_rows_equal_those_of_the_whole_table(student):
    gradients = []
    for sparse in (True, False):
        student.zero_grad()
        student.vectors.sparse = student.logits.sparse = sparse
        student.encode(tokens(TEXTS)).square().sum().backward()
        gradients.append([parameter.grad.to_dense() for parameter in student.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_gradient_is_whole_on_any_other_device():
    assert StaticStudent(7, 5).vectors.sparse
    assert not StaticStudent(7, 5).to("meta").vectors.sparse


def test_the_traced_program_is_the_student(student):
    traced = student.eval().traceable(SimpleNamespace())
    program = torch.export.export(traced.module, traced.inputs, dynamic_shapes=traced.dynamic_shapes).module()
    torch.testing.assert_close(program(*padded(TEXTS)), student.encode(tokens(TEXTS)))


def test_a_text_without_a_token_is_zero():
    student = StaticStudent(7, 5)
    rows = {"tokens": Ragged(torch.tensor([1, 2], dtype=torch.int32), torch.tensor([2, 0]), 2)}
    out = student.encode(rows)
    out.sum().backward()
    assert out[1].eq(0).all() and student.vectors.weight.grad.to_dense().isfinite().all()


def test_a_token_beyond_the_table_is_refused_in_words():
    with pytest.raises(ConfigError, match=re.escape("knows 7 tokens, its input has token 7: give the input column")):
        StaticStudent(7, 5).encode(tokens([[1, 7]]))


@pytest.mark.parametrize("sizes", [(0, 5, {}), (7, 0, {}), (7, 5, {"dim": 0})])
def test_sizes_that_make_no_student_are_refused(sizes):
    vocabulary, width, options = sizes
    with pytest.raises(ConfigError, match="StaticStudent"):
        StaticStudent(vocabulary, width, **options)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A folder with a small BERT of random weights and its tokenizer."""
    from tokenizers import Tokenizer, models, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d", "e", "f"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    folder = tmp_path_factory.mktemp("encoder")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return str(folder)


def begun(encoder, rows=10, width=4):
    student = StaticStudent(rows, width, start=encoder)
    student.begin(lambda count: tokens(TEXTS))
    return student


def test_a_start_is_the_principal_components_of_what_an_encoder_makes_of_each_token_alone(encoder):
    from transformers import BertModel

    network = BertModel.from_pretrained(encoder).eval()
    ids = torch.tensor([[1, token, 2] for token in range(10)])
    with torch.inference_mode():
        vectors = network(input_ids=ids).last_hidden_state.mean(1)
    vectors = torch.nn.functional.normalize(vectors).double().numpy()
    share = np.bincount([token for text in TEXTS for token in text], minlength=10) + 1.0
    share /= share.sum()
    vectors -= np.average(vectors, axis=0, weights=share)
    _, _, axes = np.linalg.svd(np.sqrt(share)[:, None] * vectors, full_matrices=False)
    expected = vectors @ axes[:4].T
    student = begun(encoder)
    table, logits = student.vectors.weight.detach().double().numpy(), student.logits.weight.detach().numpy()[:, 0]
    scale = np.sqrt(np.square(expected).sum(1).mean())  # axes have either sign, so distances are compared
    np.testing.assert_allclose(table @ table.T, expected @ expected.T / scale**2, atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), 1e-3 / (1e-3 + share), rtol=1e-5)


def test_a_start_with_too_few_tokens_or_too_narrow_is_refused(encoder):
    with pytest.raises(ConfigError, match=r"vocabulary is 11, expected 10 at most: .* knows no more tokens"):
        begun(encoder, rows=11)
    with pytest.raises(ConfigError, match=r"width is 17, expected 16 at most: .* is no wider"):
        begun(encoder, width=17)


def test_neither_an_export_nor_the_untrained_student_needs_the_encoder(encoder, tmp_path):
    arguments = {"vocabulary": 10, "width": 4, "start": encoder}
    student = StaticStudent(**arguments)
    assert student.random_start(arguments)["start"] is None
    assert student.portable(arguments, tmp_path)["start"] is None


def test_only_the_commonest_tokens_of_the_corpus_have_a_row_and_special_ones_always():
    texts = [[1, 4, 4, 4, 2], [1, 5, 5, 2], [1, 3, 4, 2]]  # 1 and 2 stand in every text, 4 is the commonest, then 5
    student = StaticStudent(7, 5, kept=4)
    student.begin(lambda count: tokens(texts))
    assert student.row_of.tolist() == [4, 0, 1, 4, 2, 3, 4]
    assert student.vectors.weight.shape == (5, 5) and student.logits.weight.shape == (5, 1)
    assert student.token_table().shape == (7, 5)
    shared = student.encode(tokens([[0], [3], [6]]))
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], shared[2])
    few = StaticStudent(7, 5, kept=2)
    few.begin(lambda count: tokens(texts))
    assert few.row_of.tolist() == [2, 0, 1, 2, 2, 2, 2], "4 is more frequent than 1, and is no special token"


def test_a_student_with_every_token_has_the_state_that_it_always_had():
    assert set(StaticStudent(7, 5).state_dict()) == {"vectors.weight", "logits.weight"}
    assert set(StaticStudent(7, 5, kept=3).state_dict()) == {"vectors.weight", "logits.weight", "row_of"}


def test_the_shared_row_of_a_start_is_the_mean_of_its_tokens_by_how_frequent_they_are(encoder):
    whole, cut = begun(encoder), StaticStudent(10, 4, start=encoder, kept=3)
    cut.begin(lambda count: tokens(TEXTS))
    counts = np.bincount([token for text in TEXTS for token in text], minlength=10) + 1.0
    rows = cut.row_of.numpy()
    assert sorted(np.flatnonzero(rows < 3)) == [1, 2, 6]
    for part in ("vectors.weight", "logits.weight"):
        table, shared = (student.state_dict()[part].numpy() for student in (whole, cut))
        by_hand = [np.average(table[rows == row], axis=0, weights=counts[rows == row]) for row in range(4)]
        np.testing.assert_allclose(shared, by_hand, rtol=1e-4, atol=1e-6)


def test_a_student_of_few_tokens_trains_its_rows_alone_and_is_traced():
    torch.manual_seed(0)
    student = StaticStudent(7, 5, kept=3)
    student.begin(lambda count: tokens(TEXTS))
    torch.testing.assert_close(student.encode_padded(*padded(TEXTS)), student.encode(tokens(TEXTS)))
    traced = student.eval().traceable(SimpleNamespace())
    program = torch.export.export(traced.module, traced.inputs, dynamic_shapes=traced.dynamic_shapes).module()
    torch.testing.assert_close(program(*padded(TEXTS)), student.encode(tokens(TEXTS)))
    student.encode(tokens([[3], [0]])).square().sum().backward()
    assert student.vectors.weight.grad.coalesce().indices()[0].tolist() == [3]


@pytest.mark.parametrize("kept", [0, 7, 8])
def test_a_number_of_tokens_that_is_none_or_all_of_them_is_refused(kept):
    with pytest.raises(ConfigError, match=rf"kept is {kept}, expected a number of tokens from 1 to 6: the student knows 7"):
        StaticStudent(7, 5, kept=kept)

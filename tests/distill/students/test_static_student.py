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

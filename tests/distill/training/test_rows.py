"""AdamW by rows, and a static student that is trained by it."""

from copy import deepcopy
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from cache_tools import Featuriser, Items, Settings, Teacher, build
from distill.data.module import DistillData
from distill.students.rows import RowTable
from distill.students.text import StaticStudent
from distill.training.distiller import Distiller
from distill.training.rows import RowAdamW, clip, touched

READ = [[0, 3, 3], [3, 1], [0, 4, 1], [4], [0, 3]]  # rows that each step reads


def steps(table, optimiser):
    for number, rows in enumerate(READ):
        table.zero_grad()
        weights = torch.linspace(-1, 2 + number, len(rows))
        (table.each(torch.tensor(rows)).square().sum(1) * weights).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("sparse", [True, False])
def test_each_row_has_an_adamw_of_its_own_that_counts_the_steps_that_read_it(sparse):
    """The reference is PyTorch's, for each row alone, on the steps whose batch holds the row."""
    torch.manual_seed(0)
    table = RowTable(6, 5)
    table.sparse = sparse
    begun = table.weight.detach().clone()
    options = {"lr": 0.1, "weight_decay": 0.3}
    steps(table, RowAdamW([{"params": [table.weight], "rows": True}], fused=True, **options))
    for row in range(6):
        alone = nn.Parameter(begun[row].clone())
        reference = torch.optim.AdamW([alone], **options)
        for number, rows in enumerate(READ):
            if row in rows:
                weights = torch.linspace(-1, 2 + number, len(rows))
                weight = sum(float(w) for w, read in zip(weights, rows, strict=True) if read == row)
                alone.grad = 2 * weight * alone.detach()
                reference.step()
        assert torch.allclose(table.weight[row], alone, atol=1e-6), f"row {row}"
    assert torch.equal(table.weight[[2, 5]], begun[[2, 5]]), "a row that no batch reads stays, to the last bit"


def test_rows_go_on_from_a_saved_state_to_the_last_bit():
    torch.manual_seed(0)
    first, groups = RowTable(6, 5), lambda table: [{"params": [table.weight], "rows": True}]
    optimiser = RowAdamW(groups(first), lr=0.1, fused=True)
    steps(first, optimiser)
    second = deepcopy(first)
    other = RowAdamW(groups(second), lr=0.1, fused=True)
    other.load_state_dict(deepcopy(optimiser.state_dict()))
    steps(first, optimiser), steps(second, other)
    assert torch.equal(first.weight, second.weight)


@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_clipping_counts_a_row_that_is_read_twice_once_and_agrees_with_whole_gradients(largest):
    torch.manual_seed(0)
    gradients = []
    table, linear = RowTable(6, 5), nn.Linear(5, 2)
    for sparse in (True, False):
        table.sparse = sparse
        nn.ModuleList([table, linear]).zero_grad()
        linear(table.each(torch.tensor([0, 3, 3, 5]))).square().sum().backward()
        parameters = [table.weight, *linear.parameters()]
        if not sparse:
            nn.utils.clip_grad_norm_(parameters, largest)
        else:
            clip(parameters, largest)
            assert len(touched(table.weight)[0]) == 3
        gradients.append([parameter.grad.to_dense().clone() for parameter in parameters])
    for ours, torchs in zip(*gradients, strict=True):
        assert torch.allclose(ours, torchs, rtol=1e-6, atol=1e-9)


class Letters(Featuriser):
    """A text as its letters' numbers."""

    modality = "text"
    fields: ClassVar = {"tokens": ("int32", ())}
    padded = "tokens"

    def featurise(self, item):
        return {"tokens": np.array([ord(letter) - ord("a") for letter in item], np.int32)}


class Counts(Teacher):
    """How many a's, b's and c's a text holds, over its length."""

    modality = "text"
    dim = 3

    def embed(self, items):
        return np.array([[item.count(letter) / len(item) for letter in "abc"] for item in items], np.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcdefgh"), random.integers(2, 9))) for _ in range(300)]
    return build(
        tmp_path_factory.mktemp("rows"), "texts", Items(texts, "text"), {"counts": Counts()}, {"tokens": Letters()},
        Settings(workers=1),
    )  # fmt: skip


def fit(corpus, student=StaticStudent, **options):
    torch.manual_seed(0)
    data = DistillData(corpus, batch_size=32, held_out=30)
    model = Distiller(data.statistics, student(26, 8), student_lr=0.05, head_lr=0.01)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    checkpoint = options.pop("ckpt_path", None)
    trainer = Trainer(accelerator="cpu", gradient_clip_val=1.0, use_distributed_sampler=False, **quiet, **options)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return trainer, model


def test_a_static_student_learns_and_letters_that_no_text_holds_stay(corpus):
    torch.manual_seed(0)
    begun = StaticStudent(26, 8).vectors.weight.detach().clone()
    trainer, model = fit(corpus, max_epochs=12)
    assert trainer.callback_metrics["r2/counts"] > 0.8
    vectors = model.student.vectors.weight.detach()
    assert torch.equal(vectors[8:], begun[8:])
    assert (vectors[:8] != begun[:8]).any(1).all()


def test_a_static_student_goes_on_from_a_checkpoint_to_the_last_bit(corpus, tmp_path):
    _, whole = fit(corpus, max_epochs=4)
    half, _ = fit(corpus, max_epochs=4, callbacks=[Stop()])
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, rest = fit(corpus, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


def test_a_new_fit_begins_with_rows_of_the_corpus_and_a_continued_one_does_not(corpus, tmp_path):
    seen = []

    class Counting(StaticStudent):
        def begin(self, sample):
            seen.extend(sample(count)["tokens"] for count in (7, 1000))

    half, _ = fit(corpus, Counting, max_epochs=4, callbacks=[Stop()])
    half.save_checkpoint(tmp_path / "half.ckpt")
    some, everything = (len(tokens.counts) for tokens in seen)
    assert some == 7 and everything > 250, "equal texts count once"
    fit(corpus, Counting, max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert len(seen) == 2


class Stop(Callback):
    """Ends a fit after its second epoch, whose schedule is that of more epochs."""

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1

import io

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.image import ImageFolder, Views
from cache_tools.corpora.text import TextFile
from cache_tools.errors import CacheError, ConfigError
from cache_tools.inputs import EncodedImage, Pixels, TokenIds
from cache_tools.items.image import decode_image
from cache_tools.teachers.base import Teacher
from distill.data.augment import alternately_mirrored, crop_and_mirror
from distill.data.columns import open_corpus
from distill.data.module import CorpusSource, DistillData
from distill.evaluation.protocol import Evaluation
from distill.evaluation.tasks import ImageTask, TextTask
from distill.heads import GaussianHead
from distill.students.image import SmallResNet
from distill.students.mixed import MixedStudent
from distill.students.text import TextStudent
from distill.training.distiller import Distiller

SETTINGS = Settings(workers=1, shard_rows=64)
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


class MeanColour(Teacher):
    modality = "image"
    dim = 3

    def prepare(self, item):
        return np.asarray(decode_image(item), np.float32)

    def embed(self, items):
        return np.stack([item.mean((0, 1)) / 255 for item in items])


class CountWords(Teacher):
    modality = "text"
    dim = 4

    def embed(self, items):
        return np.array([[item.count(word) for word in ("good", "bad", "the")] + [len(item)] for item in items], np.float32)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noisy red and blue squares of 16 pixels, 60 of each."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(60):
            pixels = np.clip(random.normal(colour, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = ["text,label"]
    for number in range(150):
        word = ("good", "bad")[number % 2]
        rows.append(f"{' the' * int(random.integers(0, 12))} film {number} is {word},{word}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "the", "film", "is", "good", "bad"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def caches(pictures, reviews, tokenizer, tmp_path_factory):
    """A cache with a corpus of images and one of texts."""
    cache = tmp_path_factory.mktemp("cache")
    pixels = {"pixels": Pixels(16)}
    images = build(cache, "images", ImageFolder(pictures), {"colour": MeanColour()}, pixels, SETTINGS)
    tokens = {"tokens": TokenIds(tokenizer, 32)}
    texts = build(cache, "texts", TextFile(reviews), {"words": CountWords()}, tokens, SETTINGS)
    return [CorpusSource(images), CorpusSource(texts)]


def text_student() -> TextStudent:
    config = {"vocab_size": 7, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return TextStudent("bert", config=config, dim=8)


def test_a_batch_of_two_modalities_keeps_rows_inputs_and_teachers_together(caches):
    batch = next(iter(DistillData(corpora=caches[::-1], batch_size=32, held_out=10).train_dataloader()))
    assert list(batch.inputs) == ["tokens", "pixels"]
    assert batch.corpora.tolist() == sorted(batch.corpora.tolist()), "rows come in the order of the inputs"
    texts, images = batch.corpora == 0, batch.corpora == 1
    assert torch.equal(batch.valid["words"], texts)
    assert torch.equal(batch.valid["colour"], images)
    mean = batch.inputs["pixels"].float().mean((1, 2)) / 255
    torch.testing.assert_close(mean, batch.targets["colour"][images].float(), atol=1e-3, rtol=0)
    the = [
        (row == 2).sum().item()
        for row in batch.inputs["tokens"]["tokens"].values.split(batch.inputs["tokens"]["tokens"].counts.tolist())
    ]
    assert batch.targets["words"][texts][:, 2].tolist() == the


def test_one_student_of_two_modalities_learns_both_and_is_probed_on_both(caches, pictures, reviews):
    torch.manual_seed(0)
    data = DistillData(corpora=caches, batch_size=30, held_out=10)
    student = MixedStudent({"image": SmallResNet(1, 8), "text": text_student()}, dim=16)
    model = Distiller(
        data.statistics, student, lambda s, t: GaussianHead(s, t, preset="mini"), student_lr=3e-3, head_lr=3e-3
    )
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=16, accelerator="cpu", **quiet)
    trainer.fit(model, data)
    assert trainer.callback_metrics["r2/colour"] > 0.5
    assert trainer.callback_metrics["r2/words"] > 0.3
    tasks = {"reviews": TextTask(reviews), "pictures": ImageTask(pictures)}
    evaluation = Evaluation(tasks, splits=["own"], seeds=[0])
    evaluation.prepare(data.corpora, SETTINGS)
    records = {(record.task, record.system): record.score for record in evaluation.run({"student": student}, "cpu")}
    assert records["pictures", "student"] == 1.0
    assert records["reviews", "student"] > 0.9
    assert records["pictures", "colour"] == 1.0
    assert ("reviews", "colour") not in records, "a teacher is probed on its own modality"


def test_encoded_images_unpack_to_nearly_the_same_pixels(pictures, tmp_path):
    inputs = {"pixels": Pixels(16), "encoded": EncodedImage(16, 95)}
    corpus = build(tmp_path, "c", ImageFolder(pictures, limit=8), {"colour": MeanColour()}, inputs, SETTINGS)
    rows = torch.tensor([5, 0, 7])
    exact, close = (open_corpus(corpus, None, name).read(rows.numpy()).inputs[name] for name in inputs)
    assert exact.shape == close.shape == (3, 16, 16, 3)
    assert exact.dtype == close.dtype == torch.uint8
    assert (exact.float() - close.float()).abs().mean() < 8
    with pytest.raises(CacheError, match=r"which input column .* encoded, pixels"):
        open_corpus(corpus, None)


def test_the_student_sees_the_very_view_that_the_teacher_saw(pictures, tmp_path):
    views = Views(ImageFolder(pictures), views=3, size=16)
    corpus = build(tmp_path, "c", views, {"colour": MeanColour()}, {"pixels": Pixels(16)}, SETTINGS)
    data = DistillData(corpus, batch_size=20, held_out=20, augmentation="views")
    shown = set()
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            mean = batch.inputs["pixels"].float().mean((1, 2)) / 255
            torch.testing.assert_close(mean, batch.targets["colour"].float(), atol=1e-3, rtol=0)
            assert len(set((batch.rows // 3).tolist())) == 20
            shown |= set(batch.rows.tolist())
    assert len({row % 3 for row in shown}) == 3
    held = {row // 3 for batch in data.val_dataloader() for row in batch.rows.tolist()}
    assert len(held) == 20
    assert not held & {row // 3 for row in shown}, "no view of a held-out image is trained on"
    clean = DistillData(corpus, batch_size=20, held_out=20)
    assert all(not (batch.rows % 3).any() for batch in clean.train_dataloader())


def test_student_only_augmentation_changes_training_images_alone(caches):
    data = DistillData(caches[0].path, batch_size=16, held_out=16, augmentation="student-only")
    model = Distiller(data.statistics, SmallResNet(1, 4), lambda s, t: GaussianHead(s, t, preset="mini"))
    seen: dict[str, torch.Tensor] = {}
    model.student.register_forward_pre_hook(lambda module, args: seen.update({str(module.training): args[0]["pixels"]}))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=1, num_sanity_val_steps=0, accelerator="cpu", **quiet
    ).fit(model, data)
    clean = next(iter(data.train_dataloader())).inputs["pixels"]
    assert seen["True"].shape == clean.shape
    assert not torch.equal(seen["True"], clean)
    assert torch.equal(seen["False"], next(iter(data.val_dataloader())).inputs["pixels"])


def test_cropping_shifts_and_mirrors_and_invents_no_pixel():
    torch.manual_seed(0)
    column = torch.arange(32, dtype=torch.uint8).expand(400, 32, 32)
    pixels = torch.stack([column, column.transpose(1, 2), torch.full_like(column, 7)], -1)
    mirrored = torch.arange(400) % 3 == 0
    out = crop_and_mirror(pixels, mirrored).int()
    assert out.shape == pixels.shape
    assert (out[..., 2] == 7).all()
    steps = out[..., 0].diff(dim=2)
    assert torch.equal(steps.sum((1, 2)) < 0, mirrored)
    assert (steps.abs() <= 1).all()
    shifts = out[:, 16, 16, 1] - 16
    assert shifts.min() == -4
    assert shifts.max() == 4


def test_coins_of_images_are_fair_and_independent_of_neighbours_corpora_and_seeds():
    rows, zeros = torch.arange(100_000), torch.zeros(100_000, dtype=torch.int64)
    first = alternately_mirrored(rows, zeros, seed=0, epoch=0)
    others = [
        alternately_mirrored(rows, zeros + 1, seed=0, epoch=0),
        alternately_mirrored(rows, zeros, seed=1, epoch=0),
        *(first.roll(step) for step in (1, 2, 3, 8, 64, 1000)),
    ]
    torch.testing.assert_close(
        alternately_mirrored(rows[1::2], zeros[1::2], seed=0, epoch=0), first[1::2]
    )  # of rank 1 of 2
    assert abs(first.float().mean() - 0.5) < 0.01
    assert all(abs((first == other).float().mean() - 0.5) < 0.01 for other in others)


def test_an_image_is_mirrored_in_exactly_one_of_two_consecutive_epochs_also_beside_texts(caches, monkeypatch):
    monkeypatch.setattr("distill.data.augment._shifted", lambda size, batch, *_: torch.arange(size).expand(batch, size))
    clean, seen = open_corpus(caches[0].path, None), dict[tuple[int, int], bool]()

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rows = batch.rows[batch.corpora == 1]
            originals = clean.read(rows.numpy()).inputs["pixels"]
            for row, pixels, original in zip(rows.tolist(), batch.inputs["pixels"], originals, strict=True):
                mirrored = seen[trainer.current_epoch, row] = torch.equal(pixels, original.flip(1))
                assert mirrored or torch.equal(pixels, original)

    data = DistillData(corpora=caches[::-1], batch_size=23, held_out=20, augmentation="student-only")
    student = MixedStudent({"image": SmallResNet(1, 4), "text": text_student()}, dim=8)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    model = Distiller(data.statistics, student, lambda s, t: GaussianHead(s, t, preset="mini"))
    Trainer(max_epochs=4, limit_val_batches=0, accelerator="cpu", callbacks=[Watch()], **quiet).fit(model, data)
    assert 30 < sum(mirrored for (epoch, _), mirrored in seen.items() if not epoch) < 70
    twice = [(mirrored, seen[epoch + 1, row]) for (epoch, row), mirrored in seen.items() if (epoch + 1, row) in seen]
    assert len(twice) > 280
    assert all(first != second for first, second in twice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": "views"}, "has one view of each image"),
        ({"augmentation": "student-only", "text": True}, "is for images; there is no corpus of images"),
        ({"input": "graph"}, "graph"),
    ],
)
def test_an_augmentation_or_input_that_the_corpus_lacks_is_named(caches, options, message):
    corpus = caches[1 if options.pop("text", False) else 0].path
    with pytest.raises((ConfigError, CacheError), match=message):
        DistillData(corpus, batch_size=16, held_out=10, **options)


def test_a_damaged_picture_is_left_out_of_every_batch(pictures, tmp_path):
    import shutil

    folder = shutil.copytree(pictures, tmp_path / "pictures")
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    (folder / "red" / "99.jpg").write_bytes(file.getvalue()[:200])
    corpus = build(tmp_path / "cache", "c", ImageFolder(folder), {"colour": MeanColour()}, {"pixels": Pixels(16)}, SETTINGS)
    skipped = (corpus / "teachers" / "colour" / "skipped.csv").read_text()
    assert "red/99.jpg" in skipped
    row = int(skipped.splitlines()[1].split(",")[0])
    data = DistillData(corpus, batch_size=16, held_out=10)
    assert row not in {each for batch in [*data.train_dataloader(), *data.val_dataloader()] for each in batch.rows.tolist()}

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cache_tools import Ragged
from cache_tools.errors import ConfigError, TeacherError
from cache_tools.inputs import Pixels, TokenIds
from cache_tools.teachers.image import EfficientNetLite
from cache_tools.teachers.network import pool_tokens
from distill.students.base import Student
from distill.students.image import MEAN, STD, ImageStudent, SmallResNet, WhitenedConvNet
from distill.students.mixed import MixedStudent
from distill.students.text import TextStudent

BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 20,
}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
GREY, WIDE = [0.1, 0.2, 0.3], [0.5, 0.25, 0.5]  # a processor's own mean and deviation


def pixels(size=32, batch=3, seed=0):
    return torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def tokens(*rows):
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return {"tokens": Ragged(flat, torch.tensor([len(row) for row in rows]), max(len(row) for row in rows))}


def without_gradient(student, inputs):
    student.train()(inputs).square().sum().backward()
    return [name for name, each in student.named_parameters() if each.requires_grad and each.grad is None]


def same(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """Folders of tiny transformers networks of images, each with its processor."""
    import transformers as hf

    folder = tmp_path_factory.mktemp("vision")
    made = {
        "vit": hf.ViTModel(hf.ViTConfig(**VIT, intermediate_size=32)),
        "dinov2": hf.Dinov2Model(hf.Dinov2Config(**VIT)),
        "swin": hf.SwinModel(hf.SwinConfig(**SWIN)),
        "resnet": hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
        "clip": hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT, intermediate_size=32)),
    }
    for name, network in made.items():
        network.save_pretrained(folder / name)
        hf.ViTImageProcessor(image_mean=GREY, image_std=WIDE).save_pretrained(folder / name)
    return folder


IMAGE_STUDENTS = {
    "small": (lambda folder, dim: SmallResNet(1, 8, dim), 32, [8, 16, 32]),
    "whitened": (lambda folder, dim: WhitenedConvNet(8, dim), 32, [8, 32, 32]),
    "timm resnet": (lambda folder, dim: ImageStudent("test_resnet", pretrained=False, dim=dim), 32, [32, 32, 48, 192, 96]),
    "timm vit": (lambda folder, dim: ImageStudent("test_vit", pretrained=False, dim=dim, size=32), 32, [64] * 6),
    "timm head": (lambda folder, dim: ImageStudent("test_efficientnet", pretrained=False, dim=dim), 32, None),
    "torchvision resnet": (lambda folder, dim: ImageStudent("resnet18", "torchvision", False, dim=dim), 32, None),
    "torchvision mobilenet": (
        lambda folder, dim: ImageStudent("mobilenet_v3_small", "torchvision", False, dim=dim),
        32,
        None,
    ),
    "vit": (lambda folder, dim: ImageStudent(f"{folder}/vit", "transformers", dim=dim), 32, [16, 16]),
    "dinov2": (lambda folder, dim: ImageStudent(f"{folder}/dinov2", "transformers", dim=dim), 32, [16, 16]),
    "swin": (lambda folder, dim: ImageStudent(f"{folder}/swin", "transformers", dim=dim), 32, None),
    "resnet": (lambda folder, dim: ImageStudent(f"{folder}/resnet", "transformers", dim=dim), 32, [8, 16]),
    "clip": (lambda folder, dim: ImageStudent(f"{folder}/clip", "transformers", dim=dim), 32, [16, 16]),
}


@pytest.mark.parametrize("name", IMAGE_STUDENTS)
@pytest.mark.parametrize("dim", [None, 5])
def test_an_image_student_embeds_after_every_block(vision, name, dim):
    make, size, widths = IMAGE_STUDENTS[name]
    student, rows = make(vision, dim).eval(), pixels(size)
    assert dim is None or student.dim == dim
    with torch.inference_mode():
        found = student.embeddings(rows)
        torch.testing.assert_close(student({"pixels": rows}), found[-1], rtol=0, atol=0)
    assert len(found) > 1
    assert all(each.ndim == 2 and len(each) == 3 and each.isfinite().all() for each in found)
    assert found[-1].shape == (3, student.dim)
    if widths:
        assert [each.shape[1] for each in found] == [*widths[:-1], dim or widths[-1]]


@pytest.mark.parametrize("name", IMAGE_STUDENTS)
def test_every_parameter_of_an_image_student_gets_a_gradient(vision, name):
    make, size, _ = IMAGE_STUDENTS[name]
    student = make(vision, 5)
    assert without_gradient(student, {"pixels": pixels(size)}) == []  # another is an error of DDP


@pytest.mark.parametrize("name", IMAGE_STUDENTS)
def test_a_copied_image_student_is_another_one(vision, name):
    make, size, _ = IMAGE_STUDENTS[name]
    student, rows = make(vision, None).eval(), pixels(size)
    with torch.no_grad():
        before = student.embeddings(rows)
        other = copy.deepcopy(student)
        for each in other.parameters():
            each.zero_()
        torch.testing.assert_close(student.embeddings(rows), before)
        assert [each.shape for each in other.embeddings(rows)] == [each.shape for each in before]
        assert not torch.equal(other.embeddings(rows)[0], before[0])


def test_the_filters_of_a_whitened_network_make_patches_of_the_corpus_uncorrelated():
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(40, 3, 4, 4), size=16, mode="bicubic", antialias=True)
    rows = (255 * smooth.clamp(0, 1)).byte().permute(0, 2, 3, 1)
    student = WhitenedConvNet(8)
    student.begin(lambda count: rows[:count])
    out = torch.nn.functional.conv2d(student._scaled(rows), student.filters).transpose(0, 1).flatten(1)  # (24, n)
    torch.testing.assert_close(out[:12], -out[12:])
    covariance = out[:12] @ out[:12].T / out.shape[1]
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3
    assert covariance.diag().max() < 1.001
    assert covariance.diag()[-3:].min() > 0.99, "what varies has variance 1"


@pytest.mark.parametrize("name", ["small", "whitened", "timm resnet", "torchvision resnet"])
def test_rows_of_images_do_not_see_one_another(vision, name):
    student, rows = IMAGE_STUDENTS[name][0](vision, None).eval(), pixels()
    with torch.inference_mode():
        together = student({"pixels": rows})
        alone = torch.cat([student({"pixels": rows[[row]]}) for row in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "mean", "std"),
    [
        (lambda folder: SmallResNet(1, 8), MEAN, STD),
        (lambda folder: ImageStudent("test_resnet", pretrained=False), [0.5] * 3, [0.5] * 3),
        (lambda folder: ImageStudent("resnet18", "torchvision", False), MEAN, STD),
        (lambda folder: ImageStudent(f"{folder}/vit", "transformers"), GREY, WIDE),
    ],
    ids=["small", "timm", "torchvision", "transformers"],
)
def test_pixels_are_standardised_as_the_library_does(vision, make, mean, std):
    from torchvision.transforms import functional

    rows = pixels()
    expected = functional.normalize(rows.permute(0, 3, 1, 2).float() / 255, list(mean), list(std))
    student = make(vision)
    torch.testing.assert_close(student._scaled(rows), expected, rtol=1e-5, atol=1e-5)
    assert not {"mean", "std"} & set(student.state_dict())


def test_the_last_embedding_is_the_librarys_own(vision):
    import timm
    import torchvision
    import transformers as hf

    rows = pixels()
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=0).eval()
    student = ImageStudent("test_resnet", pretrained=False).eval()
    student.backbone.network.load_state_dict(network.state_dict())
    torch.testing.assert_close(student({"pixels": rows}), network(student._scaled(rows)), rtol=1e-4, atol=1e-5)

    student = ImageStudent("resnet18", "torchvision", False).eval()
    network = torchvision.models.resnet18().eval()
    kept = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    student.backbone.network.load_state_dict(kept)
    network.fc = nn.Identity()
    torch.testing.assert_close(student({"pixels": rows}), network(student._scaled(rows)), rtol=1e-4, atol=1e-5)

    student = ImageStudent(f"{vision}/vit", "transformers").eval()
    network = hf.AutoModel.from_pretrained(vision / "vit").eval()
    processed = hf.AutoImageProcessor.from_pretrained(vision / "vit")(
        list(rows.numpy()), do_resize=False, return_tensors="pt"
    )
    torch.testing.assert_close(student({"pixels": rows}), network(**processed).pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov2", "swin"])
def test_a_saved_network_begins_with_its_weights_or_with_random_ones(vision, name):
    import transformers as hf

    saved = hf.AutoModel.from_pretrained(vision / name)
    assert same(ImageStudent(f"{vision}/{name}", "transformers").backbone.network, saved)
    assert not same(ImageStudent(f"{vision}/{name}", "transformers", pretrained=False).backbone.network, saved)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(("library", "model"), [("timm", "test_resnet"), ("torchvision", "mobilenet_v3_small")])
def test_a_weights_file_with_a_classifier_is_what_the_student_begins_with(tmp_path, monkeypatch, library, model, ending):
    import timm
    import torchvision
    from safetensors.torch import save_file

    network = timm.create_model(model) if library == "timm" else torchvision.models.get_model(model)
    with torch.no_grad():
        for each in network.parameters():
            each.normal_()
    file = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(network.state_dict(), file)
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    student = ImageStudent(model, library, weights=f"$WEIGHTS/weights.{ending}")
    state = student.backbone.network.state_dict()
    assert state
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


def test_a_weights_file_changes_nothing_but_weights(tmp_path):
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "w.pth")
    plain, loaded = (
        ImageStudent("test_resnet", pretrained=False),
        ImageStudent("test_resnet", weights=str(tmp_path / "w.pth")),
    )
    torch.testing.assert_close(loaded.mean, plain.mean)
    torch.testing.assert_close(loaded.std, plain.std)


def test_a_network_with_auxiliary_classifiers_trains(vision):
    student = ImageStudent("googlenet", "torchvision", False)
    assert without_gradient(student, {"pixels": pixels(64)}) == []
    assert student({"pixels": pixels(64)}).shape == (3, 1024)


def test_blocks_with_channels_last_are_averaged_over_places():
    student = ImageStudent("swin_t", "torchvision", False).eval()
    with torch.inference_mode():
        widths = [each.shape[1] for each in student.embeddings(pixels(64))]
    assert {96, 192, 384, 768} == set(widths)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "nope", "pretrained": False}, TeacherError, "cannot load 'nope'"),
        ({"model": "nope", "library": "torchvision", "pretrained": False}, TeacherError, "no classifier 'nope'"),
        ({"model": "nowhere/at/all", "library": "transformers"}, TeacherError, "cannot load 'nowhere/at/all'"),
        ({"model": "$NOT_SET/vit", "library": "transformers"}, TeacherError, "variable in it is not set"),
        ({"model": "test_resnet", "weights": "nothing.pth"}, TeacherError, "nothing.pth"),
        ({"model": "resnet18", "library": "torchvision", "weights": "nothing.pth"}, TeacherError, "nothing.pth"),
        ({"model": "squeezenet1_1", "library": "torchvision", "pretrained": False}, TeacherError, "end in a linear layer"),
        ({"model": "x", "library": "transformers", "weights": "y.pth"}, ConfigError, "leave weights out"),
        ({"model": "test_resnet", "pretrained": False, "size": 32}, ConfigError, "size"),
        ({"model": "resnet18", "library": "torchvision", "pretrained": False, "size": 32}, ConfigError, "size"),
        (
            {"model": "resnet18", "library": "torchvision", "pretrained": False, "stages": 2},
            ConfigError,
            "leave it out with",
        ),
        ({"model": "test_resnet", "pretrained": False, "stages": 9}, ConfigError, "stages is 9, expected 1 to 5"),
        ({"model": "test_resnet", "library": "efficientnet-lite"}, TeacherError, "does not fit test_resnet"),
    ],
)
def test_an_image_student_that_cannot_be_made_says_why(monkeypatch, arguments, error, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        ImageStudent(**arguments)


def test_a_student_begins_as_its_teacher_efficientnet_lite():
    student = ImageStudent(name := "tf_efficientnet_lite0", "efficientnet-lite").eval()
    teacher = EfficientNetLite(precision="float32")
    teacher.load("cpu")
    images = pixels(student.backbone.size, 2)
    scaled = (images / 255 - 0.5).permute(0, 3, 1, 2) / 0.5
    with torch.inference_mode():
        torch.testing.assert_close(student.encode(images), teacher.encode(scaled), atol=1e-4, rtol=1e-4)
    random = ImageStudent(**student.random_start({"model": name, "library": "efficientnet-lite", "pretrained": True}))
    assert not same(random, student)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_the_first_stages_of_a_network_are_a_student(model):
    whole, cut = (ImageStudent(model, pretrained=False, stages=stages).eval() for stages in (None, 2))
    kept = cut.state_dict()
    cut.load_state_dict({name: value for name, value in whole.state_dict().items() if name in kept})
    images = pixels(whole.backbone.size, 2)
    with torch.inference_mode():
        first, second = whole.embeddings(images)[:2], cut.embeddings(images)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
    assert cut.widths == [embedding.shape[1] for embedding in second]
    assert sum(map(torch.numel, cut.parameters())) < sum(map(torch.numel, whole.parameters()))
    assert without_gradient(cut, {"pixels": images}) == []


@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
@pytest.mark.parametrize(("library", "model"), [("timm", "test_resnet"), ("torchvision", "resnet18")])
def test_a_damaged_weights_file_is_no_traceback(tmp_path, library, model, name):
    (tmp_path / name).write_bytes(b"nonsense" * 10)
    with pytest.raises(TeacherError, match=name):
        ImageStudent(model, library, weights=str(tmp_path / name))


@pytest.mark.parametrize("content", [[1, 2], "text"], ids=["list", "text"])
@pytest.mark.parametrize(("library", "model"), [("timm", "test_resnet"), ("torchvision", "resnet18")])
def test_a_weights_file_of_something_else_does_not_fit(tmp_path, library, model, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=rf"w.pth does not fit {model}, or cannot be read"):
        ImageStudent(model, library, weights=str(tmp_path / "w.pth"))


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(("library", "model"), [("timm", "test_resnet"), ("torchvision", "resnet18")])
def test_code_in_a_weights_file_does_not_run_and_nobody_advises_to_run_it(tmp_path, library, model):
    torch.save({"state_dict": Harmful(str(tmp_path / "ran"))}, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match="Python objects, which could run code, are not read") as caught:
        ImageStudent(model, library, weights=str(tmp_path / "w.pth"))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_weights_that_are_no_regular_file_are_refused_at_once(tmp_path, library, kind):
    weights = tmp_path / "w.pth"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](weights)
    with pytest.raises(TeacherError, match=r"w.pth"):
        ImageStudent({"timm": "test_resnet", "torchvision": "resnet18"}[library], library, weights=str(weights))


@pytest.mark.parametrize("kept", [0, 1, 0.5], ids=["none", "one", "half"])
def test_weights_of_another_network_never_leave_random_numbers(tmp_path, kept):
    import timm

    state = timm.create_model("test_resnet").state_dict()
    fitting = list(state)[: int(kept * len(state)) if kept < 1 else kept]
    torch.save({key if key in fitting else f"other.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    with pytest.raises(
        TeacherError, match=r"w.pth: its weights lack \d+ of the \d+ of the network test_resnet, for instance"
    ):
        ImageStudent("test_resnet", weights=str(tmp_path / "w.pth"))


def test_a_folder_with_weights_of_another_network_is_refused(tmp_path):
    import timm
    from safetensors.torch import save_file

    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=7), tmp_path, safe_serialization=True)
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(TeacherError, match=r"local-dir:.*: its weights lack (\d+) of the \1 of the network"):
        ImageStudent(f"local-dir:{tmp_path}")


# --------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    import transformers as hf

    folder = tmp_path_factory.mktemp("text") / "bert"
    hf.BertModel(hf.BertConfig(**BERT)).save_pretrained(folder)
    return str(folder)


def hidden_of(folder, row):
    import transformers as hf

    with torch.inference_mode():
        return hf.AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([row])).last_hidden_state[0]


@pytest.mark.parametrize(
    ("pooling", "by_hand"), [("mean", lambda h: h.mean(0)), ("cls", lambda h: h[0]), ("last", lambda h: h[-1])]
)
def test_pooling_of_a_saved_network_equals_that_by_hand(bert, pooling, by_hand):
    rows = [[2, 5, 7, 9, 3], [2, 3], [2, 11, 3]]
    student = TextStudent(bert, pooling=pooling).eval()
    with torch.inference_mode():
        found = student({"tokens": tokens(*rows)})
    torch.testing.assert_close(found, torch.stack([by_hand(hidden_of(bert, row)) for row in rows]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_may_stand_on_either_side(side, pooling):
    hidden, lengths = torch.randn(4, 6, 3), [6, 1, 3, 2]
    places = torch.arange(6)
    mask = torch.stack([places < n if side == "right" else places >= 6 - n for n in lengths]).long()
    rows = [each[chosen.bool()] for each, chosen in zip(hidden, mask, strict=True)]
    by_hand = {"mean": lambda row: row.mean(0), "cls": lambda row: row[0], "last": lambda row: row[-1]}[pooling]
    torch.testing.assert_close(pool_tokens(hidden, mask, pooling), torch.stack([by_hand(row) for row in rows]))


@pytest.mark.parametrize("model", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_padding_changes_no_row(model, pooling):
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    config = {names.get(key, key) if model == "distilbert" else key: value for key, value in BERT.items()}
    config.pop("intermediate_size")
    student = TextStudent(model, config=config, pooling=pooling, dim=7).eval()
    rows = [[2, 5, 7, 9, 3, 8, 8, 8], [2, 3], [2, 11, 3], [4]]
    with torch.inference_mode():
        together = student.embeddings(tokens(*rows))
        alone = [student.embeddings(tokens(row)) for row in rows]
    for number, block in enumerate(together):
        torch.testing.assert_close(block, torch.cat([each[number] for each in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [None, 5])
def test_a_text_student_embeds_after_every_block(dim):
    student = TextStudent("bert", config=BERT, dim=dim).eval()
    with torch.inference_mode():
        found = student.embeddings(tokens([2, 5, 3], [2, 3]))
        torch.testing.assert_close(student({"tokens": tokens([2, 5, 3], [2, 3])}), found[-1], rtol=0, atol=0)
    assert [each.shape for each in found] == [(2, 16), (2, 16), (2, dim or 16)]
    assert student.dim == (dim or 16)


def test_a_student_of_unit_length_is_the_direction_of_the_same_student(bert):
    plain, unit = TextStudent(bert, dim=7).eval(), TextStudent(bert, dim=7, unit=True).eval()
    unit.load_state_dict(plain.state_dict())
    rows = tokens([1, 2, 3], [4, 5])
    found = plain.encode(rows)
    assert not torch.allclose(found, nn.functional.normalize(found))
    torch.testing.assert_close(unit.encode(rows), nn.functional.normalize(found))
    torch.testing.assert_close(unit.embeddings(rows)[-1], nn.functional.normalize(found))


def test_a_text_student_begins_with_saved_weights_random_ones_or_a_new_network(bert):
    import transformers as hf

    saved = hf.AutoModel.from_pretrained(bert)
    assert same(TextStudent(bert).network, saved)
    assert not same(TextStudent(bert, pretrained=False).network, saved)
    new = TextStudent("bert", config=BERT | {"num_hidden_layers": 1})
    assert len(new.network.encoder.layer) == 1


@pytest.mark.parametrize("layers", [[0], [1], [1, 0]])
def test_a_text_student_begins_as_some_layers_of_a_model(bert, layers, tmp_path):
    whole, student = TextStudent(bert).eval().network, TextStudent(bert, layers=layers).eval()
    rows, ids = [[2, 5, 7, 3], [2, 6, 4, 3]], torch.tensor([[2, 5, 7, 3], [2, 6, 4, 3]])
    with torch.inference_mode():
        hidden = whole.embeddings(ids)  # (rows, tokens, width)
        for number in layers:
            hidden = whole.encoder.layer[number](hidden)
        torch.testing.assert_close(student({"tokens": tokens(*rows)}), hidden.mean(1))
    assert student.widths == [16] * len(layers)
    arguments = student.portable({"model": bert, "layers": layers}, tmp_path / "network")
    TextStudent(**arguments).load_state_dict(student.state_dict())  # fails unless the network is the same
    new = TextStudent(**student.random_start({"model": bert, "layers": layers}))
    assert not same(new.network, student.network) and len(new.network.encoder.layer) == len(layers)


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        ("bert", [3], r"layers is \[3\], expected some of 0 to 2: bert has 3 layers"),
        ("bert", [], "expected some of 0 to 2"),
        ("bert", [-1], "expected some of 0 to 2"),
        ("albert", [0], "albert has no single list of its 3 layers"),
    ],
)
def test_layers_that_a_model_has_not_are_an_error(model, layers, message):
    with pytest.raises(ConfigError, match=message):
        TextStudent(model, config=BERT, layers=layers)


@pytest.mark.parametrize("model", ["bert", "roberta", "mpnet", "albert", "electra"])
def test_every_parameter_of_a_text_student_gets_a_gradient(model):
    student = TextStudent(model, config=BERT, dim=5)
    assert without_gradient(student, {"tokens": tokens([2, 5, 3], [2, 3])}) == []  # another is an error of DDP


def test_a_copied_text_student_is_another_one(bert):
    student = TextStudent(bert).eval()
    other = copy.deepcopy(student)
    with torch.no_grad():
        before = student({"tokens": tokens([2, 5, 3])})
        for each in other.parameters():
            each.zero_()
        torch.testing.assert_close(student({"tokens": tokens([2, 5, 3])}), before)


TABLE = "network.embeddings.word_embeddings"
TEXTS = [[2, 5, 7, 5, 3], [2, 6, 5, 3], [2, 9, 9, 9, 3]]  # 2 and 3 stand in each of them; then come 5 and 9


@pytest.mark.parametrize("model", ["bert", "roberta", "distilbert", "mpnet"])
def test_a_text_student_of_few_tokens_is_the_network_with_equal_vectors_for_all_others(model, tmp_path):
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    config = {names.get(key, key) if model == "distilbert" else key: value for key, value in BERT.items()}
    config.pop("intermediate_size")
    student = TextStudent(model, config=config, kept=4).eval()
    student.begin(lambda count: tokens(*TEXTS))
    table = student.network.get_input_embeddings()
    assert table.row_of.unique(return_counts=True)[1].tolist() == [1, 1, 1, 1, 46]
    assert (table.row_of < 4).nonzero().squeeze(1).tolist() == [2, 3, 5, 9]
    assert table.weight.shape == (5, 16) and student.token_table().shape == (50, 16)
    student.whole_network().save_pretrained(tmp_path / "whole")
    whole = TextStudent(str(tmp_path / "whole")).eval()
    rows = {"tokens": tokens([2, 5, 7, 3], [2, 9, 30, 8, 3])}
    with torch.inference_mode():
        torch.testing.assert_close(student(rows), whole(rows))
        torch.testing.assert_close(student.encode_padded(*student._padded(rows["tokens"]["tokens"])), whole(rows))
    assert same(whole.network.get_input_embeddings(), student.whole_network().get_input_embeddings())
    assert without_gradient(student, rows) == []
    again = TextStudent(**student.portable({"model": model, "config": config, "kept": 4}, tmp_path / "network"))
    again.load_state_dict(student.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(rows), student.eval()(rows))


def test_the_shared_row_of_a_pretrained_text_student_is_the_mean_of_its_tokens_by_how_frequent_they_are(bert):
    whole, student = TextStudent(bert, layers=[0]), TextStudent(bert, layers=[0], kept=3)
    student.begin(lambda count: tokens(*TEXTS))
    counts = torch.bincount(torch.tensor(sum(TEXTS, [])), minlength=50) + 1.0
    table, rows = whole.token_table(), student.network.get_input_embeddings().row_of
    assert (rows < 3).nonzero().squeeze(1).tolist() == [2, 3, 5]
    torch.testing.assert_close(student.token_table()[[2, 3, 5]], table[[2, 3, 5]])
    weights = torch.where(rows == 3, counts, 0)
    torch.testing.assert_close(student.token_table()[9], weights @ table / weights.sum())
    assert {name for name in student.state_dict() if name not in whole.state_dict()} == {f"{TABLE}.row_of"}


def test_few_tokens_of_a_network_that_scales_its_vectors_are_refused():
    with pytest.raises(ConfigError, match=r"kept is 50, expected a number of tokens from 1 to 49: the student knows 50"):
        TextStudent("bert", config=BERT, kept=50)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    with pytest.raises(
        ConfigError, match=r"kept needs a network whose tokens are an Embedding, found Gemma3TextScaledWord"
    ):
        TextStudent("gemma3_text", config=sizes | {"intermediate_size": 16, "num_key_value_heads": 1}, kept=5)


@pytest.mark.parametrize("first", [[], [[2, 3]]], ids=["at once", "later"])
@pytest.mark.parametrize(
    ("model", "row", "message"),
    [
        ("bert", [2, 50], "knows 50 tokens, its input has token 50: give the input column the student's own tokenizer"),
        ("bert", [2] * 21, "reads 20 tokens at most, its input has 21: lower max_length"),
        ("roberta", [2] * 19, "reads 18 tokens at most, its input has 19: lower max_length"),
    ],
)
def test_tokens_that_do_not_fit_are_an_error(model, row, message, first):
    student = TextStudent(model, config=BERT | {"pad_token_id": 1}).eval()
    for each in first:
        student({"tokens": tokens(each)})
    with pytest.raises(ConfigError, match=message):
        student({"tokens": tokens([2, 3], row)})


@pytest.mark.parametrize(("model", "most"), [("bert", 20), ("roberta", 18)])
def test_the_longest_text_that_fits_is_read(model, most):
    student = TextStudent(model, config=BERT | {"pad_token_id": 1}).eval()
    assert student({"tokens": tokens([49] * most)}).isfinite().all()


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("bert", BERT | {"layers": 3, "Width": 2}, "a bert has no Width, layers in its configuration"),
        ("brt", BERT, "no brt network of this config"),
        ("bert", BERT | {"hidden_size": 15}, "no bert network of this config: The hidden size"),
        ("bert", BERT | {"num_hidden_layers": "2"}, "no bert network of this config"),
        ("bert", BERT | {"hidden_size": -16}, "no bert network of this config"),
        ("bert", BERT | {"hidden_act": "nope"}, "no bert network of this config"),
    ],
)
def test_a_config_that_fits_no_network_is_an_error(model, config, message):
    with pytest.raises(ConfigError, match=message):
        TextStudent(model, config=config)


def test_common_names_of_configuration_keys_serve_every_type():
    student = TextStudent("distilbert", config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2})
    assert student.dim == 16


@pytest.mark.parametrize("model", ["nowhere/at/all", "package:no_such_package/x", "$NOT_SET/bert"])
def test_a_text_model_that_is_not_there_says_so(monkeypatch, model):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TeacherError, match="nowhere/at/all|no_such_package|NOT_SET"):
        TextStudent(model)


# --------------------------------------------------------------------------- several modalities


def mixed(**arguments):
    return MixedStudent({"image": SmallResNet(1, 8), "text": TextStudent("bert", config=BERT)}, dim=12, **arguments)


def test_a_mixed_students_rows_come_in_the_order_of_the_columns():
    student = mixed().eval()
    images, texts = pixels(), tokens([2, 5, 3], [2, 3])
    with torch.inference_mode():
        image, text = student({"pixels": images}), student({"tokens": texts})
        torch.testing.assert_close(student({"pixels": images, "tokens": texts}), torch.cat([image, text]))
        torch.testing.assert_close(student({"tokens": texts, "pixels": images}), torch.cat([text, image]))
    assert image.shape == (3, 12)
    assert text.shape == (2, 12)
    assert student.dim == 12


@pytest.mark.parametrize("layers", [1, 3])
def test_a_mixed_student_embeds_after_every_block_of_its_trunk(layers):
    student = mixed(layers=layers).eval()
    inputs = {"pixels": pixels(), "tokens": tokens([2, 5, 3])}
    found = student.embeddings(inputs)
    assert [each.shape for each in found] == [(4, 12)] * (layers + 1)
    torch.testing.assert_close(student(inputs), found[-1])


def test_every_parameter_of_a_mixed_student_gets_a_gradient():
    assert without_gradient(mixed(), {"pixels": pixels(), "tokens": tokens([2, 5, 3])}) == []


def test_a_mixed_student_names_a_column_that_nobody_reads():
    with pytest.raises(
        ConfigError, match="no encoder of the student reads the input column graph; they read: pixels, tokens"
    ):
        mixed()({"pixels": pixels(), "graph": None})


def test_two_encoders_of_one_column_are_refused():
    with pytest.raises(ConfigError, match="two encoders read the input column pixels"):
        MixedStudent({"a": SmallResNet(1, 8), "b": SmallResNet(1, 8)})


def test_a_copied_mixed_student_is_another_one():
    student, inputs = mixed().eval(), {"pixels": pixels()}
    other = copy.deepcopy(student)
    with torch.no_grad():
        before = student(inputs)
        for each in other.parameters():
            each.zero_()
        torch.testing.assert_close(student(inputs), before)
        assert other(inputs).abs().max() == 0


@pytest.mark.parametrize("student", [SmallResNet(1, 8), TextStudent("bert", config=BERT)], ids=["image", "text"])
def test_a_student_of_another_column_names_both(student: Student):
    with pytest.raises(ConfigError, match=f"reads the input column {student.input}, the data gives graph, other"):
        student({"graph": np.zeros(1), "other": None})


PORTABLE = {
    "text": lambda vision: (TextStudent, {"model": "bert", "pretrained": False, "config": BERT, "dim": 5}),
    "timm": lambda vision: (ImageStudent, {"model": "test_resnet", "pretrained": False, "dim": 5}),
    "torchvision": lambda vision: (ImageStudent, {"model": "resnet18", "library": "torchvision", "pretrained": False}),
    "transformers": lambda vision: (ImageStudent, {"model": f"{vision}/vit", "library": "transformers"}),
}


@pytest.mark.parametrize("name", PORTABLE)
def test_portable_arguments_build_the_same_network_without_its_weights(vision, tmp_path, name):
    kind, arguments = PORTABLE[name](vision)
    student, folder = kind(**arguments), tmp_path / "network"
    portable = student.portable(arguments, folder)
    assert not portable["pretrained"] and portable.get("dim") == arguments.get("dim")
    assert portable["model"] in (arguments["model"], str(folder))
    assert {*portable} >= {*arguments} and not list(tmp_path.rglob("*.safetensors"))
    kind(**portable).load_state_dict(student.state_dict())  # fails unless the network is the same


def test_the_arguments_of_a_mixed_student_are_portable_encoder_by_encoder(tmp_path):
    text = {"model": "bert", "pretrained": False, "config": BERT}
    student = MixedStudent({"words": TextStudent(**text), "views": SmallResNet(1, 8)}, dim=8)
    spec = {"words": {"class_path": "T", "init_args": text}, "views": {"class_path": "S", "init_args": {"blocks": 1}}}
    portable = student.portable({"encoders": spec, "dim": 8}, tmp_path / "network")
    assert portable["encoders"]["words"]["init_args"]["model"] == str(tmp_path / "network" / "words")
    assert portable["encoders"]["views"] == spec["views"] and portable["dim"] == 8


def test_a_traceable_student_gives_its_own_embedding():
    text = TextStudent("bert", pretrained=False, config=BERT, dim=5).eval()
    module, inputs, *_ = text.traceable(TokenIds("any"))
    ids, mask = torch.tensor([[2, 7, 9], [3, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    torch.testing.assert_close(module(ids, mask), text.encode(tokens([2, 7, 9], [3])))
    assert [tuple(example.shape) for example in inputs] == [(2, 7), (2, 7)]

    image, rows = SmallResNet(1, 8).eval(), pixels(16)
    module, (example,), *_ = image.traceable(Pixels(16))
    torch.testing.assert_close(module(rows), image.encode(rows), rtol=0, atol=0)
    assert example.shape[1:] == rows.shape[1:] and example.dtype == rows.dtype


def test_a_student_of_several_modalities_is_not_traceable():
    assert MixedStudent({"views": SmallResNet(1, 8)}, dim=8).traceable(Pixels(16)) is None

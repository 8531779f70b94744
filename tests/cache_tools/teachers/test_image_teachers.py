import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.image import ImageFolder
from cache_tools.errors import BadItem, TeacherError
from cache_tools.format.reader import Column
from cache_tools.teachers.image import (
    ColourTeacher,
    HfImageTeacher,
    HogTeacher,
    OpenClipTeacher,
    TimmTeacher,
    TorchvisionTeacher,
)

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def name(teacher):
    return type(teacher).__name__


def loaded(teacher):
    teacher.load("cpu")
    return teacher


def embed(teacher, files):
    return np.asarray(teacher.embed([teacher.prepare(each) for each in files]))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Parts of the two that scikit-learn ships, of several sizes and shapes."""
    temple, flower = load_sample_images().images
    return [temple[:80, :60], flower[100:150, 200:290], temple[160:224, 260:324], flower[:224, :224]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, photographs):
    path = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(photographs):
        (path / f"{number}.png").write_bytes(png(pixels))
    return path


def cached(tmp_path, folder, teacher) -> np.ndarray:
    build(tmp_path, "images", ImageFolder(folder), {"teacher": teacher}, {}, Settings(dtype="float32", device="cpu"))
    column = Column(tmp_path / "images" / "teachers" / "teacher")
    assert column.complete
    return column.rows(np.arange(len(column))).numpy()


def by_hand(transform, network, photographs) -> np.ndarray:
    """The library's own preprocessing and network, one image at a time."""
    with torch.inference_mode():
        return torch.cat([network(transform(Image.fromarray(each))[None]) for each in photographs]).numpy()


def agree(found, expected):
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)
    assert np.std(found, 0).max() > 1e-3 * scale  # images differ


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """A folder as open_clip pushes it to the hub; ``tiny-clip`` is also registered as an architecture."""
    import open_clip

    path = tmp_path_factory.mktemp("clip")
    (path / "tiny-clip.json").write_text(json.dumps(CLIP))
    open_clip.add_model_config(path / "tiny-clip.json")
    torch.manual_seed(0)
    network = open_clip.create_model("tiny-clip")
    torch.save(network.state_dict(), path / "open_clip_pytorch_model.bin")
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "size": [32, 32], "mode": "RGB"}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    return str(path)


@pytest.mark.parametrize("place", ["folder", "checkpoint"])
def test_open_clip_from_folder_to_cache(tmp_path, clip, folder, photographs, place, monkeypatch):
    import open_clip

    monkeypatch.setenv("CLIPS", clip)
    if place == "folder":
        named, ours = (f"local-dir:{clip}",), ("local-dir:${CLIPS}",)
    else:
        named = ("tiny-clip", f"{clip}/open_clip_pytorch_model.bin")
        ours = ("tiny-clip", "${CLIPS}/open_clip_pytorch_model.bin")
    network, _, transform = open_clip.create_model_and_transforms(*named)
    expected = by_hand(transform, network.eval().encode_image, photographs)
    agree(cached(tmp_path, folder, OpenClipTeacher(*ours)), expected)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_open_clip_refuses_weights_that_are_no_regular_file_at_once(clip, tmp_path, kind):
    weights = tmp_path / "w.pt"
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](weights)
    with pytest.raises(TeacherError, match=r"a folder, device or pipe is no weights file: .*w.pt: name a checkpoint file"):
        OpenClipTeacher("tiny-clip", str(weights)).load("cpu")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_checkpoint_does_not_run_and_nobody_advises_to_run_it(clip, tmp_path):
    torch.save({"state_dict": Harmful(str(tmp_path / "ran"))}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="Python objects, which could run code, are not read") as caught:
        OpenClipTeacher("tiny-clip", str(tmp_path / "w.pt")).load("cpu")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_open_clip_never_takes_random_weights(clip, tmp_path):
    shutil.copy(f"{clip}/open_clip_config.json", tmp_path)
    with pytest.raises(TeacherError, match=re.escape(str(tmp_path))):
        OpenClipTeacher(f"local-dir:{tmp_path}").load("cpu")


@pytest.fixture(scope="module")
def timms(tmp_path_factory):
    """Name -> folder as timm pushes it to the hub."""
    import timm

    made = {}
    for name in ("test_vit", "test_resnet"):
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp(name)
        timm.models.save_for_hf(timm.create_model(name, num_classes=7), path, safe_serialization=True)
        made[name] = path
    return made


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("output", ["embedding", "logits"])
def test_timm_from_folder_to_cache(tmp_path, timms, folder, photographs, name, output):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    network = timm.create_model(f"local-dir:{timms[name]}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)

    def run(pixels):
        if output == "logits":
            return network(pixels)
        return network.forward_head(network.forward_features(pixels), pre_logits=True)

    found = cached(tmp_path, folder, TimmTeacher(f"local-dir:{timms[name]}", output=output))
    assert (found.shape[1] == 7) == (output == "logits")
    agree(found, by_hand(transform, run, photographs))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_timm_takes_a_weights_file_instead_of_a_download(tmp_path, photographs, ending):
    import timm
    from safetensors.torch import save_file
    from timm.data import create_transform, resolve_model_data_config

    torch.manual_seed(1)
    network = timm.create_model("test_vit.r160_in1k").eval()
    file = tmp_path / f"own.{ending}"
    if ending == "pth":
        torch.save(network.state_dict(), file)
    else:
        save_file(network.state_dict(), file)
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    expected = by_hand(transform, network, photographs)
    teacher = loaded(TimmTeacher("test_vit.r160_in1k", str(file), output="logits"))
    agree(embed(teacher, [png(each) for each in photographs]), expected)


def hf_models():
    from transformers import (
        BeitConfig,
        BeitModel,
        BitImageProcessor,
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        PvtV2Config,
        PvtV2Model,
        SiglipImageProcessor,
        SiglipVisionConfig,
        SiglipVisionModel,
        SwinConfig,
        SwinModel,
        ViTConfig,
        ViTImageProcessor,
        ViTModel,
    )

    size = {"size": {"height": 32, "width": 32}}
    crop = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    square = {"image_size": 32, "patch_size": 8}
    return {
        "dinov2": (Dinov2Model, Dinov2Config(**tiny, **square), BitImageProcessor(**crop)),
        "vit": (ViTModel, ViTConfig(**tiny, **square), ViTImageProcessor(**size)),
        "beit": (BeitModel, BeitConfig(**tiny, **square), ViTImageProcessor(**size)),
        "swin": (
            SwinModel,
            SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
            ViTImageProcessor(**size),
        ),
        "siglip": (SiglipVisionModel, SiglipVisionConfig(**tiny, **square), SiglipImageProcessor(**size)),
        "clip": (CLIPVisionModel, CLIPVisionConfig(**tiny, **square), CLIPImageProcessor(**crop)),
        "pvt": (
            PvtV2Model,
            PvtV2Config(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2]),
            ViTImageProcessor(**size),
        ),
    }


HF = ["dinov2", "vit", "beit", "swin", "siglip", "clip", "pvt"]


def save_hf(path, name, seed=0):
    cls, config, processor = hf_models()[name]
    torch.manual_seed(seed)
    cls(config).save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return {name: save_hf(tmp_path_factory.mktemp(name), name) for name in HF}


@pytest.mark.parametrize("name", HF)
def test_transformers_from_folder_to_cache(tmp_path, hf, folder, photographs, name):
    from transformers import AutoImageProcessor

    network = hf_models()[name][0].from_pretrained(hf[name]).eval()
    processor = AutoImageProcessor.from_pretrained(hf[name])
    for pooling in ("pooled", "cls", "mean"):
        teacher = HfImageTeacher(hf[name], pooling)
        if name == "pvt" and pooling == "pooled":
            with pytest.raises(TeacherError, match="has no pooled output: set pooling to cls or mean"):
                teacher.load("cpu")
            continue

        def run(pixels, pooling=pooling):
            out = network(pixel_values=pixels)
            if pooling == "pooled":
                return out.pooler_output
            hidden = out.last_hidden_state
            if hidden.ndim == 4:
                return hidden.mean((2, 3)) if pooling == "mean" else hidden[:, :, 0, 0]
            return hidden.mean(1) if pooling == "mean" else hidden[:, 0]

        def transform(image):
            return processor(images=image, return_tensors="pt")["pixel_values"][0]

        agree(cached(tmp_path / pooling, folder, teacher), by_hand(transform, run, photographs))


@pytest.mark.parametrize("which", ["clip", "siglip"])
def test_of_a_model_with_two_towers_transformers_runs_the_one_of_images(tmp_path, photographs, which):
    import transformers

    kind = {"clip": "CLIP", "siglip": "Siglip"}[which]
    _, vision, processor = hf_models()[which]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision.to_dict())
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    network.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def transform(image):
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    expected = by_hand(transform, lambda pixels: network.vision_model(pixel_values=pixels).pooler_output, photographs)
    agree(embed(loaded(HfImageTeacher(str(tmp_path))), [png(each) for each in photographs]), expected)


def test_a_pooler_without_trained_weights_is_no_pooled_output(tmp_path):
    """What a checkpoint of a classifier lacks, transformers fills with random numbers."""
    from transformers import ViTForImageClassification

    _, config, processor = hf_models()["vit"]
    ViTForImageClassification(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="set pooling to cls or mean"):
        HfImageTeacher(str(tmp_path)).load("cpu")
    twice = [loaded(HfImageTeacher(str(tmp_path), "cls")) for _ in range(2)]
    assert twice[0].fingerprint() == twice[1].fingerprint()


@pytest.fixture(scope="module")
def shufflenet(tmp_path_factory):
    from torchvision import models

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("torchvision") / "shufflenet.pth"
    network = models.shufflenet_v2_x0_5()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of one batch, else signals die out in a network that was never trained
    network.train()(torch.rand(8, 3, 64, 64))
    torch.save(network.state_dict(), file)
    return file


@pytest.mark.parametrize("output", ["features", "logits"])
def test_torchvision_from_file_to_cache(tmp_path, shufflenet, folder, photographs, output):
    from torchvision import models

    network = models.shufflenet_v2_x0_5()
    network.load_state_dict(torch.load(shufflenet))
    if output == "features":
        network.fc = torch.nn.Identity()
    transform = models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.transforms()
    found = cached(tmp_path, folder, TorchvisionTeacher("shufflenet_v2_x0_5", str(shufflenet), output))
    assert found.shape[1] == {"features": 1024, "logits": 1000}[output]
    agree(found, by_hand(transform, network.eval(), photographs))


def test_torchvision_networks_without_a_last_linear_layer_give_logits_alone(tmp_path):
    from torchvision import models

    file = tmp_path / "squeezenet.pth"
    torch.save(models.squeezenet1_1().state_dict(), file)
    with pytest.raises(TeacherError, match="squeezenet1_1 does not end in a linear layer: take output logits"):
        TorchvisionTeacher("squeezenet1_1", str(file)).load("cpu")
    assert loaded(TorchvisionTeacher("squeezenet1_1", str(file), "logits")).dim == 1000


def test_torchvision_refuses_what_is_no_classifier():
    with pytest.raises(TeacherError, match="torchvision has no classifier 'fcn_resnet50'"):
        TorchvisionTeacher("fcn_resnet50").load("cpu")


MISSING = {
    "hf-hub:nobody/clip": OpenClipTeacher,
    "laion2b_s34b_b79k": lambda name: OpenClipTeacher("ViT-B-32", name),
    "no_tag": lambda name: OpenClipTeacher("ViT-B-32", name),
    "ViT-nope": lambda name: OpenClipTeacher(name, "openai"),
    "local-dir:/nowhere": OpenClipTeacher,
    "resnet18.a1_in1k": TimmTeacher,
    "resnet_nope": TimmTeacher,
    "resnet18.nope": TimmTeacher,
    "local-dir:/no/where": TimmTeacher,
    "/no/weights.safetensors": lambda name: TimmTeacher("test_vit", name),
    "facebook/dinov2-small": HfImageTeacher,
    "/nowhere/dinov2": HfImageTeacher,
    "IMAGENET1K_V9": lambda name: TorchvisionTeacher("resnet18", name),
    "/no/resnet18.pth": lambda name: TorchvisionTeacher("resnet18", name),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_model_is_named_with_two_ways_out(name):
    with pytest.raises(TeacherError, match=f"{re.escape(name)}(.|\n)*Two ways: "):
        MISSING[name](name).load("cpu")


def test_a_failed_download_of_torchvision_is_named_with_two_ways_out(monkeypatch, tmp_path):
    from urllib.error import URLError

    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(TeacherError, match="resnet18 DEFAULT.*Two ways: "):
        TorchvisionTeacher("resnet18").load("cpu")


def test_open_clip_lists_the_tags_that_it_knows():
    with pytest.raises(TeacherError, match="ViT-B-32: pretrained says which weights: .*laion2b_s34b_b79k"):
        OpenClipTeacher("ViT-B-32").load("cpu")
    with pytest.raises(TeacherError, match="torchvision has no classifier 'resnet_nope'"):
        TorchvisionTeacher("resnet_nope").load("cpu")


@pytest.mark.parametrize("content", [b"", b"no weights at all" * 9])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_damaged_weights_are_a_teacher_error(tmp_path, content, ending, clip):
    file = tmp_path / f"weights.{ending}"
    file.write_bytes(content)
    for teacher in (
        TorchvisionTeacher("resnet18", str(file)),
        TimmTeacher("test_vit.r160_in1k", str(file)),
        OpenClipTeacher("tiny-clip", str(file)),
    ):
        with pytest.raises(TeacherError):
            teacher.load("cpu")


def test_damaged_weights_in_a_folder_are_a_teacher_error(tmp_path, hf):
    path = shutil.copytree(hf["vit"], tmp_path / "vit")
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(TeacherError, match="vit"):
        HfImageTeacher(str(path)).load("cpu")


def teachers_of(clip, timms, hf, shufflenet):
    return {
        "open_clip": OpenClipTeacher(f"local-dir:{clip}"),
        "timm": TimmTeacher(f"local-dir:{timms['test_vit']}"),
        "transformers": HfImageTeacher(hf["vit"]),
        "torchvision": TorchvisionTeacher("shufflenet_v2_x0_5", str(shufflenet)),
    }


@pytest.fixture(scope="module")
def networks(clip, timms, hf, shufflenet):
    return {name: loaded(teacher) for name, teacher in teachers_of(clip, timms, hf, shufflenet).items()}


def test_a_network_is_the_same_teacher_wherever_it_lies(tmp_path, networks, clip, timms, hf, shufflenet):
    moved = teachers_of(
        shutil.copytree(clip, tmp_path / "clip"),
        {"test_vit": shutil.copytree(timms["test_vit"], tmp_path / "timm")},
        {"vit": str(shutil.copytree(hf["vit"], tmp_path / "vit"))},
        shutil.copy(shufflenet, tmp_path),
    )
    for name, first in networks.items():
        assert first.fingerprint() == loaded(moved[name]).fingerprint(), name


def test_a_network_is_the_same_teacher_in_another_process(networks, clip, timms, hf, shufflenet):
    """Else no build could go on after an interruption."""
    code = (
        "import sys, pickle\n"
        "teachers = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "for each in teachers.values(): each.load('cpu')\n"
        "print('|'.join(repr(each.fingerprint()) for each in teachers.values()))"
    )
    teachers = teachers_of(clip, timms, hf, shufflenet)
    del teachers["transformers"]  # the slowest to import; its preprocessing is written as JSON
    done = subprocess.run(
        [sys.executable, "-c", code, pickle.dumps(teachers).hex()], capture_output=True, text=True, check=True
    )
    there = dict(zip(teachers, done.stdout.strip().splitlines()[-1].split("|"), strict=True))
    here = {name: repr(teacher.fingerprint()) for name, teacher in networks.items() if name in there}
    assert there == here


def test_other_weights_pooling_or_preprocessing_are_another_teacher(tmp_path, hf, timms, clip, shufflenet):
    from torchvision import models

    path = shutil.copytree(hf["vit"], tmp_path / "brighter")
    facts = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps({**facts, "image_mean": [0.1, 0.1, 0.1]}))
    (timm := shutil.copytree(timms["test_vit"], tmp_path / "timm")).joinpath("config.json").write_text(
        (timms["test_vit"] / "config.json").read_text().replace('"bicubic"', '"bilinear"')
    )
    other = shutil.copytree(clip, tmp_path / "clip")
    (other / "open_clip_config.json").write_text((other / "open_clip_config.json").read_text().replace("0.4", "0.45"))
    torch.manual_seed(9)
    torch.save(models.shufflenet_v2_x0_5().state_dict(), tmp_path / "other.pth")
    teachers = [
        *teachers_of(clip, timms, hf, shufflenet).values(),
        HfImageTeacher(hf["vit"], "mean"),
        HfImageTeacher(save_hf(tmp_path / "seed", "vit", seed=1)),
        HfImageTeacher(str(path)),
        TimmTeacher(f"local-dir:{timm}"),
        TimmTeacher(f"local-dir:{timms['test_vit']}", output="logits"),
        OpenClipTeacher(f"local-dir:{other}"),
        TorchvisionTeacher("shufflenet_v2_x0_5", str(tmp_path / "other.pth")),
        TorchvisionTeacher("shufflenet_v2_x0_5", str(shufflenet), "logits"),
    ]
    assert len({repr(loaded(each).fingerprint()) for each in teachers}) == len(teachers)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (200, 3)])
def test_images_of_odd_shapes_are_embedded(networks, shape):
    item = png(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    for teacher in networks.values():
        assert np.isfinite(embed(teacher, [item, item])).all()


def test_gray_and_transparent_images_are_embedded_as_rgb(networks):
    gray = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    for teacher in [*networks.values(), HogTeacher(), ColourTeacher()]:
        rows = embed(teacher, [png(gray), png(np.stack([gray] * 3, -1)), png(np.stack([gray] * 4, -1))])
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rows[2], rows[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("teacher", [HogTeacher(), ColourTeacher()], ids=name)
@pytest.mark.parametrize("item", [b"", b"no image", png(np.zeros((40, 40, 3), np.uint8))[:60]], ids=len)
def test_a_damaged_image_is_a_bad_item(teacher, item):
    with pytest.raises(BadItem):
        teacher.prepare(item)


def test_a_damaged_image_is_masked_and_listed(tmp_path, folder, hf):
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:200])
    teachers = {"vit": HfImageTeacher(hf["vit"]), "hog": HogTeacher()}
    build(tmp_path, "cache", ImageFolder(images), teachers, {}, Settings(device="cpu"))
    for name in teachers:
        path = tmp_path / "cache" / "teachers" / name
        assert Column(path).valid(np.arange(4)).tolist() == [True, False, True, True]
        assert "1.png" in (path / "skipped.csv").read_text()


@pytest.mark.parametrize(("size", "cell", "orientations"), [(32, 8, 9), (64, 8, 9), (48, 16, 6), (50, 8, 9), (16, 8, 4)])
def test_hog_equals_scikit_image(photographs, size, cell, orientations):
    from PIL import ImageOps
    from skimage.feature import hog

    teacher = HogTeacher(size, cell, orientations)
    found = embed(teacher, [png(each) for each in photographs])
    squares = [
        np.asarray(ImageOps.fit(Image.fromarray(each), (size, size), Image.Resampling.BICUBIC)) for each in photographs
    ]
    facts = {"orientations": orientations, "pixels_per_cell": (cell, cell), "cells_per_block": (2, 2)}
    expected = [hog(each, **facts, block_norm="L2-Hys", transform_sqrt=True, channel_axis=-1) for each in squares]
    assert found.shape == (4, teacher.dim)
    agree(found, np.stack(expected))


def test_hog_refuses_a_square_without_a_block():
    with pytest.raises(TeacherError, match="lower cell"):
        HogTeacher(8, 8)


def test_colours_refuse_more_parts_than_pixels():
    with pytest.raises(TeacherError, match="grid"):
        ColourTeacher(size=2, grid=4)


def lab(colour) -> np.ndarray:
    """A colour in CIELAB, scaled as the teacher does."""
    from skimage.color import rgb2lab

    low, high = np.array([0, -60, -60]), np.array([100, 60, 60])
    return (rgb2lab(np.array(colour, np.uint8).reshape(1, 1, 3))[0, 0] - low) / (high - low)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 128, 0), (0, 0, 0), (255, 255, 255), (119, 119, 119)])
def test_a_flat_colour_has_its_mean_and_no_deviation(colour):
    teacher = ColourTeacher(size=16, grid=2, bins=8)
    (row,) = embed(teacher, [png(np.full((20, 20, 3), colour, np.uint8))])
    assert row.shape == (teacher.dim,) == (9 * 4 + 24,)
    moments, counts = row[:36].reshape(4, 3, 3), row[36:].reshape(3, 8)
    np.testing.assert_allclose(moments[:, 0], np.tile(lab(colour), (4, 1)), atol=1e-5)
    np.testing.assert_allclose(moments[:, 1:], 0, atol=1e-5)
    assert sorted(counts.ravel().tolist()) == [0] * 21 + [1] * 3
    assert counts.argmax(1).tolist() == [min(int(each * 8), 7) for each in lab(colour).clip(0, 1)]


@pytest.mark.parametrize("share", [2, 4])
def test_two_colours_have_the_moments_of_two_values(share):
    """A share 1/n of one and the rest of the other: a Bernoulli variable in each channel."""
    first, second = (200, 30, 30), (30, 30, 200)
    pixels = np.full((16, 16, 3), second, np.uint8)
    pixels[:, : 16 // share] = first
    (row,) = embed(ColourTeacher(size=16, grid=1, bins=4), [png(pixels)])
    p, span = 1 / share, lab(first) - lab(second)
    mean = lab(second) + p * span
    third = span**3 * p * (1 - p) * (1 - 2 * p)
    expected = np.stack([mean, np.abs(span) * np.sqrt(p * (1 - p)), np.cbrt(third)])
    np.testing.assert_allclose(row[:9].reshape(3, 3), expected, atol=2e-3 if share == 2 else 1e-4)
    np.testing.assert_allclose(row[9:].reshape(3, 4).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("teacher", [HogTeacher(), ColourTeacher(), HogTeacher(64), ColourTeacher(30, 7, 5)], ids=name)
def test_descriptors_of_black_and_white_are_finite(teacher):
    rows = embed(teacher, [png(np.full((9, 9, 3), value, np.uint8)) for value in (0, 255)])
    assert rows.shape == (2, teacher.dim)
    assert np.isfinite(rows).all()


def test_a_teacher_survives_pickling(clip, timms, hf, shufflenet):
    for teacher in [*teachers_of(clip, timms, hf, shufflenet).values(), HogTeacher(48, 16), ColourTeacher(16, 2)]:
        again = pickle.loads(pickle.dumps(teacher))
        assert (type(again), again.init_args) == (type(teacher), teacher.init_args)


def test_an_image_is_embedded_alike_alone_and_in_a_batch(hf, timms, photographs, caplog):
    files = [png(each) for each in photographs]
    for teacher in (HfImageTeacher(hf["dinov2"]), TimmTeacher(f"local-dir:{timms['test_resnet']}")):
        teacher.load("cpu")
        with caplog.at_level(logging.WARNING, "cache_tools"):
            rows = embed(teacher, files * 5)  # more than go through a CPU together
        np.testing.assert_allclose(rows[17:18], embed(teacher, files[1:2]), rtol=1e-4, atol=1e-5)
        assert not caplog.records

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cache_tools.errors import TeacherError
from convnet import CifarResNet, MobileNet, TinyDarknet, _CifarResNet

GOLDEN = {
    "mobilenet_v1_0.25_224_float": (MobileNet, 224),
    "mobilenet_v1_0.5_160_quant": (MobileNet, 160),
    "mobilenet_v2_1.0_224_quant": (MobileNet, 224),
    "tiny_darknet": (TinyDarknet, 224),
    "cifar_resnet20": (CifarResNet, 32),
    "cifar_resnet56": (CifarResNet, 32),
}


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def loaded(teacher):
    teacher.load("cpu")
    return teacher


def embed(teacher, files):
    return np.asarray(teacher.embed([teacher.prepare(file) for file in files]))


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.workplace
def test_convnets_agree_with_their_published_code(shared, name):
    cls, size = GOLDEN[name]
    golden = np.load(shared / "golden" / "image_teachers.npz")
    count = 2
    teacher = loaded(cls(str(shared / "weights" / "vision" / f"{name}.safetensors")))
    found = embed(teacher, [png(pixels) for pixels in golden[f"images_{size}"][:count]])
    assert found.shape == (count, teacher.dim)
    assert np.abs(found - golden[name][:count]).max() < 1e-3


@pytest.mark.workplace
def test_every_convnet_of_the_workplace_is_tested(shared):
    assert {path.stem for path in (shared / "weights" / "vision").glob("*.safetensors")} == set(GOLDEN)


@pytest.mark.parametrize("cls", [MobileNet, TinyDarknet, CifarResNet])
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_224_float", "tiny_darknet", "cifar_resnet20"])
@pytest.mark.workplace
def test_a_convnet_refuses_the_weights_of_another(shared, cls, name):
    teacher = cls(str(shared / "weights" / "vision" / f"{name}.safetensors"))
    if GOLDEN[name][0] is not cls:
        with pytest.raises(TeacherError, match=f"{name}.*holds no network that {cls.__name__} reads"):
            teacher.load("cpu")
    else:
        assert loaded(teacher).dim > 0


def save_resnet(folder, blocks) -> Path:
    """A file of a network of random weights (unit tests only)."""
    torch.manual_seed(0)
    file = folder / f"{blocks}.safetensors"
    save_file(_CifarResNet(blocks).state_dict(), file, {"depth": str(6 * blocks + 2)})
    return file


@pytest.mark.parametrize("cls", [MobileNet, TinyDarknet])
def test_a_convnet_refuses_the_weights_of_a_resnet(tmp_path, cls):
    file = save_resnet(tmp_path, 1)
    with pytest.raises(TeacherError, match=f"1.safetensors holds no network that {cls.__name__} reads"):
        cls(str(file)).load("cpu")
    assert loaded(CifarResNet(str(file))).dim == 64


def test_a_convnet_is_the_same_teacher_wherever_it_lies(tmp_path):
    source = save_resnet(tmp_path, 1)
    (tmp_path / "elsewhere").mkdir()
    first, moved = CifarResNet(str(source)), CifarResNet(str(shutil.copy(source, tmp_path / "elsewhere")))
    other = CifarResNet(str(save_resnet(tmp_path, 2)))
    assert loaded(first).fingerprint() == loaded(moved).fingerprint() != loaded(other).fingerprint()

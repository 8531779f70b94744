import io
import shutil

import numpy as np
import pytest
from PIL import Image

from cache_tools.errors import TeacherError
from convnet import CifarResNet, MobileNet, TinyDarknet

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
def test_convnets_agree_with_their_published_code(shared, name):
    cls, size = GOLDEN[name]
    golden = np.load(shared / "golden" / "image_teachers.npz")
    count = 2
    teacher = loaded(cls(str(shared / "weights" / "vision" / f"{name}.safetensors")))
    found = embed(teacher, [png(pixels) for pixels in golden[f"images_{size}"][:count]])
    assert found.shape == (count, teacher.dim)
    assert np.abs(found - golden[name][:count]).max() < 1e-3


def test_every_convnet_of_the_workplace_is_tested(shared):
    assert {path.stem for path in (shared / "weights" / "vision").glob("*.safetensors")} == set(GOLDEN)


@pytest.mark.parametrize("cls", [MobileNet, TinyDarknet, CifarResNet])
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_224_float", "tiny_darknet", "cifar_resnet20"])
def test_a_convnet_refuses_the_weights_of_another(shared, cls, name):
    teacher = cls(str(shared / "weights" / "vision" / f"{name}.safetensors"))
    if GOLDEN[name][0] is not cls:
        with pytest.raises(TeacherError, match=f"{name}.*holds no network that {cls.__name__} reads"):
            teacher.load("cpu")
    else:
        assert loaded(teacher).dim > 0


def test_a_convnet_is_the_same_teacher_wherever_it_lies(shared, tmp_path):
    source = shared / "weights" / "vision" / "cifar_resnet20.safetensors"
    first, moved = CifarResNet(str(source)), CifarResNet(str(shutil.copy(source, tmp_path)))
    other = CifarResNet(str(source.with_name("cifar_resnet56.safetensors")))
    assert loaded(first).fingerprint() == loaded(moved).fingerprint() != loaded(other).fingerprint()

"""Networks of images of three libraries, as students and specialists use them."""

import pytest
import torch

from cache_tools.errors import TeacherError
from cache_tools.teachers.backbones import TransformersBackbone


def pvt(folder, **config) -> str:
    """A folder with a tiny PVTv2, whose configuration holds the size of its images as a list of two."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 2, 2, 2], "depths": [1, 1, 1, 1]}
    transformers.PvtV2Model(transformers.PvtV2Config(**small, **config)).save_pretrained(folder)
    transformers.ViTImageProcessor().save_pretrained(folder)
    return str(folder)


def test_a_size_of_two_equal_sides_is_one_number(tmp_path):
    backbone = TransformersBackbone(pvt(tmp_path, image_size=64))
    assert backbone.size == 64
    assert backbone(torch.rand(2, 3, backbone.size, backbone.size))[-1].shape == (2, backbone.width)


def test_images_that_are_not_square_are_refused_in_words(tmp_path):
    with pytest.raises(TeacherError, match="expected a network of square images"):
        TransformersBackbone(pvt(tmp_path, image_size=(64, 32)))

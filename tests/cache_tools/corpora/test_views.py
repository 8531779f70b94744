import csv
import io
import itertools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from cache_tools import open_column
from cache_tools.building.column import Settings
from cache_tools.building.corpus import build
from cache_tools.corpora.image import ImageFolder, Views
from cache_tools.errors import CorpusError
from cache_tools.format import store
from cache_tools.inputs import Pixels
from cache_tools.items.image import Crop, cut_out, decode_image, encode, random_crop
from cache_tools.teachers.base import Teacher

QUIET = Settings(workers=1, dtype="float32", batch_size=3)
SIZES = {"a.png": (40, 30), "b.png": (30, 50), "c.png": (32, 32)}
ID = re.compile(r"(?P<image>.+)#(?P<view>\d+) (?P<crop>\d+,\d+,\d+,\d+)(?P<mirrored>,mirrored)?")


class Mean(Teacher):
    """The mean of each colour."""

    modality = "image"
    dim = 3

    def prepare(self, item):
        return np.asarray(decode_image(item)).astype(np.float64)

    def embed(self, items):
        return np.stack([item.mean((0, 1)) for item in items])


def smooth(size):
    """Every pixel says where it is: red from left to right, green from top to bottom."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 128)], -1).astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "i").mkdir()
    for name, size in SIZES.items():
        smooth(size).save(tmp_path / "i" / name)
    return tmp_path / "i"


def parsed(identity):
    found = ID.fullmatch(identity)
    assert found, identity
    return found["image"], int(found["view"]), Crop(*map(int, found["crop"].split(",")), found["mirrored"] is not None)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_the_views_of_an_image_are_rows_one_after_the_other(folder, views):
    ids, items, _ = Views(ImageFolder(folder), views=views, size=16).read()
    found = [parsed(identity)[:2] for identity in ids]
    assert found == list(itertools.product(SIZES, range(views)))
    assert {decode_image(item).size for item in items} == {(16, 16)}


def test_view_0_is_the_middle_square(folder):
    ids, items, _ = Views(ImageFolder(folder), views=3, size=24).read()
    assert ids[::3] == ["a.png#0 5,0,35,30", "b.png#0 0,10,30,40", "c.png#0 0,0,32,32"]
    for item, size in zip(items[::3], SIZES.values(), strict=True):
        middle = Crop.middle(size)
        expected = smooth(size).crop(middle[:4]).resize((24, 24), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(decode_image(item), int) - np.asarray(expected, int)).mean() < 2


def test_an_id_says_which_crop_its_view_is(folder):
    for identity, item in Views(ImageFolder(folder), views=4, size=24).rows():
        name, _, crop = parsed(identity)
        assert cut_out(smooth(SIZES[name]), crop, 24) == item
        width, height = SIZES[name]
        red, green, _ = np.asarray(decode_image(item), float).mean((0, 1))
        assert red == pytest.approx((crop.left + crop.right - 1) / 2 / (width - 1) * 255, abs=6)
        assert green == pytest.approx((crop.top + crop.bottom - 1) / 2 / (height - 1) * 255, abs=6)
        first, last = np.asarray(decode_image(item), int)[:, [0, -1], 0].mean(0)
        assert (first > last) == crop.mirrored


def test_another_seed_gives_other_crops_but_the_same_middle(folder):
    one, two = (Views(ImageFolder(folder), views=4, size=16, seed=seed).read()[0] for seed in (0, 1))
    assert one[::4] == two[::4]
    assert not set(one) & set(two) - set(one[::4])


def test_more_views_or_images_leave_the_others_as_they_are(folder):
    few, many = (Views(ImageFolder(folder), views=views, size=16).read() for views in (2, 4))
    assert [(few[0][row], few[1][row]) for row in (0, 1, 2, 3)] == [(many[0][row], many[1][row]) for row in (0, 1, 4, 5)]
    alone = Views(ImageFolder(folder, include="b*"), views=2, size=16).read()[0]
    assert alone == few[0][2:4]


@pytest.mark.parametrize(
    "size", [(1, 1), (3, 2), (1, 50), (100, 100), (150, 100), (640, 480), (1000, 100), (100, 1000)], ids=str
)
@pytest.mark.parametrize("least", [0.05, 0.35, 0.9, 1.0])
def test_crops_lie_inside_and_cover_at_least_the_least(size, least):
    for key in range(300):
        crop = random_crop(size, least, (0, key, "x"))
        assert 0 <= crop.left < crop.right <= size[0] and 0 <= crop.top < crop.bottom <= size[1]
        assert (crop.right - crop.left) * (crop.bottom - crop.top) >= least * size[0] * size[1] * (1 - 1e-9)


def test_crops_of_an_image_vary_in_place_size_and_shape():
    crops = [random_crop((300, 300), 0.35, (0, key, "x")) for key in range(1000)]
    areas = [(crop.right - crop.left) * (crop.bottom - crop.top) / 300**2 for crop in crops]
    shapes = [(crop.right - crop.left) / (crop.bottom - crop.top) for crop in crops]
    assert len(set(crops)) > 990
    assert min(areas) < 0.37 and max(areas) > 0.95
    assert 0.74 < min(shapes) < 0.8 and 1.25 < max(shapes) < 1.35
    assert 450 < sum(crop.mirrored for crop in crops) < 550


def test_every_part_of_the_key_decides_the_crop():
    keys = [(0, 1, "a"), (1, 1, "a"), (0, 2, "a"), (0, 1, "b"), (0, 11, "a"), (0, 1, "1a")]
    assert len({random_crop((500, 400), 0.35, key) for key in keys}) == len(keys)


def test_the_corpus_knows_its_views(folder, tmp_path):
    built = build(tmp_path, "c", Views(ImageFolder(folder), views=3, size=16), {}, {}, QUIET)
    manifest = json.loads((built / "corpus.json").read_text())
    assert (manifest["views"], manifest["rows"], manifest["modality"]) == (3, 9, "image")
    assert store.read_corpus(built).views == 3
    assert store.read_corpus(build(tmp_path, "d", ImageFolder(folder), {}, {}, QUIET)).views == 1


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut"])
def test_a_damaged_image_has_all_its_views_masked_and_listed(folder, tmp_path, content):
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:-60] if content is None else content)
    corpus = Views(ImageFolder(folder), views=3, size=16)
    built = build(tmp_path, "c", corpus, {"mean": Mean()}, {"pixels": Pixels(16)}, QUIET)
    for path in store.list_columns(built):
        assert open_column(path).valid(torch.arange(9)).tolist() == [True] * 3 + [False] * 3 + [True] * 3
        listed = list(csv.DictReader((path / "skipped.csv").read_text().splitlines()))
        assert [(row["row"], row["id"]) for row in listed] == [("3", "b.png#0"), ("4", "b.png#1"), ("5", "b.png#2")]


def test_teacher_and_student_see_the_very_same_pixels(folder, tmp_path):
    corpus = Views(ImageFolder(folder), views=4, size=16)
    built = build(tmp_path, "c", corpus, {"mean": Mean()}, {"pixels": Pixels(16)}, QUIET)
    rows = torch.arange(12)
    seen = open_column(built / "inputs" / "pixels").rows(rows)["pixels"].values
    assert seen.shape == (12, 16, 16, 3)
    assert torch.equal(seen, torch.from_numpy(np.stack([np.asarray(decode_image(item)) for item in corpus.read()[1]])))
    torch.testing.assert_close(open_column(built / "teachers" / "mean").rows(rows), seen.double().mean((1, 2)).float())


def test_equal_images_under_two_names_have_views_of_their_own(folder):
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes())
    ids, _, _ = Views(ImageFolder(folder, include="[ad].png"), views=4, size=16).read()
    crops = [identity.partition("#")[2] for identity in ids]
    assert crops[0] == crops[4]
    assert not set(crops[1:4]) & set(crops[5:])


def test_views_of_a_turned_image_are_those_of_the_image_as_it_is_shown(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    smooth((60, 20)).save(file, "PNG", exif=exif)
    (folder / "a.png").write_bytes(file.getvalue())
    assert Views(ImageFolder(folder), views=1, size=8).read()[0][0] == "a.png#0 0,20,20,40"


def test_a_view_is_stored_with_its_colours_at_full_resolution():
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    assert np.abs(np.asarray(decode_image(encode(Image.fromarray(stripes))), int) - stripes).max() < 40


@pytest.mark.parametrize("wrong", [{"views": 0}, {"size": 0}, {"least": 0.0}, {"least": 1.5}], ids=str)
def test_views_that_cannot_be_are_refused(folder, wrong):
    with pytest.raises(CorpusError, match=next(iter(wrong))):
        Views(ImageFolder(folder), **wrong).read()


def test_crops_are_the_same_in_every_process_and_version():
    crops = [random_crop((640, 480), 0.35, (0, view, "a.png")) for view in range(1, 4)]
    # hash() differs from process to process, and a new numpy may draw other numbers
    assert [str(crop) for crop in crops] == ["266,99,629,457", "14,0,500,480,mirrored", "96,29,518,412"]

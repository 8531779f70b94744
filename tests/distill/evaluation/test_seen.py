import io

import numpy as np
from PIL import Image

from cache_tools.building.corpus import store_corpus
from cache_tools.corpora.base import Items
from distill.evaluation import seen
from distill.evaluation.seen import canonical, corpus_hashes, hashes


def png(colour: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 5), (colour, 0, 0)).save(file, kind)
    return file.getvalue()


def test_equal_items_have_one_form():
    assert canonical(b"OCC", "molecule") == canonical(b"CCO", "molecule") != canonical(b"CCC", "molecule")
    assert canonical(b" A  cat\n", "text") == canonical(b"a cat", "text") != canonical(b"acat", "text")
    assert canonical(png(1), "image") == canonical(png(1, "BMP"), "image") != canonical(png(2), "image")
    assert canonical(b"not a molecule", "molecule") == b"not a molecule"


def test_a_corpus_is_read_once(tmp_path, monkeypatch):
    store_corpus(tmp_path, Items(["CCO", "OCC", "CCC"], "molecule"), 2)
    found = corpus_hashes(tmp_path)
    assert found[0] == found[1] != found[2]
    np.testing.assert_array_equal(found, hashes([b"CCO", b"CCO", b"CCC"], "molecule"))
    monkeypatch.setattr(seen, "hashes", None)
    np.testing.assert_array_equal(corpus_hashes(tmp_path), found)


def test_hashes_that_were_cut_short_or_damaged_are_computed_again(tmp_path):
    store_corpus(tmp_path, Items(["CCO", "OCC", "CCC"], "molecule"), 2)
    found = corpus_hashes(tmp_path)
    (path,) = tmp_path.glob("seen-*.npz")
    whole = path.read_bytes()
    for cut in (b"", whole[:60], whole[:-8]):
        path.write_bytes(cut)
        np.testing.assert_array_equal(corpus_hashes(tmp_path), found)
        assert path.read_bytes() == whole
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        np.testing.assert_array_equal(corpus_hashes(tmp_path), found)


def test_hashes_may_be_kept_elsewhere(tmp_path):
    store_corpus(tmp_path / "c", Items(["CCO", "OCC"], "molecule"), 2)
    found = corpus_hashes(tmp_path / "c", tmp_path / "kept")
    (path,) = tmp_path.rglob("seen-*.npz")
    assert path.parent == tmp_path / "kept"
    np.testing.assert_array_equal(corpus_hashes(tmp_path / "c", tmp_path / "kept"), found)

"""Text teachers: any transformers or sentence-transformers encoder, static token tables, and TF-IDF with truncated SVD."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cache_tools.corpora.text import TextFile
from cache_tools.errors import TeacherError
from cache_tools.format.files import sha256
from cache_tools.hub import (
    content_only,
    from_pretrained,
    load_network,
    loading,
    locate,
    read_safetensors,
    tokenizer_sha256,
    weights_file,
)
from cache_tools.producer import class_path
from cache_tools.teachers.base import Teacher
from cache_tools.teachers.network import (
    Network,
    Precision,
    TextPooling,
    TorchTeacher,
    pool_tokens,
    weights_sha256,
)

LIKE = 64  # texts of similar length that go through a network together


class HfEncoder(TorchTeacher):
    """Any transformers encoder of strings: the base of :class:`HfTextTeacher` and ``HfMolecule``.

    Args:
        model: a hub name, a folder that ``save_pretrained`` made, or ``package:NAME/FOLDER``.
        pooling: ``mean`` of the tokens without padding, ``cls`` (the first token) or ``last`` (the last token).
        max_length: the most tokens that are read.
        prompt: put before every text.
        revision: the hub revision to pin.
        precision: see :class:`cache_tools.teachers.network.Network`.
        trust_remote_code: run Python code that comes with the model; only for models whose code you have read.

    Raises:
        TeacherError: when the model is neither in that folder nor in the local hub cache and the hub cannot be reached.
    """

    def __init__(
        self,
        model: str,
        pooling: TextPooling = "mean",
        max_length: int = 512,
        prompt: str = "",
        revision: str | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ):
        self.name, self.pooling, self.max_length, self.prompt = model, pooling, max_length, prompt
        self.revision, self.precision, self.trust_remote_code = revision, precision, trust_remote_code

    def load(self, device: str) -> None:
        self.tokenizer = from_pretrained(
            "AutoTokenizer", self.name, revision=self.revision, trust_remote_code=self.trust_remote_code
        )
        model = load_network(self.name, revision=self.revision, trust_remote_code=self.trust_remote_code)
        self.dim = int(model.config.hidden_size)
        self.network = Network(self.name, model, device, self.precision)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def embed(self, items: Sequence[Any]) -> Any:
        """Embed tokenised items, those of similar length together; (batch, dim)."""
        out = torch.empty(len(items), self.dim, device=self.network.device)
        for group in by_length(items):
            out[group] = super().embed([items[row] for row in group])
        return out

    def collate(self, items: Sequence[Any]) -> Any:
        return self.tokenizer.pad(list(items), return_tensors="pt")

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = self.module(**batch).last_hidden_state  # (batch, tokens, dim)
        return pool_tokens(hidden, batch["attention_mask"], self.pooling)

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"tokenizer_sha256": tokenizer_sha256(self.tokenizer)}


def by_length(items: Sequence[Any]) -> list[list[int]]:
    """The numbers of tokenised texts, those of similar length together; first the longest, which need most memory."""
    order = sorted(range(len(items)), key=lambda row: -len(items[row]["input_ids"]))
    return [order[start : start + LIKE] for start in range(0, len(order), LIKE)]


class HfTextTeacher(HfEncoder):
    """Any transformers encoder of texts; see :class:`HfEncoder`. A text longer than ``max_length`` is cut."""

    modality = "text"

    def prepare(self, item: bytes) -> Any:
        text = self.prompt + super().prepare(item)
        longest = min(self.max_length, self.tokenizer.model_max_length)
        return self.tokenizer(text, truncation=True, max_length=longest)


class SentenceTransformerTeacher(Teacher):
    """A sentence-transformers model with its own pooling and normalisation (extra ``text``).

    Args:
        model: a hub name, a folder, or ``package:NAME/FOLDER``.
        prompt: put before every text.
        revision: the hub revision to pin.
        precision: see :class:`cache_tools.teachers.network.Network`.
        trust_remote_code: run Python code that comes with the model; only for models whose code you have read.

    Raises:
        TeacherError: when the model is neither in that folder nor in the local hub cache and the hub cannot be reached.
    """

    modality = "text"

    def __init__(
        self,
        model: str,
        prompt: str = "",
        revision: str | None = None,
        precision: Precision = "auto",
        trust_remote_code: bool = False,
    ):
        self.name, self.prompt, self.revision, self.precision = model, prompt, revision, precision
        self.trust_remote_code = trust_remote_code

    def load(self, device: str) -> None:
        place = locate(self.name)
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise TeacherError(f"{self.name}: needs sentence-transformers: pip install 'quorum-distill[text]'") from None
        with loading(self.name, "a folder that its save method made"):
            self.model = SentenceTransformer(
                place, device=device, revision=self.revision, trust_remote_code=self.trust_remote_code
            ).float()
        self.dim = len(self._encode(["one text"])[0])
        self.network = Network(self.name, self.model, device, self.precision)

    def embed(self, items: Sequence[Any]) -> Any:
        return self.network(self._encode, items, list)

    def _encode(self, texts: list[str]) -> Tensor:
        embeddings: Tensor = self.model.encode(
            texts, prompt=self.prompt or None, batch_size=LIKE, convert_to_tensor=True, show_progress_bar=False
        )
        return embeddings

    def fingerprint(self) -> dict[str, Any]:
        hashes = {"weights_sha256": weights_sha256(self.model), "tokenizer_sha256": tokenizer_sha256(self.model.tokenizer)}
        return content_only(super().fingerprint()) | hashes | {"modules": str(self.model)}


class StaticTeacher(Teacher):
    """A table with a vector per token, as wordllama and model2vec make: the embedding of a text is its tokens' mean.

    A text without any token, such as one of unknown signs alone, is a row of zeros.

    Args:
        table: a safetensors file with one matrix, (tokens, dim), or ``package:NAME/FILE``.
        tokenizer: the JSON file of the library tokenizers that gives the rows of the matrix, or ``package:NAME/FILE``.

    Raises:
        TeacherError: when one of the files cannot be read, or the first holds another number of matrices.
    """

    modality = "text"

    def __init__(self, table: str, tokenizer: str):
        self.table, self.tokenizer = table, tokenizer

    def load(self, device: str) -> None:
        from tokenizers import Tokenizer

        self.files = {"table": weights_file(locate(self.table)), "tokenizer": weights_file(locate(self.tokenizer))}
        matrices = [each for each in read_safetensors(self.files["table"])[0].values() if each.ndim == 2]
        if len(matrices) != 1:
            raise TeacherError(f"{self.files['table']} has {len(matrices)} matrices, expected one, (tokens, dim)")
        content = self.files["tokenizer"].read_text()
        with loading(self.tokenizer, "a tokenizer.json", file=str(self.files["tokenizer"])):
            json.loads(content)["model"]  # tokenizers raises nothing but a bare Exception
        self.split = Tokenizer.from_str(content)
        self.split.no_truncation()
        self.split.no_padding()
        self.vectors = matrices[0].float()  # (tokens, dim)
        self.dim = self.vectors.shape[1]

    def embed(self, items: Sequence[Any]) -> Any:
        encoded = self.split.encode_batch_fast(list(items), add_special_tokens=False)
        tokens = [torch.tensor(each.ids, dtype=torch.long) for each in encoded]
        starts = torch.tensor([0, *(len(each) for each in tokens[:-1])]).cumsum(0)
        return torch.nn.functional.embedding_bag(torch.cat(tokens), self.vectors, starts, mode="mean")  # (batch, dim)

    def fingerprint(self) -> dict[str, Any]:
        return {"class_path": class_path(self), **{name: sha256(file) for name, file in self.files.items()}}


class TfidfSvd(Teacher):
    """TF-IDF of words or character n-grams, reduced by a truncated SVD (latent semantic analysis); rows of unit length.

    It is fitted on a file when it is loaded: equal files give equal embeddings. A text without a known n-gram is a row of
    zeros.

    Args:
        fit_on: the file of texts to fit on, see :class:`cache_tools.corpora.text.TextFile`.
        text: the column of texts in it.
        every: fit on one row of so many.
        analyzer: ``word``, ``char`` or ``char_wb`` (n-grams inside words).
        shortest: words or characters of the shortest n-gram.
        longest: words or characters of the longest n-gram.
        dim: singular vectors that are kept.
        features: n-grams that are kept at most, the most frequent ones.
    """

    modality = "text"

    def __init__(
        self,
        fit_on: Path,
        text: str = "text",
        every: int = 1,
        analyzer: Literal["word", "char", "char_wb"] = "word",
        shortest: int = 1,
        longest: int = 2,
        dim: int = 256,
        features: int = 50_000,
    ):
        self.fit_on, self.text, self.every, self.dim = Path(fit_on), text, every, dim
        self.analyzer, self.grams, self.features = analyzer, (shortest, longest), features

    def load(self, device: str) -> None:
        corpus = self.fit_on, self.text, self.every
        self.content = TextFile(self.fit_on, self.text, every=self.every).scan()[1]
        self.fitted = _fit(self.content, *corpus, self.analyzer, self.grams, self.dim, self.features)

    def embed(self, items: Sequence[Any]) -> np.ndarray[Any, Any]:
        rows: np.ndarray[Any, Any] = self.fitted.transform(items)
        return rows.astype(np.float32)

    def fingerprint(self) -> dict[str, Any]:
        fingerprint = super().fingerprint()
        del fingerprint["fit_on"]  # the content counts, not where it lies
        return fingerprint | {"fitted_on": self.content}


@cache
def _fit(
    content: str, path: Path, text: str, every: int, analyzer: str, grams: tuple[int, int], dim: int, features: int
) -> Any:
    """The pipeline, fitted once per process for each ``content``, the fingerprint of the texts."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    _, items, _ = TextFile(path, text, every=every).read()
    counts = TfidfVectorizer(analyzer=analyzer, ngram_range=grams, max_features=features, sublinear_tf=True)
    pipeline = make_pipeline(counts, TruncatedSVD(dim, random_state=0), Normalizer(copy=False))
    try:
        pipeline.fit([item.decode() for item in items])
    except ValueError as error:  # fewer n-grams than dimensions, or none
        raise TeacherError(f"TfidfSvd cannot be fitted on {path}: {error}") from None
    if (kept := len(pipeline[1].components_)) < dim:
        raise TeacherError(f"TfidfSvd cannot be fitted on {path}: {len(items)} texts give {kept} dimensions, not {dim}")
    return pipeline

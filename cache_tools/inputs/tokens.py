"""Texts as the token ids of a tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np

from cache_tools.inputs.base import Featuriser


class TokenIds(Featuriser):
    """A text as the token ids of a transformers tokenizer, special tokens included.

    Field: ``tokens`` (tokens,).

    Args:
        tokenizer: a hub name, a folder with the tokenizer's files, or ``package:NAME/FOLDER``.
        max_length: a longer text is cut to this many tokens.
        revision: the hub revision to pin.

    Raises:
        TeacherError: when there is no such tokenizer.
    """

    modality = "text"
    python_bound = True
    fields = {"tokens": ("int32", ())}
    padded = "tokens"

    def __init__(self, tokenizer: str, max_length: int = 128, revision: str | None = None):
        self.tokenizer, self.max_length, self.revision = tokenizer, max_length, revision

    def load(self, device: str) -> None:
        from cache_tools.hub import from_pretrained

        self.split = from_pretrained("AutoTokenizer", self.tokenizer, revision=self.revision)
        self.split("", truncation=True, max_length=self.max_length)  # set once: a thread cannot set it while others read

    def featurise(self, item: Any) -> dict[str, np.ndarray[Any, Any]]:
        ids = self.split(item, truncation=True, max_length=self.max_length)["input_ids"]
        return {"tokens": np.array(ids, np.int32)}

    def fingerprint(self) -> dict[str, Any]:
        from cache_tools.hub import content_only, tokenizer_sha256

        return content_only(super().fingerprint()) | {"tokenizer_sha256": tokenizer_sha256(self.split)}

    def portable(self, folder: Path) -> dict[str, Any]:
        self.split.save_pretrained(folder)
        return {**self.init_args, "tokenizer": str(folder), "revision": None}

"""Data: aligned batches of teachers' embeddings and student inputs, streamed from caches."""

from typing import TYPE_CHECKING

import lazy_loader  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from distill.data.module import CorpusSource as CorpusSource
    from distill.data.module import DistillData as DistillData

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"module": ["CorpusSource", "DistillData"]})

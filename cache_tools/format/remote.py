"""A corpus in an object store, asked through fsspec."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cache_tools.errors import CacheError
from cache_tools.format.files import DISK

WAITS = (1, 5, 20)  # seconds before a store is asked again, beside the tries of its own library
FAILURES = (  # what the stores' libraries raise that is no OSError: module, class
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
)

Answer = TypeVar("Answer")


@dataclass
class Remote:
    """A corpus in an object store; names are relative to it, and every method raises a :class:`CacheError`.

    Args:
        url: of the corpus, such as ``s3://bucket/cache/mol``.
        options: of the store, as fsspec takes them.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def read(self, name: str) -> bytes | None:
        """All bytes of a file, None when it is missing."""
        try:
            return self.ask(name, lambda fs, path: bytes(fs.cat_file(path)))
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one: atomic in S3, GCS and Azure; other stores look first, then write."""
        try:
            self.ask(name, lambda fs, path: fs.pipe_file(path, content, mode="create"))
        except FileExistsError:
            return False
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Name -> bytes of what lies in a folder."""

        def listed(fs: Any, path: str) -> dict[str, int]:
            fs.invalidate_cache()
            return {entry["name"].rstrip("/").rpartition("/")[2]: entry["size"] for entry in fs.ls(path, detail=True)}

        try:
            return self.ask(folder, listed)
        except FileNotFoundError:
            return {}

    def ask(self, name: str, question: Callable[[Any, str], Answer]) -> Answer:
        """What ``question``, called with fsspec's file system and the path of ``name`` in it, answers.

        Raises:
            FileNotFoundError, FileExistsError: as the store says it.
            CacheError: when the store refuses, does not answer after several tries, or needs a library that is missing.
        """
        import fsspec

        for wait in (*WAITS, 0):
            try:
                fs, root = fsspec.url_to_fs(self.url, **self.options)
                return question(fs, f"{root}/{name}")
            except (FileNotFoundError, FileExistsError):
                raise
            except (ImportError, ValueError) as error:
                raise CacheError(f"{self.url}: {error}; for S3: pip install 'quorum-distill[s3]'") from None
            except _failures() as error:
                reason = " ".join(str(error).split())[:200]
                if isinstance(error, OSError) and error.errno in DISK:
                    raise
                if isinstance(error, PermissionError):
                    break
            time.sleep(wait)
        raise CacheError(
            f"{self.url}/{name}: the store refuses or does not answer ({reason}): check the address and the environment's "
            "credentials (for S3 AWS_PROFILE, for instance), then run the same command again"
        )


def _failures() -> tuple[type[Exception], ...]:
    """OSError, and the classes of those libraries that are loaded."""
    loaded = (getattr(sys.modules[module], name) for module, name in FAILURES if module in sys.modules)
    return OSError, *loaded

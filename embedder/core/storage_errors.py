"""A filesystem's error → a StorageError that names the object and the remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedder.core.errors import StorageError
from embedder.core.retry import one_line


@contextmanager
def explained(uri: str, verb: str) -> Iterator[None]:
    """Raise filesystem errors as a StorageError that names the object and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        problem = f"a link to {Path(uri).readlink()}, which does not exist" if Path(uri).is_symlink() else "not found"
        advice = "the revision, and HF_TOKEN if it is private" if uri.startswith("hf://") else "the bucket's name and the region"
        raise StorageError(f"{uri}: {problem}; check the path, {advice}") from error
    except PermissionError as error:
        raise StorageError(
            f"{uri}: not allowed to {verb} it ({one_line(error)}); check the credentials in the environment and their rights"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(f"{uri}: no space left on device; free some and run again, finished parts are kept") from error
        raise StorageError(f"{uri}: cannot {verb} it ({one_line(error)})") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in (
            "botocore",
            "aiobotocore",
            "aiohttp",
            "gcsfs",
            "azure",
            "google",
            "httpx",
            "httpx2",
            "huggingface_hub",
        ):
            raise
        raise StorageError(f"{uri}: cannot {verb} it ({one_line(error)})") from error

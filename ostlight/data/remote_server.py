"""Servers of remote files, asked through fsspec: attempts, credentials, and what they say of a file."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from ostlight.errors import DataError

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT_S = 0.5
"""Before the second attempt; doubled before each further one."""

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified", "created")
_VERSIONS = ("ETag", "etag", "blob_id", "sha256", "md5Hash", "generation", "version_id", "Content-MD5", "Digest")
_HINTS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": "set HF_TOKEN, or run `hf auth login`",
}


class FileInfo(NamedTuple):
    """What a server says of a file.

    Attributes:
        size: bytes; -1 where it does not say.
        modified: nanoseconds since 1970; 0 where it does not say.
        version: its name for the content (an ETag, a hash); empty where it gives none.
        is_folder: whether it is a folder.
    """

    size: int
    modified: int
    version: str
    is_folder: bool


def filesystem_of(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path there. Not kept: fsspec makes others after a fork.

    Raises:
        DataError: no such kind of address, or its package is missing.
    """
    import fsspec

    scheme = address.partition(":")[0].lower()
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = _PACKAGES.get(scheme, scheme)
        raise DataError(
            f"{address}: reading {scheme}:// needs the package {package}: pip install {package}", address
        ) from error
    except ValueError as error:
        raise DataError(f"{address}: {error}; known are s3://, gs://, hf://datasets/ and https://", address) from error
    except Exception as error:  # made with credentials that cannot be read, for example
        raise DataError(f"{address}: {type(error).__name__}: {error}{_hint(scheme)}", address) from error


def retried(address: str, call: Callable[[], T]) -> T:
    scheme = address.partition(":")[0].lower()
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, "nothing is there", address) from error
        except Exception as error:
            if _is_denied(error):
                message = f"no permission, or no credentials ({_one_line(error)}){_hint(scheme)}"
                raise PermissionError(errno.EACCES, message, address) from error
            if attempt + 1 == ATTEMPTS or isinstance(error, TypeError | NotImplementedError):
                message = f"{_one_line(error)} (after {attempt + 1} attempts)"
                raise OSError(errno.EIO, message, address) from error
            time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def refuse_short(received: int, size: int) -> None:
    """Raises:
    EOFError: fewer bytes came than the server says there are: a transfer broke off, or the file was replaced. A
        shorter text would pass for a whole one. A size below 0 is not known.
    """
    if received < size:
        raise EOFError(f"{received:,} of {size:,} bytes came; the transfer broke off, or the file was replaced")


def _is_denied(error: Exception) -> bool:
    status = getattr(error, "status", getattr(error, "code", None)) or getattr(
        getattr(error, "response", None), "status_code", None
    )
    names = {cls.__name__ for cls in type(error).__mro__}
    return (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or bool(names & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"})
    )


def _hint(scheme: str) -> str:
    hint = _HINTS.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme))
    return f"; {hint}" if hint else ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def file_info(entry: dict[str, Any]) -> FileInfo:
    size = entry.get("size")
    lfs = entry.get("lfs")
    version = next((str(entry[name]) for name in _VERSIONS if entry.get(name)), "")
    if isinstance(lfs, dict) and lfs.get("sha256"):
        version = str(lfs["sha256"])
    modified = next((_nanoseconds(entry[name]) for name in _TIMES if entry.get(name)), 0)
    return FileInfo(-1 if size is None else int(size), modified, version, entry.get("type") == "directory")


def _nanoseconds(value: Any) -> int:
    if isinstance(value, datetime):
        return int(value.timestamp() * 1e6) * 1000
    if isinstance(value, int | float):
        return int(value * 1e6) * 1000
    # A date as text: compared, not computed with.
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=7).digest(), "big")

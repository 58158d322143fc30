"""The one error of this package, and how other errors become it."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

# What the standard library raises on bytes that are not what they should be.
_DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)

_LONGEST = 400  # characters of what a library says; some repeat the bytes that they read


class FeaturesError(ValueError):
    """Saved features or a run folder that cannot be used, with the reason and the usual cause.

    Examples
    --------
    >>> from gwa_offline.readers import open_features
    >>> open_features("features.npz")
    Traceback (most recent call last):
    gwa_offline.store.FeaturesError: features.npz: there is no such file or folder
    """


# The public place; users should not meet the private module in a traceback.
FeaturesError.__module__ = "gwa_offline.store"


@contextmanager
def blame(where: object) -> Iterator[None]:
    """Put the name of a file or an array in front of an error."""
    try:
        yield
    except FeaturesError as error:
        raise FeaturesError(f"{where}: {error}") from error.__cause__


@contextmanager
def reading(*also: type[Exception]) -> Iterator[None]:
    """Turn what libraries raise on a damaged file into one error."""
    try:
        yield
    except FeaturesError:
        raise
    except MemoryError as error:
        raise FeaturesError(f"does not fit into memory ({error})") from error
    except _DAMAGE + also as error:
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise FeaturesError(f"cannot be read, is it truncated or damaged? ({reason})") from error

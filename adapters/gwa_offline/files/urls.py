"""Places that are no files of this machine, by fsspec; they are asked as a path is."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote

from gwa_offline.files.errors import FeaturesError

# A scheme of one letter is a drive.
_URL = re.compile(r"[a-z][a-z0-9+.-]+(::|://)", re.IGNORECASE)
_LISTED = ("http", "https")  # a listing there is a page of links, and every address a file

# What file systems call the moment at which a file was written.
_WRITTEN = ("mtime", "LastModified", "last_modified", "updated", "created")

# Bytes that one request asks for at least: where a file is read here and there, and in order.
_SOME, _MANY = 2**16, 2**22

# Bytes of a file that is fetched whole, and of all of them that are kept.
_SMALL, _KEPT = 2**20, 2**26

# Errors of Python and of aiohttp where no answer came, or not all of it.
_DOWN = {"ConnectionError", "TimeoutError", "ClientConnectionError", "ClientPayloadError"}

# Seconds before a request is made again that a server could not answer.
_PAUSES = (0.1, 0.5)

_Found = TypeVar("_Found")


def is_url(text: str) -> bool:
    """Return whether a text is an address such as ``s3://bucket/epoch_3.parquet``."""
    return _URL.match(text) is not None


def place_of(source: str | os.PathLike[Any] | Url) -> Place:
    """Return a path, or what stands for one behind an address."""
    if isinstance(source, Url):
        return source
    text = os.fspath(source)
    if not is_url(text):
        return Path(text)
    return Path(text[7:]) if text.startswith("file://") else Url.parse(text)


class Stat(NamedTuple):
    """What a file system says of a file."""

    st_size: int
    st_mtime_ns: int


class _Known:
    """What is known of the files of one source: what the system says of them, and small ones whole."""

    def __init__(self) -> None:
        self.infos: dict[str, Mapping[str, Any] | None] = {}
        self._files: dict[str, bytes] = {}
        self._kept = 0

    def whole(self, address: str, fetch: Callable[[], bytes]) -> bytes:
        """Return a small file, which is fetched once, or again after many others."""
        found = self._files.get(address)
        if found is None:
            found = self._files[address] = fetch()
            self._kept += len(found)
            while self._kept > _KEPT:  # the oldest go
                self._kept -= len(self._files.pop(next(iter(self._files))))
        return found


class Url:
    """A file or a folder behind an address, with what is used of `pathlib.Path`.

    Parameters
    ----------
    system : fsspec.AbstractFileSystem
        What reads it.
    path : str
        What the system calls it.
    prefix : str
        What stands before the path in the address.
    info : mapping or None, optional
        What the system says of it, where known; None: there is no such file.
    siblings : mapping, optional
        The same of all in its folder, by name, where known.
    known : _Known, optional
        What was asked already of the files of its source.
    """

    def __init__(
        self,
        system: Any,
        path: str,
        prefix: str,
        *,
        info: Any = ...,
        siblings: Any = None,
        known: _Known | None = None,
    ) -> None:
        self._system, self._prefix, self._info, self._siblings = system, prefix, info, siblings
        self._known = known or _Known()
        self._listed: Mapping[str, Any] | None = None
        self._web = any(name in _LISTED for name in _names_of(system))
        self._path, self._query = path, ""
        if self._web and "?" in path:  # what signs an address; neither a name nor for messages
            self._path, _, self._query = path.partition("?")

    @classmethod
    def parse(cls, text: str) -> Url:
        """Return the place of an address."""
        try:
            import fsspec.core
        except ImportError as error:
            raise FeaturesError(
                f"{_shown(text)}: an address is read with fsspec: pip install 'gwa-core[remote]'"
            ) from error
        try:
            system, path = _ask(lambda: fsspec.core.url_to_fs(text), _shown(text))
            system.invalidate_cache()  # of what an earlier call listed
        except OSError as error:  # of an address within another one
            raise FeaturesError(f"{_shown(text)}: there is no such file or folder") from error
        if not path.strip("/"):
            raise FeaturesError(f"{_shown(text)}: names no file or folder")
        found = text.endswith(path)
        return cls(system, path, text.removesuffix(path) if found else f"{_names_of(system)[0]}://")

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is known of it behind: another process asks anew."""
        return self.__dict__ | {
            "_info": ...,
            "_siblings": None,
            "_listed": None,
            "_known": _Known(),
        }

    def __str__(self) -> str:
        return _shown(self._prefix + self._path) + ("?..." if self._query else "")

    def __repr__(self) -> str:
        return f"Url({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and self._address == other._address

    def __hash__(self) -> int:
        return hash(self._address)

    @property
    def _address(self) -> str:
        return self._path + (f"?{self._query}" if self._query else "")

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(unquote(self._path) if self._web else self._path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """The end of the name, such as ``.npz``."""
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """What is between the slashes of the path."""
        return self._pure.parts

    @property
    def anchor(self) -> str:
        """What the parts begin with, where it is no name."""
        return self._pure.anchor

    @property
    def parent(self) -> Url:
        """The folder that it is in."""
        folder = self._path.rstrip("/").rpartition("/")[0]
        return Url(self._system, folder, self._prefix, known=self._known)

    def with_name(self, name: str) -> Url:
        """Return another file of the same folder."""
        folder = self.parent
        folder._listed = self._siblings
        return folder / name

    def __truediv__(self, name: str) -> Url:
        path = f"{self._path.rstrip('/')}/{quote(name) if self._web else name}"
        if self._listed is None:
            return Url(self._system, path, self._prefix, known=self._known)
        info = self._listed.get(name)
        path = path if info is None else info["name"]
        siblings, known = self._listed, self._known
        return Url(self._system, path, self._prefix, info=info, siblings=siblings, known=known)

    def resolve(self) -> Url:
        """Return itself: an address is absolute."""
        return self

    @property
    def info(self) -> Mapping[str, Any] | None:
        """What the system says of it; None where there is nothing."""
        if self._info is ...:
            self._info = self._asked()
        return cast("Mapping[str, Any] | None", self._info)

    def _asked(self) -> Mapping[str, Any] | None:
        infos, address = self._known.infos, self._address
        if address not in infos:
            try:
                infos[address] = _ask(lambda: self._system.info(address), self)
            except (FileNotFoundError, NotADirectoryError):
                infos[address] = None
        return infos[address]

    def exists(self) -> bool:
        """Return whether there is a file or a folder."""
        return self.info is not None

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        if self.info is None:
            return False
        if self._web:
            return self._path.endswith("/") or not self.suffix
        return bool(self.info["type"] == "directory")

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self.info is not None and not self.is_dir()

    @property
    def size(self) -> int:
        """Number of bytes of a file."""
        info = self.info
        if info is None:
            raise FileNotFoundError("there is no such file")
        if info.get("size") is None and self._web:  # a listing does not say it
            self._info = info = self._asked() or {}
        size: Any = info.get("size")
        if size is None:
            raise OSError("the server does not say how many bytes it has")
        return int(size)

    def stat(self) -> Stat:
        """Return how long a file is, and when it was written, where that is told."""
        info = self.info or {}
        written = next((info[key] for key in _WRITTEN if info.get(key) is not None), 0)
        moment = written.timestamp() if hasattr(written, "timestamp") else written
        return Stat(self.size, int(1e9 * moment) if isinstance(moment, int | float) else 0)

    def iterdir(self) -> Iterator[Url]:
        """Yield what is in a folder."""
        if self._listed is None:
            found = _ask(lambda: self._system.ls(self._path, detail=True), self)
            paths = {_bare(info["name"]): info for info in found}
            paths.pop(_bare(self._path), None)  # a folder may be listed as one of its files
            names = {path: path.rpartition("/")[2] for path in paths}
            self._listed = {
                unquote(name) if self._web else name: paths[path] for path, name in names.items()
            }
        for name in self._listed:
            yield self / name

    def expand(self) -> list[Url]:
        """Return all that fit the address, which is a pattern."""
        found = _ask(lambda: self._system.glob(self._address), self)
        if not found and self._web:  # a server that is down has nothing, too
            Url(self._system, re.split(r"[*?\[]", self._path)[0], self._prefix).exists()
        return [Url(self._system, path, self._prefix, known=self._known) for path in found]

    @property
    def pattern(self) -> str:
        """The part of the address that may be a pattern."""
        return self._path

    def open(self, mode: str = "rb", buffering: int = -1) -> IO[bytes]:
        """Open a file for reading by ranges."""
        return cast("IO[bytes]", Ranges(self))

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes start..stop of a file; a small one is fetched once."""
        if self.size > _SMALL:
            return self._fetch(start, stop)
        return self._known.whole(self._address, self._fetch_whole)[start:stop]

    def _fetch_whole(self) -> bytes:
        data, size = b"", self.size
        while len(data) < size and (more := self._fetch(len(data), size)):
            data += more
        return data

    def _fetch(self, start: int, stop: int) -> bytes:
        data = _ask(lambda: self._system.cat_file(self._address, start=start, end=stop))
        if len(data) > stop - start:
            raise FeaturesError(
                "the server sends the whole file where a range is asked for; download it, or put "
                "simplecache:: before the address"
            )
        return cast("bytes", data)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return a whole file as text."""
        return self.read(0, self.size).decode(encoding)


Place = Path | Url


class Ranges(io.RawIOBase):
    """A file that is read by ranges, each of some length, the longer the more it is read in order.

    Parameters
    ----------
    url : Url
        Where it is.
    """

    def __init__(self, url: Url) -> None:
        super().__init__()
        self._url, self._size, self._at = url, url.size, 0
        self._start, self._held = 0, b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the number of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another byte."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"there is no byte {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return how many bytes there were."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._at < self._size:
            here = self._at - self._start
            if not 0 <= here < len(self._held):
                self._fetch(len(view) - done)
                here = 0
            piece = self._held[here : here + len(view) - done]
            if not piece:
                break
            view[done : done + len(piece)] = piece
            done += len(piece)
            self._at += len(piece)
        return done

    def _fetch(self, wanted: int) -> None:
        goes_on = bool(self._held) and self._at == self._start + len(self._held)
        stop = min(self._size, self._at + max(wanted, _MANY if goes_on else _SOME))
        self._start, self._held = self._at, self._url.read(self._at, stop)


def handle(place: Place) -> Any:
    """Return what a library that takes paths and open files should be given."""
    return place if isinstance(place, Path) else place.open()


def size_of(place: Place) -> int:
    """Return the number of bytes of a file."""
    return place.stat().st_size if isinstance(place, Path) else place.size


def _bare(path: str) -> str:
    return path.rstrip("/")


def _names_of(system: Any) -> tuple[str, ...]:
    names = system.protocol
    return (names,) if isinstance(names, str) else tuple(names)


def _shown(text: str) -> str:
    """Leave out what signs an address, and names and passwords in it."""
    if re.match("https?://", text):
        text = text.partition("?")[0]
    return re.sub(r"(://)[^/@]*@", r"\1", text) if not text.startswith("hf://") else text


def _ask(request: Callable[[], _Found], where: object = None) -> _Found:
    """Turn whatever a file system raises into one error, but for a file that is not there."""
    name = "" if where is None else f"{where}: "
    for pause in (*_PAUSES, None):
        try:
            return request()
        except (FeaturesError, MemoryError):
            raise
        except ImportError as error:  # of the library of one scheme
            raise FeaturesError(f"{name}{error}") from error
        except Exception as error:  # each has errors of its own, of which few are an OSError
            passing = _passing(error)
            if isinstance(error, FileNotFoundError | NotADirectoryError) and passing is None:
                raise
            if pause is None or passing is None:
                cause = passing or error
                reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
                reason = re.sub(r"\?[^\s'\"]+", "?...", reason)  # what signs an address
                raise FeaturesError(f"{name}cannot be reached: {reason}") from error
            time.sleep(pause)
    raise AssertionError  # the last one returns or raises


def _passing(error: BaseException | None) -> BaseException | None:
    """Return what may be otherwise in a moment: a server that is down or busy."""
    while error is not None:
        status = getattr(error, "status", None)
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if (isinstance(status, int) and status >= 500) or kinds & _DOWN:
            return error
        # Some systems say of any failure that there is no such file.
        error = error.__cause__
    return None

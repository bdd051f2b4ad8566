"""Unpack archives that clients send, within bounds: .zip, .tar, .tar.gz.

Only files and folders are allowed, all below one folder, no two of one name. Sizes are counted
while unpacking, whatever the archive claims. Incomplete archives are refused.
"""

import gzip
import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from .core import BadRequest, ServingError

BLOCK = 1 << 20
HEADROOM = 1 << 20  # bytes of the headers before a file in a .tar
TAR_BLOCK = 512
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,  # a compression that Python does not know
    RuntimeError,  # a password is needed
    ValueError,  # a file that begins before the archive, a name that is no text
    lzma.LZMAError,
)


class Room:
    """How many bytes and entries may still be unpacked, and the names that are taken."""

    def __init__(self, folder: Path, most_bytes: int, most_files: int):
        self.folder, self.left, self.most_files = folder, most_bytes, most_files
        self._most_bytes = most_bytes
        self._names: set[PurePosixPath] = set()
        self._entries = 0  # a folder may be listed again

    def place(self, name: str, is_folder: bool) -> Path:
        """The path of an entry. Raises BadRequest for a name that leads elsewhere or is taken."""
        path = safe_name(name)
        if path in self._names and not is_folder:
            raise BadRequest(f"The archive has two files of one name: {quoted(name)}")
        self._names.update((path, *path.parents[:-1]))
        self._entries += 1
        if max(len(self._names), self._entries) > self.most_files:
            raise too_large(f"more than {self.most_files} files and folders")
        place = self.folder.joinpath(*path.parts)
        try:
            (place if is_folder else place.parent).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise BadRequest(
                f"The archive has a file and a folder of one name: {quoted(name)}"
            ) from None
        if not is_folder and place.is_dir():
            raise BadRequest(f"The archive has a file and a folder of one name: {quoted(name)}")
        return place

    def take(self, size: int) -> None:
        """Count bytes before they are written. Raises ServingError 413 beyond the bound."""
        self.left -= size
        if self.left < 0:
            raise too_large(f"more than {self._most_bytes} bytes")

    def fill(self, place: Path, stream: Any) -> None:
        """Write a file while it is unpacked."""
        with place.open("xb") as file:
            while block := read_block(stream):
                self.take(len(block))
                file.write(block)


def read_block(stream: Any) -> bytes:
    """The next bytes of a file in an archive. Raises BadRequest for damaged bzip2 data: Python
    raises OSError for it, as for the folder that is written into.
    """
    with archive_errors((OSError,)):
        return stream.read(BLOCK)


def too_large(what: str) -> ServingError:
    return ServingError(f"The archive unpacks to {what}", status=413)


def quoted(name: str) -> str:
    return ascii(name)[:200]


def safe_name(name: str) -> PurePosixPath:
    """An entry's name as a relative path. Raises BadRequest if it leads elsewhere."""
    path = PurePosixPath(name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if (
        path.is_absolute()
        or ".." in parts
        or len(name) > 1000
        or any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts)
        or "\\" in name
        or name[1:2] == ":"
        or not name.isprintable()
    ):
        raise BadRequest(f"The archive has an unsafe or invalid name: {quoted(name)}")
    return PurePosixPath(*parts)


def unpack(data: bytes, folder: Path, most_bytes: int, most_files: int) -> None:
    """Unpack an archive into an empty folder.

    Raises BadRequest for what is no archive or has forbidden entries, ServingError 413 for one that
    is too large. The caller removes what was unpacked until then.
    """
    room = Room(folder, most_bytes, most_files)
    with archive_errors():
        if data[:2] == b"PK":
            unpack_zip(data, room)
        elif data[:2] == b"\x1f\x8b":
            unpack_tar(gzip.GzipFile(fileobj=io.BytesIO(data)), room)
        elif data[257:262] == b"ustar":
            unpack_tar(io.BytesIO(data), room)
        else:
            raise BadRequest("Expected a .zip, .tar or .tar.gz archive as the body")


@contextmanager
def archive_errors(kinds: tuple[type[Exception], ...] = BROKEN) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise BadRequest(f"The archive is broken: {type(error).__name__}: {error}"[:300]) from error


def unpack_zip(data: bytes, room: Room) -> None:
    # before zipfile reads all of them; the entries of an uncompressed .zip inside count as well
    if data.count(b"PK\1\2") > room.most_files:
        raise too_large(f"more than {room.most_files} files and folders")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for entry in archive.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadRequest(f"The archive has a link or a device: {quoted(entry.filename)}")
            place = room.place(entry.orig_filename, entry.is_dir())
            if not entry.is_dir():
                with archive.open(entry) as stream:
                    room.fill(place, stream)


class Metered:
    """A stream that reads no more than `allowed`: the sizes in headers are not trusted."""

    def __init__(self, stream: Any):
        self._stream, self.allowed, self.count = stream, 0, 0

    def read(self, size: int) -> bytes:
        block = self._stream.read(min(size, max(0, self.allowed - self.count) + 1))
        self.count += len(block)
        if self.count > self.allowed:
            raise BadRequest("The archive has headers that are too large")
        return block


def unpack_tar(stream: Any, room: Room) -> None:
    metered = Metered(stream)
    metered.allowed, end = HEADROOM, 0
    with tarfile.open(fileobj=metered, mode="r|", bufsize=1 << 16) as archive:  # type: ignore
        while (entry := archive.next()) is not None:
            archive.members = []  # or it keeps them all, with their headers
            room.take(entry.offset_data - end)  # its headers
            if not (entry.isreg() or entry.isdir()) or entry.issparse():
                raise BadRequest(f"The archive has a link or a device: {quoted(entry.name)}")
            place = room.place(entry.name, entry.isdir())
            if entry.isreg():
                if entry.size > room.left:
                    room.take(entry.size)
                metered.allowed = metered.count + entry.size + HEADROOM
                content = archive.extractfile(entry)
                assert content is not None  # it is a regular file
                room.fill(place, content)
            metered.allowed = metered.count + HEADROOM
            end = archive.offset
    while block := stream.read(BLOCK):  # to its end, where gzip checks that it is whole
        metered.count += len(block)
        room.take(len(block))
    if metered.count < end + TAR_BLOCK:
        raise BadRequest("The archive is broken: it ends in the middle")

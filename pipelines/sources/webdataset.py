"""WebDataset tars: one file, a folder of them, or a glob.

Members that share a name up to its first dot are one sample (`--columns image=*.jpg`: up to its
last): an image or a clip, `.txt` (its captions, a line each), `.cls` (its label) and `.json` (any
of the fields below; its other keys are somebody's metadata). Members are read in place, never
extracted; links, devices, absolute names and `..` are refused. Where the members of a sample lie
apart (`tar cf x.tar *.jpg *.txt`), a first pass over the headers finds their places. Splits are
those that the names of several tars tell; as keys may begin anew in each, the tar's name is then
part of the id.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pipelines.console import word
from pipelines.sources.base import (
    BadRecord,
    Options,
    RawRecord,
    ending,
    files_below,
    hidden,
    splits_of_files,
)
from pipelines.sources.gather import Gather
from pipelines.sources.samples import FIELD_OF, Sample, sample_record
from trainables.errors import DataError, unknown

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TOOLS: dict[object, str] = {gzip.GzipFile: "gzip", bz2.BZ2File: "bzip2", lzma.LZMAFile: "xz"}
_LARGEST = 2**26  # bytes of a member; the limit of an image file too


def read(source: str, options: Options) -> Iterator[RawRecord]:
    paths = tars(source)
    if not paths:
        raise DataError(f"`{source}` matches no tar.")
    for path, (name, split) in zip(paths, tar_splits(source, paths).items(), strict=True):
        tar = f"{name.partition('.tar')[0].removesuffix('.tgz')}/" if len(paths) > 1 else ""
        for key, sample in _samples(path, _suffixes(options), options):
            yield sample_record(tar + key, sample, split, options)


def tar_splits(source: str, paths: Sequence[Path]) -> dict[str, str | None]:
    """The tars by their names in the source, and the splits that these tell."""
    root = Path(source) if Path(source).is_dir() else paths[0].parent
    names = [os.path.relpath(path, root) for path in paths]
    return dict(zip(names, splits_of_files(names), strict=True))


def tars(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return sorted(one for one in files_below(path) if is_tar(one.name))
    return [path] if path.is_file() else sorted(map(Path, glob.glob(source)))  # noqa: PTH207


def is_tar(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not hidden(name)


def _suffixes(options: Options) -> dict[str, str]:
    given = {column: field for field, columns in options.columns.items() for column in columns}
    return given or FIELD_OF


def _samples(path: Path, fields: dict[str, str], options: Options) -> Iterator[tuple[str, Sample]]:
    """Members with one key, as their contents by field."""
    key, sample = "", Sample()
    for name, content in _members(path, fields, options):
        if _key(name, fields) != key and sample:
            yield key, sample
            sample = {}
        key, field = _key(name, fields), fields.get(_suffix(name, fields)[1], "image")
        double = BadRecord(f"two members are its {field}")
        sample[field] = double if field in sample else content
    if sample:
        yield key, sample


def _suffix(name: str, fields: dict[str, str]) -> tuple[str, str]:
    """What stands behind a member's key, and by which of `fields` it is known."""
    base = name.rpartition("/")[2]
    last = base.rpartition(".")[2]
    if f"*.{last.lower()}" in fields:
        return last, f"*.{last.lower()}"
    first = base.partition(".")[2]
    return first, first.lower()


def _key(name: str, fields: dict[str, str]) -> str:
    suffix, _ = _suffix(name, fields)
    return name.removesuffix("." + suffix) if suffix else name


def _members(
    path: Path, fields: dict[str, str], options: Options
) -> Iterator[tuple[str, bytes | BadRecord]]:
    """Name and content of each member that `fields` wants or that has to be refused."""
    for tar, member in _side_by_side(path, fields):
        content = _content(tar, member, fields, path, options)
        if content is not None:
            options.tally.read[ending(PurePosixPath(member.name).name)] += 1
            yield member.name, content


def _side_by_side(
    path: Path, fields: dict[str, str]
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """All members, those of one key together."""
    apart = _apart(path, fields)
    if apart is None:
        yield from _walk(path)
        return
    with tarfile.open(path) as tar:
        if tool := _TOOLS.get(type(tar.fileobj)):
            raise DataError(
                f"`{path}`: the members of `{apart}` do not follow each other, and in a packed tar "
                f"there is no going back. Unpack it first: `{tool} -d {word(path)}`."
            )
        places = Gather((_key(m.name, fields), str(m.offset)) for _, m in _walk(path))
        for key in places:
            for place in places[key]:
                assert tar.fileobj is not None
                tar.fileobj.seek(int(place))
                yield tar, tarfile.TarInfo.fromtarfile(tar)


def _apart(path: Path, fields: dict[str, str]) -> str | None:
    """A key that comes again after another, if there is one."""
    seen, last = set[int](), ""
    for _, member in _walk(path):
        if _ignored(member) or _suffix(member.name, fields)[1] not in fields:
            continue
        key = _key(member.name, fields)
        if key != last and hash(key) in seen:
            return key
        seen.add(hash(key))
        last = key
    return None


def _walk(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members in the order of the file; one that is damaged or cut off is an error."""
    try:
        with tarfile.open(path) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else a tar of a million files fills the memory
                yield tar, member
            _check_end(tar)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"`{path}` is truncated or damaged ({error}): what follows there would be lost."
        ) from error


def _content(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    fields: dict[str, str],
    path: Path,
    options: Options,
) -> bytes | BadRecord | None:
    if _ignored(member):
        options.tally.ignored["folder" if member.isdir() else "hidden"] += 1
        return None
    name = PurePosixPath(member.name)
    if not member.isreg():
        return BadRecord("tar member is a link or a device")
    if name.is_absolute() or ".." in name.parts:
        return BadRecord("tar member's name leaves the folder")
    suffix, pattern = _suffix(member.name, fields)
    if pattern not in fields:
        if fields is not FIELD_OF:  # `--columns` said which to read
            options.tally.ignored[ending(name.name)] += 1
            return None
        raise DataError(
            f"`{path}`: {unknown('suffix', suffix, FIELD_OF)} A sample's key ends at the first "
            "dot of its name, as WebDataset has it. Name the suffixes to read, as in `--columns "
            "image=jpg caption=txt` (all others are then left out), or where keys have dots of "
            "their own, `--columns 'image=*.jpg' 'caption=*.txt'`."
        )
    if member.size > _LARGEST:
        return BadRecord(f"tar member of {member.size:,} bytes is above the limit of {_LARGEST:,}")
    file = tar.extractfile(member)  # opens it in place
    return file.read() if file else BadRecord("tar member has no content")


def _ignored(member: tarfile.TarInfo) -> bool:
    return member.isdir() or PurePosixPath(member.name).name.startswith(("__", "._"))


def _check_end(tar: tarfile.TarFile) -> None:
    """A tar ends with blocks of zeros. `tarfile` takes a damaged header for the end as well."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(512) != bytes(512):
        raise tarfile.ReadError(f"no end mark at byte {tar.offset:,}")
    while rest := tar.fileobj.read(2**20):  # to the end: a compressed file has its checksum there
        if rest.strip(b"\0"):
            raise tarfile.ReadError(f"more data after the end mark at byte {tar.offset:,}")

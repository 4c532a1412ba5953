"""Write and open a bundle's ZIP file; what is opened is distrusted until its sizes, names and hashes are checked.

Only the one form that `pack` writes is accepted: plain files, stored or deflated, one after another from the first byte
to the directory, without comments, extra fields, encryption or gaps. So nothing can be hidden in front of, between or
behind the entries, none can overlap another, and no entry can name a path: names outside a short list are refused.
"""

import hashlib
import io
import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.report.book import FORMAT, MOST_BYTES, MOST_CELLS, VERSION, parsing

MANIFEST = "manifest.json"
LIMITS = {  # {pattern of an entry's name: most bytes unpacked}
    r"manifest\.json": 2_000_000,
    r"configuration\.json": 1_000_000,
    r"provenance\.json": 30_000,  # is shown with every table
    r"hashes\.json": 4_000_000,
    r"tables/recommendation\.json": 4_000_000,
    r"tables/summary\.csv": 8_000_000,
    r"tables/layers\.csv": 32_000_000,
    r"cells/\d{4}/measurement\.json": 100_000,
    r"cells/\d{4}/power\.csv": 200_000,
    r"cells/\d{4}/image-\d\.png": 500_000,
}
MOST_ENTRIES, MOST_UNPACKED = 6 * MOST_CELLS + 10, 64_000_000
DATE = (1980, 1, 1, 0, 0, 0)  # of every entry: ZIP's first, so that equal contents are equal bytes
LOCAL, DIRECTORY, END = 30, 46, 22  # bytes of ZIP's headers without names


def pack(members: Mapping[str, bytes], fields: Mapping[str, Any]) -> bytes:
    """The bytes of a bundle; equal members and fields give equal bytes (with the same zlib).

    Args:
        members: {name: contents} of all entries but the manifest.
        fields: further entries of the manifest.
    """
    files = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(members.items())
    ]
    manifest = {"format": FORMAT, "version": VERSION, **fields, "files": files}
    entries = {MANIFEST: parsing.as_json(manifest), **dict(sorted(members.items()))}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name, DATE)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # Unix, on every system
            info.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            archive.writestr(info, data, compresslevel=9)
    return buffer.getvalue()


def unpack(path: str | Path) -> tuple[dict[str, Any], dict[str, bytes], str]:
    """Open a bundle, and check its form, sizes and hashes.

    Returns:
        (the manifest, not yet checked against the schema; {name: contents} of the other entries; sha256 of the file).
    Raises:
        DataError: the file is no bundle, or one of its entries is not what the manifest says.
    """
    data = _read(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            _check_form(path, data, archive, infos)
            contents = {info.filename: _contents(path, archive, info) for info in infos}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, OSError) as error:
        raise DataError(f"{path}: not a ZIP file that can be read ({parsing.reason_of(error)}).") from error
    if MANIFEST not in contents:
        raise DataError(f"{path}: {MANIFEST}: missing; it is no bundle of quantwatt.")
    manifest = parsing.read_json(contents.pop(MANIFEST), f"{path}: {MANIFEST}")
    _check_version(path, manifest)
    _check_hashes(path, manifest, contents)
    return manifest, contents, hashlib.sha256(data).hexdigest()


def _read(path):
    try:
        size = Path(path).stat().st_size
        if not Path(path).is_file():
            raise DataError(f"{path}: is no file.")
        if size > MOST_BYTES:
            raise DataError(f"{path}: {size:,} bytes; a bundle has at most {MOST_BYTES:,}.")
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file does not exist.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if len(data) > MOST_BYTES:  # it grew
        raise DataError(f"{path}: a bundle has at most {MOST_BYTES:,} bytes.")
    return data


def _check_form(path, data, archive, infos):
    """Refuse everything that `pack` does not write, before anything is unpacked."""
    if len(infos) > MOST_ENTRIES:
        raise DataError(f"{path}: {len(infos):,} entries; a bundle has at most {MOST_ENTRIES:,}.")
    names, expected, total = set(), 0, 0
    for info in infos:
        name = info.orig_filename
        where = f"{path}: {_shown(name)}"
        limit = next((most for pattern, most in LIMITS.items() if re.fullmatch(pattern, name, re.ASCII)), None)
        if limit is None:
            raise DataError(f"{where}: no entry of a bundle has this name.")
        if name in names:
            raise DataError(f"{where}: is there twice.")
        names.add(name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.external_attr & 0x10:  # 0x10: a folder, of MS-DOS
            raise DataError(f"{where}: is a link, a folder or a device, and no plain file.")
        if info.flag_bits & 0x1:
            raise DataError(f"{where}: is encrypted.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}: is compressed in a way that a bundle does not use ({info.compress_type}).")
        if info.file_size > limit:
            raise DataError(f"{where}: unpacks to {info.file_size:,} bytes; at most {limit:,} are read.")
        total += info.file_size
        if total > MOST_UNPACKED:
            raise DataError(f"{where}: the entries up to here unpack to more than {MOST_UNPACKED:,} bytes.")
        length, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        if (
            info.header_offset != expected
            or length != len(name)
            or extra
            or info.flag_bits
            or info.extra + info.comment
        ):
            raise DataError(f"{where}: does not follow the entry before it, or holds more than a bundle's entries do.")
        expected += LOCAL + length + info.compress_size
    end = expected + sum(DIRECTORY + len(name) for name in names)
    if archive.start_dir != expected or end + END != len(data) or archive.comment:
        raise DataError(f"{path}: holds something before, between or after its entries.")


def _contents(path, archive, info):
    try:
        with archive.open(info) as file:
            data = file.read(info.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise DataError(f"{path}: {info.filename}: cannot be unpacked ({parsing.reason_of(error)}).") from error
    if len(data) != info.file_size:
        raise DataError(f"{path}: {info.filename}: {len(data)} bytes instead of {info.file_size}.")
    return data


def _check_version(path, manifest):
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: {MANIFEST}: format: is not {FORMAT}; it is no bundle of quantwatt.")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"{path}: {MANIFEST}: version: {json.dumps(manifest.get('version'))[:40]}, but this program reads version "
            f"{VERSION}; pack the result again, or use the quantwatt that packed it."
        )


def _check_hashes(path, manifest, contents):
    """Hold the entries against the manifest's list, whose form is checked here because the schema comes later."""
    files = manifest.get("files")
    if not isinstance(files, list) or not all(isinstance(f, dict) and isinstance(f.get("name"), str) for f in files):
        raise DataError(f"{path}: {MANIFEST}: files: should be a list of names, sizes and hashes.")
    listed = {file["name"]: file for file in files}
    if len(listed) < len(files):
        raise DataError(f"{path}: {MANIFEST}: files: lists an entry twice.")
    for name in sorted(listed.keys() ^ contents.keys()):
        fault = "is listed, but not there" if name in listed else "is there, but not listed"
        raise DataError(f"{path}: {_shown(name)}: {fault}.")
    for name, data in contents.items():
        if listed[name].get("sha256") != hashlib.sha256(data).hexdigest():
            raise DataError(f"{path}: {name}: its sha256 is not the manifest's; the bundle was changed.")
        if listed[name].get("bytes") != len(data):
            raise DataError(f"{path}: {name}: its size is not the manifest's.")


def _shown(name):
    return json.dumps(name if len(name) <= 80 else f"{name[:80]}...")

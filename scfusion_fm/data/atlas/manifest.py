"""The manifest of an atlas: what it holds, a checksum for every file, and one of its own."""

import json
import re
from dataclasses import dataclass
from typing import Any

from scfusion_fm.data.atlas.metadata import MAX_JSON_BYTES
from scfusion_fm.data.locations import Location, file_system
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.records import CHANGED, SEAL, keeps_seal, parse_record, seal_record
from scfusion_fm.untrusted.rules import Anything, ListOf, MapOf, Record, Text, Whole, parse, ruled

FORMAT = "scfusion-atlas"
FORMAT_VERSION = 3
UNCHECKED_VERSION = 2
"""Before chunks had checksums; such an atlas keeps this version when it grows, and its manifest gets a seal."""
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPES = ("uint16", "uint32")


_NUMBER, _NAME = Whole(0, 2**53), Text(longest=2**20)


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file."""

    bytes: int = ruled(_NUMBER)
    sha256: str = ruled(_NAME)


@dataclass(frozen=True)
class SourceRecord:
    """One data set: where its cells are from, how many there are, and digests of them."""

    name: str = ruled(_NAME)
    file: str = ruled(_NAME)
    sha256: str = ruled(_NAME)
    licence: str = ruled(_NAME)
    reference: str = ruled(_NAME)
    cells: int = ruled(_NUMBER)
    values: int = ruled(_NUMBER)
    cells_with_rna: int = ruled(_NUMBER)
    cells_with_adt: int = ruled(_NUMBER)
    panels_sha256: str = ruled(_NAME)
    genes: int = ruled(_NUMBER)
    proteins: int = ruled(_NUMBER)
    pieces: list[str] = ruled(ListOf(_NAME))


@dataclass(frozen=True)
class ManifestForm:
    """Fields of the manifest and their types; `check_manifest` says what else holds."""

    format: str = ruled(_NAME)
    format_version: int = ruled(_NUMBER)
    versions: dict[str, str] = ruled(MapOf(_NAME))
    num_cells: int = ruled(_NUMBER)
    num_values: int = ruled(_NUMBER)
    num_genes: int = ruled(_NUMBER)
    num_proteins: int = ruled(_NUMBER)
    types: dict[str, str] = ruled(MapOf(_NAME))
    cells_per_split: dict[str, int] = ruled(MapOf(_NUMBER))
    fingerprint: str = ruled(_NAME)
    recipe: dict[str, Any] = ruled(MapOf(Anything()))
    sources: list[SourceRecord] = ruled(ListOf(Record(SourceRecord)))
    files: dict[str, FileRecord] = ruled(MapOf(Record(FileRecord)))
    vocabulary_sha256: str = ruled(_NAME)
    vocabulary: dict[str, Any] = ruled(MapOf(Anything()))
    crc32c: str = ruled(_NAME, default="")


def read_manifest(location: Location) -> dict[str, Any]:
    """
    Read the manifest of an atlas.

    Raises
    ------
    ValueError
        If there is none, it belongs to another format, or it is not as it was written.
    """
    fs, path = file_system(location)
    place = f"{path}/{MANIFEST}"
    try:
        info = fs.info(place)
        if info["type"] != "file" or info["size"] > MAX_JSON_BYTES:  # a pipe would not end
            raise FileNotFoundError(place)
        data = fs.cat_file(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"`atlas` must be a directory that `scfusion prepare` wrote, got {str(location)!r}."
        ) from error
    return parse_manifest(data, f"`{MANIFEST}` of the atlas {str(location)!r}")


def parse_manifest(data: bytes, name: str) -> dict[str, Any]:
    """
    Check what a manifest says.

    Parameters
    ----------
    data
        Content of the file.
    name
        What it is, for messages.

    Raises
    ------
    ValueError
        If it belongs to another format, or is not as it was written.
    """
    try:
        manifest = parse_record(data)
    except ValueError as error:
        raise ValueError(_flaw(name, str(error))) from error
    found = (manifest.get("format"), manifest.get("format_version"))
    if found not in ((FORMAT, FORMAT_VERSION), (FORMAT, UNCHECKED_VERSION)) or type(found[1]) is not int:
        raise ValueError(
            f"`atlas` must be of format {FORMAT} {FORMAT_VERSION}, got {found[0]} {found[1]} in {name}; "
            "prepare it again with this version."
        )
    if (found[1] == FORMAT_VERSION or SEAL in manifest) and not keeps_seal(manifest):
        raise ValueError(_flaw(name, CHANGED))
    try:
        parse(ManifestForm, manifest)
        check_manifest(manifest)
    except ValueError as error:
        raise ValueError(_flaw(name, f"is damaged or not ours: {str(error).rstrip('.')}")) from error
    return manifest


def format_manifest(manifest: dict[str, Any]) -> str:
    """Give the text of a manifest, with its checksum."""
    return json.dumps(seal_record(manifest), indent=1)


def check_manifest(manifest: dict[str, Any]) -> None:
    """
    Check that what a manifest of the right form says fits together.

    Raises
    ------
    ValueError
        If it does not.
    """
    if sorted(manifest["vocabulary"]) != sorted(Vocabulary.__annotations__):
        raise ValueError(f"`vocabulary` must have {list(Vocabulary.__annotations__)}")
    if not all(type(names) is list and {str}.issuperset(map(type, names)) for names in manifest["vocabulary"].values()):
        raise ValueError("`vocabulary` must hold lists of text")
    vocabulary, sources = Vocabulary(**manifest["vocabulary"]), manifest["sources"]
    for name, expected in (
        ("num_genes", vocabulary.num_genes),
        ("num_proteins", vocabulary.num_proteins),
        ("num_cells", sum(source["cells"] for source in sources)),
        ("num_cells", sum(manifest["cells_per_split"].values())),
        ("num_values", sum(source["values"] for source in sources)),
        ("vocabulary_sha256", vocabulary.fingerprint()),
    ):
        if manifest[name] != expected:
            raise ValueError(f"`{name}` must be {expected}, as the rest of the manifest has it, got {manifest[name]}")
    if len({source["name"] for source in sources}) != len(sources):
        raise ValueError("`sources` must have different names")
    if sorted(manifest["types"]) != ["adt", "rna"] or not set(manifest["types"].values()) <= set(_TYPES):
        raise ValueError(f"`types` must name one of {_TYPES} for rna and adt, got {manifest['types']}")
    for name, record in manifest["files"].items():
        if not is_inside(name) or not _SHA256.fullmatch(record["sha256"]):
            raise ValueError(f"`files` must have paths inside of the atlas with their SHA-256, got {name[:80]!r}")


def is_inside(name: str) -> bool:
    """Tell whether a name is a plain path below the directory that it is relative to."""
    return not any(part in name for part in ("\0", "::", "://")) and not {"", ".", ".."} & set(name.split("/"))


def _flaw(name: str, what: str) -> str:
    return f"{name} {what}. Copy or prepare it again."

"""What a model was trained on: a set of fingerprints of cells that travels with it.

The set cannot be turned back into counts. It knows a cell again by all of its RNA counts over the vocabulary of the
model, or by all of its protein counts: an exact copy, whatever the name of the cell, the order of features, and
features without counts. It does not know again a cell that was counted anew, rounded, downsampled or cleaned of
ambient RNA. A file cut to fewer genes changes the RNA fingerprints but not those of the proteins, and the other way
round. So 'seen' is sure up to the false-positive rate, and 'not seen' means that no such copy was found.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.tables import AtlasTables
from scfusion_fm.data.fingerprints.cells import CellFingerprints, exceeds_chance
from scfusion_fm.data.hashing import hash_keys
from scfusion_fm.untrusted.arrays_file import read_arrays
from scfusion_fm.untrusted.json_file import read_json
from scfusion_fm.untrusted.rules import ListOf, Record, Text, Whole, parse, render, ruled
from scfusion_fm.untrusted.text import show_text

SEEN_CELLS = "seen_cells.npz"
FORMAT = "scfusion-seen-cells 1"
FALSE_POSITIVE_RATE = 1e-4
MOST_HASHES = 64
MOST_PARTS = 1000
MOST_CELLS = 1 << 40


@dataclass(frozen=True)
class BloomFilter:
    """
    Hold a set of keys in a few bits each; it never misses a key and seldom takes another for one.

    Attributes
    ----------
    bits
        (bytes,), packed.
    num_keys
        Keys that were put in.
    num_hashes
        Bits per key that are set.

    Notes
    -----
    Bloom 1970, with the double hashing of Kirsch and Mitzenmacher 2006.
    """

    bits: NDArray[np.uint8]
    num_keys: int
    num_hashes: int

    @classmethod
    def build(cls, fingerprints: NDArray[np.uint64], rate: float = FALSE_POSITIVE_RATE) -> "BloomFilter":
        """
        Build the set of all fingerprints but 0.

        Raises
        ------
        ValueError
            If `rate` is not in (1e-19, 1).
        """
        if not 1e-19 < rate < 1:  # more than `MOST_HASHES` below
            raise ValueError(f"`rate` must lie in (1e-19, 1), got {rate}.")
        keys = np.unique(fingerprints[fingerprints != 0])
        bits_per_key = -np.log(rate) / np.log(2) ** 2
        bits = np.zeros(_count_bytes(bits_per_key * len(keys)), dtype=np.uint8)
        built = cls(bits, len(keys), max(round(bits_per_key * np.log(2)), 1))
        for place in built._places(keys):
            np.bitwise_or.at(bits, place >> 3, (1 << (place & 7)).astype(np.uint8))
        return built

    def check(self, name: str) -> None:
        """
        Compare the bits with the number of keys and of hashes.

        Raises
        ------
        ValueError
            If there are too few or too many for them, or too few or too many are set.

        Notes
        -----
        The bits are drawn: about `expected` of them are set, with a variance below the number of draws. Of 3,000 sets
        of 0 to 3,000 keys, none was more than 0.29 of the tolerance away.
        """
        draws, places = self.num_hashes * self.num_keys, 8 * len(self.bits)
        least, most = ((self.num_hashes + x) / math.log(2) * self.num_keys for x in (-0.5, 0.5))
        least = least if self.num_hashes > 1 else 0
        if not _count_bytes(least) - 1 <= len(self.bits) <= _count_bytes(most) + 1:
            raise ValueError(f"`{name}` must have the size for {self.num_keys:,} keys, got {len(self.bits):,} bytes")
        found, expected = int(np.bitwise_count(self.bits).sum()), -places * math.expm1(-draws / places)
        tolerance = 0 if draws == 0 else 8 * math.sqrt(draws) + self.num_hashes
        if found > draws or abs(found - expected) > tolerance:
            raise ValueError(
                f"`{name}` must have about {expected:,.0f} of its {places:,} bits set for {self.num_keys:,} keys, got "
                f"{found:,}"
            )

    @property
    def false_positive_rate(self) -> float:
        """Probability that a key which was not put in is found: the share of set bits, to the number of hashes."""
        return float((np.bitwise_count(self.bits).sum() / (8 * len(self.bits))) ** self.num_hashes)

    def contains(self, fingerprints: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which fingerprints are in the set; 0 never is."""
        found = fingerprints != 0
        for place in self._places(fingerprints):
            found &= (self.bits[place >> 3] >> (place & 7).astype(np.uint8)) & 1 == 1
        return found

    def _places(self, keys: NDArray[np.uint64]) -> Iterable[NDArray[np.int64]]:
        """Give the bit of every key for one hash after the other."""
        first, step = hash_keys(keys, 1), hash_keys(keys, 2) | np.uint64(1)
        for i in range(self.num_hashes):
            yield ((first + np.uint64(i) * step) % np.uint64(8 * len(self.bits))).astype(np.int64)


def _count_bytes(bits: float) -> int:
    return math.ceil(bits / 8) + 8


@dataclass(frozen=True)
class FilterSize:
    """What the file tells of a filter beside its bits."""

    num_keys: int = ruled(Whole(0, MOST_CELLS))
    num_hashes: int = ruled(Whole(1, MOST_HASHES))


@dataclass(frozen=True)
class PartFacts:
    """What the file tells of a training beside its bits."""

    name: str = ruled(Text())
    num_cells: int = ruled(Whole(0, MOST_CELLS))
    rna: FilterSize = ruled(Record(FilterSize))
    adt: FilterSize = ruled(Record(FilterSize))


@dataclass(frozen=True)
class SeenFacts:
    """What the file tells beside bits."""

    format: str = ruled(Text((FORMAT,)))
    parts: list[PartFacts] = ruled(ListOf(Record(PartFacts), most=MOST_PARTS))

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names) or not names:
            raise ValueError(f"`parts` must each have a name of their own, at least one, got {len(names)}")


@dataclass(frozen=True)
class SeenPart:
    """
    The cells of one training: pretraining, or a fine-tuning.

    Attributes
    ----------
    name
        What they were used for.
    num_cells
        How many there were.
    rna, adt
        Their fingerprints.
    """

    name: str
    num_cells: int
    rna: BloomFilter
    adt: BloomFilter

    @classmethod
    def build(cls, name: str, fingerprints: CellFingerprints) -> "SeenPart":
        """Remember cells."""
        filters = (BloomFilter.build(values) for values in (fingerprints.rna, fingerprints.adt))
        return cls(name, len(fingerprints), *filters)


@dataclass(frozen=True, repr=False)
class SeenAnswer:
    """
    How many cells of a file a model has seen; prints as `scfusion seen` does, and shows as a table in a notebook.

    Attributes
    ----------
    num_cells, with_rna_fingerprint, with_adt_fingerprint, with_fingerprint
        Cells; cells that can be known again by RNA, by ADT, by either.
    seen_by_rna, seen_by_adt, seen
        Cells found by RNA, by ADT, by either.
    seen_in
        Cells found by either, by the name of the training.
    false_positive_rates
        Of the RNA and ADT fingerprints, by the name of the training.
    expected_by_chance
        Cells that would be found by either if none had been seen.
    """

    num_cells: int
    with_rna_fingerprint: int
    with_adt_fingerprint: int
    with_fingerprint: int
    seen_by_rna: int
    seen_by_adt: int
    seen: int
    seen_in: dict[str, int]
    false_positive_rates: dict[str, dict[str, float]]
    expected_by_chance: float

    @property
    def beyond_chance(self) -> bool:
        """Whether more cells are found than false positives explain."""
        return exceeds_chance(self.seen, self.expected_by_chance)

    def to_dict(self) -> dict:
        """Give all of it for a JSON file."""
        return asdict(self) | {"beyond_chance": self.beyond_chance}

    def list_facts(self) -> list[tuple[str, str]]:
        """Say it in a few lines: what each is about, and the text."""
        rates = [max(rate.values()) for rate in self.false_positive_rates.values()]
        parts = ", ".join(f"{count:,} in {show_text(name)}" for name, count in self.seen_in.items())
        if self.with_fingerprint == 0:
            verdict = "cannot tell: no cell has enough counts to be known again"
        elif self.seen == 0:
            verdict = "none seen"
        else:
            verdict = "more than chance explains" if self.beyond_chance else "no more than chance explains"
        return [
            ("cells", f"{self.num_cells:,}, of which {self.with_fingerprint:,} can be known again"),
            ("seen", f"{self.seen:,} ({parts})"),
            ("  by RNA counts", f"{self.seen_by_rna:,} of {self.with_rna_fingerprint:,}"),
            ("  by ADT counts", f"{self.seen_by_adt:,} of {self.with_adt_fingerprint:,}"),
            ("false positives", f"{self.expected_by_chance:.2g} cells expected, at most {sum(rates):.2g} per look-up"),
            ("verdict", verdict),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name:<18}{text}" for name, text in self.list_facts())

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in self.list_facts())
        return f"<table>{''.join(rows)}</table>"


@dataclass(frozen=True)
class SeenCells:
    """Hold the cells that a model has seen, training by training."""

    parts: tuple[SeenPart, ...]

    def __add__(self, part: SeenPart) -> "SeenCells":
        """Add a training; its name gets a number where it was there before."""
        times = 1 + sum(p.name == part.name or p.name.startswith(f"{part.name} (") for p in self.parts)
        return SeenCells((*self.parts, part if times == 1 else replace(part, name=f"{part.name} ({times})")))

    def look_up(self, cells: CellFingerprints) -> SeenAnswer:
        """Count the cells that are in the set."""
        has = {"rna": cells.rna != 0, "adt": cells.adt != 0}
        found = {kind: np.zeros(len(cells), dtype=bool) for kind in has}
        unlikely = np.ones(len(cells))  # probability of no false positive
        seen_in, rates = {}, {}
        for part in self.parts:
            hits = {kind: getattr(part, kind).contains(getattr(cells, kind)) for kind in has}
            rates[part.name] = {kind: getattr(part, kind).false_positive_rate for kind in has}
            seen_in[part.name] = int((hits["rna"] | hits["adt"]).sum())
            for kind in has:
                found[kind] |= hits[kind]
                unlikely *= np.where(has[kind], 1 - rates[part.name][kind], 1)
        return SeenAnswer(
            num_cells=len(cells),
            with_rna_fingerprint=int(has["rna"].sum()),
            with_adt_fingerprint=int(has["adt"].sum()),
            with_fingerprint=int((has["rna"] | has["adt"]).sum()),
            seen_by_rna=int(found["rna"].sum()),
            seen_by_adt=int(found["adt"].sum()),
            seen=int((found["rna"] | found["adt"]).sum()),
            seen_in=seen_in,
            false_positive_rates=rates,
            expected_by_chance=float((1 - unlikely).sum()),
        )

    def save(self, path: Path) -> None:
        """Write one file."""
        arrays, facts = {}, []
        for i, part in enumerate(self.parts):
            filters = {"rna": part.rna, "adt": part.adt}
            arrays |= {f"{i}_{kind}": f.bits for kind, f in filters.items()}
            sizes = {kind: FilterSize(f.num_keys, f.num_hashes) for kind, f in filters.items()}
            facts.append(PartFacts(part.name, part.num_cells, **sizes))
        np.savez(path, about=np.array(render(SeenFacts(FORMAT, facts)).strip()), **arrays)

    @classmethod
    def load(cls, path: Path) -> "SeenCells":
        """
        Read the file again.

        Raises
        ------
        ValueError
            If it is broken, of another format, or its bits do not fit what it tells of them.
        """
        try:
            return cls(tuple(_read_parts(read_arrays(path))))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} must be a complete set of fingerprints, got a broken one: {error}. Copy or export it "
                "again."
            ) from error


def _read_parts(arrays: dict[str, tuple[str, bytes]]) -> Iterable[SeenPart]:
    kind, text = arrays.pop("about", ("", b""))
    if not kind.startswith("<U"):
        raise ValueError("`about` must be a text, got none")
    facts = parse(SeenFacts, read_json(text.decode("utf-32-le").encode()))
    names = {f"{i}_{kind}" for i in range(len(facts.parts)) for kind in ("rna", "adt")}
    if set(arrays) != names or any(kind != "|u1" for kind, _ in arrays.values()):
        raise ValueError(f"arrays must be the two of each of {len(facts.parts)} parts, got {len(arrays)}")
    for i, part in enumerate(facts.parts):
        found = {}
        for kind in ("rna", "adt"):
            size, (_, content) = getattr(part, kind), arrays[f"{i}_{kind}"]
            found[kind] = BloomFilter(np.frombuffer(content, np.uint8), size.num_keys, size.num_hashes)
            found[kind].check(f"{part.name}.{kind}")
            if size.num_keys > part.num_cells:
                raise ValueError(f"`num_cells` must be at least {size.num_keys:,} keys, got {part.num_cells:,}")
        yield SeenPart(part.name, part.num_cells, **found)


def load_seen(model: Path) -> SeenCells | None:
    """Read what a model or a run has seen; None where it does not tell."""
    return SeenCells.load(model / SEEN_CELLS) if (model / SEEN_CELLS).exists() else None


def remember_atlas(atlas: Atlas) -> SeenCells:
    """
    Remember the training and validation cells of an atlas; a model does not see its test cells.

    Raises
    ------
    ValueError
        If the atlas was prepared without fingerprints.
    """
    tables, columns = AtlasTables(atlas.path), ("rna_fingerprint", "adt_fingerprint")
    if not all(map(tables.has_column, columns)):
        raise ValueError(
            f"`atlas` must hold fingerprints of its cells, got none in {str(atlas.path)!r}; prepare it again."
        )
    rows = np.sort(np.concatenate([atlas.rows_of("train"), atlas.rows_of("val")]))
    return SeenCells((SeenPart.build("pretraining", CellFingerprints(*map(tables.column, columns))[rows]),))

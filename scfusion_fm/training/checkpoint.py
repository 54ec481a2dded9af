"""Checkpoints: complete or absent, and the same whatever the number of ranks and the ZeRO stage.

A checkpoint is a directory `step_XXXXXXXX` with one safetensors file per rank and a manifest. It is written under
another name, and gets its own by a rename when every file is on the disk, so that a directory of this name is complete
whenever the run is killed.

The files hold fragments as tensors `key:start:name`. A fragment is a run of elements of one parameter, with the float32
weights and the two moments of AdamW that belong to them: any other cut can be read from these.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import safe_open
from torch import Tensor, nn

from scfusion_fm.records import keeps_seal, parse_record, seal_record
from scfusion_fm.untrusted.rules import Anything, ListOf, MapOf, Record, Text, Whole, parse, ruled

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"step_(\d{8,})")
_FILE = re.compile(r"rank_\d{5,}\.safetensors")
_UNFINISHED, _REMOVED = ".partial", ".removed"
_BLOCK_BYTES = 2**24  # read or written at a time
WEIGHT = "fp32"
MOMENTS = ("exp_avg", "exp_avg_sq")
KEYS = (WEIGHT, *MOMENTS)


@dataclass(frozen=True)
class RankFile:
    """Name, size and CRC-32C of the file of a rank."""

    file: str = ruled(Text())
    bytes: int = ruled(Whole(0, 2**53))
    crc32c: str = ruled(Text())


@dataclass(frozen=True)
class ManifestForm:
    """Fields of the manifest; `state` is what the run needs to go on."""

    format_version: int = ruled(Whole(1, FORMAT_VERSION))
    step: int = ruled(Whole(0, 2**53))
    files: list[RankFile] = ruled(ListOf(Record(RankFile)))
    crc32c: str = ruled(Text())
    state: dict[str, Any] = ruled(MapOf(Anything()), default=None)
    ranks: int = ruled(Whole(1, 2**31), default=1)
    zero_stage: int = ruled(Whole(0, 3), default=0)


@dataclass(frozen=True)
class Fragment:
    """
    Hold elements `start` to `start + len(values[key])` of a flattened parameter.

    Parameters
    ----------
    name
        Parameter in the model.
    start
        First element.
    values
        By `KEYS`, tensors (n,).
    """

    name: str
    start: int
    values: dict[str, Tensor]


def name_checkpoint(step: int) -> str:
    """Name the directory of the checkpoint of a step."""
    return f"step_{step:08d}"


def start_checkpoint(checkpoints: Path, step: int) -> Path:
    """Make the directory that the ranks write to."""
    directory = checkpoints / f"{name_checkpoint(step)}{_UNFINISHED}"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_rank(directory: Path, rank: int, fragments: Iterable[Fragment]) -> dict[str, Any]:
    """
    Write the fragments of one rank, without a second copy of them in memory.

    Returns
    -------
    Name, size in bytes and CRC-32C of the file.

    Raises
    ------
    OSError
        If the file cannot be written, such as on a full disk.
    """
    tensors = {f"{key}:{f.start}:{f.name}": value for f in fragments for key, value in f.values.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = directory / f"rank_{rank:05d}.safetensors"
    checksum = google_crc32c.Checksum()
    with path.open("wb") as file:
        for part in chain((len(text).to_bytes(8, "little"), text), _blocks(tensors.values())):
            checksum.update(bytes(part))
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return {"file": path.name, "bytes": path.stat().st_size, "crc32c": checksum.hexdigest().decode()}


def _blocks(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    """Give the content of float32 tensors in blocks."""
    for tensor in tensors:
        for block in tensor.detach().float().split(_BLOCK_BYTES // 4):
            yield memoryview(block.cpu().contiguous().numpy()).cast("B")


def publish(directory: Path, manifest: dict[str, Any]) -> Path:
    """Make a directory with the files of all ranks a checkpoint."""
    versioned = {"format_version": FORMAT_VERSION} | manifest
    write_durably(directory / MANIFEST, json.dumps(seal_record(versioned), indent=1))
    final = directory.with_suffix("")
    _sync(directory)
    if final.exists():  # damaged, so that the run went on from an older one
        _remove(final)
    directory.rename(final)
    _sync(final.parent)
    return final


def prune(checkpoints: Path, step: int, keep: int, keep_every: int) -> None:
    """
    Remove checkpoints up to a step, but the newest `keep` and those of every `keep_every`-th step (0: none).

    Later ones are damaged, so that the run went on from an older one: they do not count among those that are kept.
    """
    for old in [d for d in complete_checkpoints(checkpoints) if checkpoint_step(d) <= step][:-keep]:
        if not keep_every or checkpoint_step(old) % keep_every:
            _remove(old)


def keep_steps(checkpoints: Path, steps: Collection[int]) -> None:
    """Remove the checkpoints of all but some steps."""
    for old in complete_checkpoints(checkpoints):
        if checkpoint_step(old) not in steps:
            _remove(old)


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what a killed run left of unfinished and removed checkpoints."""
    for suffix in (_UNFINISHED, _REMOVED):
        for left in checkpoints.glob(f"step_*{suffix}*"):
            shutil.rmtree(left, ignore_errors=True)  # of a network file system, while somebody reads


def _remove(directory: Path) -> None:
    """Remove a checkpoint, by a rename first: what is half removed must not look like one."""
    gone = directory.with_suffix(f"{_REMOVED}-{time.time_ns()}")
    directory.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def checkpoint_step(directory: Path) -> int:
    """Give the step of a checkpoint from its name."""
    return int(_NAME.fullmatch(directory.name)[1])


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    found = [d for d in checkpoints.glob("step_*") if _NAME.fullmatch(d.name) and (d / MANIFEST).is_file()]
    return sorted(found, key=checkpoint_step)


@dataclass(frozen=True)
class Checkpoint:
    """
    Read a checkpoint: its manifest, and any run of elements of any parameter.

    Parameters
    ----------
    directory
        Directory of the checkpoint.
    """

    directory: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Position and state of the run that wrote it, and its files."""
        return parse_record((self.directory / MANIFEST).read_bytes())

    @property
    def step(self) -> int:
        """Steps of the run that wrote it."""
        return checkpoint_step(self.directory)

    def damage(self, part: slice = slice(None)) -> str | None:
        """Say what is wrong with the files, compared with the sizes and checksums of the manifest; None if nothing."""
        try:
            manifest = self.manifest
            if not keeps_seal(manifest):
                return f"{MANIFEST} does not have its checksum"
            if manifest.get("format_version") != FORMAT_VERSION:
                return f"{MANIFEST} is of format {manifest.get('format_version')!r}, where {FORMAT_VERSION} is read"
            parse(ManifestForm, manifest)
        except (OSError, ValueError) as error:
            return f"{MANIFEST} cannot be read: {error}"
        if manifest["step"] != self.step:
            return f"{MANIFEST} is that of step {manifest['step']}"
        for record in manifest["files"][part]:
            path = self.directory / record["file"]
            if not _FILE.fullmatch(record["file"]):
                return f"{MANIFEST} names the file {record['file'][:60]!r}"
            if not path.is_file():
                return f"{record['file']} is missing"
            if path.stat().st_size != record["bytes"]:
                return f"{record['file']} has {path.stat().st_size} instead of {record['bytes']} bytes"
            if _crc32c(path) != record["crc32c"]:
                return f"{record['file']} does not have the checksum of the manifest"
        return None

    @cached_property
    def _pieces(self) -> dict[tuple[str, str], list[tuple[int, Any]]]:
        """By key and name, where pieces of the parameter start, and slices of files that are read when asked for."""
        pieces = {}
        for record in self.manifest["files"]:
            file = safe_open(self.directory / record["file"], framework="pt")
            for tensor in file.keys():  # noqa: SIM118 - not a dict
                key, start, name = tensor.split(":", 2)
                pieces.setdefault((key, name), []).append((int(start), file.get_slice(tensor)))
        return {what: sorted(found, key=lambda piece: piece[0]) for what, found in pieces.items()}

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return [name for key, name in self._pieces if key == WEIGHT]

    def read(self, key: str, name: str, start: int, length: int) -> Tensor:
        """
        Read elements of a flattened parameter or moment.

        Raises
        ------
        ValueError
            If the checkpoint lacks some of them.
        """
        out, done = torch.empty(length), 0
        for first, piece in self._pieces.get((key, name), []):
            low, high = max(start, first), min(start + length, first + piece.get_shape()[0])
            if low < high:
                out[low - start : high - start] = piece[low - first : high - first]
                done += high - low
        if done != length:
            raise ValueError(
                f"The checkpoint {str(self.directory)!r} must hold elements {start} to {start + length} of {key} of "
                f"{name!r}, got {done} of them: it is of another model. Start a new run."
            )
        return out

    def check_names(self, names: Iterable[str]) -> None:
        """
        Check that the checkpoint has the parameters of a model.

        Raises
        ------
        ValueError
            If it has others.
        """
        other = sorted(set(self.names) ^ set(names))
        if other:
            raise ValueError(
                f"The checkpoint {str(self.directory)!r} must be of this model, got one that differs in {other[:3]}."
            )

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """
        Gather the float32 weights.

        Parameters
        ----------
        shapes
            Shape of every parameter by name.

        Raises
        ------
        ValueError
            If the checkpoint has other parameters.
        """
        self.check_names(shapes)
        return {name: self.read(WEIGHT, name, 0, shape.numel()).view(shape) for name, shape in shapes.items()}

    def load_into(self, model: nn.Module) -> None:
        """
        Set the weights of a model.

        Raises
        ------
        ValueError
            If it has other parameters.
        """
        model.load_state_dict(self.weights({name: p.shape for name, p in model.named_parameters()}))

    def restore(self, fragments: Iterable[Fragment]) -> None:
        """Set weights and moments of live fragments."""
        for fragment in fragments:
            for key in KEYS:
                value = fragment.values[key]
                value.copy_(self.read(key, fragment.name, fragment.start, value.numel()))


def newest_checkpoint(checkpoints: Path, step: int | None = None) -> Checkpoint:
    """
    Open the newest checkpoint of a run, or that of a step, and check all its files.

    Raises
    ------
    ValueError
        If there is none, or its files are not what was written.
    """
    found = complete_checkpoints(checkpoints)
    if step is not None:
        found = [d for d in found if checkpoint_step(d) == step]
    if not found:
        what = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise ValueError(f"`run` must hold {what}, got {str(checkpoints.parent)!r} without one.")
    checkpoint = Checkpoint(found[-1])
    damage = checkpoint.damage()
    if damage:
        raise ValueError(
            f"The checkpoint must be as it was written, got {str(found[-1])!r}, in which {damage}. "
            "Give an older one with --step, or copy it again."
        )
    return checkpoint


def write_durably(path: Path, text: str) -> None:
    """Write a small file that is on the disk afterwards, and never seen half written."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _crc32c(path: Path) -> str:
    """Give the checksum of the content of a file."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum.update(block)
    return checksum.hexdigest().decode()


def _sync(directory: Path) -> None:
    """Put the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The files of a model directory, compared with its checksums and its schemas: nothing here needs torch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scfusion_fm.data.vocabulary.vocabulary import Vocabulary
from scfusion_fm.inference.model_config import (
    IGNORED_IN_CONFIG,
    IGNORED_IN_EXTRACTOR,
    LARGEST_CONFIG,
    LARGEST_EXTRACTOR,
    ConfigFile,
    ExtractorFile,
)
from scfusion_fm.notices import warn
from scfusion_fm.untrusted.checksums import SUMS, check_digest, check_file, read_bounded, read_sums
from scfusion_fm.untrusted.json_file import read_json
from scfusion_fm.untrusted.rules import parse_bytes
from scfusion_fm.untrusted.text import show_value
from scfusion_fm.untrusted.weights_file import read_metadata

CONFIG, EXTRACTOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
WEIGHTS_CHECKSUM = "weights_sha256"  # in a calibration: of the weights that it was made for
LARGEST_CALIBRATION = 1 << 26
HUB_FILES = ["*.json", "*.safetensors", "*.npz", "SHA256SUMS", "README.md"]  # no code, and no pickles
SHIPPED = Path(__file__).parents[1] / "shipped"  # models that come with the package, a directory each


@dataclass(frozen=True)
class ModelFiles:
    """
    The files of a model directory.

    Attributes
    ----------
    path
        The directory.
    sums
        Checksum of each file by its name; None where the directory has none.
    """

    path: Path
    sums: dict[str, str] | None

    @classmethod
    def open(cls, path: str | Path) -> "ModelFiles":
        """
        Find the directory.

        Raises
        ------
        ValueError
            If it is no model directory or its list of checksums is damaged.
        """
        path = Path(path)
        if not (path / CONFIG).is_file() or not (path / EXTRACTOR).is_file():
            raise ValueError(
                f"`model` must be a directory with config.json and preprocessor_config.json, got {str(path)!r}."
            )
        return cls(path, read_sums(path))

    def holds(self, name: str) -> bool:
        """Tell whether a file is there, or should be."""
        return (self.path / name).is_file() or name in (self.sums or {})

    def check(self, name: str) -> Path:
        """
        Compare a file with its checksum; its path.

        Raises
        ------
        ValueError
            If it differs, is missing or is not in the list.
        """
        if self.sums is not None:
            check_file(self.path / name, self._sum_of(name))
        return self.path / name

    def check_calibration(self, name: str) -> Path:
        """
        Compare a calibration with its checksum, and the weights that it was made for with those here; its path.

        Raises
        ------
        ValueError
            As `check`, or if it is damaged or was made for other weights.
        """
        path = self.check(name)
        found = read_metadata(path) if path.suffix == ".safetensors" else _read_named_json(path)
        made_for = found.get(WEIGHTS_CHECKSUM) if isinstance(found, dict) else None
        if made_for is not None and made_for != self._digest_weights():
            raise ValueError(
                f"{str(path)!r} must be made for {WEIGHTS} beside it, got one for other weights. Copy or export the "
                "directory again, or fine-tune to calibrate."
            )
        return path

    def _digest_weights(self) -> str:
        if self.sums is not None:  # what is loaded is compared with them
            return self._sum_of(WEIGHTS)
        with (self.path / WEIGHTS).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def read(self, name: str, largest: int) -> bytes:
        """
        Read a small file.

        Raises
        ------
        ValueError
            As `check`, or if the file is larger than that.
        """
        path = self.path / name
        data = read_bounded(path, largest)
        if self.sums is not None:
            check_digest(path, hashlib.sha256(data).hexdigest(), self._sum_of(name))
        return data

    def read_config(self) -> ConfigFile:
        """
        Read config.json; warn where the directory has no checksums.

        Raises
        ------
        ValueError
            If it is damaged or of another kind of model.
        """
        data, place = self.read(CONFIG, LARGEST_CONFIG), str(self.path / CONFIG)
        found = parse_bytes(ConfigFile, data, place, IGNORED_IN_CONFIG)
        if self.sums is None:
            warn(
                f"{self.path} has no {SUMS}, so that damage to its files would not be noticed. "
                f"`cd {self.path} && sha256sum * > {SUMS}` lists them as they are now.",
            )
        return found

    def read_extractor(self) -> ExtractorFile:
        """
        Read preprocessor_config.json.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        data, place = self.read(EXTRACTOR, LARGEST_EXTRACTOR), str(self.path / EXTRACTOR)
        return parse_bytes(ExtractorFile, data, place, IGNORED_IN_EXTRACTOR)

    def _sum_of(self, name: str) -> str:
        found = (self.sums or {}).get(name)
        if found is None:
            raise ValueError(
                f"{str(self.path / name)!r} must be in {SUMS} beside it, got no line for it. Make the list again with "
                f"`sha256sum` if the file is yours."
            )
        return found


def _read_named_json(path: Path) -> Any:
    try:
        return read_json(read_bounded(path, LARGEST_CALIBRATION))
    except ValueError as error:
        told = str(error).rstrip(".")
        raise ValueError(f"{str(path)!r}: {told}. The file is damaged: copy or export it again.") from error


def find_model(model: str | Path, revision: str | None = None) -> Path:
    """
    Give the directory of a model: the one of that path, one that comes with the package, or one from the hub.

    Parameters
    ----------
    model
        A model directory; the name of a model that comes with the package, such as `scfusion-human-blood`; or the id of
        one on the Hugging Face hub (`group/name`), which is downloaded. A directory of that name comes first.
    revision
        Branch, tag or commit on the hub.

    Raises
    ------
    ValueError
        If there is none.
    """
    path, text = Path(model).expanduser(), str(model)
    is_text = isinstance(model, str) and not text.startswith((".", "/", "~"))
    if path.exists() or not is_text or text.count("/") > 1:
        return _refuse_revision(path, revision)
    if "/" not in text:
        return _refuse_revision(_find_shipped(text), revision)
    from huggingface_hub import snapshot_download  # slow to import

    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=HUB_FILES))
    except Exception as error:  # of many kinds: no network, no such model, no access
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"`model` must be a directory, or the id of a model on the Hugging Face hub, got {text!r}, which is no "
            f"directory here and cannot be downloaded ({reason})."
        ) from error


def list_shipped() -> dict[str, Path]:
    """Give the directories of the models that come with the package, by name."""
    return {path.name: path for path in sorted(SHIPPED.glob("*")) if is_model(path)}


def _find_shipped(name: str) -> Path:
    shipped = list_shipped()
    if name not in shipped:
        told = f"one that comes with the package ({', '.join(shipped)})" if shipped else "a `group/name` on the hub"
        raise ValueError(f"`model` must be a directory or {told}, got {show_value(name)}, which is neither.")
    return shipped[name]


def _refuse_revision(path: Path, revision: str | None) -> Path:
    if revision is not None:
        raise ValueError(f"`revision` must be left out where `model` is a directory, got {revision!r}.")
    return path


def read_vocabulary(model: Path) -> Vocabulary:
    """
    Read the genes and proteins that a model knows.

    Raises
    ------
    ValueError
        If the directory is no model or damaged.
    """
    files = ModelFiles.open(model)
    files.read_config()
    return files.read_extractor().vocabulary()


def verify_model(model: Path) -> None:
    """
    Compare all files of a model directory with its checksums.

    Raises
    ------
    ValueError
        If one differs or is missing, or the directory has no checksums.
    """
    sums = read_sums(model)
    if sums is None:
        raise ValueError(f"`model` must have {SUMS}, got none in {str(model)!r}. Export it again with this version.")
    for name, expected in sums.items():
        check_file(model / name, expected)


def is_model(path: Path) -> bool:
    """Tell whether a path is a model directory, and not an atlas."""
    return (path / CONFIG).is_file() and not (path / "zarr.json").exists()

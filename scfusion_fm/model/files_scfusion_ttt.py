"""What a model directory holds beside weights and settings: code, checksums, seen cells, calibrations."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import cached_file

CHECKSUMS = "SHA256SUMS"
SEEN_CELLS = "seen_cells.npz"
CARD = "README.md"
CONFIG, EXTRACTOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
# They were fitted to the outputs of certain weights, whose checksum they hold.
CALIBRATIONS = (
    "annotation_calibration.json",
    "protein_intervals.json",
    "panel_regression.safetensors",
    "study_types.safetensors",
)
WEIGHTS_CHECKSUM = "weights_sha256"
WRITTEN_WITH_WEIGHTS = (CONFIG, "model*.safetensors*", "adapter_*", "*.py", SEEN_CELLS, *CALIBRATIONS)

NOT_SHIPPED = ("__init__.py", "ttt_reference.py")
_MODELING, _PIPELINES = "modeling_scfusion_ttt.", "pipelines_scfusion_ttt."
MODEL_CODE: dict[str, dict[str, Any]] = {
    "auto_map": {
        "AutoConfig": "configuration_scfusion_ttt.ScFusionTTTConfig",
        "AutoModel": _MODELING + "ScFusionTTTModel",
        "AutoModelForPreTraining": _MODELING + "ScFusionTTTForPreTraining",
        "AutoModelForSequenceClassification": _MODELING + "ScFusionTTTForCellTypeAnnotation",
        "AutoModelForMaskedLM": _MODELING + "ScFusionTTTForCrossModalPrediction",  # it fills in hidden tokens
    },
    "custom_pipelines": {
        "cell-type-annotation": {
            "impl": _PIPELINES + "CellTypeAnnotationPipeline",
            "pt": ["AutoModelForSequenceClassification"],
        },
        "cell-embedding": {"impl": _PIPELINES + "CellEmbeddingPipeline", "pt": ["AutoModel"]},
        "protein-prediction": {"impl": _PIPELINES + "ProteinPredictionPipeline", "pt": ["AutoModelForMaskedLM"]},
    },
}
EXTRACTOR_CODE = {
    "auto_map": {"AutoFeatureExtractor": "feature_extraction_scfusion_ttt.ScFusionTTTFeatureExtractor"},
}
# What may differ between configurations of the same model.
_NO_SETTINGS = ("_name_or_path", "transformers_version", "label2id", *MODEL_CODE)


def update_checksums(directory: str | os.PathLike, patterns: Iterable[str]) -> None:
    """
    Write the checksums of some files into SHA256SUMS, which `sha256sum -c` reads; those of other files stay.

    Parameters
    ----------
    directory
        Where the files are.
    patterns
        Names of the files, with `*` for anything.
    """
    directory = Path(directory)
    path = directory / CHECKSUMS
    lines = path.read_text().splitlines() if path.is_file() else []
    known = {line[66:]: line[:64] for line in lines if (directory / line[66:]).is_file()}
    for file in (file for pattern in patterns for file in directory.glob(pattern) if file.is_file()):
        known[file.name] = find_checksum(file)
    known.pop(CHECKSUMS, None)
    path.write_text("".join(f"{known[name]}  {name}\n" for name in sorted(known)))


def find_checksum(path: Path) -> str:
    """Calculate the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_code(directory: str | os.PathLike, settings: str, entries: dict[str, Any]) -> None:
    """
    Copy the code of the models, and say in a file of settings which class is which, so that none needs our package.

    Parameters
    ----------
    directory
        Where a model or a feature extractor was saved.
    settings
        Name of its file of settings.
    entries
        What the file shall hold.
    """
    directory = Path(directory)
    for file in Path(__file__).parent.glob("*.py"):
        if file.name not in NOT_SHIPPED:
            shutil.copyfile(file, directory / file.name)
    path = directory / settings
    path.write_text(json.dumps(json.loads(path.read_text()) | entries, indent=2) + "\n")


class Place(NamedTuple):
    """
    Where a model is: a directory, or a name on the Hub.

    Attributes
    ----------
    name
        Directory or name; '' for none.
    revision
        Branch, tag or commit on the Hub; None for the newest.
    """

    name: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether nothing has to be downloaded."""
        return not self.name or os.path.isdir(self.name)

    def find(self, name: str) -> Path | None:
        """Find a file there, which is downloaded if need be; None without."""
        if self.is_local:
            found = Path(self.name, name)
            return found if self.name and found.is_file() else None
        try:
            return Path(cached_file(self.name, name, revision=self.revision))
        except (OSError, ValueError):
            return None

    def identify(self) -> tuple[str, dict[str, Any]] | None:
        """Give the checksum of the weights, and the settings; None without, or if the weights are in several files."""
        weights, settings = self.find(WEIGHTS), self.find(CONFIG)
        if weights is None or settings is None:
            return None
        found = json.loads(settings.read_text())
        return find_checksum(weights), {name: x for name, x in found.items() if name not in _NO_SETTINGS}

    def find_calibrations(self) -> dict[str, Path]:
        """Find calibrations by their name."""
        found = {name: self.find(name) for name in CALIBRATIONS}
        return {name: path for name, path in found.items() if path is not None}


class Belongings:
    """
    What belongs to a model that is about to be saved, beside weights and settings.

    Fingerprints of the cells that a model has seen stay true when it learns more. Calibrations hold for the same
    weights and settings only.

    Parameters
    ----------
    source
        Where the model was loaded from.
    directory
        Where it will be saved, which may be the same.
    """

    def __init__(self, source: Place, directory: str | os.PathLike):
        self._source, self._target = source, Place(os.fspath(directory))
        # Now, because the target is written over.
        self._places = [(place, place.find_calibrations()) for place in (self._target, self._source)]
        self._before = [place.identify() if found else None for place, found in self._places]

    def follow(self) -> None:
        """Copy what holds for the saved model to it, remove there what does not, and warn of what is lost."""
        self._copy_seen_cells()
        directory = Path(self._target.name)
        names = {name for _, found in self._places for name in found}
        now, kept = self._target.identify() if names else None, set()
        for (_, found), before in zip(self._places, self._before, strict=True):
            if now is not None and now == before:
                kept |= found.keys()
                _copy_files(found, directory)
        for name in names - kept:
            (directory / name).unlink(missing_ok=True)
        if names - kept:
            told = f"{', '.join(sorted(names - kept))} of {self._source.name or self._target.name!r} is not in"
            reason = "weights or settings are other ones now. A fine-tuning calibrates a model"
            warnings.warn(f"{told} {self._target.name!r}: {reason}.", stacklevel=3)

    def _copy_seen_cells(self) -> None:
        found = self._source.find(SEEN_CELLS)
        if found is not None:
            _copy_files({SEEN_CELLS: found}, Path(self._target.name))
        elif not self._source.is_local:
            told = f"{SEEN_CELLS}, which tells the cells that a model has seen, was not found at {self._source.name!r}"
            warnings.warn(f"{told}: it is not in {self._target.name!r}.", stacklevel=4)


def _copy_files(found: dict[str, Path], directory: Path) -> None:
    for name, source in found.items():
        target = directory / name
        if not (target.is_file() and target.samefile(source)):
            shutil.copyfile(source, target)

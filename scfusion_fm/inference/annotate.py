"""`annotate`: cell types, calibrated probabilities, `unknown` at a promised rate, levels of an ontology.

Letters: n cells, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Container, Given
from scfusion_fm.data.schema import Modality
from scfusion_fm.evaluation.calibration.classifier import ANNOTATION_CALIBRATION, AnnotationCalibration
from scfusion_fm.evaluation.calibration.unknown import CellOutputs
from scfusion_fm.inference.job import BOTH, Job, Use
from scfusion_fm.inference.label_tree import LabelTree
from scfusion_fm.inference.model_files import ModelFiles
from scfusion_fm.inference.study_types import FileTypes, adapt_to_file
from scfusion_fm.model import ScFusionTTTForCellTypeAnnotation
from scfusion_fm.notices import warn

UNKNOWN = "unknown"
TEXTS = ("", "_level", "_ontology_id")  # endings of columns of text


def annotate(
    adata: Given,
    model: Any,
    *,
    output: str | Path | None = None,
    copy: bool = False,
    key_added: str = "cell_type_pred",
    reject_rate: float | None = None,
    ontology: str | Path | None = None,
    min_probability: float = 0.5,
    modality: Modality = "auto",
    batch_key: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Container | None:
    """
    Name cell types: `obs["cell_type_pred"]`, and the probability of each in `obs["cell_type_pred_probability"]`.

    Probabilities are calibrated where the model directory has a calibration. `reject_rate` puts `unknown` for cells
    that look as if they were of no known type, and adds `_unknown_score`. `ontology` adds `_level`, the label or the
    ancestor that is probable enough, `_level_probability` and `_ontology_id`.

    Parameters
    ----------
    adata, model, output, copy, modality, batch_key, batch_size, device, min_coverage
        As in `embed`; the model is one that was fine-tuned to annotate.
    key_added
        Name in `obs`, with which the others begin.
    reject_rate
        False-reject rate: cells are called unknown above a threshold that at most this share of cells of known types
        reaches, if they are like the calibration cells; none is when None.
    ontology
        TSV file with the columns label, ontology_id and parent; no levels when None.
    min_probability
        Below it, a label of the ontology goes up to its parent; in [0, 1].

    Returns
    -------
    As `embed`.

    Raises
    ------
    ValueError
        If the model, the cells or a setting is refused; if rejection is asked of a model without calibration or at a
        rate that was not calibrated, a class of the model is named `unknown`, or the ontology is refused.

    Notes
    -----
    The rate is that of wrong rejections. How many cells of unknown types are accepted is not bounded by it; what
    fine-tuning estimates with `leave_out_types` is in its results.
    """
    if not 0 <= min_probability <= 1:
        raise ValueError(f"`min_probability` must lie in [0, 1], got {min_probability}.")
    endings = ["", "_probability"]
    endings += [] if reject_rate is None else ["_unknown_score"]
    endings += [] if ontology is None else ["_level", "_level_probability", "_ontology_id"]
    added = [("obs", key_added + ending) for ending in endings]
    use = Use(output, copy, key_added, modality, batch_size, device, batch_key, min_coverage)
    with Job.start(adata, model, use, ScFusionTTTForCellTypeAnnotation, added) as job:
        config = job.model.config
        names = [config.id2label[i] for i in range(config.num_labels)]
        calibration = load_calibration(job.loaded.path, names, reject_rate, config.hidden_size)
        tree = None if ontology is None else LabelTree.load(Path(ontology), names)
        namer = Namer(names, calibration, tree, reject_rate, min_probability)
        rna_only = config.projected_proteins is not None
        readable, shown = (job.has_rna, ("rna",)) if rna_only else (job.has_counts, BOTH)
        kinds = _kinds_of(job, rna_only)
        columns = {ending: namer.start(ending, len(job)) for ending in endings}
        in_file = adapt_to_file(job)
        for part, outputs in job.forward(("logits", "pooler_output"), readable, shown):
            if in_file is not None:
                _name_in_file(job, in_file, part, outputs[0], kinds[part] == "rna")
            for ending, values in namer.name(CellOutputs(*outputs), kinds[part]).items():
                columns[ending][part] = values
        namer.warn_without_threshold(kinds[readable])
        for ending, values in columns.items():
            job.add_column(key_added + ending, namer.finish(ending, values))
        return job.finish("annotate", {"obs": key_added, "classes": names, **namer.facts(ontology)})


def load_calibration(
    model: Path, classes: list[str], reject_rate: float | None, width: int
) -> AnnotationCalibration | None:
    """
    Load the calibration of a model directory; None if it has none and none is needed.

    Raises
    ------
    ValueError
        If it does not fit the model, or rejection cannot be done.
    """
    files = ModelFiles.open(model)
    if not files.holds(ANNOTATION_CALIBRATION):
        if reject_rate is not None:
            raise ValueError(
                f"`model` must hold {ANNOTATION_CALIBRATION} for a `reject_rate`, got none in {str(model)!r}; "
                "fine-tune one with finetune/cell_type_annotation.py."
            )
        return None
    found = AnnotationCalibration.load(files.check_calibration(ANNOTATION_CALIBRATION))
    if found.classes != classes:
        raise ValueError(f"`model` must have a calibration for its classes {classes}, got {found.classes}.")
    if found.width not in (None, width):
        raise ValueError(f"`model` must have a calibration for embeddings of width {width}, got {found.width}.")
    if reject_rate is not None and UNKNOWN in classes:
        raise ValueError(f"`model` must have no class {UNKNOWN!r} for a `reject_rate`, got {classes}.")
    if reject_rate is not None and reject_rate not in found.rates:
        raise ValueError(f"`reject_rate` must be one of the calibrated {found.rates}, got {reject_rate}.")
    return found


def _name_in_file(
    job: Job, in_file: FileTypes, part: slice, logits: NDArray[np.float32], alone: NDArray[np.bool_]
) -> None:
    """Replace the logits (n, K) of the cells of a block whose RNA is shown alone, in place."""
    rows = np.flatnonzero(alone & np.isfinite(logits).all(1))
    cells = job.source.read(part.start, part.stop)
    logits[rows] = in_file.logits(in_file.types.read(cells, rows, job.extractor))


def _kinds_of(job: Job, rna_only: bool) -> NDArray[np.str_]:
    """Say what the model is shown of each cell, (n,)."""
    rna = job.source.rna_present
    adt = np.zeros_like(rna) if rna_only else job.source.adt_present
    return np.where(rna & adt, "rna+adt", np.where(rna, "rna", "adt"))


@dataclass(frozen=True)
class Namer:
    """
    Name the types of cells from the outputs of a model.

    Attributes
    ----------
    names
        Classes of the model (K).
    calibration
        Its calibration; probabilities are those of the model when None.
    tree
        Levels above the classes; none when None.
    reject_rate
        As of `annotate`.
    min_probability
        As of `annotate`.
    """

    names: list[str]
    calibration: AnnotationCalibration | None
    tree: LabelTree | None
    reject_rate: float | None
    min_probability: float

    def start(self, ending: str, num_cells: int) -> NDArray:
        """Give a column without values."""
        is_text = ending in TEXTS
        return np.full(num_cells, None if is_text else np.nan, dtype=object if is_text else np.float64)

    def finish(self, ending: str, values: NDArray) -> NDArray | pd.Categorical:
        """Give a column as it is stored."""
        if ending not in TEXTS:
            return values
        told = [*self.names, UNKNOWN] if self.reject_rate is not None else self.names
        return pd.Categorical(values, categories=told if ending == "" else None)

    def name(self, cells: CellOutputs, kinds: NDArray[np.str_]) -> dict[str, NDArray]:
        """Give the columns of some cells by their ending; what the model was shown of each is one of the `kinds`."""
        rows = np.flatnonzero(np.isfinite(cells.logits).all(1))
        read, shown = cells.take(rows), kinds[rows]
        probabilities = np.full(cells.logits.shape, np.nan)
        if self.calibration is None:
            probabilities[rows] = softmax(read.logits, axis=1)
        else:
            probabilities[rows] = self.calibration.probabilities(read.logits, shown)
        types = self.start("", len(kinds))
        types[rows] = np.array(self.names, dtype=object)[read.logits.argmax(1)]
        columns = {"": types, "_probability": probabilities.max(1)}
        if self.calibration is not None and self.reject_rate is not None:
            scores = np.full(len(kinds), np.nan)
            scores[rows] = self.calibration.unknown_scores(read, shown)
            types[rows[self.calibration.is_unknown(scores[rows], shown, self.reject_rate)]] = UNKNOWN
            columns["_unknown_score"] = scores
        return columns | self._name_levels(probabilities, types)

    def facts(self, ontology: str | Path | None) -> dict[str, Any]:
        """Give what the provenance tells."""
        facts: dict[str, Any] = {}
        if self.calibration is not None:
            facts["temperature"] = {name: found.temperature for name, found in self.calibration.inputs.items()}
            if self.reject_rate is not None:
                facts |= {"reject_rate": self.reject_rate, "unknown_score": self.calibration.score}
        if ontology is not None:
            facts |= {"ontology": str(ontology), "min_probability": self.min_probability}
        return facts

    def warn_without_threshold(self, kinds: NDArray[np.str_]) -> None:
        """Warn of cells that cannot be called unknown."""
        if self.calibration is None or self.reject_rate is None:
            return
        rate = self.reject_rate
        finite = [name for name, found in self.calibration.inputs.items() if np.isfinite(found.thresholds[rate])]
        number = int((~np.isin(kinds, finite)).sum())
        if number:
            warn(
                f"{number} of {len(kinds)} cells cannot be called unknown: the model has too few calibration cells "
                f"with the same modalities for a reject rate of {rate}.",
            )

    def _name_levels(self, probabilities: NDArray[np.float64], types: NDArray) -> dict[str, NDArray]:
        """Give the columns of the ontology; unknown where a cell was rejected or no level is probable enough."""
        if self.tree is None:
            return {}
        rows = np.flatnonzero(np.isfinite(probabilities).all(1))
        labels, ids = self.start("_level", len(types)), self.start("_ontology_id", len(types))
        found = np.full(len(types), np.nan)
        labels[rows], found[rows] = self.tree.back_off(probabilities[rows], self.names, self.min_probability)
        rejected = (types == UNKNOWN) | (labels == "")
        labels[rejected], found[rejected] = UNKNOWN, np.nan
        ids[rows] = [self.tree.ids.get(label, "") if label != UNKNOWN else "" for label in labels[rows]]
        return {"_level": labels, "_level_probability": found, "_ontology_id": ids}

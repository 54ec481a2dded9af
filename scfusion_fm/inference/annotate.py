"""`scfusion annotate`: cell types, calibrated probabilities, `unknown` at a promised rate, levels of an ontology.

Letters: n cells, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from scfusion_fm.evaluation.calibration.classifier import ANNOTATION_CALIBRATION, AnnotationCalibration
from scfusion_fm.evaluation.calibration.unknown import CellOutputs
from scfusion_fm.inference.job import FileRequest, Job
from scfusion_fm.inference.label_tree import LabelTree
from scfusion_fm.inference.model_files import ModelFiles
from scfusion_fm.model import ScFusionTTTForCellTypeAnnotation
from scfusion_fm.notices import warn

UNKNOWN = "unknown"


@dataclass(frozen=True)
class AnnotationRequest:
    """
    What a user asks beyond the most probable cell type.

    Parameters
    ----------
    reject_rate
        False-reject rate: cells are called unknown above a threshold that at most this share of cells of known types
        reaches, if they are like the calibration cells; none is when None.
    ontology
        TSV file with the columns label, ontology_id and parent; no levels when None.
    min_probability
        Below it, a label of the ontology goes up to its parent; in [0, 1].

    Raises
    ------
    ValueError
        If `min_probability` is out of range.
    """

    reject_rate: float | None = None
    ontology: Path | None = None
    min_probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.min_probability <= 1:
            raise ValueError(f"`--min-probability` must lie in [0, 1], got {self.min_probability}.")


def annotate(request: FileRequest, wanted: AnnotationRequest | None = None) -> None:
    """
    Write the most probable cell type to `obs["cell_type_pred"]` and its probability beside it.

    Probabilities are calibrated where the model directory has a calibration. `reject_rate` puts `unknown` for cells
    that look as if they were of no known type, and adds `_unknown_score`. `ontology` adds `_level`, the label or the
    ancestor that is probable enough, `_level_probability` and `_ontology_id`.

    Raises
    ------
    ValueError
        If rejection is asked of a model without calibration or at a rate that was not calibrated, a class of the model
        is named `unknown`, or the ontology is refused.

    Notes
    -----
    The rate is that of wrong rejections. How many cells of unknown types are accepted is not bounded by it; what
    fine-tuning estimates with `leave_out_types` is in its results.
    """
    wanted = wanted or AnnotationRequest()
    key = request.key_added or "cell_type_pred"
    endings = ["", "_probability"]
    endings += [] if wanted.reject_rate is None else ["_unknown_score"]
    endings += [] if wanted.ontology is None else ["_level", "_level_probability", "_ontology_id"]
    job = Job.start(request, ScFusionTTTForCellTypeAnnotation, [("obs", key + ending) for ending in endings])
    names = [job.model.config.id2label[i] for i in range(job.model.config.num_labels)]
    calibration = load_calibration(request.model, names, wanted.reject_rate, job.model.config.hidden_size)
    tree = None if wanted.ontology is None else LabelTree.load(wanted.ontology, names)
    rna_only = job.model.config.projected_proteins is not None
    readable, shown = (job.aligned.rna_present, ("rna",)) if rna_only else (job.has_counts, ("rna", "adt"))
    cells = CellOutputs(*job.forward(("logits", "pooler_output"), readable, shown))
    kinds = _kinds_of(job, rna_only)

    columns, probabilities, facts = _name_types(cells, kinds, names, calibration, wanted.reject_rate)
    if tree is not None:
        columns |= _name_levels(tree, probabilities, names, columns[""], wanted.min_probability)
        facts |= {"ontology": str(wanted.ontology), "min_probability": wanted.min_probability}
    for ending in endings:
        values = job.rows_of_container(columns[ending])
        values = pd.Categorical(values) if values.dtype == object else values
        job.container.obs[key + ending] = values
    told = [*names, UNKNOWN] if wanted.reject_rate is not None else names
    job.container.obs[key] = job.container.obs[key].cat.set_categories(told)
    job.finish("annotate", {"obs": key, "classes": names, **facts})


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
                f"`model` must hold {ANNOTATION_CALIBRATION} for --reject-rate, got none in {str(model)!r}; fine-tune "
                "with finetune/cell_type_annotation.py."
            )
        return None
    found = AnnotationCalibration.load(files.check_calibration(ANNOTATION_CALIBRATION))
    if found.classes != classes:
        raise ValueError(f"`model` must have a calibration for its classes {classes}, got {found.classes}.")
    if found.width not in (None, width):
        raise ValueError(f"`model` must have a calibration for embeddings of width {width}, got {found.width}.")
    if reject_rate is not None and UNKNOWN in classes:
        raise ValueError(f"`model` must have no class {UNKNOWN!r} for --reject-rate, got {classes}.")
    if reject_rate is not None and reject_rate not in found.rates:
        raise ValueError(f"`--reject-rate` must be one of the calibrated {found.rates}, got {reject_rate}.")
    return found


def _kinds_of(job: Job, rna_only: bool) -> NDArray[np.str_]:
    """Say what the model is shown of each cell, (n,)."""
    rna = job.aligned.rna_present
    adt = np.zeros_like(rna) if rna_only else job.aligned.adt_present
    return np.where(rna & adt, "rna+adt", np.where(rna, "rna", "adt"))


def _name_types(
    cells: CellOutputs,
    kinds: NDArray[np.str_],
    names: list[str],
    calibration: AnnotationCalibration | None,
    rate: float | None,
) -> tuple[dict[str, NDArray], NDArray[np.float64], dict[str, Any]]:
    """Give the columns by their ending, the probabilities of all classes (n, K), and facts for the provenance."""
    rows = np.flatnonzero(np.isfinite(cells.logits).all(1))
    read, shown = cells.take(rows), kinds[rows]
    probabilities = np.full(cells.logits.shape, np.nan)
    if calibration is None:
        probabilities[rows] = softmax(read.logits, axis=1)
    else:
        probabilities[rows] = calibration.probabilities(read.logits, shown)
    types = np.full(len(kinds), None, dtype=object)
    types[rows] = np.array(names, dtype=object)[read.logits.argmax(1)]
    columns = {"": types, "_probability": probabilities.max(1)}
    facts: dict[str, Any] = {}
    if calibration is not None:
        facts["temperature"] = {name: found.temperature for name, found in calibration.inputs.items()}
    if calibration is not None and rate is not None:
        scores = np.full(len(kinds), np.nan)
        scores[rows] = calibration.unknown_scores(read, shown)
        types[rows[calibration.is_unknown(scores[rows], shown, rate)]] = UNKNOWN
        columns["_unknown_score"] = scores
        facts |= {"reject_rate": rate, "unknown_score": calibration.score}
        _warn_without_threshold(shown, calibration, rate)
    return columns, probabilities, facts


def _warn_without_threshold(kinds: NDArray[np.str_], calibration: AnnotationCalibration, rate: float) -> None:
    finite = [name for name, found in calibration.inputs.items() if np.isfinite(found.thresholds[rate])]
    number = int((~np.isin(kinds, finite)).sum())
    if number:
        warn(
            f"{number} of {len(kinds)} cells cannot be called unknown: the model has too few calibration cells with "
            f"the same modalities for --reject-rate {rate}.",
        )


def _name_levels(
    tree: LabelTree, probabilities: NDArray[np.float64], names: list[str], types: NDArray, min_probability: float
) -> dict[str, NDArray]:
    """Give the columns of the ontology; unknown where a cell was rejected or no level is probable enough."""
    rows = np.flatnonzero(np.isfinite(probabilities).all(1))
    labels, ids = (np.full(len(types), None, dtype=object) for _ in range(2))
    found = np.full(len(types), np.nan)
    labels[rows], found[rows] = tree.back_off(probabilities[rows], names, min_probability)
    rejected = (types == UNKNOWN) | (labels == "")
    labels[rejected], found[rejected] = UNKNOWN, np.nan
    ids[rows] = [tree.ids.get(label, "") if label != UNKNOWN else "" for label in labels[rows]]
    return {"_level": labels, "_level_probability": found, "_ontology_id": ids}

"""The whole run of `finetune/cell_type_annotation.py`, from top to bottom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from scfusion_fm.config.finetune import AnnotationConfig
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.calibration.classifier import ANNOTATION_CALIBRATION, check_served_score
from scfusion_fm.evaluation.metrics.clusters import separation_scores
from scfusion_fm.evaluation.protocol.open_set import check_left_out
from scfusion_fm.evaluation.report.text import MODEL_NAME
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.inference.study_types import STUDY_TYPES
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.tasks.annotation.baselines import name_by_baselines
from scfusion_fm.tasks.annotation.calibrate import (
    CALIBRATED,
    adopt_calibration,
    calibrate_annotation,
    describe_calibration,
    describe_open_set,
    score_open_set,
)
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, fit_annotation
from scfusion_fm.tasks.annotation.labelled_file import LabelledFile
from scfusion_fm.tasks.annotation.study_types import read_studies
from scfusion_fm.tasks.final import describe_final, join_all
from scfusion_fm.tasks.given import read_given
from scfusion_fm.tasks.ranks import by_all_ranks, leave_rest_to_rank_0
from scfusion_fm.tasks.results import FineTuned, finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.weights import Weights

USUAL_LR = 5e-4


@by_all_ranks
def run_annotation(config: AnnotationConfig, objects: Sequence[Any] | None = None) -> FineTuned:
    """
    Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells.

    Parameters
    ----------
    config
        What to do.
    objects
        AnnData or MuData for the names in `config.data`; None for files of these names.
    """
    run = Scratch(config.output_dir, "output_dir")
    check_served_score(config.unknown_score)

    # Cells, labels, and the split that pretraining held out.
    pretrained, extractor = load_pretrained(find_model(config.model), ScFusionTTTModel)
    file = LabelledFile.divide(config, read_given(config, extractor, objects), extractor)
    data, partition = file.data, file.partition
    check_left_out(config.leave_out_types, data.classes, data.labels[partition.test])
    seen = check_test_cells(config, data.aligned, extractor, partition, file.whole)

    # Fine-tune; each modality is hidden now and then, so that the model also serves cells that lack it.
    fits = start_run(run, config, file.cells.fingerprint)
    settings = AnnotationSettings(
        config.optim.settle(len(partition.train), USUAL_LR),
        config.seed,
        fits / "main",
        balance_classes=config.balance_classes,
        modality_dropout=config.modality_dropout,
        studies=read_studies(file.cells.obs, config.study_key),
    )
    weights = Weights(find_model(config.model))
    fitted = kept = fit_annotation(weights, data, partition, settings)
    told = {}
    if config.leave_out_types:  # what becomes of types that training did not have
        open_set = score_open_set(weights, data, partition, settings, config.leave_out_types)
        told["open_set"] = describe_open_set(open_set)
    if config.final:
        everything = join_all(file.whole, fitted.epochs)
        kept = fit_annotation(weights, data, everything, settings.part("final", speaks=True), fitted)
        told["final"] = describe_final(partition, everything, kept.epochs, CALIBRATED)
    leave_rest_to_rank_0()
    if config.leave_out_types:
        open_set.to_csv(run.path / "open_set.csv", index=False)

    # Temperature and thresholds from held-out cells.
    calibration = calibrate_annotation(fitted, data, partition, config.unknown_score)
    told["calibration"] = describe_calibration(calibration, fitted, data, partition.test)

    # Held-out figures beside baselines that got the same cells and labels.
    logits = {name: fitted.predict(data.aligned, partition.scored, shown) for name, shown in data.inputs.items()}
    predicted = {(MODEL_NAME, name): data.names_of(values) for name, values in logits.items()}
    table = file.score(predicted | name_by_baselines(data, partition, config.seed))
    embedding = predict_rows(pretrained, CellCollator(data.aligned, extractor), file.shown, "pooler_output")
    inputs = list(data.inputs)[-1]
    file.write_cells(run.path, calibration.scale(logits[inputs], inputs), embedding)
    results = {
        "task": "cell_type_annotation",
        **file.describe(),
        "optim": dataclasses.asdict(settings.optim),
        "table": table,
        "embedding": separation_scores(embedding, data.labels[file.shown]),
        **told,
    }

    # The model with its card and calibration, and the results.
    facts = {"task": "cell-type annotation", "classes": ", ".join(data.classes), "fine-tuned on": config.data_names}
    if config.final:
        calibration = adopt_calibration(calibration, kept, data, everything.train)
    files: dict[str, str | bytes] = {ANNOTATION_CALIBRATION: calibration.to_json()}
    if kept.readout is not None:
        files[STUDY_TYPES] = kept.readout.types.to_bytes()
    return finish_run(run, kept, seen, facts, files, results, config.report)

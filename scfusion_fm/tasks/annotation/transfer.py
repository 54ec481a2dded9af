"""The whole run of `finetune/unimodal_transfer.py`, from top to bottom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from scfusion_fm.config.finetune import UnimodalTransferConfig
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.calibration.classifier import ANNOTATION_CALIBRATION, check_served_score
from scfusion_fm.evaluation.metrics.clusters import separation_scores
from scfusion_fm.evaluation.report.text import MODEL_NAME
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import find_model
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.tasks.annotation.baselines import name_by_baselines
from scfusion_fm.tasks.annotation.calibrate import (
    CALIBRATED,
    adopt_calibration,
    calibrate_annotation,
    describe_calibration,
)
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, choose_projected, fit_annotation
from scfusion_fm.tasks.annotation.labelled_file import LabelledFile
from scfusion_fm.tasks.final import describe_final, join_all
from scfusion_fm.tasks.given import read_given
from scfusion_fm.tasks.ranks import by_all_ranks, leave_rest_to_rank_0
from scfusion_fm.tasks.results import FineTuned, finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.weights import Weights

USUAL_LR = 3e-3


@by_all_ranks
def run_transfer(config: UnimodalTransferConfig, objects: Sequence[Any] | None = None) -> FineTuned:
    """
    Teach a pretrained model to name cell types from RNA alone, through the protein latents that it projects.

    Parameters
    ----------
    config
        What to do.
    objects
        AnnData or MuData for the names in `config.data`; None for files of these names.
    """
    run = Scratch(config.output_dir, "output_dir")
    check_served_score(config.unknown_score)

    # RNA, labels, the split that pretraining held out, and the proteins to project.
    _, extractor = load_pretrained(find_model(config.model), ScFusionTTTModel)
    file = LabelledFile.divide(config, read_given(config, extractor, objects), extractor, ("rna",))
    data, partition = file.data, file.partition
    seen = check_test_cells(config, data.aligned, extractor, partition, file.whole)
    projected = choose_projected(data, config.proteins) if config.projected_proteins else []
    proteins = [extractor.protein_names[place] for place in projected]

    # Fine-tune the projection and the head.
    settings = AnnotationSettings(
        config.optim.settle(len(partition.train), USUAL_LR),
        config.seed,
        start_run(run, config, file.cells.fingerprint) / "main",
        balance_classes=config.balance_classes,
        modalities=("rna",),
        projected=projected,
        trained=("adt_projection",) if projected else (),
    )
    weights = Weights(find_model(config.model))
    fitted = kept = fit_annotation(weights, data, partition, settings)
    final = {}
    if config.final:
        everything = join_all(file.whole, fitted.epochs)
        kept = fit_annotation(weights, data, everything, settings.part("final", speaks=True), fitted)
        final = {"final": describe_final(partition, everything, kept.epochs, CALIBRATED)}
    leave_rest_to_rank_0()

    # Temperature and thresholds from held-out cells.
    calibration = calibrate_annotation(fitted, data, partition, config.unknown_score)

    # Held-out figures beside baselines that got the same cells, their RNA and their labels.
    logits = fitted.predict(data.aligned, partition.scored)
    predicted = {(MODEL_NAME, "rna"): data.names_of(logits)} | name_by_baselines(data, partition, config.seed)
    table = file.score(predicted)
    embedding = fitted.embed(data.aligned, file.shown)
    file.write_cells(run.path, calibration.scale(logits, "rna"), embedding)
    results = {
        "task": "unimodal_transfer",
        **file.describe(),
        "optim": dataclasses.asdict(settings.optim),
        "projected_proteins": proteins,
        "table": table,
        "embedding": separation_scores(embedding, data.labels[file.shown]),
        "calibration": describe_calibration(calibration, fitted, data, partition.test),
        **final,
    }

    # The model with its card and calibration, and the results.
    facts = {
        "task": "cell-type annotation from RNA" + (" and projected proteins" if proteins else ""),
        "classes": ", ".join(data.classes),
        "proteins projected from RNA": ", ".join(proteins) or "none",
        "fine-tuned on": config.data_names,
    }
    if config.final:
        calibration = adopt_calibration(calibration, kept, data, everything.train)
    files = {ANNOTATION_CALIBRATION: calibration.to_json()}
    return finish_run(run, kept, seen, facts, files, results, config.report)

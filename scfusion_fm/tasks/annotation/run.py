"""The whole run of `finetune/cell_type_annotation.py`, from top to bottom."""

from pathlib import Path

from scfusion_fm.config.finetune import AnnotationConfig
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.evaluation.calibration.classifier import ANNOTATION_CALIBRATION, check_served_score
from scfusion_fm.evaluation.metrics.clusters import separation_scores
from scfusion_fm.evaluation.protocol.open_set import check_left_out
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.model import ScFusionTTTModel
from scfusion_fm.tasks.annotation.baselines import name_by_baselines
from scfusion_fm.tasks.annotation.calibrate import (
    calibrate_annotation,
    describe_calibration,
    describe_open_set,
    score_open_set,
)
from scfusion_fm.tasks.annotation.fit import AnnotationSettings, fit_annotation
from scfusion_fm.tasks.annotation.labelled_file import LabelledFile
from scfusion_fm.tasks.results import finish_run, start_run
from scfusion_fm.tasks.seen import check_test_cells
from scfusion_fm.tasks.weights import Weights


def run_annotation(config: AnnotationConfig) -> None:
    """Fine-tune a pretrained model to annotate cell types, and compare it with baselines on the same cells."""
    run = Scratch(config.output_dir, "output_dir")
    check_served_score(config.unknown_score)

    # Cells, labels, and the split that pretraining held out.
    pretrained, extractor = load_pretrained(Path(config.model), ScFusionTTTModel)
    file = LabelledFile.read(config, extractor)
    data = file.data
    check_left_out(config.leave_out_types, data.classes, data.labels[file.partition.test])
    seen = check_test_cells(config, data.aligned, extractor, file.partition)
    settings = AnnotationSettings(
        config.optim, config.seed, run.path / "trainer", config.balance_classes, config.modality_dropout
    )

    # Fine-tune; each modality is hidden now and then, so that the model also serves cells that lack it.
    start_run(run, config)
    weights = Weights(Path(config.model))
    fitted = fit_annotation(weights, data, file.partition, settings)

    # Temperature and thresholds from held-out cells; and what becomes of types that training did not have.
    calibration = calibrate_annotation(fitted, data, file.partition, config.unknown_score)
    told = {"calibration": describe_calibration(calibration, fitted, data, file.partition.test)}
    if config.leave_out_types:
        open_set = score_open_set(weights, data, file.partition, settings, config.leave_out_types)
        open_set.to_csv(run.path / "open_set.csv", index=False)
        told["open_set"] = describe_open_set(open_set)

    # Held-out figures beside baselines that got the same cells and labels.
    logits = {name: fitted.predict(data.aligned, file.partition.test, shown) for name, shown in data.inputs.items()}
    predicted = {("scFusionTTT", name): data.names_of(values) for name, values in logits.items()}
    table = file.score(predicted | name_by_baselines(data, file.partition, config.seed))
    embedding = predict_rows(pretrained, CellCollator(data.aligned, extractor), data.used, "pooler_output")
    inputs = list(data.inputs)[-1]
    file.write_cells(run.path, calibration.scale(logits[inputs], inputs), embedding)
    results = {
        "task": "cell_type_annotation",
        **file.describe(),
        "table": table,
        "embedding": separation_scores(embedding, data.labels[data.used]),
        **told,
    }

    # The model with its card and calibration, and the results.
    facts = {"task": "cell-type annotation", "classes": ", ".join(data.classes), "fine-tuned on": config.data}
    finish_run(run, fitted, seen, facts, {ANNOTATION_CALIBRATION: calibration.to_json()}, results)

"""The package as its users see it: a type checker reads this, nobody runs it."""

from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from scfusion_fm import (
    Atlas,
    AtlasLoader,
    CellOrder,
    LoaderConfig,
    MaskingCollator,
    MaskingConfig,
    PrepareConfig,
    ScFusionTTTConfig,
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
    SourceConfig,
    SplitConfig,
    Vocabulary,
    align_cells,
    build_vocabulary,
    doctor,
    finetune,
    load_pretrained,
    prepare,
    read_cells,
)


def read_a_file(path: Path) -> NDArray[np.bool_]:
    cells = read_cells(path, modality="rna")
    vocabulary = build_vocabulary([cells])
    assert_type(vocabulary, Vocabulary)
    assert_type(doctor(path).exit_code, int)
    return align_cells(cells, vocabulary).rna_present


def use_a_model(path: Path) -> ScFusionTTTFeatureExtractor:
    model, extractor = load_pretrained(path, ScFusionTTTModel)
    assert_type(model, ScFusionTTTModel)
    for head in (ScFusionTTTForCellTypeAnnotation, ScFusionTTTForCrossModalPrediction):
        load_pretrained(path, head)
    return extractor


def stream_an_atlas(files: list[str], extractor: ScFusionTTTFeatureExtractor) -> None:
    config = PrepareConfig("atlas.zarr", [SourceConfig(f) for f in files], split=SplitConfig(group_key="donor"))
    atlas = prepare(config)
    assert_type(prepare(files, "other.zarr", workers=2), Atlas)
    order = CellOrder(atlas.rows_by_dataset("train"), 0, LoaderConfig())
    collate = MaskingCollator(extractor, MaskingConfig())
    model = ScFusionTTTForPreTraining(ScFusionTTTConfig(num_proteins=extractor.num_proteins))
    with AtlasLoader(atlas, order, global_batch_size=64, micro_batch_size=8) as loader:
        for rows, epoch in loader.next_batch():
            model(**collate(rows, epoch))


def tune_a_model(path: Path) -> Path:
    done = finetune.annotation(path, labels_key="cell_type", model="model", output_dir="run", epochs=3)
    assert_type(finetune.protein_prediction([path, "b.h5ad"], model="m", output_dir="r"), finetune.FineTuned)
    return done.model

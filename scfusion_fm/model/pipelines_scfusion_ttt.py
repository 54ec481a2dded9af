"""
Pipelines of transformers: cells in, and the cell type, the embedding or the proteins of each out.

Letters: B cells, K classes, D hidden_size, P proteins.
"""

from typing import Any

import torch
from transformers import BatchFeature, Pipeline
from transformers.utils import ModelOutput

CELLS_PER_BATCH = 64


class CellPipeline(Pipeline):
    """
    Run a model over cells.

    Called with the cells, which are one of

    - a DataFrame with the raw counts of a cell in each row and a column for each gene, by Ensembl id or symbol;
    - an AnnData of RNA, with the counts in `layers["counts"]` or, without that, in X;
    - a MuData with such an AnnData as `rna`, and one of proteins, named as in the model, as `adt`; with either or both;
    - a dict of the arguments of the feature extractor.

    `batch_size` is the number of cells that the model reads at once.
    """

    _load_feature_extractor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_processor = False

    def __call__(self, cells: Any, batch_size: int | None = None, **kwargs: Any) -> list:
        """Give the result of each cell, in order."""
        size = batch_size or self._batch_size or CELLS_PER_BATCH
        given = cells if isinstance(cells, dict) else name_counts(cells)
        given = {name: x for name, x in given.items() if x is not None}
        count = max((len(x) if hasattr(x, "columns") else x.shape[0] for x in given.values()), default=0)
        parts = [{name: x[i : i + size] for name, x in given.items()} for i in range(0, count, size)]
        found = super().__call__(parts, batch_size=1, num_workers=0, **kwargs) if parts else []
        return [result for part in found for result in part]

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        if kwargs:
            raise ValueError(f"`{next(iter(kwargs))}` must be an argument of this pipeline, got another. Leave it out.")
        return {}, {}, {}

    def preprocess(self, part: dict[str, Any]) -> BatchFeature:
        """Prepare some cells."""
        return self.feature_extractor(**{name: as_counts(x) for name, x in part.items()})

    def _forward(self, inputs: BatchFeature) -> ModelOutput:
        return self.model(**inputs)


class CellTypeAnnotationPipeline(CellPipeline):
    """
    Name the type of each cell: `{"label": ..., "score": ...}`, or a list of these, the best first, with `top_k`.

    The score is the softmax of the model, before any calibration; `scfusion annotate` calibrates.
    """

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}. Leave it out for the best alone.")
        return *super()._sanitize_parameters(**kwargs)[:2], {} if top_k is None else {"top_k": top_k}

    def postprocess(self, output: ModelOutput, top_k: int | None = None) -> list:
        """Name the types of some cells."""
        names, scores = self.model.config.id2label, torch.softmax(output.logits.float(), 1)
        best = scores.topk(min(top_k or 1, scores.shape[1]), 1)  # (B, top_k)
        found = [
            [{"label": names[i], "score": score} for i, score in zip(*pair, strict=True)]
            for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return found if top_k is not None else [cell[0] for cell in found]


class CellEmbeddingPipeline(CellPipeline):
    """Embed each cell: an array (D,)."""

    def postprocess(self, output: ModelOutput) -> list:
        """Give the embeddings of some cells."""
        return list(output.pooler_output.float().numpy())


class ProteinPredictionPipeline(CellPipeline):
    """
    Predict the proteins of each cell from its RNA: a dict of centred log ratios by protein.

    Proteins that cells hold are not read. Intervals are not given; `scfusion predict-protein` has them.
    """

    def preprocess(self, part: dict[str, Any]) -> BatchFeature:
        """Prepare the RNA of some cells."""
        if self.model.config.target_modality != "adt":
            target = self.model.config.target_modality
            raise ValueError(f"`model` must predict adt, got one that predicts {target!r}. Call the model itself.")
        if "rna_counts" not in part:
            raise ValueError("`cells` must hold RNA to predict proteins from, got none. Give `rna_counts`.")
        return super().preprocess({name: x for name, x in part.items() if name != "adt_counts"})

    def _forward(self, inputs: BatchFeature) -> ModelOutput:
        return self.model(**inputs, output_embedding=False)

    def postprocess(self, output: ModelOutput) -> list:
        """Name the proteins of some cells."""
        names = self.model.config.predicted_features or self.feature_extractor.protein_names
        levels = output.logits[:, self.feature_extractor.index_proteins(names)].float()  # (B, P)
        if self.model.config.study_genes:  # in the units of the average study, for the cells are few at a time
            levels = levels - levels.mean(1, keepdim=True)
        return [dict(zip(names, cell, strict=True)) for cell in levels.tolist()]


def name_counts(cells: Any) -> dict[str, Any]:
    """Give cells by the argument of the feature extractor that takes them."""
    if not hasattr(cells, "n_mod"):
        return {"rna_counts": cells}
    return {f"{name}_counts": cells.mod[name] for name in ("rna", "adt") if name in cells.mod}


def as_counts(cells: Any) -> Any:
    """Give the counts of an AnnData as a table with names; anything else as it is."""
    if not hasattr(cells, "to_df"):
        return cells
    return cells.to_df(layer="counts" if "counts" in cells.layers else None)

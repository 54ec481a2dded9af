"""`embed`: an embedding of each cell."""

from pathlib import Path
from typing import Any, Literal

from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Container, Given
from scfusion_fm.data.schema import Modality
from scfusion_fm.inference.job import Job, Use
from scfusion_fm.model import ScFusionTTTModel


def embed(
    adata: Given,
    model: Any,
    *,
    output: str | Path | None = None,
    copy: bool = False,
    key_added: str = "X_scfusion_ttt",
    modality: Modality = "auto",
    batch_key: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | None = None,
    min_coverage: float = MIN_COVERAGE,
) -> Container | None:
    """
    Embed cells: `obsm["X_scfusion_ttt"]`, (n_obs, hidden_size), float32; NaN for cells without counts.

    Parameters
    ----------
    adata
        AnnData or MuData with raw counts, in memory, backed or lazy; or the path of a file.
    model
        Model directory, name of a model of `list_models`, id on the Hugging Face hub, or what `load` gives.
    output
        New file of the same kind with everything of the input and the embedding; of a path. It is written block by
        block: memory does not grow with the number of cells.
    copy
        Give a copy with the embedding, and leave the object as it is.
    key_added
        Name in `obsm`.
    modality
        What a single AnnData holds where its names do not tell: `rna` or `adt`.
    batch_key
        Column of obs with batches that may have panels of their own: what has no count in a batch is not measured
        there.
    batch_size
        Cells per forward pass; changes the result by no more than float rounding.
    device
        Torch device; CUDA where there is one when None.
    min_coverage
        Refuse cells of which less than this share of the model's genes (of its proteins where there are no genes) was
        measured.

    Returns
    -------
    None: the object has the embedding, or the output is written. A copy, if asked for; and what a path holds, in
    memory, where there is no output.

    Raises
    ------
    ValueError
        If the model, the cells or a setting is refused.
    """
    use = Use(output, copy, key_added, modality, batch_size, device, batch_key, min_coverage)
    with Job.start(adata, model, use, ScFusionTTTModel, [("obsm", key_added)]) as job:
        table = job.add_table(key_added, job.model.config.hidden_size)
        for part, (embedding,) in job.forward(("pooler_output",), job.has_counts):
            table.write(part, embedding)
        return job.finish("embed", {"obsm": key_added})

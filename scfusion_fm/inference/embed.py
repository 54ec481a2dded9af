"""`scfusion embed`: an embedding of each cell."""

from scfusion_fm.inference.job import FileRequest, Job
from scfusion_fm.model import ScFusionTTTModel


def embed(request: FileRequest) -> None:
    """Write cell embeddings to `obsm["X_scfusion_ttt"]`; NaN for cells without counts."""
    key = request.key_added or "X_scfusion_ttt"
    job = Job.start(request, ScFusionTTTModel, [("obsm", key)])
    (embedding,) = job.forward(("pooler_output",), job.has_counts)
    job.container.obsm[key] = job.rows_of_container(embedding)
    job.finish("embed", {"obsm": key})

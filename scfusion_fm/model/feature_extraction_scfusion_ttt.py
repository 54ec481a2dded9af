"""From aligned counts to model inputs: normalisation and patches, the same in pretraining and in use.

Letters: B cells, G genes, P proteins, N RNA tokens, S genes per token.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import BatchFeature, FeatureExtractionMixin

from .counts_scfusion_ttt import check_pair, read_counts, read_totals
from .files_scfusion_ttt import EXTRACTOR, EXTRACTOR_CODE, update_checksums, write_code
from .hub_scfusion_ttt import push_directory
from .sparse_scfusion_ttt import SparsePatches
from .tokens_scfusion_ttt import find_max_lengths


class ScFusionTTTFeatureExtractor(FeatureExtractionMixin):
    """
    Normalise counts and cut the genes into patches; holds the vocabulary of a model.

    Parameters
    ----------
    gene_ids, gene_symbols, gene_chromosomes
        Ensembl id, symbol and chromosome of each gene, in genome order.
    protein_names, protein_gene_ids
        Name of each protein and Ensembl id of the gene that orders it, in genome order.
    patch_size
        Genes per RNA token. A patch never crosses a chromosome.
    target_sum
        Library size to which RNA counts are scaled before log1p.

    Raises
    ------
    ValueError
        If lists that describe the same features differ in length or a setting is out of range.
    """

    model_input_names = ("rna_values", "rna_observed", "adt_values", "adt_observed")
    find_max_lengths = staticmethod(find_max_lengths)

    def __init__(
        self,
        gene_ids: Sequence[str] = (),
        gene_symbols: Sequence[str] = (),
        gene_chromosomes: Sequence[str] = (),
        protein_names: Sequence[str] = (),
        protein_gene_ids: Sequence[str] = (),
        patch_size: int = 10,
        target_sum: float = 10_000.0,
        **kwargs,
    ):
        if not len(gene_ids) == len(gene_symbols) == len(gene_chromosomes):
            raise ValueError(
                "`gene_ids`, `gene_symbols` and `gene_chromosomes` must be equally long, got "
                f"{len(gene_ids)}, {len(gene_symbols)} and {len(gene_chromosomes)}."
            )
        if len(protein_names) != len(protein_gene_ids):
            raise ValueError(
                "`protein_names` and `protein_gene_ids` must be equally long, got "
                f"{len(protein_names)} and {len(protein_gene_ids)}."
            )
        if patch_size < 1 or target_sum <= 0:
            raise ValueError(
                f"`patch_size` must be at least 1 and `target_sum` positive, got {patch_size} and {target_sum}."
            )
        self.gene_ids = list(gene_ids)
        self.gene_symbols = list(gene_symbols)
        self.gene_chromosomes = list(gene_chromosomes)
        self.protein_names = list(protein_names)
        self.protein_gene_ids = list(protein_gene_ids)
        self.patch_size = patch_size
        self.target_sum = target_sum
        self._patch_genes = self._arrange()
        # Where each gene stands among the places of all patches.
        self._gene_places = np.flatnonzero(self._patch_genes < len(self.gene_ids))
        super().__init__(**kwargs)

    @property
    def num_rna_tokens(self) -> int:
        """Number of patches (N)."""
        return len(self.patch_genes())

    @property
    def num_proteins(self) -> int:
        """Number of proteins (P)."""
        return len(self.protein_names)

    def patch_genes(self) -> NDArray[np.int64]:
        """Give the gene index at each place of each patch, (N, S); places without a gene hold G."""
        return self._patch_genes

    def to_dict(self) -> dict[str, Any]:
        """Give what is saved: everything but what follows from it."""
        return {key: value for key, value in super().to_dict().items() if key not in ("_patch_genes", "_gene_places")}

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save as transformers does, with our code and checksums."""
        written = super().save_pretrained(save_directory)
        write_code(save_directory, EXTRACTOR, EXTRACTOR_CODE)
        update_checksums(save_directory, [EXTRACTOR, "*.py"])
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            push_directory(save_directory, repo_id, **kwargs)
        return written

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes; options as of `push_directory`."""
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory)
            return push_directory(directory, repo_id, **({"commit_message": "Upload feature extractor"} | options))

    def _arrange(self) -> NDArray[np.int64]:
        num_genes = len(self.gene_ids)
        patches = []
        chromosomes = np.asarray(self.gene_chromosomes)
        borders = np.flatnonzero(chromosomes[1:] != chromosomes[:-1]) + 1
        for genes in np.split(np.arange(num_genes), borders):
            padded = np.pad(genes, (0, -len(genes) % self.patch_size), constant_values=num_genes)
            patches.append(padded.reshape(-1, self.patch_size))
        return np.concatenate(patches)

    def __call__(
        self,
        rna_counts: Any | None = None,
        rna_observed: ArrayLike | None = None,
        rna_total_counts: ArrayLike | None = None,
        adt_counts: Any | None = None,
        adt_observed: ArrayLike | None = None,
    ) -> BatchFeature:
        """
        Check counts and prepare their cells.

        Parameters
        ----------
        rna_counts
            Raw counts: an array, tensor or scipy matrix (B, G) in the order of `gene_ids`, or a DataFrame with a row
            per cell and columns named by Ensembl id or symbol, in any order. Of a DataFrame, columns that the model
            does not know count for the library size alone, and genes without a column were not measured.
        rna_observed
            (B, G) or (G,) true where a gene was measured, in the order of `gene_ids`; all that is given when None.
        rna_total_counts
            (B,) library size over all genes of the experiment, vocabulary or not; the sum of `rna_counts` when
            None.
        adt_counts
            The same for proteins, (B, P) in the order of `protein_names`, or a DataFrame with these names.
        adt_observed
            (B, P) or (P,) true where a protein was measured, in the order of `protein_names`.

        Returns
        -------
        As of `prepare`.

        Raises
        ------
        ValueError
            If both modalities are missing, a shape does not fit, what was observed is no raw count, names are found
            twice or none is, or the modalities are of other cells.
        """
        given: dict[str, Any] = {}
        rna = adt = None
        if rna_counts is not None:
            find = (self.index_genes, self.index_proteins)
            rna = read_counts("rna_counts", rna_counts, rna_observed, len(self.gene_ids), *find)
            totals = read_totals(rna_total_counts, rna)
            given |= {"rna_counts": rna.values, "rna_observed": rna.observed, "rna_total_counts": totals}
        if adt_counts is not None:
            adt = read_counts("adt_counts", adt_counts, adt_observed, len(self.protein_names), self.index_proteins)
            given |= {"adt_counts": adt.values, "adt_observed": adt.observed}
        if rna is not None and adt is not None:
            check_pair(rna, adt)
        return self.prepare(**given)

    def prepare(
        self,
        rna_counts: ArrayLike | None = None,
        rna_observed: ArrayLike | None = None,
        rna_total_counts: ArrayLike | None = None,
        adt_counts: ArrayLike | None = None,
        adt_observed: ArrayLike | None = None,
    ) -> BatchFeature:
        """
        Prepare cells whose counts were checked and stand in the order of this vocabulary.

        Parameters
        ----------
        rna_counts
            (B, G) raw counts.
        rna_observed
            (B, G) or (G,) true where a gene was measured; all when None.
        rna_total_counts
            (B,) library size over all genes of the experiment, vocabulary or not; the sum of `rna_counts` when
            None.
        adt_counts
            (B, P) raw counts.
        adt_observed
            (B, P) or (P,) true where a protein was measured; all when None.

        Returns
        -------
        `rna_values`, `rna_observed` (B, N, S) and `adt_values`, `adt_observed` (B, P) of the given modalities, as
        tensors. A cell without any count in a modality counts as not measured there.

        Raises
        ------
        ValueError
            If both modalities are missing or a shape does not fit the vocabulary.
        """
        if rna_counts is None and adt_counts is None:
            raise ValueError("`rna_counts` and `adt_counts` are both None; give at least one modality.")
        features = {}
        if rna_counts is not None:
            counts, observed = self._check("rna_counts", rna_counts, rna_observed, len(self.gene_ids))
            totals = counts.sum(1) if rna_total_counts is None else np.asarray(rna_total_counts)
            observed = observed & (totals > 0)[:, None]
            features["rna_values"] = self._cut(self.normalise_rna(counts, totals))
            features["rna_observed"] = self._cut(observed)
        if adt_counts is not None:
            counts, observed = self._check("adt_counts", adt_counts, adt_observed, len(self.protein_names))
            observed = observed & (np.where(observed, counts, 0).sum(1) > 0)[:, None]
            features["adt_values"] = self.normalise_adt(counts, observed)
            features["adt_observed"] = observed
        return BatchFeature({k: torch.from_numpy(v) for k, v in features.items()})

    def prepare_sparse(
        self,
        rna_counts: Any,
        rna_panels: NDArray[np.bool_],
        rna_panel: NDArray[np.int64],
        rna_total_counts: NDArray[np.floating],
    ) -> SparsePatches:
        """
        Prepare the RNA of cells without making it dense: what models take in place of `rna_values`.

        Parameters
        ----------
        rna_counts
            (B, G) raw counts, a CSR matrix of scipy.
        rna_panels
            (Q, G) true where cells of a panel measured a gene.
        rna_panel
            (B,) the panel of each cell, -1 where it measured none.
        rna_total_counts
            (B,) library size over all genes of the experiment, vocabulary or not.

        Raises
        ------
        ValueError
            If a shape does not fit the vocabulary, or what was measured is no count.
        """
        cells, (tokens, size) = len(rna_panel), self.patch_genes().shape
        self._check_shape("rna_counts", rna_counts.shape, len(self.gene_ids))
        rna_counts.sum_duplicates()  # and puts the genes of each cell into order
        # The last one, at -1, measured nothing.
        panels = np.concatenate((rna_panels, np.zeros((1, len(self.gene_ids)), dtype=bool)))
        panel = np.where(rna_total_counts > 0, rna_panel, -1) % len(panels)
        lengths, genes = np.diff(rna_counts.indptr), rna_counts.indices
        kept = panels.reshape(-1)[np.repeat(panel * panels.shape[1], lengths) + genes]
        counts = np.where(kept, rna_counts.data, 0).astype(np.float32, copy=False)
        self._check_values("rna_counts", counts)
        places = self._gene_places[genes]
        token = np.repeat(np.arange(cells) * tokens, lengths) + places // size
        starts = np.zeros(cells * tokens + 1, dtype=np.int64)
        np.cumsum(np.bincount(token, minlength=cells * tokens), out=starts[1:])
        values = np.log1p(counts * np.repeat(self._scale(rna_total_counts), lengths))
        found = (values, places, starts, self._cut(panels), panel)
        return SparsePatches(*(torch.from_numpy(x) for x in found))

    def normalise_rna(self, counts: NDArray[np.float32], total_counts: NDArray[np.floating]) -> NDArray[np.float32]:
        """Give log1p of counts scaled to `target_sum`, (B, G); total_counts is the library size (B,)."""
        return np.log1p(counts * self._scale(total_counts)[:, None])

    def _scale(self, total_counts: NDArray[np.floating]) -> NDArray[np.float32]:
        scale = np.divide(self.target_sum, total_counts, out=np.zeros(len(total_counts)), where=total_counts > 0)
        return scale.astype(np.float32)

    def normalise_adt(self, counts: NDArray[np.float32], observed: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Give the centred log ratio over the observed proteins of each cell, (B, P); 0 where not observed."""
        logs = np.log1p(np.where(observed, counts, 0.0), dtype=np.float32)
        centre = logs.sum(1, keepdims=True) / np.maximum(observed.sum(1, keepdims=True), 1)
        return np.where(observed, logs - centre, 0.0).astype(np.float32)

    def merge_patches(self, patches: ArrayLike) -> NDArray:
        """Undo the cutting: (B, N, S) values per patch to (B, G) values per gene."""
        patches = np.asarray(patches)
        places = self.patch_genes().reshape(-1)
        real = places < len(self.gene_ids)
        return patches.reshape(len(patches), -1)[:, real]

    def index_genes(self, names: list[str]) -> NDArray[np.int64]:
        """Find genes by Ensembl id (a version is ignored) or symbol: index into the vocabulary, or -1."""
        known = {s: i for i, s in reversed(list(enumerate(self.gene_symbols)))}
        known |= {g: i for i, g in enumerate(self.gene_ids)}
        known.pop("", None)  # of genes without a symbol
        return np.array([known.get(n, known.get(n.split(".")[0], -1)) for n in names], dtype=np.int64)

    def index_proteins(self, names: list[str]) -> NDArray[np.int64]:
        """Find proteins by their name in this vocabulary: index, or -1."""
        known = {p: i for i, p in enumerate(self.protein_names)}
        return np.array([known.get(n, -1) for n in names], dtype=np.int64)

    def _cut(self, values: NDArray) -> NDArray:
        padded = np.pad(values, ((0, 0), (0, 1)))
        return np.take(padded, self.patch_genes(), axis=1)

    @staticmethod
    def _check(
        name: str, counts: ArrayLike, observed: ArrayLike | None, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        counts = np.asarray(counts, dtype=np.float32)
        ScFusionTTTFeatureExtractor._check_shape(name, counts.shape, width)
        observed = np.ones(width, dtype=bool) if observed is None else np.asarray(observed, dtype=bool)
        observed = np.broadcast_to(observed, counts.shape)
        ScFusionTTTFeatureExtractor._check_values(name, counts, observed)
        return counts, observed

    @staticmethod
    def _check_shape(name: str, shape: tuple[int, ...], width: int) -> None:
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(
                f"`{name}` must have the shape (cells, {width}) of the vocabulary, got {shape}. "
                "Put the columns into the order of the vocabulary first."
            )

    @staticmethod
    def _check_values(name: str, counts: NDArray[np.float32], observed: NDArray[np.bool_] | bool = True) -> None:
        bad = observed & ~(np.isfinite(counts) & (counts >= 0))
        if bad.any():
            raise ValueError(
                f"`{name}` must hold finite, non-negative raw counts, got {counts[bad][0]} (and "
                f"{int(bad.sum()) - 1} more such values)."
            )

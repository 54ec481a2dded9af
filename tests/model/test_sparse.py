"""RNA that is given sparse is RNA that is given dense."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scfusion_fm import (
    ScFusionTTTConfig,
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTModel,
)

CELLS, GENES = 6, 10
PANELS = np.array([[True] * GENES, [i not in (2, 6, 7, 8) for i in range(GENES)]])
PANEL = np.array([0, 1, 1, 0, -1, 0])


@pytest.fixture
def extractor():
    genes = [f"ENSG{i:011d}" for i in range(GENES)]
    chromosomes = ["1"] * 5 + ["2"] * 1 + ["X"] * 4
    return ScFusionTTTFeatureExtractor(genes, genes, chromosomes, ["CD3", "CD4"], genes[:2], patch_size=3)


@pytest.fixture
def counts():
    counts = np.random.default_rng(0).poisson(0.6, (CELLS, GENES)).astype(np.float32)
    counts[3] = 0
    return counts


@pytest.fixture
def both(extractor, counts):
    """The same cells, dense and sparse."""
    totals = counts.sum(1, dtype=np.float64) * 2
    observed = PANELS[PANEL] & (PANEL >= 0)[:, None]
    dense = extractor.prepare(counts, observed, totals)
    return dense, extractor.prepare_sparse(sp.csr_matrix(counts), PANELS, PANEL, totals)


def double(sparse):
    return dataclasses.replace(sparse, values=sparse.values.double())


def test_sparse_values_are_the_dense_ones_where_they_were_measured(both, extractor):
    dense, sparse = both
    values, observed = sparse.dense()
    assert torch.equal(observed, dense["rna_observed"])
    assert torch.equal(values, dense["rna_values"].masked_fill(~observed, 0.0))
    assert torch.equal(sparse.measured_tokens(), observed.any(-1))
    assert (len(sparse), tuple(sparse.shape)) == (CELLS, (CELLS, extractor.num_rna_tokens, 3))
    assert sparse.to("cpu").device == torch.device("cpu")


def test_order_and_repeats_of_entries_do_not_matter(extractor, both, counts):
    parts = sp.csr_matrix(counts)
    data, indices = np.repeat(parts.data / 2, 2)[::-1], np.repeat(parts.indices, 2)[::-1]
    lengths = 2 * np.diff(parts.indptr)[::-1]
    mixed = sp.csr_matrix((data, indices, np.append(0, lengths.cumsum())), counts.shape)[::-1]
    again = extractor.prepare_sparse(mixed, PANELS, PANEL, counts.sum(1, dtype=np.float64) * 2)
    for found, expected in zip(again.dense(), both[1].dense(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [
        (ScFusionTTTModel, {}),
        (ScFusionTTTForCellTypeAnnotation, {"num_coordinates": 3}),
        (ScFusionTTTForCrossModalPrediction, {"num_coordinates": 3, "num_landmarks": 4}),
        (
            ScFusionTTTForCrossModalPrediction,
            {"num_coordinates": 3, "study_genes": [0, 2, 3, 5, 8], "own_genes": [4, -1]},
        ),
        (ScFusionTTTForCrossModalPrediction, {"target_modality": "rna"}),
    ],
)
def test_models_take_both_alike(model_class, settings, both, extractor):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_rna_tokens": extractor.num_rna_tokens, "rna_patch_size": 3, "num_proteins": 2}
    model = model_class(ScFusionTTTConfig(**sizes, **settings, num_decoder_layers=1)).double().eval()
    for buffer in model.buffers():
        buffer.normal_()
    if model.config.study_genes:
        model.study_readout.coordinates.noise.fill_(0.5)
        model.adapt(*torch.rand(2, extractor.num_rna_tokens, 3).mul(0.1).add(0.1))  # so that large values are cut
    dense, sparse = both
    given = {"rna_values": dense["rna_values"].double(), "rna_observed": dense["rna_observed"]}
    proteins = {"adt_values": torch.rand(CELLS, 2).double()} if model.config.target_modality == "rna" else {}
    results = []
    for inputs in (given, {"rna_values": double(sparse)}):
        model.zero_grad()
        output = model(**inputs, **proteins)
        loss = output.pooler_output.square().sum() if output.get("loss") is None else output.loss
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({name: x.detach() for name, x in output.items()} | gradients)
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, rtol=1e-5, atol=1e-7, msg=name)


def test_sparse_counts_are_checked(extractor, counts):
    given = sp.csr_matrix(counts), PANELS, PANEL, counts.sum(1)
    with pytest.raises(ValueError, match=r"`rna_counts` must have the shape \(cells, 10\)"):
        extractor.prepare_sparse(given[0][:, :9], *given[1:])
    given[0].data[0] = -1
    with pytest.raises(ValueError, match="`rna_counts` must hold finite, non-negative raw counts, got -1"):
        extractor.prepare_sparse(*given)

"""Made-up cells: the same for any way of asking, and shaped like real ones."""

import numpy as np
import pytest

from scfusion_fm.data.prepare.synthetic import SyntheticSettings, SyntheticSource
from scfusion_fm.data.vocabulary.reference import load_gene_table


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(
        SyntheticSettings(3_000, n_genes=2_000, density=0.07, n_proteins=20, n_datasets=6, n_cell_types=5)
    )


def test_cells_depend_on_seed_and_row_alone(source):
    counts, proteins = source.read(np.arange(3_000))
    rows = np.array([2_999, 4, 4, 1_500])
    again = SyntheticSource(SyntheticSettings(3_000, 2_000, 0.07, 20, 6, 5)).read(rows)
    assert np.array_equal(again[0].toarray(), counts[rows].toarray())
    assert np.array_equal(again[1], proteins[rows])
    assert source.obs(1_000, 1_010).equals(source.obs(0, 3_000).iloc[1_000:1_010])
    other = SyntheticSource(SyntheticSettings(3_000, 2_000, 0.07, 20, 6, 5, seed=1)).read(rows)
    assert not np.array_equal(other[0].toarray(), counts[rows].toarray())


def test_counts_look_like_counts(source):
    counts, _ = source.read(np.arange(3_000))
    assert abs(counts.nnz / (3_000 * 2_000) - 0.07) < 0.01
    assert 0.5 < (counts.data == 1).mean() < 0.8
    assert (counts.data < 16).mean() > 0.95
    assert counts.has_sorted_indices
    assert counts.data.min() == 1


def test_data_sets_stand_one_after_the_other_with_their_panels(source):
    obs, (counts, proteins) = source.obs(0, 3_000), source.read(np.arange(3_000))
    dataset = obs["dataset"].cat.codes.to_numpy()
    assert (np.diff(dataset) >= 0).all()
    assert set(dataset) == set(range(6))
    assert (np.diff(obs["plate"].map({p: i for i, p in enumerate(obs["plate"].unique())})) >= 0).all()
    for d in range(6):
        mine = dataset == d
        assert not counts[mine][:, ~source.rna_panel[:, d]].nnz
        assert not proteins[mine][:, ~source.adt_panel[:, d]].any()
    assert np.array_equal(obs["adt_present"], source.adt_panel.any(0)[dataset])
    assert set(obs["cell_type"]) == {f"type{k:02d}" for k in range(5)}


def test_cell_types_differ_in_genes_and_proteins(source):
    obs, (counts, proteins) = source.obs(0, 3_000), source.read(np.arange(3_000))
    first = (obs["dataset"] == source.dataset_names[0]).to_numpy()
    means = []
    for kind in ("type00", "type01", "type02", "type03", "type04"):
        mine = first & (obs["cell_type"] == kind).to_numpy()
        if mine.sum() > 20:
            means.append(np.concatenate([counts[mine].mean(0).A1, proteins[mine].mean(0)]))
    logs = np.log1p(means)
    assert len(logs) > 1
    assert np.abs(logs[0] - logs[1]).max() > 1


def test_names_are_real_and_in_genome_order(source):
    vocabulary = source.vocabulary
    table = load_gene_table()
    assert list(vocabulary.gene_ids) == table.index[table.status == "current"][:2_000].tolist()
    assert vocabulary.num_proteins == 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_obs": 3}, r"`n_obs` must lie in \[24, inf\], got 3"),
        ({"n_genes": 10**6}, "`n_genes` must lie in"),
        ({"n_proteins": -1}, "`n_proteins` must lie in"),
        ({"n_datasets": 0}, "`n_datasets` must lie in"),
        ({"n_cell_types": 0}, "`n_cell_types` must lie in"),
        ({"density": 0.0}, r"`density` must lie in \(0, 0.5\], got 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SyntheticSource(SyntheticSettings(**{"n_obs": 100} | settings))

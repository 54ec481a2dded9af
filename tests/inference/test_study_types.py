"""Types in units of a study: a reference, what units may not change, small and sorted files, damaged ones."""

import anndata as ad
import numpy as np
import pytest
from make_cells import make_modalities
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal

from scfusion_fm.inference.annotate import annotate
from scfusion_fm.inference.study_types import (
    SHARPNESS,
    STUDY_TYPES,
    FileTypes,
    StudyTypes,
)
from scfusion_fm.inference.study_units import LEAST_CELLS
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForCellTypeAnnotation

GENES, TYPES = 12, 3
NO_UNITS = ((np.zeros(GENES), np.ones(GENES)),)


def make_types(**changed):
    rng = np.random.default_rng(0)
    means = np.kron(np.eye(TYPES), np.full(GENES // TYPES, 2.0)) - 0.7
    given = {
        "genes": np.arange(GENES),
        "means": means,
        "known": np.ones(TYPES),
        "within": np.full(GENES, 0.3),
        "factors": rng.normal(size=(GENES, 2)) / 3,
        "noise": np.full(GENES, 0.3),
        "shares": np.full(TYPES, 1 / TYPES),
        "usual_means": np.full(GENES, 1.0),
        "usual_deviations": np.full(GENES, 0.5),
    }
    floats = {k: np.asarray(v, np.float32) for k, v in (given | changed).items()}
    return StudyTypes(**floats | {"genes": np.asarray((given | changed)["genes"], np.int64)})


def draw(types, codes, zero=1.0, length=0.5):
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(len(codes), GENES)) * 0.5
    return (types.means[codes] + noise) * length + zero


def test_names_are_those_of_normal_distributions():
    types, x = make_types(), np.random.default_rng(2).normal(size=(5, GENES))
    measured = np.arange(GENES) < 9
    found = FileTypes(types, measured, NO_UNITS).logits(x)
    covariance = (types.factors @ types.factors.T + np.diag(types.noise))[:9, :9].astype(float)
    density = [multivariate_normal(mean[:9], covariance).logpdf(x[:, :9]) for mean in types.means]
    np.testing.assert_allclose(softmax(found, 1), softmax(SHARPNESS * np.stack(density, 1), 1), atol=1e-5)
    inverse = np.linalg.inv(covariance)
    part = types.means[:, :9].astype(float)
    along = x[:, :9] @ inverse @ part.T / np.einsum("kg,gh,kh->k", part, inverse, part)
    np.testing.assert_allclose(logsumexp(found, axis=1), along.max(1), rtol=1e-4)


def test_a_type_that_no_training_cell_had_is_never_named():
    types = make_types(known=np.array([1, 0, 1]))
    found = FileTypes(types, np.ones(GENES, bool), NO_UNITS).logits(types.means * 3)
    assert softmax(found, 1)[:, 1].max() < 1e-6


def test_units_of_a_file_do_not_matter_and_few_cells_of_a_type_are_named():
    types, everything = make_types(), np.ones(GENES, bool)
    codes = np.repeat(np.arange(TYPES), [150, 40, 10])
    values = draw(types, codes)
    found = types.adapt(values, everything).logits(values)
    assert (found.argmax(1) == codes).mean() > 0.98
    # The shares of types are found half in units of the average study: far from those, names may only stay the same.
    moved = values * np.linspace(0.8, 1.2, GENES) + 0.1
    there = types.adapt(moved, everything).logits(moved)
    np.testing.assert_array_equal(there.argmax(1), found.argmax(1))


@pytest.mark.parametrize("number", [1, LEAST_CELLS - 1, 200])
@pytest.mark.parametrize("kind", range(TYPES))
def test_small_files_and_cells_of_one_type_are_read_as_an_average_study(number, kind):
    types = make_types()
    values = draw(types, np.full(number, kind))
    in_file = types.adapt(values, np.ones(GENES, bool))
    assert len(in_file.units) == 1
    assert (in_file.logits(values).argmax(1) == kind).mean() > 0.95


def test_two_types_alone_are_read_as_an_average_study():
    types, codes = make_types(), np.repeat([0, 1], 100)
    values = draw(types, codes)
    in_file = types.adapt(values, np.ones(GENES, bool))
    assert len(in_file.units) == 1
    assert (in_file.logits(values).argmax(1) == codes).mean() > 0.95


def test_a_gene_that_does_not_vary_is_not_read():
    types = make_types()
    values = draw(types, np.repeat(np.arange(TYPES), 40))
    values[:, 0] = 5.0
    measured = types.adapt(values, np.arange(GENES) > 1).measured
    np.testing.assert_array_equal(measured, np.arange(GENES) > 1)


def test_types_are_stored(tmp_path):
    types, path = make_types(), tmp_path / STUDY_TYPES
    path.write_bytes(types.to_bytes())
    loaded = StudyTypes.load(path)
    for name, values in vars(types).items():
        np.testing.assert_array_equal(getattr(loaded, name), values)
        assert getattr(loaded, name).dtype == values.dtype


@pytest.mark.parametrize(
    "changed",
    [
        {"noise": np.zeros(GENES)},
        {"noise": np.ones(GENES - 1)},
        {"means": np.full((TYPES, GENES), np.nan)},
        {"usual_deviations": np.zeros(GENES)},
        {"known": np.zeros(TYPES)},
        {"genes": np.full(GENES, -1)},
        {"shares": np.ones(TYPES - 1)},
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed):
    with pytest.raises(ValueError, match="must hold finite arrays that fit together"):
        make_types(**changed)


def test_files_of_another_model_are_refused(tmp_path):
    import safetensors.numpy

    path = tmp_path / STUDY_TYPES
    path.write_bytes(safetensors.numpy.save({"means": np.zeros((2, 2), np.float32)}))
    with pytest.raises(ValueError, match=r"must hold .*usual_means"):
        StudyTypes.load(path)
    with pytest.raises(ValueError, match="must be for the 4 types and 100 genes"):
        make_types().check_fit(4, 100)
    with pytest.raises(ValueError, match="must be for the 3 types and 10 genes"):
        make_types().check_fit(TYPES, 10)


@pytest.fixture(scope="module")
def new_study_model(export_head, tmp_path_factory):
    path = tmp_path_factory.mktemp("types") / "model"
    names = {0: "B", 1: "T", 2: "Mono"}
    files = {STUDY_TYPES: make_types().to_bytes()}
    return export_head(path, ScFusionTTTForCellTypeAnnotation, files, num_labels=TYPES, id2label=names)


def test_annotate_names_cells_in_units_of_the_file(new_study_model):
    adata = make_modalities(80, seed=4)[0]
    annotate(adata, new_study_model)
    extractor, types = ScFusionTTTFeatureExtractor.from_pretrained(new_study_model), make_types()
    counts = np.zeros((80, len(extractor.gene_ids)), np.float32)
    columns = extractor.index_genes(list(adata.var_names))
    counts[:, columns[columns >= 0]] = adata.X.toarray()[:, columns >= 0]
    totals = adata.X.toarray().sum(1)
    values = extractor.normalise_rna(counts[:, :GENES], totals)
    measured = np.isin(np.arange(GENES), columns)
    expected = softmax(types.adapt(values, measured).logits(values), 1)
    np.testing.assert_allclose(adata.obs["cell_type_pred_probability"], expected.max(1), atol=1e-4)


def test_a_file_of_one_cell_is_named_with_a_warning(new_study_model):
    adata = ad.concat([make_modalities(1, seed=4)[0]])
    with pytest.warns(UserWarning, match="1 cells are too few to tell how their study differs"):
        annotate(adata, new_study_model)
    assert adata.obs["cell_type_pred"].notna().all()

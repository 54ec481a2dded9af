"""Commands that use a model on a file: what they keep, what they refuse, and that nothing is left half-written."""

import sys
import threading
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
from make_cells import make_modalities, write_h5mu
from safetensors.torch import load_file, save_file
from seal import copy_model, seal

from scfusion_fm.cli.main import main
from scfusion_fm.inference.annotate import annotate
from scfusion_fm.inference.embed import embed
from scfusion_fm.inference.job import read_ahead
from scfusion_fm.inference.predict_protein import predict_protein
from scfusion_fm.model import ScFusionTTTForCrossModalPrediction

pytestmark = pytest.mark.filterwarnings("ignore:.*(pull_on_update|will be removed|Observation names).*")


def test_commands_follow_one_another_on_a_paired_file(monkeypatch, capsys, model_dir, annotator, predictor, tmp_path):
    source = given = write_h5mu(tmp_path / "in.h5mu", 15, seed=4)
    verbs = {"embed": model_dir, "annotate": annotator, "impute": model_dir, "predict-protein": predictor}
    for number, (verb, model) in enumerate(verbs.items()):
        output = tmp_path / f"{number}.h5mu"
        monkeypatch.setattr(sys, "argv", ["scfusion", verb, str(model), str(given), str(output)])
        main()
        assert capsys.readouterr().out.endswith(f"wrote {output}\n")
        given = output
    with warnings.catch_warnings(action="ignore"):
        after, before = md.read_h5mu(given), md.read_h5mu(source)
    assert set(after.obs["cell_type_pred"]) <= {"B", "T", "Mono"}
    assert after.obs["cell_type_pred_probability"].between(1 / 3, 1).all()
    assert list(after.obsm["protein_scfusion_ttt"].columns) == ["CD3", "CD19"]
    assert set(after.uns["scfusion_ttt"]) == set(verbs)
    assert after.uns["scfusion_ttt"]["embed"]["panel_coverage"] == {"genes": 1.0, "proteins": 1.0}
    for modality in ("rna", "adt"):
        assert np.array_equal(after[modality].X.toarray(), before[modality].X.toarray())
    assert set(before.obs.columns) <= set(after.obs.columns)


@pytest.mark.filterwarnings("ignore:.*have no count in any modality, and are kept")
def test_cells_without_counts_get_nan_and_a_warning(model_dir, annotator, tmp_path):
    adata = make_modalities(10, seed=6)[0]
    counts = adata.X.toarray()
    counts[4] = 0
    adata.X = counts
    adata.write_h5ad(tmp_path / "in.h5ad")
    with pytest.warns(UserWarning, match="1 of 10 cells have no usable counts"):
        embed(tmp_path / "in.h5ad", model_dir, output=tmp_path / "out.h5ad")
    with pytest.warns(UserWarning, match="1 of 10 cells have no usable counts"):
        annotate(tmp_path / "out.h5ad", annotator, output=tmp_path / "out2.h5ad")
    after = ad.read_h5ad(tmp_path / "out2.h5ad")
    assert np.isnan(after.obsm["X_scfusion_ttt"]).all(1).tolist() == [i == 4 for i in range(10)]
    assert after.obs["cell_type_pred"].isna().tolist() == [i == 4 for i in range(10)]


def test_mistakes_are_refused_and_leave_nothing(model_dir, annotator, predictor, rna_file, tmp_path):
    out = tmp_path / "out.h5ad"
    before = sorted(p.name for p in tmp_path.iterdir())
    adt = make_modalities(10, seed=7)[1]
    cases = [
        (embed, model_dir, rna_file, {}, "`output` must not exist yet"),
        (embed, model_dir, tmp_path / "out.h5mu", {}, "`output` must end in .h5ad or .zarr"),
        (embed, model_dir, out, {"key_added": "X_pca"}, r"`obsm\['X_pca'\]` is already in"),
        (annotate, annotator, out, {"key_added": "donor"}, r"`obs\['donor'\]` is already in"),
        (embed, tmp_path, out, {}, "`model` must be a directory with config.json"),
        (annotate, model_dir, out, {}, "`model` must be a ScFusionTTTForCellTypeAnnotation"),
        (embed, model_dir, out, {"min_coverage": 2}, r"`min_coverage` must lie in \[0, 1\], got 2"),
        (predict_protein, annotator, out, {}, "`model` must be a ScFusionTTTForCrossModal"),
    ]
    for verb, model, output, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            verb(rna_file, model, output=output, **settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    adt.write_h5ad(tmp_path / "adt.h5ad")
    for size in (0, True, "large"):
        with pytest.raises(ValueError, match="`batch_size` must be 'auto' or at least 1, got"):
            embed(rna_file, model_dir, output=out, batch_size=size)
    with pytest.raises(ValueError, match="`key_added` must be a name, got ' '"):
        embed(rna_file, model_dir, output=out, key_added=" ")
    with pytest.raises(ValueError, match="`copy` must be False where an `output` is written"):
        embed(rna_file, model_dir, output=out, copy=True)
    with pytest.raises(ValueError, match="`input` must hold RNA to predict proteins from"):
        predict_protein(tmp_path / "adt.h5ad", predictor, output=out, modality="adt")


def test_models_that_cannot_serve_are_refused(model_dir, export_head, rna_file, tmp_path):
    other = tmp_path / "bert"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    (other / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"`model_type` must be one of \['scfusion_ttt'\], got 'bert'"):
        embed(rna_file, other, output=tmp_path / "out.h5ad")
    huge = copy_model(model_dir, tmp_path / "huge")
    save_file({n: x * 1e38 for n, x in load_file(huge / "model.safetensors").items()}, huge / "model.safetensors")
    with pytest.raises(ValueError, match="`model` must give finite numbers, got others for 20 of 20 cells"):
        embed(rna_file, seal(huge), output=tmp_path / "out.h5ad")
    reverse = export_head(tmp_path / "reverse", ScFusionTTTForCrossModalPrediction, target_modality="rna")
    with pytest.raises(ValueError, match="`model` must predict adt, got one that predicts 'rna'"):
        predict_protein(rna_file, reverse, output=tmp_path / "out.h5ad")


def test_file_without_any_readable_cell_is_refused(predictor, tmp_path):
    rna, adt = make_modalities(4, seed=8)
    rna.X = np.zeros((4, rna.n_vars), dtype=np.float32)
    with warnings.catch_warnings(action="ignore"):
        md.MuData({"rna": rna, "adt": adt}).write(tmp_path / "in.h5mu")
        with pytest.raises(ValueError, match="`input` must hold cells that the model can read"):
            predict_protein(tmp_path / "in.h5mu", predictor, output=tmp_path / "out.h5mu")
        rna.write_h5ad(tmp_path / "empty.h5ad")
        with pytest.raises(ValueError, match=r"empty.h5ad` must have counts of genes .* got none in its 4 cells"):
            predict_protein(tmp_path / "empty.h5ad", predictor, output=tmp_path / "out.h5ad")
    assert not list(tmp_path.glob("out.*"))


def test_the_next_block_is_read_while_one_is_worked_on():
    read, next_was_read = [], threading.Event()

    def blocks():
        for number in range(4):
            if number == 3:
                raise ValueError("broken")
            read.append(number)
            if number == 1:
                next_was_read.set()
            yield number

    given = read_ahead(blocks())
    assert next(given) == 0
    assert next_was_read.wait(10)
    assert [next(given), next(given)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(given)
    assert read == [0, 1, 2]
    assert list(read_ahead(iter([]))) == []
    unfinished = read_ahead(iter(range(9)))
    next(unfinished)
    unfinished.close()

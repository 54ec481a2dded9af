"""Heads that start from what a linear or kernel method makes of their training cells: against scikit-learn."""

import dataclasses
import time
from itertools import product

import numpy as np
import pytest
import torch
from scipy import special
from scipy.optimize import minimize_scalar
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

from scfusion_fm import ScFusionTTTForCellTypeAnnotation, ScFusionTTTForCrossModalPrediction
from scfusion_fm.config.finetune import FinetuneOptimConfig
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.export import export_model
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.annotation.cells import LabelledCells
from scfusion_fm.tasks.cross_modal.cells import PairedCells
from scfusion_fm.tasks.cross_modal.fit import fit_cross_modal
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.starts import classifier
from scfusion_fm.tasks.starts.classifier import (
    LOG_SHARPNESS,
    POOLED_SPREAD,
    PROTEIN_SCALES,
    START_PENALTIES,
    choose_cells,
    start_classifier,
)
from scfusion_fm.tasks.starts.kernel import READOUT_PENALTIES, KernelChoice, KernelTargets, choose_share, fit_kernel
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights
from scfusion_fm.training.components import start_coordinates

CELLS = Partition(np.arange(100), np.arange(100, 130), np.arange(130, 160))
K = 4


@pytest.fixture(scope="module")
def cells(model_dir, paired_file):
    return read_aligned(paired_file, load_extractor(model_dir))


@pytest.fixture
def data(cells, model_dir):
    return LabelledCells(cells[1], load_extractor(model_dir), cells[0].obs["cell_type"].astype(str).to_numpy())


@pytest.fixture
def pairs(cells, model_dir):
    return PairedCells(cells[1], load_extractor(model_dir))


def build_classifier(model_dir, num_labels=3, num_coordinates=K):
    source = Weights(model_dir)
    return source.build(ScFusionTTTForCellTypeAnnotation, 0, num_labels=num_labels, num_coordinates=num_coordinates)


def build_predictor(model_dir, num_landmarks):
    return (
        Weights(model_dir)
        .build(ScFusionTTTForCrossModalPrediction, 0, num_coordinates=K, num_landmarks=num_landmarks)
        .eval()
    )


def read_features(model, collator, rows, shown):
    """What the classifier is called with, of all cells at once: batches would end in any order."""
    found = []
    hook = model.classifier.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    predict_rows(model, collator, rows, modalities=shown, batch_size=len(rows))
    hook.remove()
    return torch.cat(found).double().numpy()


def test_features_belong_to_their_cells_on_any_number_of_threads(model_dir, data, monkeypatch):
    model, rows = build_classifier(model_dir), np.arange(160)
    collator, prepare = CellCollator(data.aligned, data.extractor), CellCollator.sparse

    def prepare_first_last(self, rows):
        time.sleep(0.3 if rows[0] == 0 else 0)
        return prepare(self, rows)

    monkeypatch.setattr(CellCollator, "sparse", prepare_first_last)
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(classifier._read_features(model, collator, rows, ("rna", "adt")))
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*found)


def test_coordinates_are_principal_components_of_the_training_cells(model_dir, data):
    model, collator = build_classifier(model_dir), CellCollator(data.aligned, data.extractor, data.codes)
    batch = collator(CELLS.train)
    start_coordinates(model, [batch], seed=0)
    for name, scaled in (("rna", False), ("adt", True)):
        values, observed = batch[f"{name}_values"], batch[f"{name}_observed"]
        module = getattr(model, f"{name}_coordinates")
        found = module(
            values.reshape(observed.shape).reshape(100, *module.means.shape), observed.reshape(100, *module.means.shape)
        )
        table = values.flatten(1)[:, observed.flatten(1).all(0)].double().numpy()
        table = (table - table.mean(0)) / (table.std(0) if scaled else 1.0)
        expected = PCA(K, svd_solver="full").fit_transform(table)
        expected *= 10 / np.sqrt(expected.var(0).sum())
        np.testing.assert_allclose(np.abs(found.numpy()), np.abs(expected), rtol=1e-3, atol=1e-3)


def test_a_missing_modality_has_no_coordinates_and_the_other_one_twice_as_large(model_dir, data):
    model, collator = build_classifier(model_dir), CellCollator(data.aligned, data.extractor, data.codes)
    start_coordinates(model, [collator(CELLS.train)], seed=0)
    both, rna, adt = (
        read_features(model, collator, CELLS.val, shown)[:, -2 * K :] for shown in (("rna", "adt"), ("rna",), ("adt",))
    )
    assert np.abs(rna[:, K:]).max() == np.abs(adt[:, :K]).max() == 0
    np.testing.assert_allclose(both, (rna + adt) / 2, rtol=1e-5, atol=1e-5)
    assert np.abs(both[:, :K]).max() > 1


@pytest.mark.parametrize("num_coordinates", [0, K])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_classifier_starts_as_a_logistic_regression(model_dir, data, num_classes, num_coordinates):
    codes = np.minimum(data.codes, num_classes - 1)
    model = build_classifier(model_dir, num_classes, num_coordinates)
    collator = CellCollator(data.aligned, data.extractor, codes)
    start_classifier(model, collator, codes, CELLS, data.inputs, balanced=True, seed=0)
    x = np.concatenate([read_features(model, collator, CELLS.train, shown) for shown in data.inputs.values()])
    y = np.tile(codes[CELLS.train], len(data.inputs))
    found = special.softmax(predict_rows(model, collator, CELLS.test), axis=1)
    test = read_features(model, collator, CELLS.test, ("rna", "adt"))
    apart = []
    for protein_scale, penalty in product(PROTEIN_SCALES, START_PENALTIES):
        scale = np.ones(x.shape[1])
        scale[: 4 * 16] = POOLED_SPREAD / np.sqrt(x[:, : 4 * 16].var(0).sum())
        scale[x.shape[1] - num_coordinates :] = protein_scale
        fitted = LogisticRegression(C=penalty, class_weight="balanced", max_iter=5000).fit((x - x.mean(0)) * scale, y)
        logits = fitted.decision_function((test - x.mean(0)) * scale)
        logits = logits if logits.ndim == 2 else np.stack((-logits, logits), axis=1) / 2

        def differ(sharpness, logits=logits):
            return np.abs(special.softmax(np.exp(sharpness) * logits, axis=1) - found).max()

        apart.append(minimize_scalar(differ, bounds=LOG_SHARPNESS, method="bounded").fun)
    assert min(apart) < 1e-5
    assert np.median(apart) > 1e-4


def test_a_classifier_that_gets_a_few_cells_right_does_not_start_sure(model_dir, data):
    model, collator = build_classifier(model_dir), CellCollator(data.aligned, data.extractor, data.codes)
    partition = dataclasses.replace(CELLS, val=[np.flatnonzero(data.codes == k)[-1] for k in range(3)], test=[])
    start_classifier(model, collator, data.codes, partition, data.inputs, balanced=True, seed=0)
    found = special.softmax(predict_rows(model, collator, partition.val), axis=1)
    assert found.argmax(1).tolist() == data.codes[partition.val].tolist()
    assert 0.6 < found.max(1).mean() < 0.99


def test_choices_of_another_start_are_taken_over_without_validation_cells(model_dir, data, pairs):
    collator = CellCollator(data.aligned, data.extractor, data.codes)
    models, rest = [build_classifier(model_dir) for _ in range(3)], (data.inputs, True, 0)
    chosen = start_classifier(models[0], collator, data.codes, CELLS, *rest)
    assert chosen.penalty in START_PENALTIES
    assert start_classifier(models[1], collator, data.codes, Partition(CELLS.train), *rest, chosen) is chosen
    assert all(torch.equal(value, models[1].state_dict()[name]) for name, value in models[0].state_dict().items())
    assert start_classifier(models[2], collator, data.codes, Partition(CELLS.train), *rest) is None

    collator = CellCollator(pairs.aligned, pairs.extractor)
    one, other = (build_predictor(model_dir, 30) for _ in range(2))
    targets = KernelTargets(pairs.measured, pairs.observed, pairs.panel)
    found = fit_kernel(one, collator, targets, CELLS, 0)
    assert fit_kernel(other, collator, targets, Partition(CELLS.train), 0, KernelChoice(*found, 0.3)) == found
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_class_without_training_cells_starts_as_the_least_likely(model_dir, data):
    train = CELLS.train[data.codes[CELLS.train] != 1]
    model, collator = build_classifier(model_dir), CellCollator(data.aligned, data.extractor, data.codes)
    start_classifier(
        model, collator, data.codes, dataclasses.replace(CELLS, train=train), data.inputs, balanced=True, seed=0
    )
    logits = predict_rows(model, collator, train)
    assert (logits.argmin(1) == 1).all()
    assert logits[:, 1].max() < logits[:, [0, 2]].min() - 10
    one = build_classifier(model_dir)
    before = one.classifier.weight.clone()
    only = Partition(CELLS.train[data.codes[CELLS.train] == 1], CELLS.val)
    blind = build_classifier(model_dir)
    unknown = Partition(train, only.train)  # no validation cell of a known class
    start_classifier(blind, collator, data.codes, unknown, data.inputs, balanced=True, seed=0)
    assert blind.classifier.weight[[0, 2]].abs().sum() > 0
    start_classifier(one, collator, data.codes, only, data.inputs, balanced=True, seed=0)
    assert torch.equal(one.classifier.weight, before)  # nothing to tell apart


@pytest.mark.parametrize("scores", [(1.0, 0.5), (0.5, 1.0)])
def test_the_start_is_kept_where_training_makes_it_worse(model_dir, data, scores):
    model, collator = build_classifier(model_dir), CellCollator(data.aligned, data.extractor, data.codes)
    start_classifier(model, collator, data.codes, CELLS, data.inputs, balanced=True, seed=0)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    told = iter(scores)
    settings = FitSettings(FinetuneOptimConfig(epochs=1, threads=1))
    train_best(model, CELLS, collator, Objective(lambda _: {"score": next(told)}), settings)
    kept = all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert kept == (scores[0] > scores[1])


@pytest.mark.parametrize("unmeasured", [0, 40])
def test_the_kernel_regression_is_kernel_ridge_where_all_cells_are_landmarks(model_dir, pairs, unmeasured):
    model, collator = build_predictor(model_dir, 100), CellCollator(pairs.aligned, pairs.extractor)
    observed = pairs.observed.copy()
    observed[:unmeasured, 1] = False  # one protein is unknown in some cells
    targets = KernelTargets(pairs.measured, observed, pairs.panel)
    fit_kernel(model, collator, targets, CELLS, seed=0)
    batch = collator(np.arange(160))
    with torch.no_grad():
        x = model.rna_coordinates(batch["rna_values"], batch["rna_observed"])
        found = model.kernel_readout(x)[:, pairs.panel].numpy()
    x, gamma = x.double().numpy(), float(model.kernel_readout.inverse_width)
    apart = []
    for penalty in READOUT_PENALTIES:
        expected = np.zeros((160, len(pairs.panel)))
        for t in range(len(pairs.panel)):
            train = CELLS.train[observed[CELLS.train, t]]
            mean = pairs.measured[train, t].mean()
            ridge = KernelRidge(alpha=penalty, kernel="rbf", gamma=gamma).fit(x[train], pairs.measured[train, t] - mean)
            expected[:, t] = ridge.predict(x) + mean
        apart.append(np.abs(found - expected).max())
    assert min(apart) < 2e-3
    assert sorted(apart)[1] > 2e-2


def test_share_is_the_smallest_of_the_best(model_dir, pairs):
    model, collator = build_predictor(model_dir, 20), CellCollator(pairs.aligned, pairs.extractor)
    fit_kernel(model, collator, KernelTargets(pairs.measured, pairs.observed, pairs.panel), CELLS, seed=0)

    def predict():
        return predict_rows(model, collator, CELLS.val, modalities=("rna",))[:, pairs.panel]

    share = model.kernel_readout.share
    share.fill_(0.3)
    wanted = predict()
    choose_share(model, pairs.panel, predict, lambda guess: -np.abs(guess - wanted).max())
    torch.testing.assert_close(share[pairs.panel], torch.full((len(pairs.panel),), 0.3))
    choose_share(model, pairs.panel, predict, lambda guess: 0.0)
    assert share[pairs.panel].abs().sum() == 0


def test_a_predictor_with_a_kernel_regression_is_saved_with_it(model_dir, pairs, tmp_path):
    optim = FinetuneOptimConfig(epochs=1, lr=1e-3, threads=1, num_coordinates=K, num_landmarks=50)
    fitted = fit_cross_modal(Weights(model_dir), pairs, CELLS, FitSettings(optim))
    assert fitted.model.kernel_readout.landmarks.shape == (50, K)
    assert fitted.model.kernel_readout.share[pairs.panel].max() > 0  # one epoch knows less than the kernel
    export_model(fitted.model, pairs.extractor, tmp_path / "model", {})
    loaded = ScFusionTTTForCrossModalPrediction.from_pretrained(tmp_path / "model")
    collator = CellCollator(pairs.aligned, pairs.extractor)
    again = predict_rows(loaded, collator, CELLS.test, modalities=("rna",))[:, pairs.panel]
    np.testing.assert_array_equal(again, fitted.predict(CELLS.test))
    plain = fit_cross_modal(
        Weights(model_dir), pairs, CELLS, FitSettings(FinetuneOptimConfig(epochs=1, threads=1, num_landmarks=0))
    )
    assert not hasattr(plain.model, "kernel_readout")


def test_targets_count_by_the_inverse_of_their_variance(model_dir, pairs):
    optim = FinetuneOptimConfig(epochs=1, threads=1, num_landmarks=0)
    weight = fit_cross_modal(Weights(model_dir), pairs, CELLS, FitSettings(optim)).model.target_weight[pairs.panel]
    assert weight.mean() == pytest.approx(1.0)
    variance = pairs.measured[CELLS.train].var(0)
    usable = variance > 0.05 * np.median(variance)
    ratio = weight.numpy()[usable] * variance[usable]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["num_coordinates", "num_landmarks"])
def test_counts_below_zero_are_refused(name):
    with pytest.raises(ValueError, match=rf"`optim\.{name}` must lie in \[0, .*\], got -1"):
        FinetuneOptimConfig(**{name: -1})


def test_very_many_cells_are_sampled(monkeypatch):
    rows = np.arange(100, 300)
    assert choose_cells(rows, 0) is rows
    monkeypatch.setattr("scfusion_fm.tasks.starts.classifier.MOST_CELLS", 50)
    chosen = choose_cells(rows, 0)
    assert len(set(chosen)) == 50
    assert set(chosen) <= set(rows)
    np.testing.assert_array_equal(chosen, choose_cells(rows, 0))
    assert set(chosen) != set(choose_cells(rows, 1))

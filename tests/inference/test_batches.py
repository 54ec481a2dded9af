"""A model run over cells: batch by batch, once for all fields, shown only what it may see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scfusion_fm import ScFusionTTTForCellTypeAnnotation
from scfusion_fm.evaluation.calibration.unknown import CellOutputs
from scfusion_fm.inference.batches import (
    CellCollator,
    choose_batch_size,
    choose_device,
    predict_fields,
    predict_rows,
    run_batches,
)
from scfusion_fm.inference.inputs import read_aligned
from scfusion_fm.inference.model_directory import load_extractor
from scfusion_fm.tasks.annotation.fit import FittedAnnotation

ROWS = np.array([7, 3, 11, 90, 4])


@pytest.fixture(scope="module")
def model(model_dir):
    torch.manual_seed(0)
    return ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir, num_labels=3)


@pytest.fixture(scope="module")
def collator(model_dir, paired_file):
    extractor = load_extractor(model_dir)
    return CellCollator(read_aligned(paired_file, extractor)[1], extractor)


@pytest.fixture
def calls(model):
    """How many cells each forward pass had."""
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(len(inputs["rna_values"])), with_kwargs=True
    )
    yield sizes
    handle.remove()


def test_fields_of_one_pass_are_those_of_several(model, collator, calls):
    together = predict_fields(model, collator, ROWS, ("logits", "pooler_output"), batch_size=2)
    assert calls == [2, 2, 1]
    apart = [predict_rows(model, collator, ROWS, field, batch_size=2) for field in ("logits", "pooler_output")]
    assert [values.shape for values in together] == [(5, 3), (5, 16)]
    assert all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))


def test_rows_come_in_their_order_and_batches_matter_to_rounding_only(model, collator):
    whole = predict_rows(model, collator, ROWS)
    assert np.allclose(whole, predict_rows(model, collator, ROWS, batch_size=2), rtol=1e-4, atol=1e-6)
    assert np.allclose(whole[::-1], predict_rows(model, collator, ROWS[::-1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shown", [("rna", "adt"), ("rna",), ("adt",)])
def test_rows_are_run_as_the_public_extractor_prepares_them(model, collator, shown):
    counts = collator.aligned.as_counts(ROWS)
    inputs = collator.extractor(**{name: x for name, x in counts.items() if name[:3] in shown})
    with torch.no_grad():
        expected = model(**inputs)
    for name in ("logits", "pooler_output"):
        found = predict_rows(model, collator, ROWS, name, shown)
        np.testing.assert_allclose(found, expected[name].numpy(), rtol=1e-4, atol=1e-5)


def test_threads_change_no_bit_and_come_in_order(model, collator):
    rows, threads = np.arange(60), torch.get_num_threads()
    expected = predict_rows(model, collator, rows, batch_size=7)
    try:
        torch.set_num_threads(3)
        assert np.array_equal(predict_rows(model, collator, rows, batch_size=7), expected)
        assert torch.get_num_threads() == 3

        def fail(**inputs):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            list(run_batches(fail, collator, rows, choose_device("cpu"), batch_size=7))
        next(run_batches(lambda **inputs: 0, collator, rows, choose_device("cpu"), batch_size=7))
    finally:
        torch.set_num_threads(threads)


def test_model_sees_what_it_is_shown_and_no_labels(model, collator):
    given = []

    def forward(**inputs):
        given.append(sorted(inputs))
        return inputs["rna_values"].shape[0]

    labelled = CellCollator(collator.aligned, collator.extractor, np.zeros(160, dtype=np.int64))
    done = list(run_batches(forward, labelled, ROWS, choose_device("cpu"), batch_size=3))
    assert [(part.tolist(), number) for part, number in done] == [([7, 3, 11], 3), ([90, 4], 2)]
    assert given == [["adt_observed", "adt_values", "labels", "rna_observed", "rna_values"]] * 2
    hidden = predict_rows(model, labelled, ROWS, modalities=("rna",))
    rna = CellCollator(collator.aligned, collator.extractor, modalities=("rna",))
    assert np.array_equal(hidden, predict_rows(model, rna, ROWS))
    assert not np.allclose(hidden, predict_rows(model, labelled, ROWS))


def test_fitted_classifier_forwards_every_cell_once(model, collator, calls):
    fitted = FittedAnnotation(model, collator.extractor, ("rna", "adt"), 0)
    outputs = fitted.run(collator.aligned, ROWS, ("rna", "adt"))
    assert calls == [len(ROWS)]
    assert isinstance(outputs, CellOutputs)
    assert np.array_equal(outputs.logits, fitted.predict(collator.aligned, ROWS))
    assert np.array_equal(outputs.embedding, fitted.embed(collator.aligned, ROWS))


def test_device_is_the_one_asked_for_or_the_best():
    assert choose_device("cpu:0") == torch.device("cpu:0")
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "grün"])
def test_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"`device` must be one that this machine has, .* got '{name}'"):
        choose_device(name)


def test_batches_are_smaller_the_more_is_read_of_a_cell(model):
    human = SimpleNamespace(device=torch.device("cpu"), config=SimpleNamespace(hidden_size=64, intermediate_size=128))
    assert [choose_batch_size(human, tokens) for tokens in (96, 438, 100_000, 0)] == [64, 48, 8, 64]
    on_gpu = SimpleNamespace(device=torch.device("cuda"), config=human.config)
    assert choose_batch_size(on_gpu, 96) == 512
    assert choose_batch_size(model, 18) == 64

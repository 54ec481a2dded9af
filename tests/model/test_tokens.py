"""Selecting tokens: what a subset holds, what the roles of tokens are, and that nothing waits for the device."""

from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from scfusion_fm import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)
from scfusion_fm.model.tokens_scfusion_ttt import TokenRoles, TokenSubset

CELLS, TOKENS, GENES, PROTEINS = 5, 11, 3, 7


def make_inputs():
    """Make paired cells; one has no protein, of one the RNA is hidden."""
    generator = torch.Generator().manual_seed(1)
    batch = {
        "rna_values": torch.rand(CELLS, TOKENS, GENES, generator=generator),
        "rna_observed": torch.rand(CELLS, TOKENS, GENES, generator=generator) < 0.3,
        "adt_values": torch.randn(CELLS, PROTEINS, generator=generator),
        "adt_observed": torch.rand(CELLS, PROTEINS, generator=generator) < 0.5,
        "rna_bool_masked_pos": torch.rand(CELLS, TOKENS, generator=generator) < 0.5,
        "adt_bool_masked_pos": torch.rand(CELLS, PROTEINS, generator=generator) < 0.3,
    }
    batch["adt_observed"][1], batch["adt_bool_masked_pos"][1] = False, False
    batch["rna_bool_masked_pos"][2] = True
    return batch


def without_masks(batch):
    return {name: x for name, x in batch.items() if "masked" not in name}


@pytest.fixture(params=[ScFusionTTTModel, ScFusionTTTForPreTraining])
def model(request, tiny_config):
    return request.param(tiny_config)


def test_subset_keeps_the_order_and_undoes_itself():
    keep = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    tokens = torch.arange(15.0).view(3, 5, 1) + 1
    for longest in (None, 5):
        subset = TokenSubset.select(keep, 4, longest)
        taken = subset.take(tokens)
        assert taken.shape == (3, 8, 1)
        assert taken[0, :3, 0].tolist() == [2, 4, 5]
        assert subset.mask.sum(1).tolist() == [3, 0, 5]
        torch.testing.assert_close(subset.put_back(taken), tokens * keep.unsqueeze(-1))


def test_subset_of_nothing_is_one_mini_batch():
    assert TokenSubset.select(torch.zeros(2, 9, dtype=torch.bool), 4).mask.shape == (2, 4)


def test_tokens_beyond_the_promised_length_are_refused():
    keep = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="`max_lengths` are smaller than what is to be read"):
        TokenSubset.select(keep, 4, longest=4)


def test_masked_tokens_are_read_where_nothing_is_visible():
    observed = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]).bool().unsqueeze(-1)
    masked = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()
    roles = TokenRoles.of(observed, masked)
    assert roles.visible.int().tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert roles.hidden.tolist() == [False, True, True]
    assert roles.read.int().tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_lengths_are_those_of_the_longest_cells():
    batch = make_inputs()
    lengths = ScFusionTTTFeatureExtractor.find_max_lengths(batch)
    visible = batch["rna_observed"].any(-1) & ~batch["rna_bool_masked_pos"]
    assert not visible[2].any()
    assert lengths["rna_encoder"] == TOKENS  # those of the cell whose RNA is hidden
    assert lengths["rna_decoder"] == TOKENS
    seen, masked = batch["adt_observed"], batch["adt_bool_masked_pos"]
    assert (seen & ~masked).any(1).tolist() == [True, False, True, True, True]
    assert lengths["adt_encoder"] == (seen & ~masked).sum(1).max()
    assert lengths["adt_decoder"] == (seen | masked).sum(1).max() > lengths["adt_encoder"]
    only_rna = {name: x for name, x in without_masks(batch).items() if name.startswith("rna")}
    longest = batch["rna_observed"].any(-1).sum(1).max()
    expected = {"rna_encoder": longest, "rna_decoder": longest, "adt_encoder": 0, "adt_decoder": 0}
    assert ScFusionTTTFeatureExtractor.find_max_lengths(only_rna) == expected


def test_given_lengths_change_no_bit(model):
    inputs = make_inputs()
    counted = model.eval()(**inputs)
    given = model(**inputs, max_lengths=ScFusionTTTFeatureExtractor.find_max_lengths(inputs))
    assert list(counted) == list(given)
    assert all(torch.equal(counted[name], given[name]) for name in counted)


def test_with_given_lengths_nothing_depends_on_values_of_the_device(model):
    """A fake tensor has a shape and no values: whoever asks for one would have to wait for a GPU."""
    inputs = make_inputs()
    lengths = ScFusionTTTFeatureExtractor.find_max_lengths(inputs)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(x) for name, x in inputs.items()}
        output = model(**fake, max_lengths=lengths)
        sum(x.sum() for x in output.values() if x.requires_grad).backward()
        with pytest.raises(DataDependentOutputException):
            model(**fake)


@pytest.mark.parametrize("source", ["rna", "adt"])
def test_a_prediction_counts_the_tokens_of_its_source_alone(tiny_config, source):
    tiny_config.target_modality = {"rna": "adt", "adt": "rna"}[source]
    model, inputs = ScFusionTTTForCrossModalPrediction(tiny_config), without_masks(make_inputs())
    with mock.patch.object(TokenSubset, "select", side_effect=TokenSubset.select) as select:
        model(**inputs)
    longest = [call.args[2] for call in select.call_args_list]
    number = PROTEINS if source == "rna" else TOKENS
    assert longest == ([None, number, number] if source == "rna" else [number, None, number])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_step_on_a_gpu_does_not_wait_for_it(tiny_config):
    model, inputs = ScFusionTTTForPreTraining(tiny_config).cuda(), make_inputs()
    lengths = ScFusionTTTFeatureExtractor.find_max_lengths(inputs)
    inputs = {name: x.cuda() for name, x in inputs.items()}
    model(**inputs, max_lengths=lengths).loss.backward()  # the first call compiles kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**inputs, max_lengths=lengths).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")

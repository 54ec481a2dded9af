"""Build models in parts on some ranks, and compare them with models that were built whole."""

import sys
from pathlib import Path

import torch

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTForPreTraining
from scfusion_fm.training.checkpoint import WEIGHT, Checkpoint, Fragment, publish, write_rank
from scfusion_fm.training.components import start_from_components
from scfusion_fm.training.parted import building, count_elements, finish_parts, held_whole, is_parted, load_weights
from scfusion_fm.training.ranks import leaving_ranks, start_ranks

SHAPE = {"num_rna_tokens": 7, "rna_patch_size": 3, "num_proteins": 5, "hidden_size": 16, "num_attention_heads": 2}
SHAPE |= {"num_hidden_layers": 1, "num_decoder_layers": 1, "intermediate_size": 16, "ttt_mini_batch_size": 4}
KINDS = ({}, {"ttt_layer_type": "mlp", "ttt_direction": "gated"})
SETTINGS = {"zero_optimization": {"stage": 3}}


def build(settings: dict, kind: dict) -> ScFusionTTTForPreTraining:
    """Make a model by the seed."""
    torch.manual_seed(3)
    with building(settings):
        return ScFusionTTTForPreTraining(ScFusionTTTConfig(**SHAPE, **kind))


def prepare(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Make up cells as an extractor prepares them."""
    chance = torch.Generator().manual_seed(0)
    rna, adt = torch.rand((40, 7, 3), generator=chance), torch.rand((40, 5), generator=chance)
    cells = {"rna_values": rna, "rna_observed": rna > 0.1, "adt_values": adt, "adt_observed": adt > 0.1}
    return {name: values[rows] for name, values in cells.items()}


def check_equal(parted: torch.nn.Module, whole: torch.nn.Module) -> None:
    """Compare all weights bit by bit."""
    with held_whole(parted.parameters()):
        for (name, part), expected in zip(parted.named_parameters(), whole.parameters(), strict=True):
            assert torch.equal(part, expected), name
    assert sum(part.numel() for part in parted.parameters()) == 0


def write_checkpoint(directory: Path, model: torch.nn.Module) -> Checkpoint:
    """Write the weights of a model as a checkpoint of one rank."""
    scratch = directory / "step_00000001.partial"
    scratch.mkdir(parents=True)
    fragments = [Fragment(n, 0, {k: p.detach().view(-1) for k in (WEIGHT,)}) for n, p in model.named_parameters()]
    files = [write_rank(scratch, 0, fragments)]
    return Checkpoint(publish(scratch, {"step": 1, "state": {}, "ranks": 1, "zero_stage": 0, "files": files}))


def compare(scratch: Path) -> None:
    """Compare models of all kinds, at their start and later."""
    for kind in KINDS:
        whole, parted = build({}, kind), build(SETTINGS, kind)
        assert not any(is_parted(p) for p in whole.parameters())
        assert count_elements(parted) == count_elements(whole) == whole.num_parameters()
        check_equal(parted, whole)
    for model in (whole, parted):
        start_from_components(model.model, prepare, torch.arange(40).numpy(), 0)
    check_equal(parted, whole)

    torch.manual_seed(4)
    other = ScFusionTTTForPreTraining(whole.config)
    load_weights(parted, write_checkpoint(scratch, other))
    check_equal(parted, other)

    finish_parts(parted, {"bf16": {"enabled": True}}, torch.device("cpu"))
    check_equal(parted, other.to(torch.bfloat16))
    for refused in (
        lambda: load_weights(build(SETTINGS, KINDS[0]), Checkpoint(scratch / "step_00000001")),
        lambda: build({"zero_optimization": {"stage": 3, "reduce_bucket_size": "many"}}, {}),
    ):
        try:
            refused()
        except ValueError as error:
            print(error, flush=True)


ranks = start_ranks(1, 60.0)
with leaving_ranks():
    compare(Path(sys.argv[1]) / str(ranks.rank))

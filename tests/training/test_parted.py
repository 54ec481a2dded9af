"""A model that is built in parts has the bits of one that was built whole, and no rank ever holds it whole."""

from launch import Job

from scfusion_fm.training.parted import can_build_in_parts


class ComparingJob(Job):
    script = "tests/training/compare_parts.py"


def test_parts_are_those_of_a_model_that_was_built_whole(tmp_path):
    """Two ranks: fresh weights, principal components, a checkpoint, and weights that are rounded; refusals."""
    said = ComparingJob(2, tmp_path / "logs", tmp_path).finish()
    assert said.count("must be of this model, got one that differs in") == 2
    assert said.count("`deepspeed` must be settings that DeepSpeed can run, but it says") == 2


def test_models_are_parted_where_stage_3_alone_parts_them():
    zero = {"stage": 3, "zero_hpz_partition_size": 8}
    assert can_build_in_parts({"zero_optimization": {"stage": 3}})
    assert not any(
        can_build_in_parts(s) for s in ({}, {"zero_optimization": {"stage": 2}}, {"zero_optimization": zero})
    )

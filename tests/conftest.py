"""Fixtures that several test packages share."""

import os

# Before anything that calculates is imported (so no plugin may: see pyproject.toml). On small arrays, threads of BLAS
# wait more than they work.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

# They take longest, and come first, so that no worker is left alone with one of them in the end.
LONG_FILES = ("test_house", "test_resume", "test_benchmarks", "comparison/test_evaluation", "prepare/test_job")
LONG_FILES += ("tasks/test_finetune", "test_lost_rank", "model/test_modeling", "test_export", "test_growth")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the files that take longest first, and leave the order as it is within and after them."""

    def place(item: pytest.Item) -> int:
        path = str(item.path.with_suffix(""))
        return next((i for i, name in enumerate(LONG_FILES) if path.endswith(name)), len(LONG_FILES))

    items.sort(key=place)


@pytest.fixture
def tiny_config():
    from scfusion_fm import ScFusionTTTConfig

    return ScFusionTTTConfig(
        num_rna_tokens=11,
        rna_patch_size=3,
        num_proteins=7,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
        num_fusion_layers=1,
        num_decoder_layers=1,
        ttt_mini_batch_size=4,
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def paired_file(tmp_path_factory):
    """A small paired file with three cell types."""
    from make_cells import write_h5mu

    return write_h5mu(tmp_path_factory.mktemp("data") / "cells.h5mu")


@pytest.fixture(scope="session")
def atlas_path(paired_file, tmp_path_factory):
    """An atlas of that file."""
    from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
    from scfusion_fm.data.prepare.job import prepare_atlas

    path = tmp_path_factory.mktemp("atlas") / "atlas.zarr"
    config = PrepareConfig(path, [SourceConfig(paired_file, "tiny")], "sources", "sources")
    prepare_atlas(config, report=lambda line: None)
    return path


@pytest.fixture(scope="session")
def model_dir(atlas_path, tmp_path_factory):
    """An exported model with random weights that fits the atlas."""
    torch = pytest.importorskip("torch")
    from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
    from scfusion_fm.data.atlas.atlas import Atlas
    from scfusion_fm.data.fingerprints.seen import remember_atlas
    from scfusion_fm.inference.export import export_model

    extractor = ScFusionTTTFeatureExtractor(**Atlas(atlas_path).vocabulary.to_dict(), patch_size=2)
    config = ScFusionTTTConfig(
        num_rna_tokens=extractor.num_rna_tokens,
        rna_patch_size=2,
        num_proteins=extractor.num_proteins,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=1,
        num_decoder_layers=1,
        ttt_mini_batch_size=4,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model"
    export_model(
        ScFusionTTTForPreTraining(config), extractor, path, {"data": "made up"}, remember_atlas(Atlas(atlas_path))
    )
    return path

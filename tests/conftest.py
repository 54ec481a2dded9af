"""Fixtures that several test packages share."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from scfusion_fm import ScFusionTTTConfig

torch.set_num_threads(1)


@pytest.fixture
def tiny_config() -> ScFusionTTTConfig:
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

"""
The models of `benchmarks/pretrain_step.py`; as a program, the time and memory of one size in a process of its own.

`attention` is the same architecture with softmax attention in place of the TTT layers: the same projections, gate,
norms, MLPs and masks, every visible token reads every other one. `--recipe` takes the size of a recipe, `--device cuda`
a GPU, `--bf16` autocast, in which the state of the TTT layers stays in float32. Example:
`python benchmarks/pretrain_model.py --layer attention --genes 4000 --patch 10` prints JSON.
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.pretrain import PretrainConfig
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary
from scfusion_fm.model.blocks_scfusion_ttt import ScFusionTTTBlock
from scfusion_fm.model.ttt_layers import TTTOutput
from scfusion_fm.planning.recipe import build_model_config
from scfusion_fm.planning.sizing import train_flops
from scfusion_fm.planning.tokens import TokenCounts

LAYERS = ("TTT", "attention")
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_decoder_layers": 1, "intermediate_size": 64}
MASK_RATIO = 0.15


class AttentionLayer(nn.Module):
    """Softmax attention with the projections of a TTT layer and its call."""

    def __init__(self, config: ScFusionTTTConfig):
        super().__init__()
        self.heads, width = config.num_attention_heads, config.hidden_size
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.post_norm = nn.LayerNorm(width, eps=config.rms_norm_eps)
        self.gate_proj = nn.Linear(width, width, bias=False) if config.ttt_use_gate else None
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor, return_inner_loss: bool = False, is_masked: bool = False) -> TTTOutput:
        """Let tokens (B, L, D) read those of the mask (B, L); there is no inner loss."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        # A cell without any token of a modality reads all of them, since nothing would give NaN; nobody looks there.
        readable = mask | ~mask.any(1, keepdim=True)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=readable[:, None, None, :])
        out = self.post_norm(out.transpose(1, 2).flatten(2))
        if self.gate_proj is not None:
            out = out * F.gelu(self.gate_proj(x), approximate="tanh")
        return TTTOutput(self.o_proj(out), None)


def build_model(config: ScFusionTTTConfig, layer: str) -> ScFusionTTTForPreTraining:
    """Make the model with TTT layers, or with attention in their place."""
    torch.manual_seed(0)
    model = ScFusionTTTForPreTraining(config)
    if layer == "attention":
        for block in [m for m in model.modules() if isinstance(m, ScFusionTTTBlock)]:
            block.ttt = AttentionLayer(config)
            block.ttt.apply(model._init_weights)
    return model


def build_step(
    model: ScFusionTTTForPreTraining,
    next_batch: Callable[[], dict[str, Tensor]],
    bf16: bool = False,
    capturable: bool = False,
) -> Callable[[], None]:
    """Give a function that takes one step of AdamW in plain PyTorch, which may become part of a CUDA graph."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), capturable=capturable)

    def step() -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16, cache_enabled=not capturable):
            loss = model(**next_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_batch(config: ScFusionTTTConfig, cells: int) -> dict[str, Tensor]:
    """Make up cells in which everything was measured."""
    generator = torch.Generator().manual_seed(0)
    rna = torch.rand(cells, config.num_rna_tokens, config.rna_patch_size, generator=generator)
    adt = torch.randn(cells, config.num_proteins, generator=generator)
    return {
        "rna_values": rna,
        "rna_observed": torch.ones_like(rna, dtype=torch.bool),
        "adt_values": adt,
        "adt_observed": torch.ones_like(adt, dtype=torch.bool),
        "rna_bool_masked_pos": torch.rand(rna.shape[:2], generator=generator) < MASK_RATIO,
        "adt_bool_masked_pos": torch.rand(adt.shape, generator=generator) < MASK_RATIO,
    }


def read_memory(name: str) -> float:
    """Read VmRSS or VmHWM of this process, in MiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def measure_size(layer: str, config: ScFusionTTTConfig, cells: int, repeats: int) -> dict:
    """Measure steps at one size, after one that does not count; the memory is what the steps and the model add."""
    before = read_memory("VmRSS")
    batch = make_batch(config, cells)
    step = build_step(build_model(config, layer), lambda: batch)
    times = []
    for _ in range(repeats + 1):
        wall, cpu = time.monotonic(), time.process_time()
        step()
        times.append((time.monotonic() - wall, time.process_time() - cpu))
    wall, cpu = (1e3 * statistics.median(seconds) for seconds in zip(*times[1:], strict=True))
    return describe(layer, config, cells) | {"ms": wall, "cpu_ms": cpu, "added_mib": read_memory("VmHWM") - before}


def measure_on_gpu(layer: str, config: ScFusionTTTConfig, cells: int, repeats: int, bf16: bool) -> dict:
    """Measure steps at one size on the current GPU, after three that do not count, and the most memory they take."""
    batch = {name: x.cuda() for name, x in make_batch(config, cells).items()}
    model = build_model(config, layer).cuda()
    step, times = build_step(model, lambda: batch, bf16), []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.monotonic()
        step()
        torch.cuda.synchronize()
        times.append(time.monotonic() - start)
    seconds = statistics.median(times[3:])
    tokens = TokenCounts(
        *(share * n for n in (config.num_rna_tokens, config.num_proteins) for share in (1 - MASK_RATIO, MASK_RATIO))
    )
    facts = {"device": torch.cuda.get_device_name(), "bf16": bf16, "parameters": model.num_parameters()}
    facts |= {
        "ms": 1e3 * seconds,
        "cells_per_s": cells / seconds,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
    }
    if layer == "TTT":
        facts["tflops"] = train_flops(config, tokens) * cells / seconds / 1e12
    return describe(layer, config, cells) | facts


def describe(layer: str, config: ScFusionTTTConfig, cells: int) -> dict:
    """Say what is measured."""
    genes = config.num_rna_tokens * config.rna_patch_size
    facts = {"layer": layer, "genes": genes, "patch": config.rna_patch_size, "cells": cells}
    return facts | {"tokens": config.num_rna_tokens + config.num_proteins}


def read_recipe(path: Path) -> ScFusionTTTConfig:
    """Give the model of a recipe over the shipped vocabulary."""
    recipe = load_config(PretrainConfig, path)
    vocabulary = build_vocabulary(None, "protein_coding", "all")
    return build_model_config(recipe, ScFusionTTTFeatureExtractor(**vocabulary.to_dict(), patch_size=recipe.patch_size))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layer", choices=LAYERS, default="TTT")
    parser.add_argument("--genes", type=int, default=4_000)
    parser.add_argument("--patch", type=int, default=10, help="genes per token")
    parser.add_argument("--proteins", type=int, default=140)
    parser.add_argument("--cells", type=int, default=4, help="cells of a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a small model")
    parser.add_argument("--recipe", type=Path, help="take the size of this recipe instead")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="autocast, on a GPU")
    arguments = parser.parse_args()
    if arguments.bf16 and arguments.device == "cpu":
        parser.error("--bf16 is for --device cuda")
    torch.set_num_threads(arguments.threads)
    config = ScFusionTTTConfig(
        num_rna_tokens=arguments.genes // arguments.patch,
        rna_patch_size=arguments.patch,
        num_proteins=arguments.proteins,
        **(SMALL if arguments.small else {}),
    )
    config = read_recipe(arguments.recipe) if arguments.recipe else config
    sizes = (arguments.layer, config, arguments.cells, arguments.repeats)
    print(json.dumps(measure_on_gpu(*sizes, arguments.bf16) if arguments.device == "cuda" else measure_size(*sizes)))


if __name__ == "__main__":
    main()

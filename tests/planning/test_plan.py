"""`scfusion plan` and the recipes: what fits, how long it takes, and what to do."""

import json
import subprocess
import sys

import pytest
import torch
from launch import ROOT

from scfusion_fm import ScFusionTTTConfig, ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.cli.main import main
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.pretrain import MaskingConfig, PretrainConfig
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary
from scfusion_fm.planning.communication import communication_per_gpu
from scfusion_fm.planning.memory import memory_per_gpu
from scfusion_fm.planning.plan import PlanRequest, plan_run
from scfusion_fm.planning.recipe import build_model_config, plan_recipe
from scfusion_fm.planning.settings import DeepSpeedSettings
from scfusion_fm.planning.sizing import ParameterCounts, count_parameters, train_flops
from scfusion_fm.planning.text import render_plan
from scfusion_fm.planning.tokens import TokenCounts, longest_tokens, mean_tokens

ONE_MACHINE = ("demo", "human", "paper")
RECIPES = {p.stem: p for p in sorted((ROOT / "configs" / "pretrain").glob("*.yaml")) if p.stem not in ONE_MACHINE}
SIZES = {"base": 50e6, "large": 300e6, "1b": 1e9, "3b": 3e9}
PAPER = ROOT / "configs" / "pretrain" / "paper.yaml"
VOCABULARY = build_vocabulary(None, "protein_coding", "all")
COUNTS = ParameterCounts(blocks=600_000_000, features=300_000_000, other=100_000_000, largest_module=150_000_000)
GPUS = {"base": 8, "large": 16, "1b": 64, "3b": 128}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def extractor_of(vocabulary, config):
    return ScFusionTTTFeatureExtractor(**vocabulary.to_dict(), patch_size=config.patch_size)


def request(**changes):
    given = {
        "gpus": 4,
        "gpu_memory": 80.0,
        "global_batch_size": 48,
        "micro_batch_size": 6,
        "checkpointing": False,
        "epochs": 2.0,
        "cells": 1000,
    }
    return PlanRequest(**given | changes)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scfusion", "plan", *map(str, arguments)])
    main()


# Recipes


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_recipes_have_the_size_of_their_name(name, size):
    config = load_config(PretrainConfig, RECIPES[name])
    model = build_model_config(config, extractor_of(VOCABULARY, config))
    assert count_parameters(model).total == pytest.approx(size, rel=0.1)
    assert model.head_dim in (32, 64)
    with torch.device("meta"):
        built = ScFusionTTTForPreTraining(model)
    assert all(p.is_meta for p in built.parameters())


def test_every_recipe_has_a_size():
    assert RECIPES.keys() == SIZES.keys()


@pytest.mark.parametrize("name", SIZES)
def test_recipes_fit_the_gpus_that_they_are_written_for(name):
    found = plan_recipe(load_config(PretrainConfig, RECIPES[name]), GPUS[name], 80.0).plan
    recipe = next(c for c in found.choices if c.is_recipe)
    assert recipe.fits
    assert found.request.planned_micro_batch == found.request.micro_batch_size
    steps = found.request.cells_per_gpu // found.request.micro_batch_size
    text = RECIPES[name].read_text()
    assert f"{GPUS[name]} GPUs x {found.request.micro_batch_size} cells x {steps} accumulation step" in text


def test_the_paper_recipe_is_the_protocol_of_the_ancestor():
    config = load_config(PretrainConfig, PAPER)
    optim = config.optim
    assert optim.lr == pytest.approx(5e-4 * optim.global_batch_size / 256)
    assert optim.warmup_ratio * optim.epochs == pytest.approx(10)
    small = {key: values[:4000] for key, values in VOCABULARY.to_dict().items() if "gene_" in key and "prot" not in key}
    small["gene_chromosomes"] = ["1"] * 4000
    proteins = {key: VOCABULARY.to_dict()[key] for key in ("protein_names", "protein_gene_ids")}
    model = build_model_config(config, extractor_of(type(VOCABULARY)(**small, **proteins), config))
    assert (model.num_rna_tokens, model.num_hidden_layers, model.num_decoder_layers) == (400, 6, 4)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "deepspeed").glob("*.json")), ids=lambda p: p.stem)
def test_deepspeed_files_are_what_they_are_called(path):
    settings = DeepSpeedSettings.from_json(json.loads(path.read_text()))
    assert path.stem.startswith(f"zero{settings.stage}")
    assert settings.is_bf16 == ("bf16" in path.stem)
    assert settings.offload_optimizer == ("offload" in path.stem)


# Memory


def test_every_stage_parts_what_it_says():
    def memory(stage, gpus, is_bf16=True):
        settings = DeepSpeedSettings(stage, is_bf16, max_live_parameters=0)
        return memory_per_gpu(COUNTS, settings, gpus, 0.0)

    one = {stage: memory(stage, 8) for stage in (1, 2, 3)}
    assert one[1].gradients == 8 * one[2].gradients
    assert one[1].optimizer == one[2].optimizer
    assert one[1].parameters == one[2].parameters == 2 * COUNTS.total
    assert one[3].parameters == 2 * (COUNTS.total / 8 + COUNTS.largest_module)
    for stage in (1, 2, 3):
        assert memory(stage, 16).optimizer == one[stage].optimizer / 2
    plain = memory(0, 8, is_bf16=False)
    assert plain.parameters + plain.gradients + plain.optimizer == 16 * COUNTS.total
    assert memory(0, 1, is_bf16=False).buffers == 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_moves_the_optimizer_to_the_host(stage):
    here = memory_per_gpu(COUNTS, DeepSpeedSettings(stage, True), 4, 0.0)
    there = memory_per_gpu(COUNTS, DeepSpeedSettings(stage, True, offload_optimizer=True), 4, 0.0)
    assert there.optimizer == 0
    assert there.host >= here.optimizer + here.step
    assert there.total < here.total


def test_offloading_everything_leaves_what_is_gathered():
    settings = DeepSpeedSettings(3, True, True, True, max_live_parameters=0)
    found = memory_per_gpu(COUNTS, settings, 4, 7.0)
    assert found.parameters == 2 * COUNTS.largest_module
    assert found.total == found.parameters + found.buffers + 7.0


def test_buckets_come_from_the_file():
    zero = {"stage": 2, "reduce_bucket_size": 1000, "overlap_comm": True}
    found = DeepSpeedSettings.from_json({"zero_optimization": zero})
    assert memory_per_gpu(COUNTS, found, 4, 0.0).buffers == 2 * 1000 * 4
    zero = {"stage": 3, "stage3_prefetch_bucket_size": 10, "stage3_max_live_parameters": 20, "sub_group_size": 5}
    found = DeepSpeedSettings.from_json({"zero_optimization": zero})
    assert (found.prefetch_bucket_size, found.max_live_parameters, found.sub_group_size) == (10, 20, 5)


# The plan


def test_micro_batches_make_up_the_global_batch():
    assert request().micro_batch_sizes == [12, 6, 4, 3, 2, 1]
    assert request(micro_batch_size=5).planned_micro_batch == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 0}, "`--gpus` must be at least 1, got 0"),
        ({"cells": 0}, "`--cells` must be at least 1, got 0"),
        ({"gpu_memory": 0.0}, "`--gpu-memory` must be a positive number, got 0.0"),
        ({"tflops": float("nan")}, "`--tflops` must be a positive number, got nan"),
        ({"micro_batch_size": 0}, "`optim.micro_batch_size` must be at least 1, got 0"),
        ({"global_batch_size": 0}, "`optim.global_batch_size` must be at least 1, got 0"),
        ({"gpus": 5}, "must be a multiple of the 5 GPUs, got 48"),
    ],
)
def test_requests_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        request(**changes)


def test_steps_and_time_follow_from_cells_and_speed(tiny_config):
    masking = MaskingConfig(0.25, 0.25, 0.0, 0.0)
    found = plan_run(tiny_config, masking, DeepSpeedSettings(), request(tflops=1e-3))
    assert found.steps == -(-2 * 1000 // 48)
    per_cell = train_flops(tiny_config, mean_tokens(tiny_config, masking, 6))
    assert found.seconds == pytest.approx(found.steps * 48 * per_cell / (4 * 1e9))
    assert plan_run(tiny_config, masking, DeepSpeedSettings(), request(cells=None)).steps is None
    assert plan_run(tiny_config, masking, DeepSpeedSettings(), request()).seconds is None


def test_hidden_modalities_lengthen_all_cells_of_a_batch():
    config = ScFusionTTTConfig(num_rna_tokens=100, num_proteins=40)
    assert longest_tokens(config, MaskingConfig(0.5, 0.5, 0, 0)) == TokenCounts(64, 48, 32, 16)
    assert longest_tokens(config, MaskingConfig(0.5, 0.5, 0.1, 0.1)) == TokenCounts(112, 0, 48, 0)
    assert mean_tokens(config, MaskingConfig(0.5, 0.5, 0.5, 0), 1) == TokenCounts(88, 24, 32, 16)
    assert mean_tokens(config, MaskingConfig(0.5, 0.5, 0.5, 0), 2).rna_visible == 100


def test_largest_micro_batch_is_the_last_that_fits(tiny_config):
    masking, settings = MaskingConfig(0.25, 0.25, 0.1, 0.1), DeepSpeedSettings()
    sizes = [
        plan_run(tiny_config, masking, settings, request(micro_batch_size=n)).choices[0].memory.total for n in (3, 4)
    ]
    between = sum(sizes) / 2 / 0.9 / 2**30
    found = plan_run(tiny_config, masking, settings, request(gpu_memory=between)).choices[0]
    assert (found.fits, found.largest_micro_batch, found.is_recipe) == (False, 3, True)


def test_the_recipe_is_always_among_the_choices(tiny_config):
    for settings in (DeepSpeedSettings(1, offload_optimizer=True), DeepSpeedSettings(3, True, False, True)):
        found = plan_run(tiny_config, MaskingConfig(0.1, 0.1, 0, 0), settings, request())
        assert [c.settings for c in found.choices if c.is_recipe] == [settings]


# The command


def test_plan_tells_what_fits(monkeypatch, capsys):
    run(monkeypatch, RECIPES["base"], "--gpus", 8, "--cells", 1_000_000, "--tflops", 10)
    printed = capsys.readouterr().out
    for words in (
        "20,449 genes in 1,289 tokens",
        "343 proteins",
        "* 1, bf16",
        "The recipe fits.",
        "steps for 10 epochs",
    ):
        assert words in printed
    assert "if every GPU sustains the 10 TFLOP/s that you gave" in printed


def test_plan_prints_json(monkeypatch, capsys):
    run(monkeypatch, RECIPES["base"], "--gpus", 8, "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["vocabulary"] == {"atlas": None, "genes": 20449, "rna_tokens": 1289, "proteins": 343}
    memory = found["choices"][0]["memory"]
    stays = sum(memory[key] for key in ("parameters", "gradients", "optimizer", "buffers"))
    assert memory["total"] == stays + max(memory["activations"], memory["step"])
    assert found["parameters"]["total"] == pytest.approx(50e6, rel=0.1)


def test_plan_takes_the_vocabulary_and_cells_of_the_atlas(monkeypatch, atlas_path, capsys):
    run(monkeypatch, ROOT / "configs/pretrain/demo.yaml", f"atlas={atlas_path}")
    printed = capsys.readouterr().out
    assert str(atlas_path) in printed
    assert "give --cells" not in printed
    run(monkeypatch, ROOT / "configs/pretrain/demo.yaml", "atlas=/nowhere")
    assert "give --cells" in capsys.readouterr().out


def test_plan_says_what_to_do_when_the_recipe_does_not_fit():
    config = load_config(PretrainConfig, RECIPES["base"], ["optim.micro_batch_size=16"])
    printed = render_plan(plan_recipe(config, 8, 4.0))
    assert "The recipe does not fit" in printed
    assert "- optim.micro_batch_size=4, with more accumulation steps" in printed
    assert "- run.activation_checkpointing=true with optim.micro_batch_size=16" in printed
    assert "- ZeRO stage 2, bf16, with" in printed
    assert "Nothing fits" in render_plan(plan_recipe(config, 8, 0.1))


def test_plan_corrects_a_micro_batch_that_does_not_fit_the_global_one():
    config = load_config(PretrainConfig, RECIPES["base"], ["optim.micro_batch_size=24"])
    assert "optim.micro_batch_size=24 does not make up the 64 cells of a GPU; set 16" in render_plan(
        plan_recipe(config, 8, 80.0)
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.hidden=3"], r"`model` must hold fields of ScFusionTTTConfig, got \['hidden'\]"),
        (["model.num_proteins=3"], r"`model` must not set \['num_proteins'\]"),
        (["model.hidden_size=7"], "`model` does not describe a model"),
        (["deepspeed=none.json"], "`deepspeed` must be a readable JSON file, got 'none.json'"),
    ],
)
def test_recipes_that_make_no_run_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        plan_recipe(load_config(PretrainConfig, RECIPES["base"], overrides), 8, 80.0)


def test_mistakes_end_with_code_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(monkeypatch, RECIPES["base"], "--gpus", 0)
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: `--gpus` must be at least 1, got 0.\n"


def test_planning_does_not_import_deepspeed():
    code = "import sys; from scfusion_fm.cli.main import main; "
    code += f"sys.argv = ['scfusion', 'plan', {str(RECIPES['base'])!r}]; "
    code += "main(); assert 'deepspeed' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Communication


@pytest.mark.parametrize(("stage", "once", "per_micro_batch"), [(0, 2, 0), (1, 3, 0), (2, 1, 2), (3, 0, 3)])
def test_gpus_send_shares_of_the_parameters(stage, once, per_micro_batch):
    """In units of the share of the parameters that a GPU does not hold; counted by benchmarks/communication.py."""
    for gpus, accumulation in ((1, 1), (2, 1), (4, 3), (1024, 2)):
        sent = communication_per_gpu(COUNTS, DeepSpeedSettings(stage, is_bf16=True), gpus, accumulation)
        assert sent.total == pytest.approx(2e9 * (gpus - 1) / gpus * (once + per_micro_batch * accumulation))


def test_plan_tells_what_other_numbers_of_gpus_send(monkeypatch, capsys):
    run(monkeypatch, RECIPES["3b"], "--gpus", 128, "--gpu-memory", 80, "--cells", 30_000_000, "--tflops", 200, "--json")
    plan = json.loads(capsys.readouterr().out)
    assert [scale["gpus"] for scale in plan["scales"]] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert all(s["gpus"] * s["micro_batch_size"] * s["accumulation_steps"] == 4096 for s in plan["scales"])
    here = plan["scales"][4]
    assert here["sent"] == {str(c["settings"]["stage"]): c["sent"] for c in plan["choices"][:3]}
    seconds = plan["seconds"] / plan["steps"]
    assert here["needed"] == {stage: pytest.approx(size / seconds) for stage, size in here["sent"].items()}
    run(monkeypatch, RECIPES["3b"], "--gpus", 128, "--gpu-memory", 80)
    assert "1,024      4      1     17.2     17.2     17.2" in capsys.readouterr().out

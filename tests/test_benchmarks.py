"""The benchmarks run, and what they print can be read by a program."""

import dataclasses
import itertools
import json
import sys
import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from launch import ROOT, run, start
from make_cells import make_modalities, write_h5mu

import scfusion_fm
from scfusion_fm import (
    ScFusionTTTConfig,
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForPreTraining,
)
from scfusion_fm.config.pretrain import MaskingConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.stream.collate import MaskingCollator
from scfusion_fm.data.vocabulary.resolve import resolve_genes
from scfusion_fm.inference.export import export_model


def test_benchmark_of_the_ttt_layer(tmp_path):
    command = [sys.executable, "benchmarks/ttt_layer.py", "--lengths", "32", "64", "--repeats", "1"]
    command += [
        "--hidden-size",
        "32",
        "--heads",
        "2",
        "--json",
        tmp_path / "rows.json",
        "--plot",
        tmp_path / "plot.png",
    ]
    done = run(*command)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    names = ["ours", "both ways", "plain", "attention", "projections"]
    assert [(row["tokens"], row["layer"]) for row in rows] == [(n, name) for n in (32, 64) for name in names]
    assert all(row["seconds"] > 0 and row["peak_mib"] > 0 for row in rows)
    assert all(name in done.stdout for name in names)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_of_coverage(model_dir, paired_file, tmp_path):
    command = [sys.executable, "benchmarks/gene_coverage.py", model_dir, paired_file, "--cells", "60"]
    run(*command, "--json", tmp_path / "rows.json")
    whole, *parts = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (whole["genes"], whole["counts"], whole["cells"]) == ("all", 1.0, 60)
    assert whole["moved"] == 0
    assert all(part["moved"] > 0 and 0 <= part["right"] <= 1 for part in parts)
    by_name = {name: [part["counts"] for part in parts if part["genes"] == name] for name in ("highest", "lowest")}
    assert all(high > low for high, low in zip(*by_name.values(), strict=True))


def test_benchmark_of_agreement(model_dir, tmp_path):
    head = ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir, num_labels=2)
    export_model(head, ScFusionTTTFeatureExtractor.from_pretrained(model_dir), tmp_path / "head", {})
    rna, _ = make_modalities(20, seed=1)
    rna.var["gene_ids"] = resolve_genes(rna.var_names)["gene_id"].to_numpy()
    rna.write_h5ad(tmp_path / "rna.h5ad")
    command = [sys.executable, "benchmarks/agreement.py", tmp_path / "head", model_dir, tmp_path / "rna.h5ad"]
    run(*command, "--json", tmp_path / "rows.json")
    by_id, by_name, *fewer = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert by_id["types"] == by_name["types"] == 1
    assert [row["what"] for row in fewer] == ["bfloat16", "float16"]
    assert all(row["types"] > 0.9 and 0 < row["moved"] < 0.1 for row in fewer)


def test_benchmark_of_memory_in_use(model_dir, tmp_path):
    command = [sys.executable, "benchmarks/serving_memory.py", model_dir, tmp_path / "work", "--cells", "300"]
    command += ["--genes", "500", "--per-cell", "40", "--json", tmp_path / "row.json", "--plot", tmp_path / "plot.png"]
    run(*command)
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["cells"] == 300
    assert 0 < row["peak_gib"] == max(memory for _, memory in row["seconds_gib"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_benchmark_of_memory_in_fine_tuning(tmp_path):
    """It makes an atlas, and runs two scripts of their own, cold."""
    done = run(
        sys.executable, "benchmarks/finetuning_memory.py", tmp_path, "--cells", "600", "900", "--epochs", "1",
        "--genes", "300", timeout_s=900,
    )  # fmt: skip
    assert done.stdout.count("bytes a further cell") == 2
    assert (tmp_path / "annotation_900" / "report.html").is_file()


def test_benchmark_of_serving(model_dir, tmp_path, monkeypatch, capsys):
    """Its processes are played by this one, which has loaded everything already."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import serving

    def play(command, **settings):
        with warnings.catch_warnings():
            file, (method, _, model) = command[2], command[3].partition("=")
            return SimpleNamespace(stdout="other\n" + json.dumps(serving.measure(method, model, file, 50)))

    make_modalities(60, seed=0)[0].write_h5ad(tmp_path / "cells.h5ad")
    arguments = [tmp_path / "cells.h5ad", f"embed={model_dir}", "--cells", "50", "--json", tmp_path / "rows.json"]
    monkeypatch.setattr(sys, "argv", ["serving.py", *map(str, arguments)])
    monkeypatch.setattr("subprocess.run", play)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(scfusion_fm.settings, "verbosity", 0)
    serving.main()
    rows = {row.pop("method"): row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert rows.keys() == {"embed", "pca"}
    assert all(row["cells"] == 50 and min(row.values()) > 0 for row in rows.values())
    told = capsys.readouterr().out
    assert "| embed | " in told
    assert "scvi: not measured, scvi-tools is not installed" in told


def test_benchmark_of_a_pretraining_step(tmp_path):
    command = [sys.executable, "benchmarks/pretrain_step.py", "--quick", "--json", tmp_path / "step.json"]
    done = run(*command)
    found = json.loads((tmp_path / "step.json").read_text())
    names = ["bare", "engine", "loader", "collate", "whole", "attention"]
    assert [row["step"] for row in found["rows"]] == names
    assert all(row["ms"] > 0 and row["cpu_ms"] > 0 for row in found["rows"])
    chain = {row["step"]: row for row in found["rows"] if row["step"] != "attention"}
    assert sum(row["share"] for row in chain.values()) == pytest.approx(1)
    assert found["whole_to_bare"] == chain["whole"]["ratio"]
    assert [row["layer"] for row in found["growth"]] == ["TTT", "attention"]
    assert all(row["added_mib"] > 0 for row in found["growth"])
    assert all(f"| {name} |" in done.stdout for name in names)


def test_benchmark_of_a_gpu_runs_dry(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", tmp_path / "gpu.json", "--dry"]
    run(*command, "--stages", "layer", "steps", "profile", "warps")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all(isinstance(row, dict) for rows in found.values() for row in rows)  # text is an error
    assert [row["dtype"] for row in found["layer"]] == ["bfloat16", "float32"]
    assert [row["layer"] for row in found["steps"][1:]] == ["TTT", "attention"]
    assert found["profile"][0]["launches"] > 0
    assert {row["kernel"] for row in found["warps"]} == {
        "scan",
        "read",
        "reads_backward",
        "scan_backward",
        "projections_backward",
    }


def test_estimate_for_a_gpu_grows_with_the_tokens_for_ttt_and_with_their_square_for_attention(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu_estimate import DEVICES, estimate_attention, estimate_layer

    device, shapes = DEVICES["H100"], [(16, n, 8, 64) for n in (16_384, 65_536)]
    for dtype in ("bfloat16", "float32"):
        short, long = (sum(estimate_layer(device, shape, 16, dtype).values()) for shape in shapes)
        assert long / short == pytest.approx(4, rel=0.05)
        short, long = (estimate_attention(device, shape, dtype) for shape in shapes)
        assert long / short == pytest.approx(16, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("layer", ["TTT", "attention"])
def test_benchmark_of_a_model_on_a_gpu(layer):
    done = run(
        sys.executable, "benchmarks/pretrain_model.py", "--device", "cuda", "--bf16", "--small", "--layer", layer
    )
    found = json.loads(done.stdout)
    assert found["cells_per_s"] == pytest.approx(4e3 / found["ms"])
    assert found["peak_mib"] > 1
    assert ("tflops" in found) == (layer == "TTT")


def test_read_recipe_gives_the_model_of_the_file(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from pretrain_model import read_recipe

    found = read_recipe(ROOT / "configs" / "pretrain" / "human.yaml")
    assert (found.hidden_size, found.rna_patch_size) == (64, 256)
    assert found.num_rna_tokens * 256 >= 19_000


def test_attention_of_the_benchmark_has_the_same_projections_and_reads_nothing_hidden(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from pretrain_model import build_model, make_batch

    config = ScFusionTTTConfig(num_rna_tokens=19, rna_patch_size=2, num_proteins=5, hidden_size=16)
    ttt, attention = ({n: p.shape for n, p in build_model(config, x).named_parameters()} for x in ("TTT", "attention"))
    assert {n for n in ttt if "_proj." in n and "lr_proj" not in n} <= set(attention) <= set(ttt)
    assert all(ttt[name] == shape for name, shape in attention.items())

    model, batch = build_model(config, "attention"), make_batch(config, 3)
    batch["adt_bool_masked_pos"][0] = True  # a cell whose proteins are all hidden
    before = model(**batch)
    assert torch.isfinite(before.loss)
    batch["rna_values"] = batch["rna_values"] + batch["rna_bool_masked_pos"].unsqueeze(-1)
    batch["adt_values"] = batch["adt_values"] + batch["adt_bool_masked_pos"]
    after = model(**batch)
    torch.testing.assert_close(after.rna_reconstruction, before.rna_reconstruction)
    torch.testing.assert_close(after.adt_reconstruction, before.adt_reconstruction)


def test_benchmark_of_the_transfer_between_widths(atlas_path, tmp_path):
    command = [sys.executable, "benchmarks/width_transfer.py", "--quick", "--atlas", atlas_path]
    done = run(*command, "--json", tmp_path / "rows.json")
    found = json.loads((tmp_path / "rows.json").read_text())
    powers = found["plan"]["powers"]
    expected = [(run, power) for run in ("narrow", "standard", "muP") for power in powers]
    assert [(row["run"], row["power"]) for row in found["rows"]] == expected
    assert all(row["train"] > 0 and row["held_out"] > 0 for row in found["rows"])
    assert all(f"| 2^{power} |" in done.stdout for power in powers)


def test_ablations_train_score_and_go_on_where_they_stopped(atlas_path, paired_file, tmp_path):
    small = ["model.hidden_size=16", "model.num_attention_heads=2", "model.num_hidden_layers=1", "start_cells=100"]
    small += [f"atlas={atlas_path}", "optim.epochs=0.5", "optim.global_batch_size=16", "optim.micro_batch_size=16"]
    command = [
        sys.executable,
        "benchmarks/ablations.py",
        "--data",
        paired_file,
        "--output",
        tmp_path,
        "--device",
        "cpu",
    ]
    command += [*small, "--config", "configs/pretrain/demo.yaml", "--variants", "random order", "--seeds"]
    assert "| random order | 1 |" in run(*command, "0").stdout
    again = run(*command, "0", "1").stdout
    assert "1/1" in again
    assert "| random order | 2 |" in again
    units = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted((unit["variant"], unit["seed"]) for unit in units) == [("random order", 0), ("random order", 1)]
    scores = [unit["data"][paired_file.stem] for unit in units]
    other = run(*command, "0", "--config", "configs/pretrain/human.yaml", check=False)
    assert other.returncode != 0
    assert "`--output` must hold results of the same recipe and data" in other.stderr
    assert all(0 <= found["F1 both"] <= 1 and -1 <= found["RNA to protein"] <= 1 for found in scores)


def test_variants_of_the_ablations_change_what_they_say(atlas_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from ablation_variants import VARIANTS, build_extractor, change_model, measure_loss, rna_errors

    atlas = Atlas(atlas_path)
    cells = atlas.read(atlas.rows_of("train")[:5])
    for title in ("genome reversed", "random order"):
        genome, other = (build_extractor(VARIANTS[name], atlas.vocabulary, 8, 0) for name in ("recipe", title))
        assert not np.array_equal(genome.patch_genes()[0], other.patch_genes()[0])
        for part in ("rna", "adt"):  # the same values, elsewhere
            here, there = (x(**cells.as_counts())[f"{part}_values"].flatten(1).sort(1)[0] for x in (genome, other))
            width = min(here.shape[1], there.shape[1])  # zeros pad the patches of chromosomes
            torch.testing.assert_close(here[:, -width:], there[:, -width:])

    batch = MaskingCollator(genome, MaskingConfig(0.5, 0.5, 0.0, 0.0))(cells, 0)
    config = ScFusionTTTConfig(
        num_rna_tokens=genome.num_rna_tokens, rna_patch_size=8, num_proteins=genome.num_proteins, hidden_size=16
    )
    outputs = {}
    for title in ("recipe", "attention for TTT", "no mixing of tokens", "fusion by a sum", "no fusion"):
        torch.manual_seed(0)
        model = ScFusionTTTForPreTraining(config).eval()
        change_model(model, VARIANTS[title])
        outputs[title] = model(**batch)
        assert torch.equal(measure_loss(VARIANTS[title], config, outputs[title], batch), outputs[title].loss)
    found = [output.pooler_output for output in outputs.values()]
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(found, 2))
    recipe, poisson = outputs["recipe"], VARIANTS["Poisson likelihood"]
    torch.testing.assert_close(rna_errors(VARIANTS["recipe"], recipe, batch), recipe.rna_loss)
    # Rates that are the counts themselves have no error, and the least deviance.
    exact = dataclasses.replace(recipe, rna_reconstruction=torch.expm1(batch["rna_values"]).clamp_min(1e-6).log())
    assert rna_errors(poisson, exact, batch).max() < 1e-3
    assert measure_loss(poisson, config, exact, batch) < measure_loss(poisson, config, recipe, batch)


def test_cells_in_another_order_are_the_same_sparse_and_dense(atlas_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from ablation_variants import Variant, build_extractor

    atlas = Atlas(atlas_path)
    counts = atlas.read(atlas.rows_of("train")[:5]).as_counts()
    extractor = build_extractor(Variant(order="random"), atlas.vocabulary, 8, 0)
    rna, totals = counts["rna_counts"] * counts["rna_observed"], counts["rna_total_counts"]
    sparse = extractor.prepare_sparse(sp.csr_matrix(rna), counts["rna_observed"], np.arange(5), totals)
    dense = extractor(**counts)
    weight = torch.randn(extractor.num_rna_tokens, 8, 3)
    expected = torch.einsum("bns,nsd->bnd", dense["rna_values"] * dense["rna_observed"], weight)
    torch.testing.assert_close(sparse.sum_tokens(torch.cat((weight, weight), 1)), expected)
    assert torch.equal(extractor.prepare(**counts)["adt_values"], dense["adt_values"])


def test_one_update_of_the_fast_weights_has_no_order(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from ablation_variants import NonCausalTTT

    config = ScFusionTTTConfig(hidden_size=16, num_attention_heads=2, intermediate_size=16)
    torch.manual_seed(0)
    x, mask, order = torch.randn(2, 40, 16), torch.rand(2, 40) > 0.3, torch.randperm(40)
    for whole_cell in (True, False):
        layer = NonCausalTTT(config, "forward", whole_cell)
        torch.nn.init.normal_(layer.weight, std=0.3)
        found = layer(x, mask).tokens
        torch.testing.assert_close(layer(x.masked_fill(~mask.unsqueeze(-1), 9.0), mask).tokens[mask], found[mask])
        moved = layer(x[:, order], mask[:, order]).tokens
        same = torch.allclose(moved[mask[:, order]], found[:, order][mask[:, order]], atol=1e-5)
        assert same == whole_cell


def test_long_sequences_are_compared_on_held_out_donors(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import long_sequences as benchmark

    write_h5mu(tmp_path / "teaseq_pbmc.h5mu", 120, 0)
    make_modalities(120, 1)[0].write_h5ad(tmp_path / "kang_pbmc_ctrl.h5ad")
    monkeypatch.setattr(benchmark, "DONORS", ("d1",))
    monkeypatch.setattr(benchmark, "TRAIN_CELLS", 70)
    with warnings.catch_warnings(action="ignore"):  # of mudata
        benchmark.cut_data(tmp_path, tmp_path / "long")
    held_out, learned = (ad.read_h5ad(tmp_path / f"long/kang_{part}.h5ad").obs["donor"] for part in ("test", "train"))
    assert set(held_out) == {"d1"}
    assert not set(held_out) & set(learned)
    titles, small = ["10 per token, TTT, random"], ["optim.epochs=0.1"]
    benchmark.run(tmp_path / "long", [0], titles, small)
    monkeypatch.setattr(benchmark, "train", None)  # what is there is not run again
    benchmark.run(tmp_path / "long", [0], titles, small)
    monkeypatch.setattr(sys, "argv", ["long_sequences.py", "table", str(tmp_path / "long")])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| 1")] == [f"| {titles[0]}"]


def test_optimum_of_a_parabola_is_its_vertex(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from width_transfer import optimum

    powers = np.arange(-10, -3)
    assert optimum(powers, 3 + 0.5 * (powers + 7.3) ** 2) == pytest.approx(-7.3)
    assert np.isnan(optimum(powers, powers.astype(float)))  # lowest at an end: there is no telling


def test_benchmark_of_the_loader(tmp_path):
    command = [sys.executable, "benchmarks/loader.py", "--quick", "--seconds", "0.3", "--batch", "256"]
    done = run(*command, "--json", tmp_path / "rows.json")
    found = json.loads((tmp_path / "rows.json").read_text())
    names = ["ours", "ours 512", "memory map", "h5ad", "zarr"]
    assert [row["loader"] for row in found["rows"]] == names
    assert all(row["cells_per_s"] > 0 and row["peak_mib"] > 0 for row in found["rows"])
    assert 0 <= found["stall"]["stall"] < 1
    assert all(f"| {name} |" in done.stdout for name in names)


@pytest.mark.parametrize("cold", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_zero_stage_agrees_with_plain_pytorch_and_holds_what_it_promises(tmp_path, monkeypatch, cold):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import zero_stages

    def start_rank(command, env, stdout):
        with (tmp_path / "log").open("a") as log:
            return start(*command, stdout=log, stderr=log, env=env)

    if not cold:
        monkeypatch.setattr(zero_stages, "subprocess", SimpleNamespace(Popen=start_rank, DEVNULL=None))
    monkeypatch.setattr(sys, "argv", ["zero_stages.py", "--quick", "--json", str(tmp_path / "out.json")])
    zero_stages.main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert len(figures["losses"]) == 11
    assert all(row["losses"] < row["bound"] for row in figures["losses"])
    moments = [row["bytes"]["moments"] for row in figures["memory"]]
    assert len(moments) == 4
    assert moments[1:] == [pytest.approx(moments[0] / 2, rel=0.02)] * 3


def test_benchmark_of_types_of_new_studies(model_dir, tmp_path, monkeypatch, capsys):
    """Each of its tables has the studies or types that were left out."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import new_laboratory_types

    for seed in range(3):
        rna = make_modalities(150, seed=seed)[0]
        rna.write_h5ad(tmp_path / f"{seed}.h5ad")
    settings = {"data": [f"{seed}.h5ad" for seed in range(3)], "labels_key": "cell_type", "models": {"m": {}}}
    config = {"data_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "experiments": {"new study": settings}}
    settings["models"]["m"]["path"] = str(model_dir)
    settings |= {"task": "annotation", "inputs": ["rna"], "split": {"kind": "leave_group_out", "group_key": "dataset"}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    for options, told in (
        ([], "macro_f1"),
        (["--unknown", "B"], "energy"),
        (["--sorted"], "in the whole file"),
        (["--rejected"], "at 5%"),
    ):
        monkeypatch.setattr(sys, "argv", ["new_laboratory_types.py", str(tmp_path / "config.yaml"), *options])
        with warnings.catch_warnings(action="ignore"):
            new_laboratory_types.main()
        table = capsys.readouterr().out
        assert told in table
        assert ("all" if options == ["--sorted"] else "0.h5ad") in table

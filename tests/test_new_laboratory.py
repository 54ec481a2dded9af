"""The benchmark of new laboratories: studies of several files, baselines alone, and predictions of others."""

import importlib.util

import numpy as np
import pytest
from launch import ROOT
from make_cells import write_h5mu

from scfusion_fm.comparison.evaluation import Evaluation
from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.loading import load_config

pytestmark = pytest.mark.filterwarnings("ignore:.*the model knows little of this file")  # of made-up genes

SPEC = importlib.util.spec_from_file_location("new_laboratory", ROOT / "benchmarks" / "new_laboratory.py")
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laboratories")
    for i, cells in enumerate((50, 40, 30, 40)):
        write_h5mu(folder / f"{i}.h5mu", cells, seed=30 + i)
    changes = {
        "data_dir": folder,
        "output_dir": folder / "run",
        "defaults.cells_per_group": 40,
        "defaults.seeds": "[0, 1]",
        "defaults.baselines": "[mean, PCA + ridge]",
        "experiments": "{new study: {data: [0.h5mu, 1.h5mu, 2.h5mu, 3.h5mu]}}",
    }
    path = folder / "laboratories.yaml"
    text = (ROOT / "configs" / "evaluate" / "new_laboratory_proteins.yaml").read_text()
    text = text.replace("neurips_bmmc: [neurips_bmmc.h5mu, neurips_bmmc_b.h5mu]", "pair: [2.h5mu, 3.h5mu]")
    path.write_text(text[: text.index("experiments:")] + f"experiments: {changes.pop('experiments')}\n")
    return load_config(EvaluateConfig, path, [f"{key}={value}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def run(config):
    evaluation = Evaluation(config, report_line=lambda line: None)
    evaluation.run()
    return evaluation.output


def test_files_of_one_study_are_left_out_together(config, run):
    cells = benchmark.list_cells(config)
    assert set(cells["fold"]) == {"0.h5mu", "1.h5mu", "pair"}
    tested = cells[(cells["fold"] == "pair") & (cells["part"] == "test")]
    assert tested.groupby("seed").size().tolist() == [40, 40]
    assert set(tested["cell"].str.slice(0, 6)) == {"2.h5mu", "3.h5mu"}
    others = cells[(cells["fold"] == "pair") & (cells["part"] != "test")]
    assert set(others["cell"].str.slice(0, 6)) == {"0.h5mu", "1.h5mu"}
    stored = benchmark.read_units(run)
    assert all(set(unit["arrays"]["cells"]) <= set(cells["cell"]) for unit in stored.values())


def test_predictions_of_others_are_scored_as_those_of_baselines_in_any_order_and_unit(run, tmp_path):
    units = benchmark.read_units(run)
    for name, unit in units.items():
        arrays = unit["arrays"]
        order = np.random.default_rng(0).permutation(len(arrays["cells"]))
        columns = np.arange(len(arrays["names"]))[::-1]
        values = 3 * arrays["PCA + ridge"].astype(float) + np.arange(len(arrays["names"]))
        np.savez(
            tmp_path / f"{name}.npz",
            cells=arrays["cells"][order],
            names=arrays["names"][columns],
            predicted=values[np.ix_(order, columns)],
        )
    table = benchmark.tabulate(run, tmp_path)
    wide = table.pivot_table(index=["study", "seed", "protein"], columns="method", values="pearson", dropna=False)
    np.testing.assert_allclose(wide[benchmark.OTHER], wide["PCA + ridge"], atol=1e-5)
    summary = benchmark.summarise(table)
    mean = wide["PCA + ridge"].groupby(["study", "seed"]).mean().groupby("study").mean().mean()
    assert summary.loc["PCA + ridge", "mean"] == pytest.approx(mean)
    (tmp_path / f"{name}.npz").unlink()
    assert len(set(benchmark.tabulate(run, tmp_path)["seed"])) == 2
    with pytest.raises(ValueError, match="`--predictions` must hold a file for a unit, got none"):
        benchmark.tabulate(run, tmp_path / "nothing")


def test_what_cannot_be_scored_is_told(run, tmp_path):
    units = benchmark.read_units(run)
    unit = next(iter(units.values()))
    panels = benchmark.find_panels(units)
    scored = benchmark.find_scored(unit, panels)
    arrays = unit["arrays"]
    with pytest.raises(ValueError, match=r"`names` must hold all .* scored proteins.*, got none of"):
        benchmark.score_unit(unit, scored, arrays["names"][:1], arrays["PCA + ridge"][:, :1])
    np.savez(
        tmp_path / "few.npz", cells=arrays["cells"][1:], names=arrays["names"], predicted=arrays["PCA + ridge"][1:]
    )
    with pytest.raises(ValueError, match=r"`cells` of .* must hold all test cells of the unit, got none for"):
        benchmark.score_file(unit, scored, tmp_path / "few.npz")
    panels.pop(next(name for name in panels if name != unit["fold"]))
    with pytest.raises(ValueError, match="`RUN` must hold a unit that tests each study, got none of"):
        benchmark.find_scored(unit, panels)
    with pytest.raises(ValueError, match="`RUN` must be a directory of `scfusion evaluate` with units"):
        benchmark.read_units(tmp_path)

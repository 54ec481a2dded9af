"""The recipe of the shipped models: settings, steps, licences, small directories, and the check of what it gives."""

import importlib.util
import json
import shutil
import sys

import pytest
import yaml
from launch import ROOT

from scfusion_fm.comparison.experiment import BASELINES
from scfusion_fm.comparison.study_figures import StudyFigure
from scfusion_fm.inference import model_files
from scfusion_fm.inference.model_files import verify_model
from scfusion_fm.notices import settings


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe_of, check = load("make_models"), load("check_models")
FIGURE = StudyFigure("annotation", "A new study", "scfusion-human-blood", "model", 100, [0.8, 0.82], 0.78, 0.84)
SOURCE = {"name": "blood", "cells": 1200, "licence": "CC BY 4.0", "reference": "a laboratory"}


@pytest.fixture
def recipe(tmp_path):
    return recipe_of.Recipe(tmp_path / "out", tmp_path / "files")


def test_settings_name_the_directories_of_the_run(recipe, tmp_path):
    for path in (ROOT / "configs" / "models").glob("*.yaml"):
        text = recipe.settings(path.stem).read_text()
        assert yaml.safe_load(text)
        assert "data/human" not in text.replace("data_dir: ", "")
        assert "runs/models" not in text
    atlas = yaml.safe_load(recipe.settings("atlas").read_text())
    assert atlas["output"] == str(tmp_path / "out" / "atlas.zarr")
    assert atlas["sources"][0]["path"] == str(tmp_path / "files" / "teaseq_pbmc.h5mu")
    recipe_of.check_licences(atlas["sources"])


def test_what_heads_and_figures_learn_from_is_in_the_atlas_and_what_is_scored_is_not():
    read = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "models").glob("*.yaml")}
    atlas = {source["path"].rpartition("/")[2] for source in read["atlas"]["sources"]}
    for task in ("cell_type_annotation", "cross_modal_prediction"):
        assert {path.rpartition("/")[2] for path in read[task]["data"]} <= atlas
    for task in ("new_studies_types", "new_studies_proteins"):
        defaults = read[task]["defaults"]
        studies = defaults["studies"]
        assert set(defaults["baselines"]) <= set(BASELINES[defaults["task"]])
        for experiment in read[task]["experiments"].values():
            (scored,) = experiment["split"]["test_groups"]
            assert set(experiment["data"]) - atlas == set(studies.get(scored, [scored]))


def test_a_finished_step_is_not_run_again_and_a_failed_one_is_told(recipe, capfd):
    command = [sys.executable, "-c", f"open({str(recipe.output / 'made')!r}, 'x').close()"]
    recipe.run("a step", "made", command)
    recipe.run("a step", "made", command)
    assert capfd.readouterr().out == "== a step\n== a step: done before\n"
    assert recipe_of.Recipe(recipe.output, recipe.data).seconds.keys() == {"a step"}
    with pytest.raises(ValueError, match="`another` must end well, got exit code 3"):
        recipe.run("another", "none", [sys.executable, "-c", "raise SystemExit(3)"])
    assert recipe_of.Recipe(recipe.output, recipe.data).seconds.keys() == {"a step", "another"}


def test_other_licences_are_refused():
    recipe_of.check_licences([SOURCE])
    with pytest.raises(ValueError, match=r"`sources` must have one of the licences .*, got {'kang': 'GPL-3'}"):
        recipe_of.check_licences([SOURCE, {"name": "kang", "licence": "GPL-3"}])


def test_the_small_directory_has_its_card_and_passes_the_check(recipe, model_dir, monkeypatch, capsys):
    monkeypatch.setattr(recipe_of.Recipe, "sources", [SOURCE])
    recipe.seconds = {"pretrain": 600.0}
    (recipe.output / "model").symlink_to(model_dir)
    recipe_of.ship(recipe, recipe_of.NAME, "model", [FIGURE])
    shipped = recipe.output / "shipped" / recipe_of.NAME
    verify_model(shipped)
    card = (shipped / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "| blood | 1,200 | CC BY 4.0 |",
        "A new study (100 cells)",
        "0.810 (0.780",
        "kWh",
    ):
        assert part in card
    monkeypatch.setattr(model_files, "SHIPPED", recipe.output / "shipped")
    capsys.readouterr()
    monkeypatch.setattr(settings, "verbosity", 0)  # as it was, in the end
    monkeypatch.setattr(sys, "argv", ["check_models.py", str(recipe.output / "shipped")])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert (ended.value.code, capsys.readouterr().out) == (False, "1 models are what the recipe gives\n")
    (recipe.output / "shipped" / "README.md").write_text("of the directory")
    made = recipe.output / "made again"
    shutil.copytree(shipped, made / "other-name")
    recipe_of.install(made, recipe.output / "shipped")
    names = {path.name for path in (recipe.output / "shipped").iterdir()}
    assert names == {"README.md", "other-name"}
    shipped = recipe.output / "shipped" / "other-name"
    path = shipped / "figures.json"
    other = recipe.output / "other"
    worse = json.dumps([json.loads(path.read_text())[0] | {"scores": [0.5]}])
    recipe_of.ship_model(model_dir, other, card, worse.encode())
    assert check.compare_models(shipped, other) == ["A new study: macro-F1 0.500, was 0.810; up to 0.020 is spread"]

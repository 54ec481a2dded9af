"""Every YAML loads through its schema; mistakes are named."""

from pathlib import Path

import pytest
import yaml

from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.finetune import AnnotationConfig, CrossModalConfig, UnimodalTransferConfig
from scfusion_fm.config.imputation import ImputationConfig
from scfusion_fm.config.integration import IntegrationConfig
from scfusion_fm.config.loading import config_differences, load_config, save_config
from scfusion_fm.config.prepare import PrepareConfig
from scfusion_fm.config.pretrain import PretrainConfig

ROOT = Path(__file__).parents[2]
SCHEMAS = {
    "data": PrepareConfig,
    "pretrain": PretrainConfig,
    "evaluate": EvaluateConfig,
    "cell_type_annotation": AnnotationConfig,
    "cross_modal_prediction": CrossModalConfig,
    "unimodal_transfer": UnimodalTransferConfig,
    "protein_imputation": ImputationConfig,
    "batch_integration": IntegrationConfig,
    "atlas": PrepareConfig,
    "pretraining": PretrainConfig,
    "new_studies_types": EvaluateConfig,
    "new_studies_proteins": EvaluateConfig,
}
FILES = sorted(ROOT.glob("configs/**/*.yaml"))


def schema_of(path):
    return SCHEMAS.get(path.parent.name) or SCHEMAS[path.stem]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_yaml_loads_and_saves(path, tmp_path):
    config = load_config(schema_of(path), path)
    save_config(config, tmp_path / "again.yaml")
    assert load_config(schema_of(path), tmp_path / "again.yaml") == config


@pytest.mark.parametrize("stem", [p.stem for p in FILES if p.parent.name == "finetune"])
def test_one_stem_per_task(stem):
    assert (ROOT / "finetune" / f"{stem}.py").is_file()
    assert (ROOT / "configs" / "finetune" / f"{stem}.yaml").is_file()


def test_demo_configs_hold_out_the_same_cells():
    splits = [
        yaml.safe_load(p.read_text()).get("split")
        for p in FILES
        if p.parent.name in ("data", "finetune") and p.stem != "human"
    ]
    assert len(splits) >= 3
    assert all(s == splits[0] for s in splits)


DEMO = ROOT / "configs" / "pretrain" / "demo.yaml"


def test_overrides_replace_settings():
    config = load_config(PretrainConfig, DEMO, ["optim.lr=0.5", "model.hidden_size=8", "run.tensorboard=false"])
    assert (config.optim.lr, config.model["hidden_size"], config.run.tensorboard) == (0.5, 8, False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.learning_rate=1"], "Unknown setting `optim.learning_rate`"),
        (["optim.epoch=1"], "Did you mean optim.epochs?"),
        (["zebra=1"], "Known: output_dir"),
        (["optim.lr=fast"], "In .*demo.yaml: Value 'fast'"),
        (["optim"], "Overrides must read `key=value`, got 'optim'"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, DEMO, overrides)


@pytest.mark.parametrize("schema", [AnnotationConfig, UnimodalTransferConfig])
def test_a_setting_by_its_former_name_is_told_the_new_one(schema, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("label_key: x\n")
    with pytest.raises(ValueError, match=r"Unknown setting `label_key` in .*run.yaml. It is called labels_key now."):
        load_config(schema, path)


def test_settings_without_a_value_are_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: x\n")
    with pytest.raises(ValueError, match=r"`atlas` must be given, as a flag or in .*run.yaml, got nothing"):
        load_config(PretrainConfig, path)


def test_unknown_keys_of_sources_are_named(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("output: x\nsources: [{path: a.h5ad, nam: b}]\n")
    with pytest.raises(ValueError, match=r"Unknown setting `sources\[0\].nam` .* Did you mean sources\[0\].name"):
        load_config(PrepareConfig, path)


def test_an_override_inside_a_list_is_refused(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("output: x\nsources: [{path: a.h5ad}]\n")
    with pytest.raises(ValueError, match="Overrides must replace a list as a whole"):
        load_config(PrepareConfig, path, ["sources.0.modality=rna"])
    config = load_config(PrepareConfig, path, ["sources=[{path: b.h5ad}]"])
    assert [s.path for s in config.sources] == ["b.h5ad"]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_config(PretrainConfig, tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="must be readable YAML"):
        load_config(PretrainConfig, tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ValueError, match="must hold settings"):
        load_config(PretrainConfig, tmp_path / "list.yaml")


def test_differences_name_the_setting():
    assert config_differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c: 2 -> 3"]
    assert config_differences({"a": 1}, {"a": 1}) == []
    assert config_differences({}, {"new": 1}) == ["new: None -> 1"]


EVALUATE = ROOT / "configs" / "evaluate" / "demo.yaml"


def test_experiments_get_the_defaults_that_they_do_not_replace(tmp_path):
    overrides = ["defaults.seeds=[3,4]", "experiments.cell types.optim.lr=0.5"]
    config = load_config(EvaluateConfig, EVALUATE, overrides)
    first, second, _ = config.experiments.values()
    assert (first.seeds, second.seeds) == ([3, 4], [3, 4])
    assert (first.optim.lr, second.optim.lr) == (0.5, config.defaults.optim.lr)
    assert first.optim.epochs == second.optim.epochs == config.defaults.optim.epochs
    assert first.data == second.data == config.defaults.data


@pytest.mark.parametrize("name", ["annotation", "cross_modal", "paper_protocol"])
def test_recipes_take_one_path_for_all_variants_of_their_model(name):
    config = load_config(EvaluateConfig, EVALUATE.with_stem(name), ["defaults.models.pretrained.path=mine"])
    assert {m.path for e in config.experiments.values() for m in e.models.values()} == {"mine"}


@pytest.mark.parametrize("name", ["new_laboratory_proteins", "new_laboratory_types"])
def test_recipes_for_new_laboratories_are_of_baselines_alone_and_take_models(name):
    path = EVALUATE.with_stem(name)
    assert not any(e.models for e in load_config(EvaluateConfig, path).experiments.values())
    config = load_config(EvaluateConfig, path, ["defaults.models.mine.path=mine"])
    assert all(set(e.models) == {"mine"} and e.split.group_key == "study" for e in config.experiments.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "experiments.x.tsak=annotation",
            r"Unknown setting `experiments\.x\.tsak` .* Did you mean .*task",
        ),
        ("experiments.x.models.a.pth=b", r"Unknown setting `experiments\.x\.models\.a\.pth`"),
        ("experiments.x.task=poetry", r"`experiments\.x\.task` must be one of annotation, .* got 'poetry'"),
        ("experiments.x.split.kind=luck", r"`experiments\.x\.split\.kind` must be one of"),
        ("experiments.x.seeds=[]", r"`experiments\.x\.seeds` must have an entry"),
        ("experiments.x.seeds=[1,1]", r"`experiments\.x\.seeds` must name everything once"),
        ("experiments.x.inputs=[dna]", r"`experiments\.x\.inputs` must be of rna, adt, rna\+adt, got \['dna'\]"),
        ("experiments.x.scored_genes=1", r"`experiments\.x\.scored_genes` must lie in \[2, 1e12\], got 1"),
        ("experiments.x.hidden_fraction=1", r"`experiments\.x\.hidden_fraction` must lie in \(0, 1\)"),
        (
            "experiments.x.task=clustering experiments.x.label_budgets=[9]",
            "`.*label_budgets` is for the task annotation",
        ),
        ("experiments.x.task=clustering experiments.x.protocol=paper", "`.*protocol` paper is for the task annotation"),
        (
            "experiments.x.models.a.path=b experiments.x.models.a.projected_proteins=false",
            r"`experiments\.x\.models\.a\.projected_proteins` is for the task annotation with `inputs: \[rna\]`",
        ),
        ("experiments.x.split.test_groups=[a]", "`.*test_groups` is for the kind leave_group_out, got 'k_fold'"),
        (
            "experiments.x.split.kind=leave_group_out experiments.x.split.test_groups=[a,a]",
            r"test_groups` must name everything once, got \['a', 'a'\]",
        ),
        (
            "experiments.x.studies.a=[other.h5ad]",
            r"`.*studies` must name files of `data`, each once, got \['other.h5ad'\]",
        ),
        ("experiments.x.cells_per_group=9", "`.*cells_per_group` is for the split leave_group_out, got 'k_fold'"),
        ("experiments.x.task=integration experiments.x.split.kind=leave_group_out", "must be k_fold for integration"),
    ],
)
def test_mistakes_in_experiments_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(EvaluateConfig, EVALUATE, ["experiments.x.task=annotation", *override.split()])


def test_an_evaluation_needs_an_experiment(tmp_path):
    (tmp_path / "empty.yaml").write_text("output_dir: x\n")
    with pytest.raises(ValueError, match="`experiments` must hold at least one experiment, got none"):
        load_config(EvaluateConfig, tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.keep_checkpoints=0", r"`run\.keep_checkpoints` must lie in \[1, 1e12\], got 0"),
        ("run.log_every=0", r"`run\.log_every` must lie in \[1, 1e12\]"),
        ("optim.epochs=.inf", r"`optim\.epochs` must lie in \[0, 1e12\], got inf"),
        ("optim.lr=.nan", r"`optim\.lr` must lie in \[0, 1e12\], got nan"),
        ("optim.embedding_lr_ratio=2", r"`optim\.embedding_lr_ratio` must lie in \[0, 1\], got 2\.0"),
        ("start_cells=-1", r"`start_cells` must lie in \[0, 1000000\], got -1"),
        ("optim.warmup_ratio=5", r"`optim\.warmup_ratio` must lie in \[0, 1\], got 5\.0"),
        ("masking.rna_ratio=1.3", r"`masking\.rna_ratio` must lie in \[0, 1\), got 1\.3"),
        ("masking.adt_ratio=-0.1", r"`masking\.adt_ratio` must lie in \[0, 1\), got -0\.1"),
        (
            "masking.hide_rna_probability=0.9",
            r"`masking\.hide_adt_probability` must be .* at most 1 together",
        ),
        ("masking.hide_adt_probability=-1", "must be at least 0 and at most 1 together, got .* and -1"),
        ("loader.block_rows=0", r"`loader\.block_rows` must lie in \[1, 1e12\], got 0"),
        ("loader.window_blocks=0", r"`loader\.window_blocks` must lie in \[1, 1e12\], got 0"),
        ("loader.lanes=0", r"`loader\.lanes` must lie in \[1, 1e12\], got 0"),
    ],
)
def test_pretraining_settings_out_of_range_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, DEMO, [override])

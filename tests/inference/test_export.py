"""An exported directory loads where this package is, and where it is not."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
from launch import Job, run, write_config
from seal import change_json, seal
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)

from scfusion_fm import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCellTypeAnnotation,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
    ScFusionTTTModel,
)
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS
from scfusion_fm.inference.export import export_model, model_card
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.inference.model_files import verify_model
from scfusion_fm.inference.seen import load_model_seen
from scfusion_fm.untrusted.checksums import SUMS, read_sums

CLEAN = """
import sys, warnings
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("scfusion_fm", "anndata", "zarr", "scanpy", "omegaconf", "triton"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import numpy as np, pandas as pd, torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification
from transformers import pipeline
path, annotator, predictor, counts, out = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=True)
model = AutoModel.from_pretrained(path, trust_remote_code=True)
data = np.load(counts)
inputs = extractor(rna_counts=data["rna"], adt_counts=data["adt"])
with torch.inference_mode():
    pooled = model(**inputs).pooler_output
    assert isinstance(model(**inputs, return_dict=False), tuple)
card = open(path + "/README.md").read().split("```python\\n")[1].split("```")[0]
names = ["unknown", *reversed(extractor.gene_ids)]
found = {"PATH": path, "counts": pd.DataFrame(np.pad(data["rna"][:, ::-1], ((0, 0), (1, 0))), columns=names)}
exec(card, found)
assert torch.equal(found["embedding"], model(**extractor(rna_counts=data["rna"])).pooler_output)
full = AutoModelForPreTraining.from_pretrained(path, trust_remote_code=True)
assert type(full).__name__ == "ScFusionTTTForPreTraining"
with torch.inference_mode():
    output = full(**inputs, **{name: torch.from_numpy(data[name]) for name in data if "masked" in name})
head = AutoModelForSequenceClassification.from_pretrained(annotator, trust_remote_code=True)
tables = {name + "_counts": pd.DataFrame(data[name]) for name in ("rna", "adt")}
tables["rna_counts"].columns, tables["adt_counts"].columns = extractor.gene_ids, extractor.protein_names
pipe = pipeline("cell-type-annotation", model=annotator, trust_remote_code=True, batch_size=2, dtype="float32")
assert type(pipe).__module__.startswith("transformers_modules")
with torch.inference_mode():
    found, scores = pipe(tables), head(**inputs).logits.softmax(1)
assert [x["label"] for x in found] == [head.config.id2label[i] for i in scores.argmax(1).tolist()]
assert np.allclose([x["score"] for x in found], scores.max(1).values, rtol=1e-4)
pipe = pipeline("protein-prediction", model=predictor, trust_remote_code=True, dtype="float32")
proteins = pd.DataFrame(pipe(tables["rna_counts"]))
assert list(proteins) == pipe.model.config.predicted_features
with torch.inference_mode():
    logits = pipe.model(**extractor(rna_counts=tables["rna_counts"])).logits
assert np.allclose(proteins, logits[:, extractor.index_proteins(list(proteins))], atol=1e-5)
torch.save({"pooled": pooled, "rna": output.rna_reconstruction, "adt": output.adt_reconstruction}, out)
for part in (head, extractor):
    part.save_pretrained(out + ".again")
assert "scfusion_fm" not in sys.modules
"""


@pytest.fixture
def counts(model_dir):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    rng = np.random.default_rng(0)
    rna = rng.poisson(2.0, (5, len(extractor.gene_ids)))
    return {"rna": rna, "adt": rng.poisson(9.0, (5, len(extractor.protein_names)))}


def test_auto_classes_give_our_classes(model_dir):
    assert type(AutoModel.from_pretrained(model_dir)) is ScFusionTTTModel
    assert type(AutoModelForPreTraining.from_pretrained(model_dir)) is ScFusionTTTForPreTraining
    assert type(AutoModelForMaskedLM.from_pretrained(model_dir)) is ScFusionTTTForCrossModalPrediction
    assert type(AutoFeatureExtractor.from_pretrained(model_dir)) is ScFusionTTTFeatureExtractor


def test_directory_loads_without_the_package_with_difference_0(model_dir, annotator, predictor, counts, tmp_path):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    inputs = extractor(rna_counts=counts["rna"], adt_counts=counts["adt"])
    masks = {
        "rna_bool_masked_pos": torch.arange(extractor.num_rna_tokens).expand(5, -1) % 2 == 0,
        "adt_bool_masked_pos": torch.arange(extractor.num_proteins).expand(5, -1) % 2 == 1,
    }
    np.savez(tmp_path / "counts.npz", **counts, **masks)
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    places = (model_dir, annotator, predictor, tmp_path / "counts.npz", tmp_path / "out.pt")
    run(sys.executable, "-c", CLEAN, *places, env=environment)
    there = torch.load(tmp_path / "out.pt")
    with torch.inference_mode():
        assert torch.equal(there["pooled"], AutoModel.from_pretrained(model_dir)(**inputs).pooler_output)
        here = AutoModelForPreTraining.from_pretrained(model_dir)(**inputs, **masks)
    assert torch.equal(there["rna"], here.rna_reconstruction)
    assert torch.equal(there["adt"], here.adt_reconstruction)
    # Imported on GPUs only, so that nothing above would miss it.
    assert list((tmp_path / "modules").rglob("ttt_linear_kernels.py"))
    verify_model(tmp_path / "out.pt.again")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out.pt.again", trust_remote_code=False)
    assert type(again) is ScFusionTTTForCellTypeAnnotation
    assert {"pipelines_scfusion_ttt.py", "counts_scfusion_ttt.py"} <= read_sums(tmp_path / "out.pt.again").keys()


def test_feature_extractor_survives_saving(model_dir, counts, tmp_path):
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    extractor.save_pretrained(tmp_path)
    again = ScFusionTTTFeatureExtractor.from_pretrained(tmp_path)
    assert again.gene_ids == extractor.gene_ids
    assert again.patch_size == 2
    a, b = (e(rna_counts=counts["rna"]) for e in (extractor, again))
    assert torch.equal(a["rna_values"], b["rna_values"])


def test_saving_again_keeps_what_the_model_has_seen_and_makes_checksums_fit(model_dir, tmp_path):
    model, extractor = AutoModel.from_pretrained(model_dir), AutoFeatureExtractor.from_pretrained(model_dir)
    for saved in (model, extractor, model):  # in any order, and over what is there
        saved.save_pretrained(tmp_path / "again")
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
    assert (tmp_path / "again" / SEEN_CELLS).read_bytes() == (model_dir / SEEN_CELLS).read_bytes()
    verify_model(tmp_path / "again")
    loaded, _ = load_pretrained(tmp_path / "again", ScFusionTTTModel)
    loaded.save_pretrained(tmp_path / "again")
    loaded.save_pretrained(tmp_path / "third")
    assert load_model_seen(tmp_path / "again").parts[0].name == "pretraining"
    assert (tmp_path / "third" / SEEN_CELLS).is_file()
    listed = read_sums(tmp_path / "third")
    assert listed.keys() == {p.name for p in (tmp_path / "third").iterdir()} - {SUMS}


def test_what_the_model_has_seen_is_not_lost_without_a_word(model_dir, tmp_path, monkeypatch):
    model = ScFusionTTTModel.from_pretrained(model_dir)
    model.name_or_path = "nobody/nothing"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match=r"seen_cells.npz.* was not found at 'nobody/nothing': it is not"):
        model.save_pretrained(tmp_path / "out")


@pytest.fixture
def told(caplog):
    """What transformers says, as its users see it."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    yield caplog
    transformers.logging.disable_propagation()
    transformers.logging.set_verbosity(before)


def test_heads_that_are_not_needed_are_not_reported(model_dir, annotator, predictor, told):
    for path in (model_dir, annotator, predictor):
        AutoModel.from_pretrained(path)
    ScFusionTTTForCrossModalPrediction.from_pretrained(predictor)
    assert told.text == ""


def test_missing_weights_and_those_of_no_head_are_reported(model_dir, told, tmp_path):
    ScFusionTTTForCellTypeAnnotation.from_pretrained(model_dir)
    assert "classifier.weight" in told.text
    assert "MISSING" in told.text
    assert "UNEXPECTED" not in told.text
    deep = ScFusionTTTForPreTraining.from_pretrained(model_dir, num_decoder_layers=2)
    assert "rna_decoder.stack.layers.1" in told.text
    told.clear()
    deep.save_pretrained(tmp_path / "deep")
    ScFusionTTTForPreTraining.from_pretrained(tmp_path / "deep", num_decoder_layers=1)
    assert "UNEXPECTED" in told.text


def test_directory_is_complete_and_readable(model_dir):
    names = {p.name for p in model_dir.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= names
    assert {"modeling_scfusion_ttt.py", "tokens_scfusion_ttt.py", "ttt_layers.py"} <= names
    assert not {"__init__.py", "ttt_reference.py"} & names
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in model_dir.iterdir())
    auto_map = json.loads((model_dir / "config.json").read_text())["auto_map"]
    for target in auto_map.values():
        module, name = target.split(".")
        assert f"class {name}(" in (model_dir / f"{module}.py").read_text()
    assert (model_dir / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")


def test_names_stay_within_their_line_of_the_card(model_dir):
    model, extractor = (
        ScFusionTTTModel.from_pretrained(model_dir),
        ScFusionTTTFeatureExtractor.from_pretrained(model_dir),
    )
    card = model_card(model, extractor, {"classes": "B, <script>\n# T & NK"})
    assert "\n- classes: B, &lt;script&gt;\\n# T &amp; NK\n" in card


def test_nothing_is_overwritten_or_left_half_written(model_dir, tmp_path, monkeypatch):
    model = ScFusionTTTModel.from_pretrained(model_dir)
    extractor = ScFusionTTTFeatureExtractor.from_pretrained(model_dir)
    with pytest.raises(ValueError, match="`output` must not exist yet"):
        export_model(model, extractor, model_dir, {})

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(extractor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(model, extractor, tmp_path / "model", {})
    assert list(tmp_path.iterdir()) == []


class DumpingJob(Job):
    script = "tests/training/dump_engine.py"


@pytest.mark.parametrize(("stage", "precision", "tolerance"), [(3, None, 1e-5), (2, "bf16", 0.05)])
def test_export_has_the_float32_weights_of_the_engine_and_gives_its_outputs(
    atlas_path, tmp_path, stage, precision, tolerance
):
    config, output = write_config(tmp_path, atlas_path)
    settings = {"zero_optimization": {"stage": stage}} | ({precision: {"enabled": True}} if precision else {})
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    DumpingJob(2, tmp_path / "logs", "--config", config, f"deepspeed={tmp_path / 'ds.json'}").finish()
    run(sys.executable, "pretrain/export.py", output, tmp_path / "model")
    engine = torch.load(output / "engine.pt")
    exported = ScFusionTTTForPreTraining.from_pretrained(tmp_path / "model")
    assert exported.state_dict().keys() == engine["weights"].keys()
    for name, weight in exported.state_dict().items():
        assert torch.equal(weight, engine["weights"][name]), name
    with torch.inference_mode():
        output = exported(**engine["batch"])
    for name, expected in engine["outputs"].items():
        scale = output[name].abs().max()
        torch.testing.assert_close(output[name] / scale, expected / scale, rtol=0, atol=tolerance)


def test_export_refuses_what_is_not_complete(atlas_path, tmp_path):
    config, output = write_config(tmp_path, atlas_path)
    Job(2, tmp_path / "logs", "--config", config, "optim.epochs=0.5").finish()
    (checkpoint,) = (output / "checkpoints").iterdir()
    (checkpoint / "rank_00001.safetensors").rename(tmp_path / "kept")

    def refusal(*arguments):
        done = run(sys.executable, "pretrain/export.py", output, tmp_path / "model", *arguments, check=False)
        assert (done.returncode, (tmp_path / "model").exists()) == (2, False)
        return done.stderr

    assert "rank_00001.safetensors is missing" in refusal()
    assert "must hold a checkpoint of step 3" in refusal("--step", "3")
    shutil.move(tmp_path / "kept", checkpoint / "rank_00001.safetensors")
    config = (output / "model" / "config.json").read_text()
    change_json(output / "model" / "config.json", hidden_size=4096)
    assert "`run` must hold a checkpoint of its model, got" in refusal()
    (output / "model" / "config.json").write_text(config)
    assert "config.json' must have the checksum that SHA256SUMS" in refusal()
    seal(output / "model")
    (output / "atlas_manifest.json").write_text("{}")
    assert "atlas_manifest.json' must be the manifest of an atlas, got a damaged one" in refusal()
    checkpoint.rename(checkpoint.with_suffix(".partial"))
    assert "`run` must hold a checkpoint" in refusal()

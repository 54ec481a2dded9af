"""The set of seen cells: never misses one, seldom takes another for one, and survives its file."""

import json
import warnings

import anndata as ad
import mudata as md
import numpy as np
import pytest
import zarr
from make_atlas import remove_column, write_atlas
from make_cells import make_modalities, write_h5mu

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.files.align import align_cells
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.fingerprints.cells import CellFingerprints, fingerprint_cells
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, BloomFilter, SeenCells, SeenPart, load_seen, remember_atlas
from scfusion_fm.data.hashing import hash_keys
from scfusion_fm.data.vocabulary.vocabulary import build_vocabulary


def keys(number, seed):
    return hash_keys(seed, np.arange(number))


def prints(number, seed):
    return CellFingerprints(keys(number, seed), keys(number, seed + 1000))


@pytest.mark.parametrize("rate", [1e-2, 1e-4])
@pytest.mark.parametrize("number", [300, 20_000])
def test_measured_false_positive_rate_is_that_of_the_formula(rate, number):
    built = BloomFilter.build(keys(number, 1), rate)
    assert built.contains(keys(number, 1)).all()
    others = 1_000_000
    measured = built.contains(keys(others, 2)).mean()
    deviation = 5 * np.sqrt(rate / others)
    assert abs(measured - built.false_positive_rate) < deviation
    assert built.false_positive_rate < 1.2 * rate
    assert len(built.bits) <= number * np.log(1 / rate) / np.log(2) ** 2 / 8 + 9


def test_no_fingerprint_is_never_seen():
    built = BloomFilter.build(np.append(keys(50, 1), np.zeros(3, np.uint64)))
    assert built.num_keys == 50
    assert not built.contains(np.zeros(2, np.uint64)).any()
    empty = BloomFilter.build(np.zeros(0, np.uint64))
    assert not empty.contains(keys(1000, 3)).any()
    assert empty.false_positive_rate == 0


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1e-20])
def test_rate_is_a_probability(rate):
    with pytest.raises(ValueError, match=r"`rate` must lie in \(1e-19, 1\)"):
        BloomFilter.build(keys(3, 0), rate)


def test_answer_counts_cells_by_kind_and_by_training():
    old, tuned, new = prints(400, 1), prints(100, 2), prints(300, 3)
    seen = SeenCells((SeenPart.build("pretraining", old),)) + SeenPart.build("tuning", tuned)
    mixed = CellFingerprints(
        rna=np.concatenate([old.rna[:7], new.rna, np.zeros(5, np.uint64)]),
        adt=np.concatenate([old.adt[:3], new.adt[:4], tuned.adt[:10], new.adt[10:], np.zeros(5, np.uint64)]),
    )
    answer = seen.look_up(mixed)
    assert (answer.num_cells, answer.with_rna_fingerprint, answer.with_adt_fingerprint) == (312, 307, 307)
    assert (answer.seen_by_rna, answer.seen_by_adt, answer.seen) == (7, 13, 17)
    assert answer.seen_in == {"pretraining": 7, "tuning": 10}
    assert 0 < answer.expected_by_chance < 307 * 4 * 2e-4
    assert answer.beyond_chance
    assert not seen.look_up(new).beyond_chance


def test_chance_explains_a_false_positive_but_not_many():
    filters = (BloomFilter.build(values, rate=1e-2) for values in vars(prints(1000, 1)).values())
    seen = SeenCells((SeenPart("pretraining", 1000, *filters),))
    answer = seen.look_up(prints(5000, 2))
    assert answer.seen == pytest.approx(answer.expected_by_chance, abs=5 * answer.expected_by_chance**0.5)
    assert answer.seen > 50
    assert not answer.beyond_chance
    assert answer.to_dict()["beyond_chance"] is False
    assert str(answer).endswith("no more than chance explains")
    some = CellFingerprints(*(np.concatenate([keys(40, s), keys(960, s + 1)]) for s in (1, 1001)))
    assert seen.look_up(some).beyond_chance
    assert str(seen.look_up(some)).endswith(" more than chance explains")
    nothing = CellFingerprints(np.zeros(9, np.uint64), np.zeros(9, np.uint64))
    assert "cannot tell: no cell has enough counts" in str(seen.look_up(nothing))


def test_file_gives_the_same_set_again(tmp_path):
    seen = SeenCells((SeenPart.build("pretraining", prints(50, 1)),)) + SeenPart.build("tuning on 'ä'", prints(5, 2))
    seen = seen + SeenPart.build("tuning on 'ä'", prints(5, 3))
    assert [p.name for p in seen.parts] == ["pretraining", "tuning on 'ä'", "tuning on 'ä' (2)"]
    assert load_seen(tmp_path) is None
    seen.save(tmp_path / SEEN_CELLS)
    again = load_seen(tmp_path)
    assert [(p.name, p.num_cells) for p in again.parts] == [(p.name, p.num_cells) for p in seen.parts]
    cells = CellFingerprints(*(np.concatenate([keys(90, s), keys(9, s + 1)]) for s in (1, 1001)))
    assert again.look_up(cells) == seen.look_up(cells)


def save(path, change=lambda facts: None, **arrays):
    """Write a file of 50 and 5 cells, with something changed."""
    seen = SeenCells((SeenPart.build("pretraining", prints(50, 1)),)) + SeenPart.build("tuning", prints(5, 2))
    seen.save(path)
    with np.load(path) as file:
        content = dict(file)
    facts = json.loads(str(content.pop("about")))
    change(facts)
    content |= arrays
    kept = {name: values for name, values in content.items() if values is not None}
    np.savez(path, about=np.array(json.dumps(facts)), **kept)


def set_filter(**sizes):
    return lambda facts: facts["parts"][0]["rna"].update(sizes)


@pytest.mark.parametrize(
    ("change", "arrays", "message"),
    [
        (lambda facts: facts.update(format="other"), {}, r"`format` must be one of \['scfusion-seen-cells 1'\]"),
        (lambda facts: facts.update(parts=[]), {}, "`parts` must each have a name of their own, at least one, got 0"),
        (lambda facts: facts["parts"][1].update(name="pretraining"), {}, "`parts` must each have a name"),
        (lambda facts: facts["parts"][0].update(num_cells=3), {}, "`num_cells` must be at least 50 keys, got 3"),
        (set_filter(num_hashes=10**12), {}, "`parts.rna.num_hashes` must be a whole number from 1 to 64"),
        (set_filter(num_hashes=0), {}, "`parts.rna.num_hashes` must be a whole number from 1 to 64"),
        (set_filter(num_hashes=12), {}, "`pretraining.rna` must have (the size for|about)"),
        (set_filter(num_keys=40), {}, "`pretraining.rna` must have the size for 40 keys, got 128 bytes"),
        (set_filter(num_keys=-1), {}, "`parts.rna.num_keys` must be a whole number from 0"),
        (set_filter(num_keys=0), {}, "`pretraining.rna` must have the size for 0 keys"),
        (set_filter(), {"0_rna": np.full(128, 255, np.uint8)}, "`pretraining.rna` must have about .* bits set"),
        (set_filter(), {"0_rna": np.zeros(128, np.uint8)}, "`pretraining.rna` must have about .* bits set"),
        (set_filter(), {"0_rna": np.zeros(0, np.uint8)}, "`pretraining.rna` must have the size for 50 keys, got 0"),
        (set_filter(), {"0_rna": np.zeros(128)}, "must hold arrays of bytes and a text"),
        (set_filter(), {"1_adt": None}, "arrays must be the two of each of 2 parts, got 3"),
        (set_filter(), {"1_adt": np.array("text")}, "arrays must be the two of each of 2 parts, got 4"),
    ],
)
def test_filters_that_do_not_fit_their_counts_are_broken(tmp_path, change, arrays, message):
    save(tmp_path / SEEN_CELLS, change, **arrays)
    with pytest.raises(ValueError, match=rf"must be a complete set of fingerprints, got a broken one: {message}"):
        load_seen(tmp_path)


def test_filters_of_all_sizes_fit_their_counts():
    for number in (0, 1, 2, 3, 9, 50, 700):
        for rate in (1e-18, 1e-4, 0.1, 0.4, 0.9):
            BloomFilter.build(keys(number, number), rate).check("any")


def test_broken_files_are_refused(tmp_path):
    path = tmp_path / SEEN_CELLS
    save(path)
    whole = path.read_bytes()
    for content in (b"", b"no", whole[:100], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a complete set of fingerprints"):
            SeenCells.load(path)
    np.savez(path, about=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="`about` must be a text, got none"):
        SeenCells.load(path)


@pytest.fixture
def atlas(tmp_path):
    write_h5mu(tmp_path / "a.h5mu", 160, seed=0)
    write_atlas(PrepareConfig(sources=[SourceConfig(tmp_path / "a.h5mu")], genes="sources"), tmp_path / "atlas")
    return Atlas(tmp_path / "atlas")


def test_training_cells_of_an_atlas_are_known_again_and_test_cells_are_not(atlas, tmp_path):
    """Also when the cells have other names, stand in another order, and antibodies and genes do too."""
    rna, adt = make_modalities(160, seed=0)
    order = np.random.default_rng(5).permutation(160)
    for modality in (rna, adt):
        modality.obs_names = [f"other{i}" for i in range(160)]
    shuffled = {"rna": rna[order][:, rna.var_names[::-1]].copy(), "adt": adt[order][:, adt.var_names[::-1]].copy()}
    with warnings.catch_warnings(action="ignore"):
        md.MuData(shuffled).write(tmp_path / "copy.h5mu")
    aligned = align_cells(read_cells(tmp_path / "copy.h5mu"), atlas.vocabulary)
    found = fingerprint_cells(aligned, atlas.vocabulary.gene_ids, atlas.vocabulary.protein_names)
    names = ad.io.read_elem(zarr.open_group(atlas.path, mode="r")["obs"]).index.str.split(":c").str[0]
    split = dict(zip(names.str.removeprefix("a:s0c"), atlas.split, strict=True))
    is_test = np.array([split[str(i)] == "test" for i in order])
    seen = remember_atlas(atlas)
    assert seen.parts[0].num_cells == (~is_test).sum()
    own = seen.look_up(found[~is_test])
    assert own.seen == own.with_fingerprint > 50
    assert seen.look_up(found[is_test]).seen == 0


def test_an_atlas_without_fingerprints_is_refused(atlas, tmp_path):
    remove_column(tmp_path / "atlas", "adt_fingerprint")
    with pytest.raises(ValueError, match="`atlas` must hold fingerprints of its cells"):
        remember_atlas(atlas)


def test_a_file_cut_to_other_genes_is_known_by_its_proteins(shared_data):
    vocabulary = build_vocabulary(None, "protein_coding", "all")
    found = {}
    for name in ("teaseq_pbmc.h5mu", "demo_teaseq_pbmc.h5mu", "teaseq_pbmc_adt_only.h5ad"):
        with warnings.catch_warnings(action="ignore"):
            aligned = align_cells(read_cells(shared_data / name), vocabulary)
        found[name] = fingerprint_cells(aligned, vocabulary.gene_ids, vocabulary.protein_names)
    seen = SeenCells((SeenPart.build("pretraining", found["teaseq_pbmc.h5mu"]),))
    cut = seen.look_up(found["demo_teaseq_pbmc.h5mu"])
    assert (cut.seen_by_rna, cut.seen_by_adt) == (0, 1262)
    others = seen.look_up(found["teaseq_pbmc_adt_only.h5ad"])
    assert not others.beyond_chance

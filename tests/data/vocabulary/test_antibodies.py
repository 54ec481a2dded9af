"""Names of antibodies resolve to what they mean, or to nothing: unknown is better than wrong."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import read_elem
from hypothesis import given, settings
from hypothesis import strategies as st

from scfusion_fm.data.vocabulary.antibodies import resolve_antibodies
from scfusion_fm.data.vocabulary.reference import load_antibody_table

MAX_UNRESOLVED = 0.03  # of the names of a panel that a person can resolve
UNTOLD = {"AB_TCR_Vg2", "anti-human-TCR.1"}  # chains that lost their Greek letter: nobody can tell
PANELS = pd.read_csv(Path(__file__).parent / "antibody_panels.tsv", sep="\t", dtype=str, keep_default_na=False)
TABLE = load_antibody_table()
NAMES = TABLE[(TABLE.kind == "name") & (TABLE.protein != "")]
GENES_OF = dict(zip(TABLE.protein, TABLE.gene_symbols, strict=True))


def count_wrong(names: list[str], right: list[set[str]], is_control: list[bool]) -> tuple[list[str], list[str]]:
    """Give the names that resolve to another molecule, and those that do not resolve; no genes: none is right."""
    found = resolve_antibodies(names)
    wrong, unresolved = [], []
    for name, genes, control, protein, match in zip(
        names, right, is_control, found.protein, found["match"], strict=True
    ):
        if match in ("isotype", "hashtag"):
            wrong += [] if control else [name]
        elif match == "unknown":
            unresolved += [name] if genes or control else []
        else:
            wrong += [] if genes & set(GENES_OF[protein].split(";")) else [name]
    return wrong, unresolved


@pytest.mark.parametrize("panel", PANELS.panel.unique())
def test_panels_resolve_to_the_right_genes(panel):
    rows = PANELS[(PANELS.panel == panel) & ~PANELS["name"].isin(UNTOLD)]
    right = [set() if genes in ("NONE", "CONTROL") else set(genes.split("|")) for genes in rows.genes]
    wrong, unresolved = count_wrong(list(rows["name"]), right, list(rows.genes == "CONTROL"))
    assert not wrong
    assert len(unresolved) <= MAX_UNRESOLVED * len(rows), unresolved


def test_all_panels_of_a_directory_resolve(shared_data: Path):
    paths = [path for path in sorted(shared_data.glob("*.h5mu")) if "mouse" not in path.name]
    assert paths
    for path in paths:
        with h5py.File(path) as file:
            var = read_elem(file["mod/adt/var"])
        right = [set(filter(None, genes.split(";"))) for genes in var.gene_symbol.astype(object)]
        controls = [str(value).lower() == "true" for value in var.is_isotype_control]
        wrong, unresolved = count_wrong(list(var.antibody.astype(object)), right, controls)
        assert (wrong, unresolved) == ([], []), path


@pytest.mark.parametrize(
    ("name", "protein", "match"),
    [
        ("CD3", "CD3", "table"),
        ("cd3.2", "CD3", "table"),
        ("CD3e", "CD3", "table"),
        ("CD3-2", "CD3", "normalised"),
        ("CD32", "CD32", "table"),
        ("CD4-1", "CD4", "normalised"),
        ("CX3CR1.1", "CX3CR1", "normalised"),
        ("CD41", "CD41", "table"),
        ("cd45ra", "CD45RA", "table"),
        ("CD45_RO", "CD45RO", "normalised"),
        ("cd45.2", "CD45", "table"),
        ("CD45-2", "CD45", "normalised"),
        ("B220 (CD45R)", "CD45R", "table"),
        ("CLA", "CLA", "table"),
        ("PD-1", "CD279", "table"),
        ("anti-human/mouse integrin β7", "Integrin b7", "normalised"),
        ("TCR\N{GREEK SMALL LETTER ALPHA}/β", "TCRab", "normalised"),
        ("TCRb", "TCRab", "table"),
        ("TCR-1", "TCRgd", "normalised"),
        ("CD4 (clone RPA-T4)", "CD4", "normalised"),
        ("CD3 (5.1H11)", "CD3", "normalised"),
        ("CD154-24-31", "CD154", "normalised"),
        ("CD7_CD7-6B7", "CD7", "normalised"),
        ("HLA-DR_L243", "HLA-DR", "normalised"),
        ("CD40 ligand", "CD154", "normalised"),
        ("CD244--2B4", "CD244", "normalised"),
        ("KIR2DL1--KIR2DS1", "CD158", "gene_symbol"),
        ("PTPRC", "CD45", "gene_symbol"),
        ("AB_ITGAX", "CD11c", "gene_symbol"),
        ("OX-40L", "CD252", "gene_symbol"),
        ("TNFR2", "CD120b", "gene_symbol"),
        ("CD3D", "CD3", "gene_symbol"),
        ("HLA-DRA", "HLA-DR", "gene_symbol"),
        ("IgG1", "", "isotype"),
        ("MouseIgG2bkIsotype_TotalSeqB", "", "isotype"),
        ("Rat IgG2c, κ isotype Ctrl", "", "isotype"),
        ("Rag-IgG2c", "", "isotype"),
        ("IgG-1", "", "isotype"),
        ("IgG", "IgG", "table"),
        ("Hashtag1", "", "hashtag"),
        ("HTO_A", "", "hashtag"),
        ("anti-human Hashtag 3", "", "hashtag"),
        ("CMO301", "", "hashtag"),
    ],
)
def test_antibody_names_resolve(name, protein, match):
    assert resolve_antibodies([name]).iloc[0].tolist() == [protein, match]


NOT_OF_PEOPLE = """
H-2Kb; H-2Kb bound to SIINFEKL; H2-Kd; I-A/I-E; MHC II (I-A/I-E); CD45.1; ADT_CD45.2_A0157; CD45_2; CD90.2; Thy-1.1;
CD90.2 (Thy-1.2); CD229.1; Ly-6C; Ly-6A/E (Sca-1); Ly6G; Ly-49C; Ly108; CD8b (Ly-3); CD5 (Ly-1); Qa-1; Qa-2; NK-1.1;
F4/80; TER-119/Erythroid Cells; Siglec-H; CD16/32; CD16-32; CD21/CD35 (CR2/CR1); CD301b; mCD48; MLY9; CD16.2;
CD4 (GK1.5); CD8a-53-6.7; CD3e (145-2C11); CD19_6D5; CD25-PC61; CD49b (DX5); TCRb_H57-597; anti-mouse CD4; CD19 mouse;
CD29 (mouse); Ms.CD3; rat CD4; Itgax; Tnfrsf9; Klrb1-ps1; Trdv2-1; CD4:RM4-5|Cd4|AMM2002|pAbO"""
MULTIMERS = """
HLA-A2 tetramer; HLA-A*02:01_NLVPMVATV; HLA-A0201; A0201_GILGFVFTL_Flu-MP; HLA-A2-CMV1; CD8_Dextramer2; HLA-A2-SL9;
HLA-DR4; HLA-DRB1*04:01; HLA-DR-4; HLA-B*07:02; HLA-A; CD1d tetramer; CD1d-PBS57; CD1d_aGalCer; MR1-5-OP-RU; pMHC_1"""
DYES_AND_TAGS = (
    "PE; APC; anti-FITC; Biotin; PE-Cy7; CD3-PE; CD4_BV421; CD8-AF647; CD19 Pacific Blue; GFP; HA.11; His Tag"
)
AMBIGUOUS = """
TCR-Vb8; TCR-3; TCR.1; CD44 (v6); CD44_v6; CD66_d; CD45-RABC; CD45RA/RO; CD45RA_CD45RO; CD3/CD28; CD4/8; CD19+CD20;
Cadherin-2; LAP-3; Notch-4; IgA1; IgA-2; CD16a/b; CD1; CD1-2; CD11; CD3000; IL-2; phosphoTau; Tau; MAPT; CD3 low; T4;
CD25high; unmapped; nan; None; <NA>; CD; 45; MHC; VEGFR; FcgR; JAM; CD3E,MS4A1; CD366--Tim-4; PD-1/PD-L1; CTLA4-Ig;
CD40-CD40L; CD95 (CD178); EGFRvIII; CD19 CAR; FMC63; SARS-CoV-2 spike; NK1; """


@pytest.mark.parametrize("names", [NOT_OF_PEOPLE, MULTIMERS, DYES_AND_TAGS, AMBIGUOUS])
@pytest.mark.parametrize("prefix", ["", "ADT_"])
def test_what_is_not_one_human_protein_stays_unknown(names, prefix):
    names = [prefix + name.strip() for name in names.split(";")]
    found = resolve_antibodies(names)
    assert found.index[found["match"] != "unknown"].tolist() == []


def test_every_protein_resolves_to_itself_and_controls_to_none():
    proteins = sorted(set(NAMES.protein))
    assert resolve_antibodies(proteins).protein.tolist() == proteins
    controls = TABLE.antibody[TABLE.is_isotype_control == "true"]
    assert (resolve_antibodies(list(controls))["match"] == "isotype").all()


STYLES = """
AB_{}; ADT_{}; ab-{}; prot_{}; protein:{}; CITE_{}; Hu.{}; anti_human_{}; anti-human-{}; A0034-{}; {}_C0034; {}-ADT;
{}_prot; {}_TotalSeqB; {}_TotalC; {}-CTCATTGTAACTCCT; {}_300475; {}_human; Hu.{}_TotalSeqC; {}|X|AHS0231|pAbO;
{}:UCHT1|X|Y|pAbO; TotalSeq-C0034 anti-human {} Antibody; anti-mouse/human {}; {} (clone UCHT1)"""


@settings(max_examples=100)
@given(st.sampled_from(list(zip(NAMES.antibody, NAMES.protein, strict=True))), st.sampled_from(STYLES.split(";")))
def test_a_known_name_means_the_same_in_every_style(pair, style):
    name, protein = pair
    assert resolve_antibodies([style.strip().format(name)]).protein.item() == protein


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda name: name.replace("_", "-"), "{} (foo)".format])
def test_spellings_of_a_known_name_never_mean_another_protein(change):
    found = resolve_antibodies([change(name) for name in NAMES.antibody]).protein.to_numpy()
    right = NAMES.protein.to_numpy()
    assert not np.any((found != "") & (found != right))
    assert change("") or np.mean(found != "") > 0.97


CLONES = "UCHT1 RPA-T4 HI100 5.1H11 MEM-188 M-A251 EH12.2H7 S-HCL-3 581 7-239 TS2/9 HIL-7R-M21"


@pytest.mark.parametrize("join", ["{}-{}", "{}_{}", "{}:{}", "{} ({})", "{}.{}", "{} {}"])
def test_a_clone_behind_a_name_changes_nothing(join):
    known = [name for name in sorted(set(NAMES.protein)) if name.startswith("CD") and not name.startswith("CD1")]
    for clone in CLONES.split():
        found = resolve_antibodies([join.format(name, clone) for name in known]).protein
        assert found.tolist() == known, clone


@settings(max_examples=100)
@given(st.text(max_size=20))
def test_any_text_gives_an_answer(text):
    found = resolve_antibodies([text])
    assert (found.protein.item() == "") == (found["match"].item() in ("unknown", "isotype", "hashtag"))

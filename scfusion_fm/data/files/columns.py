"""What the columns of a matrix are: genes, antibodies or something else, by their types or by their names.

What says it, first to last: a column of `var` with types (`feature_types`), block by block; the mark of an antibody in
a name (`CD3_TotalSeqB`); names that are known. What cannot be told is never counted with genes: it is named or refused.
"""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.data.schema import as_text
from scfusion_fm.data.vocabulary.guess import guess_names
from scfusion_fm.data.vocabulary.names import is_of_mouse
from scfusion_fm.data.vocabulary.resolve import (
    GENE_ID_COLUMNS,
    resolve_antibodies,
    resolve_antibody_features,
    resolve_gene_features,
    resolve_genes,
)

Role = Literal["rna", "adt", "other", "derived", "unknown"]

NOUNS = {
    "rna": "genes",
    "adt": "antibodies",
    "other": "neither genes nor antibodies",
    "derived": "a transform or a part of other counts",
    "unknown": "nothing known",
}
ADVICE = "Set var[\"feature_types\"] to 'Gene Expression' for genes and 'Antibody Capture' for antibodies."
TYPE_COLUMNS = ("featuretypes", "featuretype", "featuretypes10x")  # without separators, in lower case
# Columns that hold types where every value of them is understood, and else something else.
POSSIBLE_TYPE_COLUMNS = ("modality", "modalities", "featuremodality", "assay", "assaytype", "type", "omic", "omics")
POSSIBLE_TYPE_COLUMNS += ("featureclass", "moleculetype", "librarytype", "library")
# Words for what features are, without separators, in lower case; of 10x, BD, CITE-seq-Count, muon, Seurat, CELLxGENE.
_RNA_WORDS = """
geneexpression gex gene genes geneexp geneexpr rna rnas mrna mrnas rnaseq scrna scrnaseq snrna snrnaseq
transcript transcripts transcriptome transcriptomics transcriptomic scrnagex wta expression proteincoding
lncrna lincrna mirna snorna rrna mtrna mtrrna mttrna miscrna scarna ribozyme vaultrna antisense
processedtranscript iggene trgene mt tec
"""
_ADT_WORDS = """
antibodycapture antibody antibodies ab abs abcapture abseq adt adts protein proteins prot prots proteome
proteomics cite citeseq surfaceprotein surfaceproteins surface surfacemarker surfacemarkers cellsurface
cellsurfaceprotein cellsurfaceproteins proteinexpression totalseq totalseqa totalseqb totalseqc
antibodyderivedtag antibodyderivedtags antibodytag antibodytags epitope epitopes antibodycount proteincapture
"""
_OTHER_WORDS = """
peaks peak atac atacseq scatac chromatin chromatinaccessibility accessibility multiplexingcapture multiplexing
cmo cmos hto htos hashtag hashtags hashing hash hashtagoligo hashtagoligos sampletag sampletags lmo multiseq
crispr crisprguidecapture crisprguide guide guides guidecapture sgrna grna gdo antigencapture antigen antigens
dextramer dextramers tetramer tetramers vdj vdjt vdjb tcr bcr airr ir custom spikein spikeins ercc fragments
geneactivity geneactivities activity motif motifs chromvar genescore genescores genescorematrix
negativecontrolprobe negativecontrolcodeword blankcodeword
unassignedcodeword deprecatedcodeword genomiccontrol negprobe negativecontrol control blank falsecode
methylation lipids metabolites imaging spatial
"""
_DERIVED_WORDS = """
sct sctransform integrated imputed imputation magic alra saver denoised normalized normalised scaled lognorm hvg
velocity spliced unspliced ambiguous dsb clr scvi totalvi harmony pca umap predicted prediction
"""
WORDS: dict[Role, frozenset[str]] = {
    "rna": frozenset(_RNA_WORDS.split()),
    "adt": frozenset(_ADT_WORDS.split()),
    "other": frozenset(_OTHER_WORDS.split()),
    "derived": frozenset(_DERIVED_WORDS.split()),
}
_TAILS = re.compile(r"(counts?|raw|assay|features?|data|matrix)$")
_BIOTYPE = re.compile(r"(ig|tr)[a-z]{1,2}(gene|pseudogene)|.*pseudogene|.*transcript")
# What antibodies alone have in their names.
MARK = re.compile(
    r"(?i)^(adt|prot|protein|cite|total[-_ ]?seq[-_ ]?[abcd]?)[_:. -]+(?=\S)|[|]pabo$|[|]ahs\d{4}"
    r"|[_:. -]+(total[-_ ]?seq[-_ ]?[abcd]?|total[abc]|adt|prot|protein|pabo)$|^anti[-_. ](human|hu|mouse)[-_./ ]"
)
ANY_GENE_ID = re.compile(r"ENS[A-Z]*G\d{6,}")
CLONE_NAME = re.compile(r"[A-Z]{2}\d{6}\.\d+|RP\d+-.*|LOC\d+|CT[ABCD]-.*|LINC\d+|ENS.*|NOVEL.*", re.IGNORECASE)
MIN_SURE = 3  # names of a kind that make a block of their own
MAX_STRAYS = 0.1  # of the columns, such that the rest can be of one kind
MIN_KNOWN = 0.05  # share of names below which they are of neither: a few are the same in every species
MIN_RESOLVED = 0.5  # to tell genes from antibodies by name: share that must resolve, and lead over the other kind
MIN_LEAD = 0.2


@dataclass(frozen=True)
class NamedFeatures:
    """
    Hold what the names of features say.

    Attributes
    ----------
    genes, antibodies
        (n,) whether the name is that of a gene (aliases such as CD10 do not count), of an antibody.
    only
        (n,) whether the name is that of an antibody, and of no gene.
    marked
        (n,) whether it can be an antibody only, by a mark in it.
    has_id
        (n,) whether it is a gene by an Ensembl id, of any species.
    with_id
        (n,) whether such an id stands with it; antibodies may have that of their gene.
    hashtags
        Share of names of hashtags, which are among the antibodies.
    """

    genes: NDArray[np.bool_]
    antibodies: NDArray[np.bool_]
    only: NDArray[np.bool_]
    marked: NDArray[np.bool_]
    has_id: NDArray[np.bool_]
    with_id: NDArray[np.bool_]
    hashtags: float

    @property
    def rates(self) -> tuple[float, float]:
        """Shares of genes and antibodies."""
        return float(self.genes.mean()), float(self.antibodies.mean())

    @property
    def role(self) -> Role:
        """What most are."""
        if self.has_id.mean() > MIN_RESOLVED and not self.marked.mean() > MIN_RESOLVED:
            return "rna"  # of whatever species; the alignment tells which
        if self.hashtags > MIN_RESOLVED:
            return "other"
        genes, antibodies = self.rates
        if max(genes, antibodies) >= MIN_RESOLVED and abs(genes - antibodies) >= MIN_LEAD:
            return "rna" if genes > antibodies else "adt"
        return "unknown"


@dataclass(frozen=True)
class ColumnRoles:
    """
    Hold the role of each column of a matrix.

    Attributes
    ----------
    roles
        (n,) rna, adt, other or unknown.
    told
        What a user must know of it.
    rates
        Shares of names that are genes and antibodies; None where types say what columns are.
    """

    roles: NDArray[np.object_]
    told: list[str]
    rates: tuple[float, float] | None = None

    def of(self, role: Role) -> NDArray[np.int64]:
        """Give the columns of a role."""
        return np.flatnonzero(self.roles == role)


def role_of_word(word: object) -> Role:
    """Tell what a word for features means (`Gene Expression`, `GEX`, `surface-protein`); unknown for any other."""
    plain = "".join(c for c in str(word).lower() if c.isalnum())
    while plain:
        for role, words in WORDS.items():
            if plain in words:
                return role
        if _BIOTYPE.fullmatch(plain):
            return "rna"
        shorter = _TAILS.sub("", plain)
        if shorter == plain:
            break
        plain = shorter
    return "unknown"


def read_names(var: pd.DataFrame) -> NamedFeatures:
    """Look at the names of features, in the index and in the columns of `var` where names and ids stand."""
    names = var.index.astype(str)
    own = resolve_genes(list(names))["match"]
    is_gene = own.isin(["id", "versioned_id", "symbol", "previous"]).to_numpy()
    has_id = np.array([bool(ANY_GENE_ID.match(name)) for name in names], dtype=bool)
    matches = np.full(len(var), "unknown", dtype=object)
    matches[~has_id] = resolve_antibodies(list(names[~has_id]))["match"].to_numpy()
    antibodies = matches != "unknown"
    is_gene = is_gene | (np.array([is_of_mouse(name) for name in names], dtype=bool) & ~antibodies)
    with_id = has_id.copy()
    for column in GENE_ID_COLUMNS:
        if column in var:
            with_id |= np.array([bool(ANY_GENE_ID.match(text)) for text in as_text(var[column])], dtype=bool)
    only = antibodies & ~is_gene & (matches != "gene_symbol") & ~has_id
    if max(is_gene.mean(), antibodies.mean()) < MIN_RESOLVED:  # the names may stand in a column
        is_gene |= (resolve_gene_features(var)["match"] != "unknown").to_numpy() & ~only
        antibodies |= (resolve_antibody_features(var)["match"] != "unknown").to_numpy()
    marked = np.array([bool(MARK.search(name)) for name in names], dtype=bool)
    marked &= ~own.isin(["symbol", "previous"]).to_numpy()
    has_id |= with_id & ~antibodies  # antibodies may have the ids of their genes
    hashtags = float((matches == "hashtag").mean())
    return NamedFeatures(is_gene | has_id, antibodies, only | marked, marked, has_id, with_id, hashtags)


def sort_columns(var: pd.DataFrame, where: str, hint: Role = "unknown", default: Role = "unknown") -> ColumnRoles:
    """
    Tell what each column of a matrix is.

    Parameters
    ----------
    var
        Its feature table.
    where
        What to call the matrix in errors.
    hint
        What a user or the name of a modality says that they are, which goes before their names.
    default
        What they are if nothing tells.

    Raises
    ------
    ValueError
        If it cannot be told.
    """
    column = find_type_column(var)
    if column is None:
        return _sort_by_names(var, where, hint, default)
    return _sort_by_types(var, column, where, hint)


def find_type_column(var: pd.DataFrame) -> str | None:
    """Find the column of `var` that says what features are."""
    plain = {"".join(c for c in str(column).lower() if c.isalnum()): column for column in reversed(var.columns)}
    for name in TYPE_COLUMNS:
        if name in plain:
            return plain[name]
    for name in POSSIBLE_TYPE_COLUMNS:
        if name in plain and var[plain[name]].dtype.kind not in "biufcmM":
            roles = {role_of_word(value) for value in as_text(var[plain[name]]).unique()}
            if roles <= {"rna", "adt", "other"} and roles & {"rna", "adt"}:
                return plain[name]
    return None


def _sort_by_types(var: pd.DataFrame, column: str, where: str, hint: Role) -> ColumnRoles:
    types = as_text(var[column]).to_numpy()
    roles, told = np.full(len(var), "unknown", dtype=object), []
    for value in dict.fromkeys(types):
        block, role = types == value, role_of_word(value)
        if role == "unknown":
            role = read_names(var[block]).role
            meaning = f"are {NOUNS[role]} by their names" if role != "unknown" else "are left out: what is it?"
            told.append(
                f"{block.sum():,} features of the {column} {value!r} {meaning} ({_examples(var.index[block])})."
            )
        roles[block] = role
    if not np.isin(roles, ["rna", "adt"]).any():
        if hint != "unknown" and not (roles == "other").any():
            return ColumnRoles(np.full(len(var), hint, dtype=object), [])
        raise ValueError(
            f"`{column}` must contain Gene Expression or Antibody Capture, "
            f"got {sorted(set(types))[:5]} in {where!r}. {ADVICE}"
        )
    told += _move_antibodies(var, roles, where) + _tell_left_out(var, types, roles)
    return ColumnRoles(roles, told)


def _move_antibodies(var: pd.DataFrame, roles: NDArray[np.object_], where: str) -> list[str]:
    """Take what is marked as an antibody, or a block of antibodies, out of the genes, whatever its type is."""
    genes = np.flatnonzero(roles == "rna")
    if len(genes) == 0:
        return []
    try:
        moved = genes[_sort_by_names(var.iloc[genes], where, "rna", "unknown").of("adt")]
    except ValueError:  # names without a border do not speak against the types
        return []
    roles[moved] = "adt"
    told = f"{len(moved):,} features are called genes but named as antibodies, and taken as these: "
    return [f"{told}{_examples(var.index[moved])}."] if len(moved) else []


def _tell_left_out(var: pd.DataFrame, types: NDArray, roles: NDArray[np.object_]) -> list[str]:
    """Name antibodies that stand under a type of something else, where there are no others."""
    told = []
    for value in dict.fromkeys(types[roles == "other"] if not (roles == "adt").any() else ()):
        block = types == value
        if block.sum() >= MIN_SURE and read_names(var[block]).role == "adt":
            examples = _examples(var.index[block])
            told.append(
                f"{block.sum():,} features of the type {value!r} are left out, but named as antibodies: {examples}."
            )
    return told


def _sort_by_names(var: pd.DataFrame, where: str, hint: Role, default: Role) -> ColumnRoles:
    """Find genes and antibodies that stand in one table without types."""
    features = read_names(var)
    if hint == "unknown" and features.role == "unknown":
        hint = default
    roles = np.full(len(var), "unknown", dtype=object)
    if hint == "unknown" and max(features.rates) < MIN_KNOWN:
        _judge_all(features, var, where, hint)
    sure = _score(features, var.index.astype(str))
    adt, rna = sure > 0, sure < 0
    if not adt.any() or not rna.any():
        roles[:] = _judge_all(features, var, where, hint)
        return ColumnRoles(roles, [], features.rates)
    cut = _find_cut(sure, var.index.astype(str), with_ids=features.has_id.mean() > MIN_RESOLVED)
    if (adt == features.marked).all():
        roles[:] = np.where(features.marked, "adt", "rna")
    elif cut is not None:
        roles[:] = cut
    elif adt.sum() >= MIN_SURE and _have_all_ids(features):
        roles[:] = np.where(features.with_id & ~features.marked, "rna", "adt")
    else:
        return _drop_strays(features, sure, var, where, hint)
    number = int((roles == "adt").sum())
    told = [
        f"{number:,} of {len(var):,} features are antibodies by their names, for example "
        f"{_examples(var.index[roles == 'adt'])}, and are not counted with the genes."
    ]
    return ColumnRoles(roles, told, features.rates)


def _have_all_ids(features: NamedFeatures) -> bool:
    """Tell whether genes have ids, and what has none is antibodies."""
    others = ~features.with_id | features.marked
    return (
        features.has_id.mean() > MIN_RESOLVED
        and (features.antibodies | features.marked)[others].mean() > 1 - MAX_STRAYS
    )


def _score(features: NamedFeatures, names: pd.Index) -> NDArray[np.int64]:
    """Give 1 for what is an antibody for sure, -1 for a gene, 0 for what may be either (CD4) or is unknown."""
    genes = set(names[features.genes])
    repeated = np.array([cut_number(name) in genes for name in names])  # CD4-1 may be the gene CD4 a second time
    adt = features.marked | (features.only & ~repeated & ~(features.with_id & (features.has_id.mean() > MIN_RESOLVED)))
    return np.where(adt, 1, np.where((features.genes & ~features.antibodies) | features.has_id, -1, 0))


def _judge_all(features: NamedFeatures, var: pd.DataFrame, where: str, hint: Role) -> Role:
    """Tell what a table of one kind is."""
    if hint != "unknown":
        return hint
    role = features.role
    if role == "unknown":
        genes, antibodies = features.rates
        if max(genes, antibodies) < MIN_KNOWN:
            raise ValueError(
                f"`var_names` must name human genes or antibodies, got {genes:.0%} known genes and {antibodies:.0%} "
                f"known antibodies in {where!r}, for example {list(var.index[:3].astype(str))}. "
                f"{guess_names(var.index)}"
            )
        raise ValueError(
            f"`modality` cannot be told from the names in {where!r}: {genes:.0%} are human genes, {antibodies:.0%} "
            f"are known antibodies, for example {list(var.index[:3].astype(str))}. Give `modality` 'rna' or 'adt', "
            'or set var["feature_types"].'
        )
    return role


def _find_cut(sure: NDArray[np.int64], names: pd.Index, with_ids: bool) -> NDArray[np.object_] | None:
    """
    Cut a table into genes and antibodies that stand in one block each; None where no place for the cut is sure.

    Where genes have ids, the first name without one is no gene any more.
    """
    smaller = min((sure > 0).sum(), (sure < 0).sum())
    if smaller < MIN_SURE:
        return None
    for backwards in (False, True):
        values, texts = (sure[::-1], names[::-1]) if backwards else (sure, names)
        # Wrong at a cut before column i: antibodies before it, and genes from it on.
        wrong = (
            np.concatenate([[0], np.cumsum(values > 0)])
            + (values < 0).sum()
            - np.concatenate([[0], np.cumsum(values < 0)])
        )
        best = np.flatnonzero(wrong == wrong.min())
        if wrong.min() > MAX_STRAYS * smaller or best[-1] - best[0] + 1 != len(best):
            continue
        place = int(best[0]) if with_ids else _cut_between(texts, int(best[0]), int(best[-1]))
        if place is None:
            continue
        roles = np.array(["rna"] * place + ["adt"] * (len(texts) - place), dtype=object)
        return roles[::-1] if backwards else roles
    return None


def _cut_between(names: pd.Index, first: int, last: int) -> int | None:
    """Find the first antibody among names that may be either: the first that repeats a gene, after clones of genes."""
    before = {cut_number(name) for name in names[:first]}
    for i in range(first, last):
        if cut_number(names[i]) in before:
            return i
        if not CLONE_NAME.fullmatch(names[i]):
            return None
    return last


def _drop_strays(
    features: NamedFeatures, sure: NDArray[np.int64], var: pd.DataFrame, where: str, hint: Role
) -> ColumnRoles:
    """Leave a few columns of the other kind out, or refuse the table."""
    role, strays = hint if hint != "unknown" else features.role, sure > 0
    is_mixed = strays.sum() >= MIN_SURE or strays.mean() > MAX_STRAYS
    if hint == "rna" and strays.mean() > MIN_RESOLVED:
        is_mixed = False  # a user knows better
    if role == "adt":  # genes do no harm there: no name of an antibody fits, and the alignment names them
        is_mixed = (sure < 0).sum() >= max(MIN_SURE, strays.sum())
    if role == "unknown" or is_mixed:
        raise ValueError(
            f"`{where}` must say which features are genes and which are antibodies, got {(sure < 0).sum():,} genes "
            f"and {strays.sum():,} antibodies, mixed: {_examples(var.index[strays])}. {ADVICE}"
        )
    roles = np.full(len(var), role, dtype=object)
    if role != "rna" or strays.mean() > MIN_RESOLVED:
        return ColumnRoles(roles, [], features.rates)
    roles[strays] = "unknown"
    told = f"{strays.sum():,} of {len(var):,} features are named as antibodies among genes, and are left out: "
    return ColumnRoles(roles, [f"{told}{_examples(var.index[strays])}. {ADVICE}"], features.rates)


def cut_number(name: str) -> str:
    """Cut from a name the number that readers append to repeated names."""
    return re.sub(r"[-.]\d+$", "", name)


def _examples(names: pd.Index) -> str:
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")

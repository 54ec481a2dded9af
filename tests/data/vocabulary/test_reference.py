"""The tables of genes and antibodies: in order, consistent, and built from their sources."""

import gzip
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from scfusion_fm.data.vocabulary.reference import load_antibody_table, load_gene_table

CHROMOSOMES = [*map(str, range(1, 23)), "X", "Y", "MT"]
TABLES = files("scfusion_fm.data.vocabulary") / "tables"


def test_gene_table_is_in_genome_order():
    table = load_gene_table()
    order = list(zip(table.chromosome.map(CHROMOSOMES.index), table.start, table.index, strict=True))
    assert order == sorted(order)
    assert table.index.is_unique
    assert table.index.str.fullmatch(r"ENSG\d{11}").all()
    assert (table.chromosome.drop_duplicates() == CHROMOSOMES).all()


def test_tables_are_small_and_their_genes_exist():
    assert sum(Path(str(TABLES / name)).stat().st_size for name in ("human_genes.tsv.gz", "human_antibodies.tsv")) < 2e6
    antibodies = load_antibody_table()
    ids = {gene for genes in antibodies.gene_ids for gene in genes.split(";") if gene}
    assert ids <= set(load_gene_table().index)
    proteins = antibodies[antibodies.protein != ""]
    assert (proteins.groupby("protein").gene_ids.nunique() == 1).all()
    assert (proteins.gene_ids != "").all()


def test_tables_are_rebuilt_byte_for_byte(shared_data: Path, tmp_path: Path):
    script = Path(__file__).parents[3] / "scripts" / "build_tables.py"
    copy = tmp_path / "scripts" / script.name
    copy.parent.mkdir()
    tables = tmp_path / "scfusion_fm" / "data" / "vocabulary" / "tables"
    tables.mkdir(parents=True)
    copy.write_text(script.read_text())
    subprocess.run([sys.executable, copy, shared_data], check=True, capture_output=True)
    for name in ("human_genes.tsv.gz", "human_antibodies.tsv"):
        built = (tables / name).read_bytes()
        shipped = (TABLES / name).read_bytes()
        unpack = gzip.decompress if name.endswith(".gz") else bytes
        assert unpack(built) == unpack(shipped)

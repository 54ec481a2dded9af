"""Data sets from a server of the test, which damages, cuts and changes what it gives."""

import gzip
import hashlib
import io
import json
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from scfusion_fm.data.fetch import fetch as fetching
from scfusion_fm.data.fetch.download import Downloader, download
from scfusion_fm.data.fetch.manifest import RemoteDataset, RemoteFile, find_datasets, read_manifest
from scfusion_fm.notices import ScFusionWarning


@dataclass
class Server:
    """What a server gives, and how: `cut` bytes at most in an answer."""

    files: dict[str, bytes] = field(default_factory=dict)
    cut: int | None = None
    tags: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def put(self, name: str, content: bytes) -> RemoteFile:
        self.files["/" + name] = content
        return RemoteFile(f"{self.url}/{name}")


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server_state: Server, *args):
        self.state = server_state
        super().__init__(*args)

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.state.asked.append((self.path, wanted))
        content = self.state.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        tag, start = f'"{hashlib.md5(content).hexdigest()}"', 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if self.state.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        stop = len(content) if self.state.cut is None else start + self.state.cut
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server():
    state = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, state)) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def serve(server, monkeypatch):
    """Make the data sets of the test all that can be fetched."""

    def put(*datasets: RemoteDataset) -> None:
        monkeypatch.setattr(fetching, "read_manifest", lambda: {d.name: d for d in datasets})

    return put


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(pull_on_update|names are (intersecting|not unique)|will be removed).*"
)
CONTENT = bytes(range(256)) * 400


def counts(cells: int, features: int) -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (cells, features)).astype(np.float32))


def test_a_download_that_broke_off_goes_on(server, tmp_path):
    file = server.put("cells.h5", CONTENT)
    server.cut = 80_000
    with pytest.raises(ValueError, match="again"):
        download(file, tmp_path)
    server.cut = None
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/cells.h5", "bytes=65536-")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cells.h5"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    file = server.put("cells.h5", CONTENT)
    server.cut = 80_000
    with pytest.raises(ValueError, match="again"):
        download(file, tmp_path)
    server.cut = None
    server.put("cells.h5", CONTENT[::-1])
    assert download(file, tmp_path).read_bytes() == CONTENT[::-1]


def test_nothing_is_gone_on_from_that_the_server_does_not_tell_apart(server, tmp_path):
    server.tags = False
    file = server.put("cells.h5", CONTENT)
    server.cut = 80_000
    with pytest.raises(ValueError, match="again"):
        download(file, tmp_path)
    server.cut = None
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/cells.h5", None)


def test_a_whole_part_is_taken_as_it_is(server, tmp_path):
    file = server.put("cells.h5", CONTENT)
    (tmp_path / "cells.h5.part").write_bytes(CONTENT)
    (tmp_path / "cells.h5.tag").write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    assert download(file, tmp_path).read_bytes() == CONTENT


def test_a_damaged_file_is_refused_and_not_kept(server, tmp_path):
    good = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    file = replace(server.put("cells.h5", CONTENT[:-1] + b"x"), hash=good)
    with pytest.raises(ValueError, match="must have the checksum sha256:"):
        download(file, tmp_path)
    assert not list(tmp_path.iterdir())
    server.put("cells.h5", CONTENT)
    assert download(file, tmp_path).read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused(server, tmp_path):
    file = replace(server.put("cells.h5", CONTENT), bytes=1000)
    with pytest.raises(ValueError, match=r"must have 1,000 bytes, got 102,400"):
        download(file, tmp_path)
    assert not (tmp_path / "cells.h5.part").exists()


def test_a_missing_file_is_told_in_a_line(server, tmp_path):
    with pytest.raises(ValueError, match="must be reachable, got 404"):
        download(RemoteFile(f"{server.url}/nothing.h5"), tmp_path)


def test_an_error_of_pooch_that_is_not_about_checksums_is_not_renamed(server, tmp_path):
    with pytest.raises(ValueError, match="reachable"):
        download(RemoteFile("nowhere://x/y.h5", hash="sha256:00"), tmp_path)


def paired(server: Server) -> RemoteDataset:
    """Two AnnData of the same cells but for one."""
    names = [f"c{i}" for i in range(30)]
    files = []
    for role, columns in (("rna", ["CD3E", "CD4", "CD8A", "MS4A1"]), ("adt", ["CD3", "CD4"])):
        cells = names if role == "rna" else names[1:]
        data = anndata.AnnData(counts(len(cells), len(columns)), pd.DataFrame(index=cells), pd.DataFrame(index=columns))
        buffer = io.BytesIO()
        import h5py

        with h5py.File(buffer, "w") as file:
            anndata.io.write_elem(file, "/", data)
        files.append(replace(server.put(f"{role}.h5ad", buffer.getvalue()), role=role))
    return RemoteDataset("pair", "Two files", "h5ad_pair", tuple(files), "CC0", "Nobody", cells=29, genes=4, proteins=2)


def test_a_pair_becomes_one_file_with_its_notes(server, serve, tmp_path):
    serve(paired(server))
    with pytest.warns(ScFusionWarning, match="29 cells are kept"):
        (path,) = fetching.fetch("pair", directory=tmp_path)
    assert mudata.read_h5mu(path)["adt"].shape == (29, 2)
    notes = json.loads((tmp_path / "pair.json").read_text())
    assert notes["files"][0]["sha256"] == hashlib.sha256(server.files["/rna.h5ad"]).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pair.h5mu", "pair.json"]
    number = len(server.asked)
    assert fetching.fetch("pair", directory=tmp_path) == [path]
    assert len(server.asked) == number


def test_what_has_the_name_already_is_not_touched(server, serve, tmp_path):
    serve(paired(server))
    (tmp_path / "pair.h5mu").write_text("mine")
    with pytest.raises(ValueError, match="must not exist"):
        fetching.fetch("pair", directory=tmp_path)
    assert (tmp_path / "pair.h5mu").read_text() == "mine"


def test_data_of_another_shape_are_refused_and_what_came_is_kept(server, serve, tmp_path):
    serve(replace(paired(server), genes=5))
    with pytest.warns(ScFusionWarning), pytest.raises(ValueError, match="got 4 genes in place of 5"):
        fetching.fetch("pair", directory=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".pair.parts"]


def test_a_packed_file_is_unpacked(server, serve, tmp_path, paired_file):
    data = mudata.read_h5mu(paired_file)["rna"]
    data.write_h5ad(tmp_path / "plain.h5ad")
    plain = (tmp_path / "plain.h5ad").read_bytes()
    dataset = RemoteDataset(
        "packed", "One", "h5ad_gz", (server.put("x.h5ad.gz", gzip.compress(plain)),), "CC0", "Nobody"
    )
    serve(dataset)
    (path,) = fetching.fetch("packed", directory=tmp_path / "new")
    assert path.read_bytes() == plain
    packed = gzip.compress(plain)
    for damaged in (packed[:-500], packed[:200] + bytes(300) + packed[500:], b"no gzip" + packed):
        server.put("x.h5ad.gz", damaged)
        with pytest.raises(ValueError, match="must be a whole gzip file"):
            fetching.fetch("packed", directory=tmp_path / "other")
    server.put("x.h5ad.gz", packed)  # what was damaged is not taken again
    assert fetching.fetch("packed", directory=tmp_path / "other")[0].read_bytes() == plain


def test_matrices_become_one_file(server, serve, tmp_path):
    files, names = [], [f"c{i}-1" for i in range(20)]
    for modality, features in (("rna", "ENSG1\tLYZ\nENSG2\tNKG7\nENSG3\tNKG7\n"), ("adt", "CD3\nCD4\n")):
        buffer = io.BytesIO()
        scipy.io.mmwrite(buffer, counts(20, features.count("\n")).T.tocoo())
        parts = {"matrix": buffer.getvalue(), "features": features.encode(), "barcodes": "\n".join(names).encode()}
        for table, content in parts.items():
            ending = "mtx.gz" if table == "matrix" else "tsv.gz"
            file = server.put(f"{modality}-{table}.{ending}", gzip.compress(content))
            files.append(replace(file, role=f"{modality}_{table}"))
    obs = pd.DataFrame({"donor": ["P1"] * 20}, index=names)
    files.append(replace(server.put("obs.csv", obs.to_csv().encode()), role="obs"))
    serve(RemoteDataset("matrices", "Three", "mtx", tuple(files), "CC0", "Nobody", 20, 3, 2))
    (path,) = fetching.fetch("matrices", directory=tmp_path)
    data = mudata.read_h5mu(path)
    assert list(data["rna"].var_names) == ["LYZ", "NKG7", "NKG7-1"]
    assert list(data["rna"].var["gene_ids"]) == ["ENSG1", "ENSG2", "ENSG3"]
    np.testing.assert_array_equal(data["rna"].X.toarray(), counts(20, 3).toarray())
    assert data["rna"].obs["donor"].unique().tolist() == ["P1"]
    files[-1] = replace(server.put("obs.csv", obs.set_axis([f"d{i}" for i in range(20)]).to_csv().encode()), role="obs")
    with pytest.raises(ValueError, match="without a common barcode"):
        fetching.fetch("matrices", directory=tmp_path / "other")


def test_the_manifest_names_every_thing_once():
    known = read_manifest()
    urls = [file.url for dataset in known.values() for file in dataset.files]
    assert len(set(urls)) == len(urls)
    assert all(dataset.kind in fetching.BUILDERS and dataset.reference for dataset in known.values())
    for dataset in known.values():
        assert len({file.role for file in dataset.files}) == len(dataset.files)
        assert dataset.name in fetching.list_datasets()
    with pytest.raises(ValueError, match="must be among pbmc_1k_10x"):
        find_datasets(["pbmc"], known)


def test_a_downloader_without_an_expected_size_takes_that_of_the_server(server, tmp_path):
    file = server.put("cells.h5", CONTENT)
    Downloader(None)(file.url, tmp_path / "cells.h5", None)
    assert (tmp_path / "cells.h5").read_bytes() == CONTENT

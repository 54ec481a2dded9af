"""The scfusion command: exit codes, and errors as one line."""

import sys

import pytest

from scfusion_fm.cli import build_parser, main


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scfusion", *map(str, arguments)])
    main()


def test_prepare_writes_an_atlas(monkeypatch, paired_file, tmp_path, capsys):
    config = tmp_path / "data.yaml"
    config.write_text(
        f"output: {tmp_path}/atlas.zarr\ngenes: sources\nproteins: sources\nsources: [{{path: {paired_file}}}]\n"
    )
    call(monkeypatch, "prepare", "--config", config)
    assert (tmp_path / "atlas.zarr" / "manifest.json").is_file()
    assert "160 cells" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"not an HDF5 file", b"\x89HDF\r\n\x1a\n" + b"\0" * 100, None])
def test_bad_files_end_with_code_2(monkeypatch, model_dir, tmp_path, capsys, content):
    source = tmp_path / "in.h5ad"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, "embed", model_dir, source, tmp_path / "out.h5ad")
    assert exit_info.value.code == 2
    printed = capsys.readouterr().err
    assert printed.splitlines()[-1].startswith("error: ")
    assert "in.h5ad" in printed
    assert "Traceback" not in printed
    assert [p.name for p in tmp_path.iterdir()] == ([] if content is None else ["in.h5ad"])


def test_bad_settings_end_with_code_2(monkeypatch, tmp_path, capsys):
    (tmp_path / "data.yaml").write_text("outptu: x\n")
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, "prepare", "--config", tmp_path / "data.yaml")
    assert exit_info.value.code == 2
    assert "Did you mean output?" in capsys.readouterr().err


def test_traceback_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("SCFUSION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="does not exist"):
        call(monkeypatch, "prepare", "--config", tmp_path / "none.yaml")


def test_every_command_explains_itself(capsys):
    for command in ("prepare", "embed", "annotate", "predict-protein", "report"):
        with pytest.raises(SystemExit) as exit_info:
            build_parser().parse_args([command, "--help"])
        assert exit_info.value.code == 0
    assert "--key-added" in capsys.readouterr().out

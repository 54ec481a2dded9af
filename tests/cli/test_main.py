"""The scfusion command: exit codes, and errors as one line."""

import dataclasses
import errno
import json
import re
import shutil
import subprocess
import sys

import pytest
from make_cells import GENES, make_modalities, write_h5mu
from seal import change_json, copy_model, seal

from scfusion_fm.cli.main import build_parser, main
from scfusion_fm.config.command import run_command
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.fingerprints.seen import SeenCells
from scfusion_fm.data.split import assign_split

COMMANDS = ["fetch", "prepare", "synthesize", "verify", "doctor", "inspect", "models", "embed", "annotate"]
COMMANDS += [
    "predict-protein",
    "impute",
    "surprise",
    "seen",
    "push",
    "pretrain",
    "export",
    "finetune",
    "configs",
    "plan",
    "evaluate",
    "plot",
    "report",
    "explore",
    "env",
    "completion",
]


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


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "shard"),
            2,
            "error: [Errno 28] No space left on device: 'shard'",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long"), 2, "error: [Errno 36] File name too long"),
        (ValueError("`name` must be plain, got a\n\x1b[31mb"), 2, "error: `name` must be plain, got a\\n\\x1b[31mb"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_full_disks_and_interruptions_end_with_one_line(error, code, printed, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_command(fail)
    assert exit_info.value.code == code
    assert capsys.readouterr().err.strip() == printed


def test_errors_of_libraries_are_not_hidden():
    def fail():
        raise OSError("the file is not what it was")  # the operating system gives a number

    with pytest.raises(OSError, match="is not what it was"):
        run_command(fail)


def test_traceback_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("SCFUSION_TRACEBACK", "1")
    with pytest.raises(ValueError, match="does not exist"):
        call(monkeypatch, "prepare", "--config", tmp_path / "none.yaml")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        build_parser().parse_args([command, "--help"])
    assert exit_info.value.code == 0
    assert f"usage: scfusion {command}" in capsys.readouterr().out


def test_no_other_command(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    printed = capsys.readouterr().out
    assert re.findall(r"^    ([a-z][a-z-]+)", printed, re.M) == COMMANDS


def test_help_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'numpy', 'pandas', 'anndata', 'zarr', 'omegaconf'} & sys.modules.keys()"
    in_a_new_process(f"run('--help', code=0)\nrun('doctor', '--help', code=0)\nassert not {heavy}, {heavy}")


def test_doctor_and_seen_need_no_torch(model_dir, paired_file):
    program = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
file, model = sys.argv[1:]
run("doctor", file, code=None)
run("doctor", file, "--model", model, code=None)
run("seen", model, file, code=1)
"""
    printed = " ".join(in_a_new_process(program, paired_file, model_dir).split())
    assert f"{len(GENES)} of the {len(GENES)} in the vocabulary (100%)" in printed
    assert "verdict more than chance explains" in printed


def in_a_new_process(program, *arguments):
    """Run statements that call `run(word, ..., code=exit code)` in a process of their own; give what they print."""
    begin = """
import sys
def run(*words, code):
    from scfusion_fm.cli.main import main
    found, before, sys.argv = None, sys.argv, ["scfusion", *words]
    try:
        main()
    except SystemExit as error:
        found = error.code
    sys.argv = before
    assert found == code, found
"""
    command = [sys.executable, "-c", begin + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_seen_counts_training_cells_and_tells_by_its_exit_code(monkeypatch, model_dir, paired_file, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, "seen", model_dir, paired_file, "--json")
    assert exit_info.value.code == 1
    answer = json.loads(capsys.readouterr().out)
    split = assign_split([f"s0c{i}" for i in range(160)], SplitConfig())
    assert answer["num_cells"] == 160
    assert answer["seen"] == answer["seen_in"]["pretraining"] <= (split != "test").sum()
    write_h5mu(tmp_path / "new.h5mu", 160, seed=77)
    call(monkeypatch, "seen", model_dir, tmp_path / "new.h5mu")
    assert "none seen" in capsys.readouterr().out


def test_seen_needs_a_model_that_remembers(monkeypatch, model_dir, paired_file, tmp_path, capsys):
    (copy_model(model_dir, tmp_path / "model") / "seen_cells.npz").unlink()
    seal(tmp_path / "model")
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, "seen", tmp_path / "model", paired_file)
    assert exit_info.value.code == 2
    assert "`model` must carry the fingerprints of its training cells" in capsys.readouterr().err


def test_names_in_files_do_not_steer_the_terminal(monkeypatch, model_dir, paired_file, tmp_path, capsys):
    model = copy_model(model_dir, tmp_path / "model")
    seen = SeenCells.load(model / "seen_cells.npz")
    (part,) = seen.parts
    SeenCells((dataclasses.replace(part, name="\x1b[2Jnone\nverdict none"),)).save(model / "seen_cells.npz")
    seal(model)
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, "seen", model, paired_file)
    printed = capsys.readouterr().out
    assert r"in \x1b[2Jnone\nverdict none)" in printed
    assert "\x1b" not in printed
    change_json(model / "config.json", ttt_direction="\x1b[2J\nx")
    with pytest.raises(SystemExit, match="2"):
        call(monkeypatch, "seen", model, paired_file)
    (line,) = capsys.readouterr().err.splitlines()
    assert r"got '\x1b[2J\nx'" in line


def test_doctor_tells_by_its_exit_code(monkeypatch, model_dir, paired_file, tmp_path, capsys):
    call(monkeypatch, "doctor", paired_file)
    printed = capsys.readouterr().out
    assert printed.startswith("cells.h5mu: ok\n")
    assert printed.endswith("1 file: 1 ok\n")
    copy = shutil.copy(paired_file, tmp_path / "copy.h5mu")
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, "doctor", paired_file, copy, "--model", model_dir)
    assert exit_info.value.code == 1
    printed = capsys.readouterr().out
    assert f"may share cells with {copy}: 160 barcodes are in both" in " ".join(printed.split())
    assert f"{len(GENES)} of the {len(GENES)} in the vocabulary (100%)" in printed
    with pytest.raises(SystemExit):
        call(monkeypatch, "doctor", paired_file, "--min-coverage", "0")
    assert "`min_coverage` is about a model, got none" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, "doctor", paired_file, tmp_path / "none.h5ad")
    assert exit_info.value.code == 2
    assert "2 files: 1 ok, 1 REFUSED" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*the model knows little of this file")
def test_doctor_and_commands_agree_on_files_of_which_a_model_knows_little(monkeypatch, model_dir, tmp_path, capsys):
    rna = make_modalities(12, seed=9)[0]
    rna[:, -3:].copy().write_h5ad(tmp_path / "few.h5ad")
    doctor = ["doctor", "--model", model_dir, tmp_path / "few.h5ad"]
    embed = ["embed", model_dir, tmp_path / "few.h5ad", tmp_path / "out.h5ad"]
    codes = []
    for floor in ("0.5", "0"):
        for command in (doctor, embed):
            try:
                call(monkeypatch, *command, "--min-coverage", floor)
                codes.append(0)
            except SystemExit as stopped:
                codes.append(stopped.code)
            told = capsys.readouterr()
            assert f"3 of the model's {len(GENES)} genes" in " ".join((told.out + told.err).split())
    assert codes == [2, 2, 1, 0]


def test_waiting_threads_give_the_core_away_unless_the_user_says_otherwise(monkeypatch):
    command = [sys.executable, "-c", "import scfusion_fm, os; print(os.environ['GOMP_SPINCOUNT'])"]
    for given, expected in ((None, "1000"), ("7", "7")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if given:
            monkeypatch.setenv("GOMP_SPINCOUNT", given)
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected


def test_arguments_cannot_steer_the_terminal(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "verify", "a", "b\n\x1b[31m")
    assert capsys.readouterr().err.endswith("error: unrecognized arguments: b\\n\\x1b[31m\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "--output"), "`output` must end in .html"),
        (("plot", "run", "--output"), "`--output` must end in .png"),
        (("inspect", "atlas.zarr", "--plot"), "`--plot` must end in .png"),
    ],
)
def test_pages_and_pictures_are_never_written_over_data(arguments, message, monkeypatch, tmp_path, capsys):
    (tmp_path / "cells.h5ad").write_text("precious")
    with pytest.raises(SystemExit):
        call(monkeypatch, *arguments, tmp_path / "cells.h5ad")
    assert message in capsys.readouterr().err
    assert (tmp_path / "cells.h5ad").read_text() == "precious"


def test_fetch_lists_and_fetches(monkeypatch, capsys, tmp_path):
    from scfusion_fm.data.fetch import fetch as fetching

    call(monkeypatch, "fetch")
    assert "neurips_bmmc" in capsys.readouterr().out
    monkeypatch.setattr(fetching, "fetch", lambda *names, directory: [directory / name for name in names])
    call(monkeypatch, "fetch", "pbmc_1k_10x", "--directory", str(tmp_path))
    assert f"wrote {tmp_path}/pbmc_1k_10x" in capsys.readouterr().out

"""The picture of runs shows what they recorded, alone and beside one another."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scfusion_fm.cli.main import main
from scfusion_fm.evaluation.report.run_files import read_metrics
from scfusion_fm.evaluation.report.run_plot import describe_progress, find_skipped, name_runs, plot_runs, write_run_plot

OPTIMISER = {"lr": 1e-3, "grad_norm": 0.5, "cells_per_s": 90.0, "data_stall": 0.25, "memory_gib": 2.0, "mfu": None}


def make_records(steps=(1, 2, 3), cells=8, **more):
    records = []
    for step in steps:
        record = {"step": step, "cells": cells * step, "seconds": 60.0 * step, "loss": 1 / step}
        record |= {"rna_loss": 2 / step, "adt_loss": None}
        records.append(record | {"split": "train", "skipped_steps": 0} | OPTIMISER | more)
        records.append(record | {"split": "val"})
    return records


def write_run(path, records):
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def read_legends(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def find_panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title() == title)


def fits_on_the_page(figure):
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(drawn.min) > -0.02 and drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02


def test_one_run_is_drawn_over_its_steps(tmp_path):
    figure = plot_runs({"a": read_metrics(write_run(tmp_path / "a", make_records()) / "metrics.jsonl")})
    titles = ["Total loss", "RNA loss", "Learning rate", "Gradient norm", "Cells per second"]
    assert read_titles(figure) == [*titles, "Waiting for data (% of time)", "Peak memory (GiB)"]
    train, val = find_panel(figure, "RNA loss").lines
    np.testing.assert_allclose(train.get_xydata(), [(s, 2 / s) for s in (1, 2, 3)])
    np.testing.assert_allclose(val.get_xydata(), [(s, 2 / s) for s in (1, 2, 3)])
    assert train.get_color() != val.get_color()
    (stall,) = find_panel(figure, "Waiting for data (% of time)").lines
    np.testing.assert_allclose(stall.get_ydata(), 25)
    assert find_panel(figure, "Gradient norm").get_yscale() == "log"
    assert read_legends(figure)[:2] == ["training", "held-out cells"]
    assert fits_on_the_page(figure)


def test_runs_are_compared_by_the_cells_that_they_saw():
    runs = {"a": pd.DataFrame(make_records()), "b": pd.DataFrame(make_records(cells=16, skipped_steps=2))}
    figure = plot_runs(runs)
    lines = find_panel(figure, "Total loss").lines
    np.testing.assert_array_equal([line.get_xdata()[-1] for line in lines], [24, 24, 48, 48])
    colours = [line.get_color() for line in lines]
    assert (colours[0], colours[2]) == (colours[1], colours[3])
    assert colours[0] != colours[2]
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 2
    assert read_legends(figure)[:3] == ["training", "held-out cells", "skipped steps"]
    assert fits_on_the_page(figure)


def test_what_only_one_run_recorded_is_drawn_for_it():
    old = pd.DataFrame(make_records()).drop(columns=["memory_gib", "skipped_steps"])
    figure = plot_runs({"old": old, "new": pd.DataFrame(make_records())})
    assert len(find_panel(figure, "Peak memory (GiB)").lines) == 1


def test_long_names_of_many_runs_fit_on_the_page():
    runs = {f"{'name ' * 30}{i}": pd.DataFrame(make_records(range(1, 200))) for i in range(8)}
    assert fits_on_the_page(plot_runs(runs))


def test_skipped_steps_are_marked_where_they_happened(tmp_path):
    records = [r | {"skipped_steps": count} for r, count in zip(make_records()[::2], (1, 1, 3), strict=True)]
    val = {k: v for k, v in records[1].items() if k != "skipped_steps"} | {"split": "val"}
    table = pd.DataFrame([*records[:2], val, records[2]])
    assert find_skipped(table).tolist() == [True, False, False, True]
    figure = plot_runs({"a": table})
    assert find_panel(figure, "Gradient norm").lines[-1].get_xdata().tolist() == [1, 3]
    assert "skipped steps" in read_legends(figure)


def test_values_that_overflowed_leave_a_gap(tmp_path):
    records = make_records()
    records[2]["loss"], records[2]["grad_norm"] = float("nan"), float("inf")
    table = read_metrics(write_run(tmp_path / "a", records) / "metrics.jsonl")
    figure = plot_runs({"a": table})
    assert find_panel(figure, "Total loss").lines[0].get_xdata().tolist() == [1, 3]
    assert find_panel(figure, "Gradient norm").lines[0].get_xdata().tolist() == [1, 3]
    assert read_legends(plot_runs({"a": table[table["split"] == "train"]}))[:-1] == ["training"]
    with pytest.raises(ValueError, match=r"`runs` must have records with numbers, got none for \['a'\]"):
        plot_runs({"a": table.iloc[:0]})


def test_how_far_a_run_came_is_told():
    table = pd.DataFrame(make_records((1_000, 2_000)))
    assert describe_progress(table) == "step 2,000, 16.0 k cells, 33.3 h, lowest held-out loss 0.0005 at step 2,000"
    assert (
        describe_progress(table[table["split"] == "train"].head(1).assign(seconds=90))
        == "step 1,000, 8.0 k cells, 1.5 min"
    )


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a"], ["a"]),
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/a/x", "/r/b/x"], ["a/x", "b/x"]),
        (["/x", "/r/x"], ["/x", "r/x"]),
    ],
)
def test_names_tell_runs_apart(paths, names):
    assert name_runs([Path(path) for path in paths]) == names


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scfusion", "plot", *map(str, arguments)])
    main()


def test_command_writes_the_picture_again_and_again(tmp_path, monkeypatch, capsys):
    runs = [write_run(tmp_path / name, make_records()) for name in ("a", "b")]
    for _ in range(2):
        call(monkeypatch, runs[0])
    call(monkeypatch, *runs, "--output", tmp_path / "both.png")
    assert capsys.readouterr().out.splitlines() == [f"wrote {runs[0] / 'plot.png'}"] * 2 + [
        f"wrote {tmp_path / 'both.png'}"
    ]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (runs[0] / "plot.png", tmp_path / "both.png"))
    assert sorted(p.name for p in runs[0].iterdir()) == ["metrics.jsonl", "plot.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must exist, got no such file; let the run finish"),
        ("", "in its records, got no 'step'"),
        ('{"step": 1}\n{"step": 2, "sp', "must hold one JSON object per line"),
    ],
)
def test_unreadable_records_end_with_one_line(tmp_path, monkeypatch, capsys, content, message):
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        call(monkeypatch, run)
    assert exit_info.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (run / "plot.png").exists()


def test_mistakes_are_refused(tmp_path):
    run = write_run(tmp_path / "a", make_records())
    for output in (tmp_path / "none" / "out.png", tmp_path / "out.pdf"):
        with pytest.raises(ValueError, match=r"`--output` must be a \.png file in a directory that exists"):
            write_run_plot([run], output)
    with pytest.raises(ValueError, match="`runs` must differ, got"):
        write_run_plot([run, tmp_path / "b" / ".." / "a"], tmp_path / "out.png")

"""Figures of hand-made results: their content, and equal bytes when drawn again."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from harness.cli.plot import plot as plot_command
from harness.errors import UserError
from harness.records.search_history import SearchHistory, SearchTrace
from harness.records.store import CURVE, Store
from harness.registry import BUILT_IN
from harness.report.intervals import with_intervals
from harness.report.plots.curves import Curve, curves_figure
from harness.report.plots.figures import read_curve, write_figures
from harness.report.plots.gates import gates_figure
from harness.report.plots.style import COLORS, as_bytes, draw_chance, looks, new_figure
from harness.report.plots.tradeoff import Point, pareto_front, tradeoff_figure
from harness.report.tables import build_tables
from tests.support.stored_results import as_search, make_record, store_scores

TRACE = SearchTrace(
    arms=("joint.0", "joint.1", "joint.2"),
    values=((0, 0, 0), (0, 0.5, -0.5), (0.1, 0.8, -0.7), (0.1, 1.2, -0.9)),
    chosen=("joint.1",),
    epoch_starts=((0, 2), (2, 3)),
    outcome="skipped",
)


def point(label: str, cost: float, score: float) -> Point:
    return Point(label, cost, score)


def test_pareto_front_holds_the_undominated_points() -> None:
    points = [point("a", 1, 50), point("b", 2, 60), point("c", 3, 55), point("d", 4, 70), point("e", 4, 65)]
    assert [p.label for p in pareto_front(points)] == ["a", "b", "d"]
    # Where low is good, the cheapest already is the best.
    assert [p.label for p in pareto_front(points, higher_is_better=False)] == ["a"]


def test_equal_points_are_on_the_front_once() -> None:
    assert [p.label for p in pareto_front([point("b", 1, 5), point("a", 1, 5)])] == ["a"]


def test_every_method_has_its_own_marker_and_colour() -> None:
    labels = [*BUILT_IN["methods"], *(f"das[skip={k}]" for k in range(12))]
    found = looks(labels)
    for one, other in combinations(labels[:9], 2):
        assert found[one].marker != found[other].marker
    pairs = {(look.color, look.marker) for look in found.values()}
    assert len(pairs) == len(labels)
    colors = [found[label].color for label in labels[: len(COLORS)]]
    assert len(set(colors)) == len(colors)
    assert looks(labels[::-1]) == found
    for label in BUILT_IN["methods"]:
        assert looks([label]) == {label: found[label]}  # whichever methods are beside it
    assert looks(["das[skip=4]", "full"])["das[skip=4]"] == found["das"]
    for label in ("lora+tome", "lora+das", "bitfit+adapter"):  # a combination leaves a method its look
        assert looks([label, "skip[choice=alignment]"])["skip[choice=alignment]"] == found["skip"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    random = np.random.default_rng(0)
    scores = {
        (method, seed): [float(value) for value in random.integers(0, 2, 40)]
        for method in ("full", "lora", "das")
        for seed in (0, 1)
    }
    store = store_scores(tmp_path / "results", scores)
    das = next(record for record in store.records() if record.cell.method.name == "das")
    changed = das.model_dump(mode="json") | {"search": as_search()}
    store.commit(type(das).model_validate(changed), search=SearchHistory(trace=TRACE))
    return store


def test_accuracy_is_drawn_against_three_costs_with_whiskers_and_names(store: Store) -> None:
    (table,) = build_tables(store.records())
    figure = tradeoff_figure(with_intervals(table, store), chance=31.25)
    assert figure is not None
    assert [axis.get_xlabel() for axis in figure.axes] == [
        "Inference compute (MMACs)",
        "Latency, batch 1 (ms, median)",
        "Updated parameters",
    ]
    for axis in figure.axes:
        assert len(axis.containers) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["full", "lora", "das"]
    notes = [text.get_text() for text in figure.axes[-1].texts]
    assert notes == ["chance 31.2"]


def test_costs_choose_the_panels(store: Store) -> None:
    (table,) = build_tables(store.records())
    figure = tradeoff_figure(table, ("parameters", "flops"))
    assert figure is not None
    assert [axis.get_xlabel() for axis in figure.axes] == ["Updated parameters", "Inference compute (MMACs)"]
    with pytest.raises(UserError, match=r"no cost 'flop'\. Did you mean 'flops'"):
        tradeoff_figure(table, ("flop",))


@pytest.mark.parametrize(("chance", "lines"), [(45.0, 1), (31.0, 1), (10.0, 0)])
def test_chance_is_a_line_or_a_note_if_it_is_far_below(chance: float, lines: int) -> None:
    axis = new_figure(3, 3).subplots()
    axis.set_ylim(40, 60)
    draw_chance(axis, chance)
    assert len(axis.lines) == lines
    assert axis.get_ylim()[0] == (40 if chance > 42 or not lines else chance - 1.2)
    (text,) = axis.texts
    assert text.get_text() == f"{'' if lines else '↓ '}chance {chance:.1f}"


def test_single_method_gives_no_tradeoff_figure(tmp_path: Path) -> None:
    store = store_scores(tmp_path, {("full", 0): [1.0, 0.0]})
    assert tradeoff_figure(build_tables(store.records())[0]) is None


def test_method_without_parameters_is_drawn_on_the_logarithmic_axis() -> None:
    records = [make_record("full", updated=2_000_000), make_record("classifier", updated=0)]
    figure = tradeoff_figure(build_tables(records)[0])
    assert figure is not None
    axis = figure.axes[-1]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1M"]


def test_gates_are_drawn_with_the_chosen_ones_in_bold() -> None:
    lines, chart = gates_figure(TRACE, "das").axes[:2]
    assert lines.get_ylabel() == "Gate (high: skipped)"
    assert lines.get_title(loc="left") == "das: skipped in the end joint.1 (bold)"
    bold = [text.get_text() for text in lines.texts if text.get_fontweight() == "bold"]
    assert bold == ["joint.1"]
    assert list(lines.lines[1].get_ydata()) == [0, 0.5, 0.8, 1.2]
    assert "epoch 3" in [text.get_text() for text in lines.texts]
    assert [text.get_text() for text in chart.get_yticklabels()] == ["joint.0", "joint.1", "joint.2"]
    assert chart.images[0].get_array().shape == (3, 4)  # type: ignore[union-attr]


def test_a_search_without_a_trace_is_not_drawn(store: Store, tmp_path: Path) -> None:
    das = next(record for record in store.records() if record.search is not None)
    store.commit(das, search=SearchHistory(history=["something"]))
    assert not [path for path in write_figures(store, tmp_path) if "gates" in path.name]


def test_curves_are_means_over_seeds() -> None:
    curves = {
        "full": [
            Curve((1, 2), {"train_loss": {1: 4.0, 2: 2.0}}),
            Curve((1, 2), {"train_loss": {1: 2.0, 2: 2.0}}),
        ]
    }
    figure = curves_figure(curves, "accuracy", "vqa")
    assert figure is not None
    (axis,) = figure.axes  # no validation metric, no panel
    assert list(axis.lines[0].get_ydata()) == [3.0, 2.0]
    assert len(axis.collections) == 1
    assert curves_figure({"full": []}, "accuracy", "vqa") is None


def test_a_broken_curve_names_its_line(store: Store) -> None:
    record = store.records()[0]
    path = store.folder(record.cell.id) / "curve.csv"
    path.write_text("epoch,train_loss\n1,2.5\nx,3\n")
    with pytest.raises(UserError, match=r"curve\.csv: line 3: not a line"):
        read_curve(store, record)
    path.unlink()
    assert read_curve(store, record) is None


def test_all_figures_are_written_and_are_the_same_bytes_again(store: Store, tmp_path: Path) -> None:
    first = write_figures(store, tmp_path / "one")
    assert [path.name for path in first] == [
        f"{name}.{form}"
        for name in ("tradeoff-vilt-mini-vqa", "curves-vilt-mini-vqa", "gates-vilt-mini-vqa-das-seed0")
        for form in ("png", "svg")
    ]
    again = write_figures(store, tmp_path / "two")
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    text = first[1].read_text()
    assert "<dc:date>" not in text


def test_a_figure_is_png_or_svg() -> None:
    figure = gates_figure(TRACE, "das")
    assert as_bytes(figure, "png").startswith(b"\x89PNG")
    drawing = as_bytes(figure, "svg").decode()
    assert "@media (prefers-color-scheme: dark)" in drawing
    assert "fill: #ffffff" not in drawing.split("</style>")[1][:2000]  # no white page behind it


def test_the_command_writes_beside_the_results(store: Store, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(plot_command)
    done = CliRunner().invoke(app, [str(store.root)])
    assert done.exit_code == 0, done.exception
    assert (store.root / "plots" / "tradeoff-vilt-mini-vqa.svg").is_file()
    error = CliRunner().invoke(app, [str(tmp_path / "none")]).exception
    assert isinstance(error, UserError)


def test_a_diverged_cell_is_drawn_as_far_as_it_has_numbers(store: Store, tmp_path: Path) -> None:
    record, other = [each for each in store.records() if each.cell.method.name == "lora"]
    (store.folder(record.cell.id) / CURVE).write_text(
        "epoch,train_loss,val_accuracy\n1,3.5,40\n2,nan,41\n3,inf,\n"
    )
    (store.folder(other.cell.id) / CURVE).write_text("epoch,train_loss,val_accuracy\n1,nan,nan\n")
    assert read_curve(store, record) == Curve(
        (1, 2, 3), {"train_loss": {1: 3.5}, "val_accuracy": {1: 40, 2: 41}}
    )
    assert write_figures(store, tmp_path / "plots")


@pytest.mark.parametrize(
    "content", ["", "epoch\n", "a,b\n1,2\n", "epoch,b\n1\n", "epoch,b\n1,x\n", "\x00", "epoch,b\n1,2,3"]
)
def test_a_damaged_curve_is_named_or_empty(store: Store, content: str) -> None:
    record = store.records()[0]
    path = store.folder(record.cell.id) / CURVE
    path.write_text(content)
    try:
        assert read_curve(store, record) == Curve((), {})
    except UserError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017

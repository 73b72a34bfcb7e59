"""The report is one file, escapes all text from data, and shows right and wrong predictions."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from harness.cli.report import report as report_command
from harness.errors import UserError
from harness.records.search_history import SearchHistory, SearchTrace
from harness.records.store import Store
from harness.report.html.diagrams import block_diagram, small_curve
from harness.report.html.page import build_report
from harness.report.html.pictures import Pictures
from harness.report.html.samples import Examples, choose, load_examples, render_samples
from tasks.base import Example
from tests.support.stored_results import as_search, predictions_of, record_of, store_scores

EVIL = '<script>alert(1)</script> & "co"'
VOID = {"meta", "br", "path", "use", "rect", "circle", "polyline", "image"}


class Checker(HTMLParser):
    """Collects tags and attributes; tags must be closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two methods on data that no longer exist; one question is a script."""
    changes = {"data__benchmark": "VQA2.0", "cell__task__options": {}}
    store = store_scores(
        tmp_path / "results", {("full", 0): [1.0, 0.0] * 10, ("lora", 0): [1.0, 1.0, 0.0, 0.5] * 5}, **changes
    )
    predictions = [
        {**each, "question": EVIL, "answer": EVIL} for each in predictions_of([1.0, 0.0, 0.5, 1.0] * 5)
    ]
    trace = SearchTrace(
        arms=("joint.0", "joint.1"),
        values=((0, 0), (0, 0.5)),
        chosen=("joint.1",),
        epoch_starts=((0, 2),),
        outcome="skipped",
    )
    das = record_of("das", 0, predictions, search=as_search(), **changes)
    store.commit(das, predictions=predictions, search=SearchHistory(trace=trace))
    return store


def test_page_is_well_formed_and_needs_no_network(store: Store) -> None:
    page = build_report(store)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.scripts == 1
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_texts_from_data_are_escaped(store: Store) -> None:
    page = build_report(store)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &#34;co&#34;" in page


def test_every_cell_has_its_decision_curve_and_predictions(store: Store) -> None:
    page = build_report(store)
    cells = page.split("<details><summary><b>")[1:]
    assert len(cells) == 3
    das = next(cell for cell in cells if cell.startswith("das"))
    assert "3 blocks; skipped: joint.1" in das
    assert das.count('class="sample right"') == 4
    assert das.count('class="sample wrong"') + das.count('class="sample partly"') == 4
    assert "give the folder of VQA2.0 with --data-root" in das
    full = next(cell for cell in cells if cell.startswith("full"))
    assert "train_loss, epochs 1 to 3" in full
    assert (
        "<dt>versions</dt><dd>python 3.11.0</dd>"
        in page.split("Common to these cells")[1].split("</details>")[0]
    )
    assert "<dt>versions</dt>" not in full
    assert das.count("Gates of the search") == 1
    assert 'aria-label="Gates of 2 arms over 2 updates; skipped: joint.1"' in das
    assert page.count("<figure><svg role") == 5  # three costs, loss, accuracy


def test_the_table_can_be_sorted_by_numbers(store: Store) -> None:
    page = build_report(store)
    table, costs = re.findall(r'<table class="results">.*?</table>', page, re.DOTALL)
    assert "FLOPs" in costs
    assert "FLOPs" not in table
    heads = re.findall(r'<button type="button">(.*?)</button>', table)
    rows = [re.findall(r'data-value="(.*?)"', row) for row in table.split("<tr>")[2:]]
    assert heads[0] == "Method"
    assert {row[0] for row in rows} == {"full", "lora", "das"}
    assert all(len(row) == len(heads) for row in rows)
    accuracy = heads.index("Accuracy")
    assert {float(row[accuracy]) for row in rows} == {50.0, 62.5}
    interval = heads.index("95 % interval")
    # Every picture of full tuning's has one right and one wrong answer: no width.
    assert all(float(row[interval]) <= float(row[accuracy]) for row in rows)


def test_contents_lead_to_every_section(store: Store) -> None:
    page = build_report(store)
    names = re.findall(r'<li><a href="#(.*?)">', page)
    assert names == ["table-1", "figures-1", "cells-1"]
    assert all(page.count(f'id="{name}"') == 1 for name in names)


def test_making_the_page_tells_its_stages(store: Store) -> None:
    told: list[str] = []
    build_report(store, on_stage=told.append)
    assert told[0] == "tables of 3 cells"
    assert told[-1] == "cell 3 of 3"


def test_same_right_and_wrong_predictions_are_shown_every_time() -> None:
    predictions = predictions_of([1.0, 0.0, 0.9, 0.5] * 10)
    chosen = choose(predictions, 3)
    assert [each["score"] for each in chosen[:3]] == [1.0] * 3
    assert all(each["score"] <= 0.5 for each in chosen[3:])
    assert len(chosen) == 6
    assert choose(predictions[::-1], 3) == chosen
    assert choose([{"id": "1", "score": None}]) == []


def test_images_are_small_data_uris_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    picture, broken = tmp_path / "a.png", tmp_path / "<b>.png"
    Image.new("RGB", (1000, 500), "red").save(picture)
    broken.write_bytes(b"no picture")
    predictions = [
        {"id": "1", "group": "1", "prediction": "true", "label": "false", "score": 0.0},
        {"id": "2", "group": "2", "image_rank": 1, "text_rank": 3, "text": "a caption", "score": 0.5},
    ]
    examples = Examples(
        {
            "1": Example("1", "a sentence", (picture, broken), None, "1"),
            "2": Example("2", "a caption", (picture,), None, "2"),
        }
    )
    pictures = Pictures()
    text = render_samples(predictions, examples, pictures)
    assert text.count('<use href="#p0"/>') == 2
    (kept,) = pictures.all  # once, though it is shown twice
    assert (kept.key, kept.width, kept.height) == ("p0", 160, 80)
    assert kept.uri.startswith("data:image/jpeg;base64,")
    assert len(kept.uri) < 5_000
    assert 'aria-label="image a.png"' in text
    assert "&lt;b&gt;.png cannot be read" in text
    assert "truth: false" in text
    assert "its caption ranked: <b>3</b>" in text
    assert render_samples([], examples, pictures) == '<p class="dim">No scored predictions.</p>'


def test_changed_data_give_no_images(tmp_path: Path, store: Store) -> None:
    record = store.records()[0]
    found = load_examples(record, tmp_path / "nowhere")
    assert found.by_id == {}
    assert "the data cannot be read" in found.missing


def test_skipped_blocks_are_marked_in_each_stream() -> None:
    drawing = block_diagram([f"text.{k}" for k in range(3)] + ["image.0", "image.<1>"], ["image.0", "text.2"])
    assert drawing.count("stroke-dasharray") == 2
    assert drawing.count(">skipped<") == 2
    assert "text: 3 blocks, 1 skipped" in drawing
    assert "image: 2 blocks, 1 skipped" in drawing
    assert "image.&lt;1&gt;" in drawing


def test_a_curve_of_one_epoch_is_a_dot() -> None:
    assert small_curve({1: 30.0}, "val_accuracy").count("<circle") == 1


def test_the_command_writes_the_page(store: Store, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report_command)
    done = CliRunner().invoke(app, [str(store.root), "-o", str(tmp_path / "new" / "page.html")])
    assert done.exit_code == 0, done.exception
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    error = CliRunner().invoke(app, [str(tmp_path / "none")]).exception
    assert isinstance(error, UserError)

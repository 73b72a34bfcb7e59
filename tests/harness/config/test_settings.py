"""Every setting is read from flag, file and Python, recorded, and restored from the record."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness import api
from harness.backbones.base import Backbone
from harness.cli import app, terminal
from harness.config import RunSettings
from harness.config.declared import SETTINGS
from harness.config.sources import Source, from_keywords, make_settings
from harness.config.types import Decides
from harness.experiment.plan import (
    Cell,
    build_cell,
    build_testbed,
    load_backbone,
    open_encodings,
)
from harness.experiment.reload import settings_of
from harness.experiment.to_record import failed_record
from harness.experiment.tuning import write_choices
from harness.records.choices import Choice
from harness.records.record import Record
from harness.records.record_file import read_record, write_record
from harness.records.store import Store
from harness.specs import Spec, parse_specs
from tasks.data.augment import AUGMENTATIONS
from tasks.data.image_cache import ImageCache
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.paths import ROOT

CASES: dict[str, tuple[str, str, Any]] = {
    "methods": ("lora[r=8],full", '["lora[r=8]", "full"]', tuple(parse_specs("lora[r=8],full"))),
    "tasks": ("vqa[limit_train=30]", '"vqa[limit_train=30]"', tuple(parse_specs("vqa[limit_train=30]"))),
    "backbone": ("meter-mini", '"meter-mini"', "meter-mini"),
    "seeds": ("3,5", "[3, 5]", (3, 5)),
    "recipe": ("own", '"own"', "own"),
    "data_root": ("~/data", '"~/data"', Path.home() / "data"),
    "skip_bad_images": ("", "true", True),
    "augment": ("randaugment", '"randaugment"', "randaugment"),
    "workers": ("2", "2", 2),
    "image_budget_mib": ("64.5", "64.5", 64.5),
    "image_cache": ("~/images", '"~/images"', Path.home() / "images"),
    "weights": ("~/w.ckpt", '"~/w.ckpt"', str(Path.home() / "w.ckpt")),
    "tokenizer": ("~/words", '"~/words"', str(Path.home() / "words")),
    "image_size": ("32", "32", 32),
    "text_length": ("12", "12", 12),
    "dropout": ("0.25", "0.25", 0.25),
    "text_encoder": ("~/bert", '"~/bert"', str(Path.home() / "bert")),
    "image_encoder": ("~/vit", '"~/vit"', str(Path.home() / "vit")),
    "backbone_precision": ("4bit", '"4bit"', "4bit"),
    "epochs": ("7", "7", 7),
    "budget": ("total", '"total"', "total"),
    "batch_size": ("8", "8", 8),
    "micro_batch": ("auto", '"auto"', "auto"),
    "learning_rate": ("3e-3", "3e-3", 3e-3),
    "learning_rate_scale": ("2.5", "2.5", 2.5),
    "tuned_rates": ("~/tuning.json", '"~/tuning.json"', Path.home() / "tuning.json"),
    "block_learning_rate": ("2e-3", "2e-3", 2e-3),
    "head_learning_rate": ("0.5", "0.5", 0.5),
    "weight_decay": ("0.25", "0.25", 0.25),
    "decay_norms": ("", "true", True),
    "warmup": ("0.5", "0.5", 0.5),
    "betas": ("0.5,0.75", "[0.5, 0.75]", (0.5, 0.75)),
    "eps": ("1e-6", "1e-6", 1e-6),
    "select": ("last", '"last"', "last"),
    "precision": ("bf16-mixed", '"bf16-mixed"', "bf16-mixed"),
    "activation_checkpointing": ("", "true", True),
    "compile": ("", "true", True),
    "accelerator": ("cpu", '"cpu"', "cpu"),
    "devices": ("2", "2", 2),
    "nodes": ("2", "2", 2),
    "jobs": ("3", "3", 3),
    "timeout": ("1.5", "1.5", 1.5),
    "checkpoint_minutes": ("0.5", "0.5", 0.5),
    "in_process": ("", "true", True),
    "launcher": ("slurm", '"slurm"', "slurm"),
    "wait": ("", "true", True),
    "slurm_partition": ("gpu", '"gpu"', "gpu"),
    "slurm_minutes": ("30", "30", 30),
    "slurm_gpus": ("2", "2", 2),
    "slurm_cpus": ("8", "8", 8),
    "slurm_memory_gib": ("64", "64", 64),
    "slurm_constraint": ("a100&nvlink", '"a100&nvlink"', "a100&nvlink"),
    "slurm_account": ("lab", '"lab"', "lab"),
    "slurm_parallel": ("3", "3", 3),
    "slurm_setup": ("module load cuda", '"module load cuda"', "module load cuda"),
    "cache_mib": ("16", "16", 16.0),
    "cache_disk_gib": ("0", "0", 0.0),
    "cache_precision": ("half", '"half"', "half"),
    "measured_image_size": ("64x64", '"64x64"', (64, 64)),
    "measure_again": ("", "true", True),
    "results": ("~/x", '"~/x"', Path.home() / "x"),
    "logger": ("csv,wandb", '["csv", "wandb"]', ("csv", "wandb")),
}
"""A value of each setting that is not its default: as words of the command line, as TOML, and what it means."""


BASE = {"methods": "lora", "tasks": "vqa"}
KEYS = pytest.mark.parametrize("key", list(SETTINGS))


def test_every_setting_has_a_test_case() -> None:
    assert list(CASES) == list(SETTINGS)
    defaults = make_settings(**BASE).flat()
    assert [key for key, (_, _, value) in CASES.items() if value == defaults[key]] == []


def others(settings: RunSettings, key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.flat().items() if name != key}


@KEYS
def test_setting_is_read_from_flag_file_and_python(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, toml, value = CASES[key]
    seen: list[RunSettings] = []

    def run_and_show(settings: RunSettings, dry_run: bool) -> int:
        seen.append(settings)
        return 0

    class StopError(Exception):
        pass

    def make_plan(settings: RunSettings) -> None:
        seen.append(settings)
        raise StopError

    monkeypatch.setattr(terminal, "run_and_show", run_and_show)
    monkeypatch.setattr(api, "make_plan", make_plan)
    base = [word for name, text in BASE.items() if name != key for word in (f"--{name}", text)]
    flag = [SETTINGS[key].flag, *([words] if words else [])]
    outcome = CliRunner().invoke(app, ["run", *base, *flag], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output

    file = tmp_path / "exp.toml"
    lines = [f'{name} = "{text}"' for name, text in BASE.items() if name != key]
    file.write_text("\n".join(["[run]", *lines, f"{key} = {toml}"]))
    assert CliRunner().invoke(app, ["run", str(file)], catch_exceptions=False).exit_code == 0

    with pytest.raises(StopError):
        api.run(**{**BASE, key: value})  # type: ignore[arg-type]

    assert [settings.flat()[key] for settings in seen] == [value] * 3
    defaults = make_settings(**BASE)
    for settings in seen:
        assert others(settings, key) == others(defaults, key)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(60, 2, 3, 1, 3, 1))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A backbone with encoders, so that the settings of their cache have an effect."""
    settings = make_settings(**BASE, backbone="meter-mini")
    return load_backbone(settings.backbone, settings.backbone_options)


def cell_with(loaded: Backbone, data: Path, **values: Any) -> Cell:
    settings = make_settings(**{**BASE, "backbone": "meter-mini", "accelerator": "cpu", **values})
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"data_root": data})}  # whatever `values` name
    )
    encodings = open_encodings(settings, loaded)
    images = ImageCache(loaded.processor, settings.data.image_budget_mib)
    testbed = build_testbed(settings, settings.tasks[0], loaded, images, encodings=encodings)
    return build_cell(testbed, settings.methods[0], settings.seeds[0])


def recorded(cell: Cell, folder: Path) -> Record:
    folder.mkdir()
    return read_record(write_record(folder, failed_record(cell, "none", datetime.now().astimezone())))


@KEYS
def test_setting_is_recorded_and_restored(
    key: str, backbone: Backbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    value, what = CASES[key][2], SETTINGS[key].about
    if key == "tuned_rates":  # the file is read
        write_choices([Choice("meter-mini", "vqa", "lora", 2.0, {}, (7,), 1, 1.0)], Store(tmp_path))
        value = tmp_path / "tuning.json"
    plain, cell = cell_with(backbone, data), cell_with(backbone, data, **{key: value})
    record = recorded(cell, tmp_path / "cell")
    assert (key in record.settings) == (not what.local)

    here = Source({"data_root": None, "weights": None, "tokenizer": None}, str)
    again = settings_of(record, here)
    local = [name for name, declared in SETTINGS.items() if declared.about.local]
    expected = {name: each for name, each in cell.settings.flat().items() if name not in local}
    found = {name: each for name, each in again.flat().items() if name not in local}
    assert found.pop("tasks")[0].options.items() >= expected.pop("tasks")[0].options.items()
    assert found == expected
    if key not in ("methods", "tasks", "seeds") and not what.local:  # of which a cell has one
        assert found[key] == value

    if what.decides is Decides.PROTOCOL:
        assert record.protocol[key] == (list(value) if isinstance(value, tuple) else value)
        assert plain.testbed.protocol[key] != cell.testbed.protocol[key]
    if what.decides in (Decides.PROTOCOL, Decides.CELL):
        assert cell.id != plain.id
    if what.decides is Decides.NOTHING:
        assert (cell.id, cell.testbed.protocol) == (plain.id, plain.testbed.protocol)


def test_default_settings_are_recorded_as_resolved(backbone: Backbone, data: Path) -> None:
    cell = cell_with(backbone, data, epochs=3)
    kept = cell.settings.to_record()
    recipe = cell.testbed.task.recipe
    assert (kept["epochs"], kept["batch_size"]) == (3, recipe.batch_size)
    assert kept["learning_rate"] == cell.learning_rate
    assert kept["head_learning_rate"] == backbone.base_learning_rate * backbone.head_learning_rate_scale


def test_a_record_names_nothing_on_the_machine(backbone: Backbone, data: Path, tmp_path: Path) -> None:
    cell = cell_with(backbone, data, results=tmp_path / "secret", weights="/secret", tokenizer="/secret")
    text = write_record(tmp_path, failed_record(cell, "none", datetime.now().astimezone())).read_text()
    assert "secret" not in text


def test_a_record_without_settings_is_read_from_its_protocol(
    backbone: Backbone, data: Path, tmp_path: Path
) -> None:
    values = {"weight_decay": 0.25, "warmup": 0.5, "select": "last", "augment": "randaugment"}
    cell = cell_with(backbone, data, **values, head_learning_rate=0.5, epochs=7, measured_image_size="64x64")
    older = recorded(cell, tmp_path / "cell").model_copy(update={"settings": {}})
    here = replace(from_keywords({"data_root": str(data)}))
    found = settings_of(older, here)
    assert found.data.data_root == data
    assert found.protocol() == cell.testbed.settings.protocol()
    assert found.measure.measured_image_size == (64, 64)
    assert found.methods == (Spec("lora"),)


def test_without_encoders_the_precision_of_their_cache_is_no_part_of_a_cell(
    data: Path,
) -> None:
    settings = make_settings(**BASE, data_root=data)
    small = load_backbone(settings.backbone, settings.backbone_options)
    full, half = (cell_with(small, data, cache_precision=each) for each in ("full", "half"))
    assert full.id == half.id


def test_choices_match_the_available_values() -> None:
    from harness.experiment.trackers import MAKERS, PACKAGES

    assert set(SETTINGS["augment"].choices) == set(AUGMENTATIONS)
    assert set(SETTINGS["logger"].choices) == set(PACKAGES) == set(MAKERS)


def test_committed_records_have_settings() -> None:
    """Those of `leaderboard-meter` are older than the settings in records."""
    for folder in ("leaderboard", "leaderboard-meter"):
        for record in Store(ROOT / "results" / folder).records():
            found = settings_of(record, from_keywords({}))
            assert (found.backbone, found.seeds) == (record.cell.backbone.name, (record.cell.seed,))
            assert found.training.epochs == record.protocol["epochs"]
            assert found.training.learning_rate == record.training.learning_rate  # type: ignore[union-attr]

"""Experiment files: what is read from them, and errors that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import RunSettings
from harness.config.experiment import read_experiment
from harness.config.sources import build_settings, from_file
from harness.errors import UserError
from harness.specs import parse_specs
from tests.support.paths import ROOT


def experiment(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "exp.toml"
    path.write_text(text)
    return path


def read(path: Path) -> RunSettings:
    return build_settings(from_file(path))


def test_tables_of_options_go_to_every_spec_of_that_name(tmp_path: Path) -> None:
    path = experiment(
        tmp_path,
        """
        [run]
        methods = ["full", "das[skip=4]", "lora"]
        tasks = "vqa"
        backbone = "vilt-mini"
        seeds = [0, 1]
        learning_rate = 1
        [methods.lora]
        r = 8
        targets = ["query", "value"]
        alpha = 0.5
        merge = true
        [methods.das]
        skip = 2
        sets = 3
        """,
    )
    found = read_experiment(path)
    assert found["methods"] == parse_specs(
        "full,das[skip=4,sets=3],lora[r=8,targets=query+value,alpha=0.5,merge=true]"
    )
    assert {key: value for key, value in found.items() if key != "methods"} == {
        "tasks": "vqa",
        "backbone": "vilt-mini",
        "seeds": [0, 1],
        "learning_rate": 1,
    }


def test_methods_default_to_the_names_of_their_tables(tmp_path: Path) -> None:
    settings = read(
        experiment(tmp_path, "[methods.lora]\nr = 8\n[methods.full]\n[tasks.vqa]\nlimit_train = 10\n")
    )
    assert settings.methods == tuple(parse_specs("lora[r=8],full"))
    assert settings.tasks == tuple(parse_specs("vqa[limit_train=10]"))


def test_a_backbones_table_holds_its_settings_unless_run_says_otherwise(tmp_path: Path) -> None:
    text = (
        "[run]\nmethods='lora'\ntasks='vqa'\nimage_size=64\n"
        "[backbones.vilt]\nimage_size=96\ntext_length=20\nweights='~/vilt.ckpt'\n"
    )
    settings = read(experiment(tmp_path, text))
    assert settings.backbone == "vilt"
    chosen = settings.backbone_options
    assert (chosen.image_size, chosen.text_length) == (64, 20)
    assert chosen.weights == str(Path.home() / "vilt.ckpt")


RUN = "[run]\nmethods = 'lora'\ntasks = 'vqa'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nmethods = [\n", "not valid TOML: .*(line|end of document)"),
        ("[run]\nseeds = = 1\n", "line 2"),
        ("[rnu]\n", "unknown key 'rnu'. Did you mean 'run'"),
        ("run = 1\n", r"'run' must be a table, written \[run\]"),
        ("[run]\nepoch = 1\n", r"\[run\]: epoch: no such setting. Did you mean 'epochs'"),
        (f"{RUN}epochs = '5'\n", r"\[run\]: epochs: must be a whole number of at least 1, not '5'"),
        (f"{RUN}epochs = true\n", "epochs: must be a whole number of at least 1, not True"),
        (f"{RUN}seeds = [0, 'x']\n", r"seeds: must be one or more different .*, not \[0, 'x'\]"),
        ("[run]\nmethods = 3\n", r"\[run\]: methods: must be names or objects of methods, not 3"),
        ("[run]\nmethods = 'das[skip'\n", r"\[run\]: methods: .* is never closed"),
        ("[run]\ntasks = 'vqa'\n", r"\[run\]: methods: must be given"),
        (
            "[run]\nmethods = 'das'\n[methods.dsa]\nskip = 1\n",
            r"\[methods.dsa\]: .* name it. Did you mean 'das'",
        ),
        ("[methods]\nlora = 3\n", r"\[methods.lora\] must be a table"),
        ("[methods.lora]\nr = {a = 1}\n", "cannot be an option"),
        ("[methods.lora]\ntargets = 'a,b'\n", "cannot be an option"),
        ("[run]\nmethods = 'lora,lora[r=8]'\n[methods.lora]\nr = 8\n", r"lora\[r=8\] would run twice"),
        (f"{RUN}[methods.lora]\nrank = 8\n", r"methods: lora: no option 'rank'"),
        (
            f"{RUN}[backbones.vilt]\nsize = 8\n",
            r"backbone: vilt: no option 'size'. Known: backbone_precision, dropout",
        ),
        (f"{RUN}backbone = ['vilt', 'meter']\n", r"\[run\]: backbone: one backbone expected, not 2"),
    ],
)
def test_error_in_an_experiment_file_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = experiment(tmp_path, text)
    with pytest.raises(UserError, match=message) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_missing_experiment_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.toml")), ids=lambda path: path.stem)
def test_the_experiments_of_this_project_are_valid(path: Path) -> None:
    assert read(path).methods

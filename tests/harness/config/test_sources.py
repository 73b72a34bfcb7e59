"""Wrong values are refused with the same message from every source; right ones are parsed correctly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from harness import api
from harness.cli import app
from harness.config import RunSettings
from harness.config.declared import SETTINGS
from harness.config.sources import build_settings, from_file, from_flags, from_keywords, make_settings
from harness.errors import UserError
from harness.specs import parse_specs

BASE = {"methods": "lora", "tasks": "vqa"}


def flags(**words: Any) -> RunSettings:
    return build_settings(from_flags({**BASE, **words}))


def refusal(**values: Any) -> str:
    with pytest.raises(UserError) as raised:
        make_settings(**{**BASE, **values})
    return str(raised.value)


WRONG: list[tuple[str, Any, str]] = [
    ("select", "bset", "must be best or last, not 'bset'. Did you mean 'best'?"),
    (
        "precision",
        "bf16-mix",
        "must be 32-true, bf16-mixed or 16-mixed, not 'bf16-mix'. Did you mean 'bf16-mixed'?",
    ),
    ("accelerator", "tpu", "must be auto, cpu, cuda, gpu or mps, not 'tpu'. Did you mean 'gpu'?"),
    ("epochs", -1, "must be a whole number of at least 1, not -1."),
    ("epochs", 1.5, "must be a whole number of at least 1, not 1.5."),
    ("workers", 100_000, "must be a whole number from 0 to 256, not 100000."),
    ("devices", 1000, "must be a whole number from 1 to 64, not 1000."),
    ("batch_size", 0, "must be a whole number of at least 1, not 0."),
    ("jobs", 0, "must be a whole number of at least 1, not 0."),
    ("text_length", 2, "must be a whole number of at least 3, not 2."),
    ("learning_rate", float("nan"), "must be a number greater than 0, not nan."),
    ("learning_rate", float("inf"), "must be a number greater than 0, not inf."),
    ("learning_rate", -1.0, "must be a number greater than 0, not -1.0."),
    ("learning_rate", 0.0, "must be a number greater than 0, not 0.0."),
    ("timeout", 0.0, "must be a number greater than 0, not 0.0."),
    ("cache_mib", float("nan"), "must be a number of at least 0, not nan."),
    ("cache_disk_gib", -0.5, "must be a number of at least 0, not -0.5."),
    ("image_budget_mib", float("inf"), "must be a number of at least 0, not inf."),
    ("warmup", 1.5, "must be a number from 0 to 1, not 1.5."),
    ("image_size", 10**9, "must be a whole number from 1 to 2048, not 1000000000."),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_wrong_value_gives_the_same_message_everywhere(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    assert refusal(**{key: value}) == f"{key}: {message}"
    with pytest.raises(UserError) as raised:
        api.run(**{**BASE, key: value})
    assert str(raised.value) == f"{key}: {message}"

    file = tmp_path / "exp.toml"
    written = f'"{value}"' if isinstance(value, str) else str(value)
    file.write_text(f"[run]\nmethods = 'lora'\ntasks = 'vqa'\n{key} = {written}\n")
    with pytest.raises(UserError) as raised:
        build_settings(from_file(file))
    assert str(raised.value) == f"{file}: [run]: {key}: {message}"

    flag = f"--{key.replace('_', '-')}"
    quoted = message if isinstance(value, str) else message.replace(f"not {value}", f"not '{value}'")
    words = [word for name, text in BASE.items() for word in (f"--{name}", text)]
    with pytest.raises(UserError) as raised:
        CliRunner().invoke(app, ["run", *words, flag, str(value)], catch_exceptions=False)
    assert str(raised.value) == f"{flag}: {quoted}"


@pytest.mark.parametrize("value", [[], [-1], [0, 0], [0.5], ["x"], [True], "", "0,0", -1, None, [0, "x"]])
def test_seeds_are_different_whole_numbers(value: Any) -> None:
    assert refusal(seeds=value) == (
        f"seeds: must be one or more different whole numbers of at least 0, not {value!r}."
    )


@pytest.mark.parametrize(
    "value", ["0x0", "-5x5", "5", "5x", "x", "9999x64", "64x64x64", [64], [64, 64, 64], [64.0, 64.0], 64]
)
def test_measured_size_is_two_plausible_sides(value: Any) -> None:
    assert "must be HEIGHTxWIDTH, each from 1 to 2048 pixels" in refusal(measured_image_size=value)


@pytest.mark.parametrize("value", ["0.9", "0.9,1", "0.9,0.9,0.9", [0.9], [0.9, -0.1], [0.9, "x"], 0.9])
def test_betas_must_be_two_rates(value: Any) -> None:
    assert refusal(betas=value).startswith("betas: must be two numbers of at least 0 and less than 1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 1}, "epoch: no such setting. Did you mean 'epochs'?"),
        ({"methods": "lorra"}, "methods: there is no method 'lorra'. Did you mean 'lora'?"),
        ({"methods": ["lora", "lora"]}, "methods: lora appears twice."),
        ({"methods": [lambda: 0]}, "methods: must be names or objects of methods, not <function"),
        ({"methods": []}, "methods: must be names with options, such as das,lora[r=8], or all, not []."),
        ({"tasks": "vqa[limit=3]"}, "tasks: vqa: no option 'limit'."),
        ({"tasks": 3}, "tasks: must be the names of tasks, not 3."),
        ({"backbone": "vit"}, "backbone: there is no backbone 'vit'. Did you mean 'vilt'?"),
        ({"backbone": None}, "backbone: must be the names of backbones, not None."),
        (
            {"logger": "csv,wandbb"},
            "logger: must be names among csv, tensorboard, mlflow, wandb, not 'csv,wandbb'.",
        ),
        (
            {"data_root": ""},
            "data_root: must be a path, or a path for each task, such as vqa=/a,nlvr2=/b, not ''.",
        ),
        ({"weights": 3}, "weights: must be a path or a name, not 3."),
        ({"in_process": True, "jobs": 2}, "in_process: in one process cells cannot run at the same time"),
        ({"in_process": True, "timeout": 5}, "in_process: in one process cells cannot run at the same time"),
        ({"in_process": 1}, "in_process: must be true or false, not 1."),
    ],
)
def test_nonexistent_or_unsuitable_values_are_named(values: dict[str, Any], message: str) -> None:
    assert refusal(**values).startswith(message)


def test_an_unknown_option_is_refused_like_an_unknown_key() -> None:
    with pytest.raises(UserError, match=r"^--epoch: no such setting\. Did you mean '--epochs'\?$"):
        CliRunner().invoke(app, ["run", "--epoch", "3"], catch_exceptions=False)


def test_missing_value_is_named_as_option_key_or_keyword() -> None:
    with pytest.raises(UserError, match=r"^--tasks: must be given: names with options, such as vqa"):
        build_settings(from_flags({"methods": "lora"}))
    with pytest.raises(UserError, match=r"^methods: must be given"):
        make_settings(tasks="vqa")


def test_options_override_the_file_and_none_resets_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "exp.toml"
    file.write_text(
        "[run]\nmethods = 'lora'\ntasks = 'vqa'\nepochs = 3\nbatch_size = 4\nskip_bad_images = true\n"
    )
    given = from_flags({"methods": "full", "epochs": "none", "skip_bad_images": False})
    settings = build_settings(from_file(file), given)
    assert settings.methods == tuple(parse_specs("full"))
    assert (settings.training.epochs, settings.training.batch_size) == (None, 4)
    assert not settings.data.skip_bad_images
    keywords = build_settings(from_file(file), from_keywords({"epochs": None}))
    assert keywords.training.epochs is None


def test_all_stands_for_every_built_in_method() -> None:
    assert [spec.name for spec in make_settings(methods="all", tasks="all").methods][:2] == [
        "full",
        "classifier",
    ]


def test_options_of_a_backbone_can_be_given_in_brackets() -> None:
    settings = make_settings(**BASE, backbone="vilt[image_size=224,weights=random]", image_size=192)
    assert settings.backbone == "vilt"
    assert settings.backbone_options.weights == "random"
    assert settings.backbone_options.image_size == 192


def test_numpy_numbers_are_accepted() -> None:
    settings = make_settings(**BASE, seeds=np.arange(2), epochs=np.int64(3), learning_rate=np.float32(0.5))
    assert settings.seeds == (0, 1)
    assert (settings.training.epochs, settings.training.learning_rate) == (3, 0.5)


@pytest.mark.parametrize("key", list(SETTINGS))
@given(
    text=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
    | st.sampled_from(["nan", "-inf", "1e400", "0x1", "1,,2", "9" * 5000, "٣"])
)
def test_arbitrary_arguments_are_parsed_or_refused_in_one_line(key: str, text: str) -> None:
    refused = ""
    try:
        flags(**{key: text})
    except UserError as error:
        refused = str(error)
    assert not refused or (refused.startswith(f"{SETTINGS[key].flag}: ") and "\n" not in refused)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=5, unique=True))
def test_seeds_are_read_as_they_are_written(seeds: list[int]) -> None:
    assert (
        flags(seeds=",".join(map(str, seeds))).seeds
        == make_settings(**BASE, seeds=seeds).seeds
        == tuple(seeds)
    )


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_rates_are_read_to_the_last_digit(rate: float) -> None:
    assert flags(learning_rate=repr(rate)).training.learning_rate == rate


@given(st.integers(1, 2048), st.integers(1, 2048))
def test_sizes_are_height_by_width(height: int, width: int) -> None:
    assert flags(measured_image_size=f"{height}x{width}").measure.measured_image_size == (height, width)

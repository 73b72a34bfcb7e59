"""Published recipes: what they fill in, when they apply, and that the files in results/recipes say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.config import RunSettings
from harness.config.sources import build_settings, from_file, make_settings
from harness.errors import UserError
from harness.experiment.published import by_recipe
from harness.specs import canonical
from tests.support.paths import ROOT

FILES = sorted((ROOT / "results" / "recipes").glob("*.toml"))


def resolved(**values: Any) -> RunSettings:
    (only,) = by_recipe(make_settings(**values))
    return only


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_say_what_the_setting_resolves_to(path: Path) -> None:
    of_file = build_settings(from_file(path))
    method, backbone, task = path.stem.split("-", 2)
    found = resolved(
        methods=method,
        tasks=task.replace("-", "_"),
        backbone=backbone,
        recipe="published",
        results=of_file.output.results,
    )
    assert found.to_record() == of_file.to_record()
    assert found.backbone_options == of_file.backbone_options
    (of_file_itself,) = by_recipe(of_file)
    assert of_file_itself == of_file


def test_a_full_size_backbone_trains_as_published_and_a_mini_does_not() -> None:
    found = resolved(methods="das", tasks="vqa", backbone="vilt")
    assert found.recipe == "published"
    assert canonical(found.methods[0]) == "das[skip=1,variant=published]"
    assert canonical(found.tasks[0]) == "vqa[targets=raw]"
    assert (found.training.batch_size, found.backbone_options.dropout) == (256, 0.1)
    mini = make_settings(methods="das", tasks="vqa", backbone="vilt-mini")
    assert by_recipe(mini) == [mini.model_copy(update={"recipe": "own"})]


def test_what_the_user_chose_wins() -> None:
    found = resolved(
        methods="das[variant=sound]",
        tasks="vqa[targets=normalized]",
        backbone="meter",
        learning_rate=3e-4,
        image_size=288,
        augment="none",
    )
    assert canonical(found.methods[0]) == "das[variant=sound]"
    assert found.tasks[0].options == {"targets": "normalized"}
    assert (found.training.learning_rate, found.training.block_learning_rate) == (3e-4, None)
    assert found.training.head_learning_rate == 1.25e-3
    assert found.backbone_options.image_size == 288
    assert found.data.augment == "none"


def test_none_on_the_command_line_is_no_choice() -> None:
    assert resolved(methods="das", tasks="vqa", backbone="vilt", batch_size=None).training.batch_size == 256


def test_a_scale_multiplies_the_published_rates() -> None:
    found = resolved(methods="das", tasks="nlvr2", backbone="meter", learning_rate_scale=2.0)
    assert (found.training.learning_rate, found.training.block_learning_rate) == (1e-4, 5e-4)
    assert found.training.head_learning_rate == 5e-4


@pytest.mark.parametrize(
    ("methods", "tasks", "backbone"),
    [
        ("das,lora", "vqa", "vilt"),  # lora has no recipe
        ("das+lora", "vqa", "vilt"),
        ("full,das", "nlvr2", "meter"),  # their heads have different rates
        ("das", "nlvr", "vilt"),
    ],
)
def test_unset_it_applies_only_if_one_table_can_hold_the_results(
    methods: str, tasks: str, backbone: str
) -> None:
    asked = make_settings(methods=methods, tasks=tasks, backbone=backbone)
    assert by_recipe(asked) == [asked.model_copy(update={"recipe": "own"})]


def test_methods_whose_recipes_agree_are_one_run_or_differ_only_in_their_rates() -> None:
    found = by_recipe(
        make_settings(methods="full,das", tasks="vqa,nlvr2", backbone="vilt", recipe="published")
    )
    assert [(canonical(part.tasks[0]), len(part.methods)) for part in found] == [
        ("vqa[targets=raw]", 2),
        ("nlvr2", 1),
        ("nlvr2", 1),
    ]
    assert [part.training.head_learning_rate for part in found] == [1e-3, 1e-4, 5e-4]


def test_asking_for_a_recipe_that_does_not_exist_is_refused() -> None:
    asked = make_settings(methods="das,lora[r=8]", tasks="vqa", backbone="vilt", recipe="published")
    with pytest.raises(UserError, match=r"recipe: lora\[r=8\] has no published recipe on vqa with vilt"):
        by_recipe(asked)

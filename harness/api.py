"""The Python API, for notebooks, scripts and the command line.

    import harness

    results = harness.run(methods=["das", "lora"], tasks=["vqa"], seeds=[0])

A script needs no guard (`if __name__ == "__main__"`): processes that run cells do not import it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from harness.backbones.base import Backbone
from harness.backbones.inputs import Inputs
from harness.config import RunSettings
from harness.config.declared import SETTINGS
from harness.config.sources import backbone_settings, build_settings, from_file, from_keywords
from harness.errors import UserError
from harness.experiment.evaluate import evaluate_cell
from harness.experiment.plan import load_backbone
from harness.experiment.progress import ProgressReporter, make_console
from harness.experiment.session import Plan, carry_out, make_plan
from harness.experiment.tuning import tune as choose_rates
from harness.folders import home_expanded
from harness.process import REQUESTS, TERMINATED, Interrupts, StopRequestedError
from harness.records.record import Record
from harness.records.store import Store
from harness.registry import build_method as build
from harness.results import Figures, Results
from harness.specs import parse_spec
from harness.training.seeds import generator
from methods.base import Method
from tasks.data.batches import pad_text, stack_images
from tasks.data.images import load_rgb, to_pixels


def _with_settings(function: Callable[..., Results]) -> Callable[..., Results]:
    """Show every setting as a keyword argument in `help` and in a notebook's tooltips."""
    own = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    keywords = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if declared.required else declared.field.default,
        )
        for key, declared in SETTINGS.items()
    ]
    function.__signature__ = inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]
    return function


@_with_settings
def run(experiment: str | Path | None = None, *, progress: bool = True, **settings: Any) -> Results:
    """Run methods × tasks × seeds on a backbone and return the results; finished cells are not run again.

    Every option of `harness run` is a keyword here, with the same name and meaning (docs/settings.md).
    Methods and tasks are names with options (`"lora[r=8]"`), in a list or in one string. A method may also be an
    object, such as `LoRA(LoRAOptions(r=8))` or one of your own class. A class that is defined in a notebook or in
    the script itself cannot be sent to another process; all cells then run in this process, one after the other.

    experiment: a TOML file whose `[run]` table the keywords override.
    progress: print progress.

    Raises:
        UserError: a setting is unknown or invalid, or another problem that the user can fix.
        KeyboardInterrupt: finished cells are kept; the same call resumes the rest.
        SystemExit: status 143, after SIGTERM; unfinished cells are saved, and the same call resumes them.
    """
    chosen = _settings_of(experiment, settings)
    return Results(Store(chosen.output.results), tuple(_run(chosen, progress)))


@_with_settings
def tune(
    experiment: str | Path | None = None,
    *,
    learning_rates: Sequence[float] = (0.5, 1, 2),
    tuning_seeds: Sequence[int] = (1000,),
    tune_on: str | None = None,
    extend: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Results:
    """Choose every method's learning rate on validation data, then run with it: `harness tune`.

    learning_rates: multiples of each method's default rate. tuning_seeds: seeds of the tuning runs, other than those of
    the results. tune_on: the one task whose choices are used on all. extend: how often a method whose best multiple is
    the largest or the smallest is trained with the next one beyond it. The rest is as in `run`. The tuning runs are
    kept in the folder `tuning` of the results.

    Raises:
        UserError: as in `run`, or a tuning run failed.
        KeyboardInterrupt, SystemExit: as in `run`.
    """
    chosen = _settings_of(experiment, settings)
    run_quietly = partial(_run, progress=progress)
    records = choose_rates(chosen, learning_rates, tuning_seeds, run_quietly, tune_on, extend)
    return Results(Store(chosen.output.results), tuple(records))


def _settings_of(experiment: str | Path | None, settings: dict[str, Any]) -> RunSettings:
    files = [] if experiment is None else [from_file(Path(experiment))]
    return build_settings(*files, from_keywords(settings))


def _run(chosen: RunSettings, progress: bool, latencies: bool = True) -> list[Record]:
    """Run all cells and return their records, failed ones included."""
    console = make_console() if progress else Console(quiet=True)
    interrupts = Interrupts()
    # The state of the caller's random generators stays as it was.
    with torch.random.fork_rng(range(torch.cuda.device_count())), interrupts:
        plan = make_plan(chosen)
        with ProgressReporter(
            console, plan.cells, interrupts, stages=False, remaining=plan.remaining()
        ) as reporter:
            reporter.note(plan.summary)
            try:
                with REQUESTS.listening():
                    records = carry_out(plan, reporter, reporter.latency, latencies)
            except StopRequestedError:
                raise SystemExit(TERMINATED) from None
            interrupts.check()
    return records


def load_results(folder: str | Path = "results") -> Results:
    """All results in a results folder.

    Raises:
        UserError: the folder has no results, or a record cannot be read.
    """
    store = Store(home_expanded(folder))
    records = store.records()
    if not records:
        raise UserError(f"{folder}: no results in this folder; create some with harness.run.")
    return Results(store, tuple(records))


def evaluate(
    cell: str,
    results: str | Path = "results",
    *,
    split: str = "test",
    data_root: str | Path | None = None,
    weights: str | None = None,
    tokenizer: str | None = None,
    submission: str | Path | None = None,
    method: Method[Any] | None = None,
) -> dict[str, float]:
    """Evaluate a finished cell's tuned weights on a split: metrics in percent, empty if it has no annotations.

    cell: the cell's id, or its first characters.
    data_root: other data than the cell was trained on, same task. weights, tokenizer: as in `run`.
    submission: file to write in the format of the official evaluation server.
    method: the cell's method as an object, if it is not registered under a name.

    Raises:
        UserError: there is no such cell, or its backbone or data cannot be loaded.
    """
    return evaluate_cell(
        cell,
        home_expanded(results),
        split,
        None if data_root is None else home_expanded(data_root),
        weights,
        tokenizer,
        None if submission is None else home_expanded(submission),
        method,
        str,
    )


def build_method(spec: str) -> Method[Any]:
    """A method object from its name and options: `lora[r=8]`.

    Raises:
        UserError: no such method, no such option, or a value that does not fit.
    """
    return build(parse_spec(spec))


def adapt(backbone: str | Backbone, method: str | Method[Any], *, seed: int = 0, **options: Any) -> Backbone:
    """Adapt a backbone by a method, ready for training: an `nn.Module` from `Inputs` to `(B, D)` features.

    Parameters to train have `requires_grad`: the method's, and poolers and token types, which every method
    trains. After training, `method.finalize(backbone)` turns the backbone into its deployed form with the same
    outputs (merged, folded, removed). Pass a method object (`build_method`) to be able to call it.

    backbone: a name, or a loaded backbone, which is copied.
    seed: of the method's new weights.
    options: of a backbone given by name: weights, tokenizer, image_size, text_length.

    Raises:
        UserError: a name or option is unknown, or the method is given by name and must first search on a task.
    """
    chosen = build_method(method) if isinstance(method, str) else method
    if isinstance(method, str) and chosen.searches:
        raise UserError(
            f"{method}: searches on a task before it adapts; use harness.run, or set the outcome of the "
            "search with its options."
        )
    if isinstance(backbone, Backbone):
        if options:
            raise UserError(
                f"{next(iter(options))}: applies to a backbone given by name; this one is already loaded."
            )
        loaded = copy.deepcopy(backbone)
    else:
        loaded = open_backbone(backbone, **options)
    chosen.adapt(loaded, generator(seed, "initialisation of the method"))
    loaded.pooled_token_only = chosen.per_token
    for parameter in loaded.common_parameters():
        parameter.requires_grad_(True)
    return loaded


def open_backbone(name: str, **options: Any) -> Backbone:
    """A backbone with its pretrained weights.

    options: weights, tokenizer, image_size, text_length; defaults are the backbone's own.

    Raises:
        UserError: a name or option is unknown, or the weights cannot be loaded.
    """
    return load_backbone(*backbone_settings(name, options))


def prepare(backbone: Backbone, texts: Sequence[str], images: Sequence[str | Path | Image.Image]) -> Inputs:
    """Inputs for a backbone from pairs of text and image, padded to one batch.

    images: one per text; files or Pillow images.

    Raises:
        UserError: an image cannot be read.
        ValueError: the numbers of texts and images differ or are 0.
    """
    if len(texts) != len(images) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(images)} images; expected equal numbers, at least one")
    processor = backbone.processor
    tokens, mask = pad_text(processor.tokenize(texts), processor.pad_id)
    pictures = [image if isinstance(image, Image.Image) else load_rgb(image) for image in images]
    pixels, sizes = stack_images(
        [to_pixels(image.convert("RGB"), processor) for image in pictures], processor
    )
    return Inputs(tokens, mask, pixels, sizes)


__all__ = [
    "Figures",
    "Plan",
    "Results",
    "RunSettings",
    "adapt",
    "build_method",
    "carry_out",
    "evaluate",
    "load_results",
    "make_plan",
    "open_backbone",
    "prepare",
    "run",
]

"""What a notebook or a script calls; the command line is its first caller.

    import harness

    results = harness.run(methods=["das", "lora"], tasks=["vqa"], seeds=[0])

Nothing here needs a guard (`if __name__ == "__main__"`): processes that run cells do not run the script again.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
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
from harness.process import REQUESTS, TERMINATED, Interrupts, StopRequestedError
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
    """Run methods × tasks × seeds on a backbone, keeping what is finished, and return the results.

    Every option of `harness run` is a keyword here, with the same name and meaning (docs/settings.md).
    Methods and tasks are names with options (`"lora[r=8]"`) in a list or one text. A method may also be an
    object, `LoRA(LoRAOptions(r=8))` or one of your own class. If its class can be imported it runs as others
    do; one that is defined in a notebook or in the script itself cannot be sent to another process, so all
    cells of the run then run in this process, one after the other.

    experiment: a TOML file whose `[run]` table the keywords override.
    progress: print what is under way.

    Raises:
        UserError: a setting that is unknown or does not fit, or something else the user has to mend.
        KeyboardInterrupt: what is finished is kept; the same call resumes the rest.
        SystemExit: status 143, after SIGTERM; unfinished cells are saved, and the same call resumes them.
    """
    files = [] if experiment is None else [from_file(Path(experiment))]
    chosen = build_settings(*files, from_keywords(settings))
    console = make_console() if progress else Console(quiet=True)
    interrupts = Interrupts()
    # The caller's random numbers are not ours to change.
    with torch.random.fork_rng(range(torch.cuda.device_count())), interrupts:
        plan = make_plan(chosen)
        with ProgressReporter(console, plan.cells, interrupts, stages=False) as reporter:
            reporter.note(plan.summary)
            try:
                with REQUESTS.listening():
                    records = carry_out(plan, reporter)
            except StopRequestedError:
                raise SystemExit(TERMINATED) from None
            interrupts.check()
    return Results(plan.store, tuple(records))


def load_results(folder: str | Path = "results") -> Results:
    """All results in a folder that runs have written.

    Raises:
        UserError: there are none, or a record cannot be read.
    """
    store = Store(Path(folder).expanduser())
    records = store.records()
    if not records:
        raise UserError(f"{folder}: no results in there; make some with harness.run.")
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
    """Metrics in percent of a finished cell's tuned weights on a split, empty if that has no annotations.

    cell: the cell's id, or how it begins.
    data_root: other data than the cell was trained on, same task. weights, tokenizer: as in `run`.
    submission: where to write the file that the official evaluation server takes.
    method: an object of the cell's method, where that is not registered under a name.

    Raises:
        UserError: there is no such cell, or its backbone or data are not to be had.
    """
    return evaluate_cell(
        cell,
        Path(results).expanduser(),
        split,
        None if data_root is None else Path(data_root),
        weights,
        tokenizer,
        None if submission is None else Path(submission).expanduser(),
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
    """A backbone changed by a method, ready to be trained: an `nn.Module` from `Inputs` to `(B, D)` features.

    What trains has `requires_grad`: the method's parameters, and poolers and token types, which every method
    trains. After training, `method.finalize(backbone)` turns it into what is deployed, with the same outputs
    (merged, folded, removed); pass a method object (`build_method`) to have it at hand.

    backbone: a name, or a loaded backbone, of which a copy is changed.
    seed: of the method's new weights.
    options: of a backbone given by name: weights, tokenizer, image_size, text_length.

    Raises:
        UserError: an unknown name or option, or a method given by name that must first search on a task.
    """
    chosen = build_method(method) if isinstance(method, str) else method
    if isinstance(method, str) and chosen.searches:
        raise UserError(
            f"{method}: searches on a task before it adapts; use harness.run, or choose with its options "
            "what the search would find."
        )
    if isinstance(backbone, Backbone):
        if options:
            raise UserError(f"{next(iter(options))}: is for a backbone given by name; this one is loaded.")
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

    options: weights, tokenizer, image_size, text_length; each is by default the backbone's own.

    Raises:
        UserError: an unknown name or option, or weights that cannot be had.
    """
    return load_backbone(*backbone_settings(name, options))


def prepare(backbone: Backbone, texts: Sequence[str], images: Sequence[str | Path | Image.Image]) -> Inputs:
    """Inputs for a backbone from texts and as many images, padded to one batch.

    images: files, or images as Pillow has them.

    Raises:
        UserError: an image cannot be read.
        ValueError: there are not as many images as texts, or none.
    """
    if len(texts) != len(images) or not texts:
        raise ValueError(f"{len(texts)} texts and {len(images)} images; there must be as many, and some")
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

"""`harness run`: methods × tasks × seeds on a backbone, then the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from harness.config import Request
    from harness.specs import Spec


def run(
    experiment: Annotated[
        Path | None, typer.Argument(help="TOML file with a [run] table; flags given beside it come first.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Such as das,lora[r=8],seq_bn[reduction_factor=16], or 'all'.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(help="Such as vqa or vqa[limit_train=1000].")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="vilt-mini (embedded, default), meter-mini, vilt or meter.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Folder, original .ckpt, hub id, or 'random'; default: the backbone's own."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder with vocab.txt, for weights without one.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Short side of the images, in pixels.")] = None,
    text_length: Annotated[int | None, typer.Option(help="Most tokens of a text.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0 or 0,1,2.")] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder with the official files; default: the embedded mini benchmark."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder of records and tables [default: results].")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training split; default: the task's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step; default: the task's.")] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Of everything but the head; default: the backbone's × the method's scale."),
    ] = None,
    select: Annotated[str | None, typer.Option(help="Epoch to report: best (on validation) or last.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true, bf16-mixed or 16-mixed.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that decode images; 0: threads.")] = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out unreadable images and count them.")
    ] = False,
    augment: Annotated[
        str | None,
        typer.Option(help="Change training images: none (default) or randaugment (2 operations, 9 of 30)."),
    ] = None,
    measured_image_size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH that FLOPs and latency are stated for; default: the commonest."),
    ] = None,
    cache_mib: Annotated[
        float | None,
        typer.Option(min=0, help="MiB of memory for encodings, which METER's encoders compute once [2048]."),
    ] = None,
    cache_disk_gib: Annotated[
        float | None, typer.Option(min=0, help="GiB of disk for encodings, in the user's cache folder [8].")
    ] = None,
    cache_precision: Annotated[
        str | None, typer.Option(help="full, or half: encodings are kept in 16 bits.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Cells run side by side; default: one a core for small models on the CPU."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=1e-3, help="Seconds a cell may take; then it has failed and the rest go on."),
    ] = None,
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="No process of their own for cells; a crash ends the run."),
    ] = False,
    logger: Annotated[
        str | None,
        typer.Option(help="Trackers to tell: csv, tensorboard, mlflow, wandb; under logs in the results."),
    ] = None,
    measure_again: Annotated[
        bool,
        typer.Option("--measure-again", help="Measure latencies again, if the machine was busy before."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Adapt a backbone to tasks by methods, measure what it costs, and print the table.

    The same command again keeps what is finished and goes on with the rest.
    """
    given: dict[str, Any] = {
        "methods": read_specs(methods, "methods"),
        "tasks": read_specs(tasks, "tasks"),
        "backbone": backbone,
        "weights": weights,
        "tokenizer": tokenizer,
        "image_size": image_size,
        "text_length": text_length,
        "seeds": _seeds(seeds),
        "data_root": data_root,
        "results": results,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "select": select,
        "precision": precision,
        "accelerator": accelerator,
        "workers": workers,
        "skip_bad_images": skip_bad_images or None,
        "augment": augment,
        "measured_image_size": _size(measured_image_size),
        "cache_mib": cache_mib,
        "cache_disk_gib": cache_disk_gib,
        "cache_precision": cache_precision,
    }
    request, folder = build_request(experiment, given)
    if in_process and (timeout is not None or (jobs or 1) > 1):
        from harness.errors import UserError

        raise UserError(
            "--in-process runs cells one after the other and cannot end one: leave out --jobs, --timeout."
        )

    from harness.cli.terminal import execute

    raise typer.Exit(
        execute(request, folder, dry_run, jobs, measure_again, timeout, in_process, _names(logger))
    )


def build_request(experiment: Path | None, given: dict[str, Any]) -> tuple[Request, Path]:
    """What the flags and the experiment file ask for, checked as far as names and numbers go."""
    from harness.backbones.base import BackboneOptions
    from harness.config import Request, read_experiment
    from harness.errors import UserError
    from harness.registry import build_method, build_task, resolve_backbone

    settings: dict[str, Any] = dict(read_experiment(experiment)) if experiment is not None else {}
    named = settings.get("backbone")
    if isinstance(named, list):
        if len(named) != 1 or named[0].options:
            raise UserError(f"{experiment}: [run]: backbone: name one backbone; its weights go to `weights`.")
        settings["backbone"] = named[0].name
    settings |= {key: value for key, value in given.items() if value is not None}
    for kind in ("methods", "tasks"):
        if not settings.get(kind):
            raise UserError(
                f"say which {kind} to run, such as --{kind} {'das,lora' if kind == 'methods' else 'vqa'}."
            )
    for spec in settings["methods"]:
        build_method(spec)
    for spec in settings["tasks"]:
        build_task(spec)
    resolve_backbone(settings.get("backbone", "vilt-mini"))
    for key, least in (
        ("epochs", 1),
        ("batch_size", 1),
        ("workers", 0),
        ("image_size", 1),
        ("text_length", 3),
        ("cache_mib", 0),
        ("cache_disk_gib", 0),
    ):
        if settings.get(key) is not None and settings[key] < least:
            raise UserError(f"--{key.replace('_', '-')} must be at least {least}, got {settings[key]}.")
    _one_of(settings, "select", ("best", "last"))
    _one_of(settings, "augment", ("none", "randaugment"))
    _one_of(settings, "precision", ("32-true", "bf16-mixed", "16-mixed"))
    _one_of(settings, "cache_precision", ("full", "half"))
    _one_of(settings, "accelerator", ("auto", "cpu", "cuda", "gpu", "mps"))
    folder = Path(settings.pop("results", "results"))
    options = BackboneOptions(
        **{key: settings.pop(key, None) for key in ("weights", "tokenizer", "image_size", "text_length")}
    )
    if settings.get("data_root") is not None:
        settings["data_root"] = Path(settings["data_root"]).expanduser()
    for key in ("methods", "tasks", "seeds"):
        if key in settings:
            settings[key] = tuple(settings[key])
    return Request(**settings, backbone_options=options), folder


def _one_of(settings: dict[str, Any], key: str, allowed: tuple[str, ...]) -> None:
    from harness.errors import UserError, did_you_mean

    value = settings.get(key)
    if value is not None and value not in allowed:
        raise UserError(f"--{key} cannot be '{value}'.{did_you_mean(value, allowed)}")


def read_specs(text: str | None, kind: str) -> list[Spec] | None:
    """Specs of `--methods` or `--tasks`; `all` are the built-in ones, None stays None."""
    from harness.registry import BUILT_IN
    from harness.specs import Spec, parse_specs

    if text is None:
        return None
    if text == "all":
        return [Spec(name) for name in BUILT_IN[kind]]  # type: ignore[index]
    return parse_specs(text)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _seeds(text: str | None) -> list[int] | None:
    from harness.errors import UserError

    if text is None:
        return None
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds has to be whole numbers separated by commas, got '{text}'.") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds has to be different numbers from 0 up, got '{text}'.")
    return seeds


def _size(text: str | None) -> tuple[int, int] | None:
    from harness.errors import UserError

    if text is None:
        return None
    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UserError(
            f"--measured-image-size has to be HEIGHTxWIDTH in pixels, such as 384x576, got '{text}'."
        )
    return int(height), int(width)

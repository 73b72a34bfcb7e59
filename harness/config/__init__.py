"""Every setting of a run, declared once.

The options of `harness run` and their help, the keys of an experiment file, the keyword arguments of
`harness.run`, a cell's protocol, the settings in a record, and `docs/settings.md` are derived from this
declaration, in its order. `harness.config.sources` reads and checks the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from harness.config.types import (
    About,
    Betas,
    CachePrecision,
    Count,
    DataRoots,
    Decides,
    Form,
    ImageSize,
    LocalPath,
    MicroBatch,
    NotNegative,
    Place,
    Positive,
    Seeds,
    Share,
    Side,
    Specs,
    Trackers,
    about,
    specs_of,
)
from harness.errors import UserError
from harness.registry import DEFAULT_BACKBONE
from harness.specs import Spec, canonical


class Group(BaseModel):
    """Base of all groups: immutable, strictly typed, no unknown keys, no infinities and no NaN."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,  # the sentence below a field is its description
    )
    title: ClassVar[str]


class DataSettings(Group):
    """Where examples come from and how images are read."""

    title: ClassVar[str] = "Data"

    data_root: Annotated[
        DataRoots | None, About(Decides.INDIRECT, local=True, unset="the embedded mini benchmark")
    ] = None
    """Folder with the official files, or one per task: vqa=/data/vqa2,nlvr2=/data/nlvr2."""
    skip_bad_images: Annotated[bool, About(Decides.CELL)] = False
    """Leave out and count examples whose image cannot be read, instead of stopping."""
    augment: Annotated[Literal["none", "randaugment"], About(Decides.PROTOCOL)] = "none"
    """Augmentation of training images; randaugment is 2 operations at magnitude 9 of 30."""
    workers: Annotated[int, Field(ge=0, le=256), About(Decides.NOTHING)] = 0
    """Processes that decode images; 0 decodes in threads: one per core on a GPU, else at most four."""
    image_budget_mib: Annotated[NotNegative, About(Decides.NOTHING)] = 2048.0
    """MiB of memory for decoded images, which are kept between epochs."""
    image_cache: Annotated[LocalPath | None, About(Decides.NOTHING, local=True, unset="none")] = None
    """Folder for resized images, shared by all runs on a machine; 3 bytes per pixel."""

    def root_of(self, task: str) -> Path | None:
        """Folder of a task's files; None for the embedded benchmark.

        Raises:
            UserError: there are folders for other tasks, but none for this one, or the folder does not exist.
        """
        root = self.data_root
        if isinstance(root, tuple):
            if task not in dict(root):
                raise UserError(f"data_root: names no folder for {task}; add {task}=FOLDER.")
            root = dict(root)[task]
        if root is not None and not root.is_dir():
            raise UserError(f"data_root: {root}: no such folder.")
        return root


class BackboneSettings(Group):
    """Options of a backbone; None is the backbone's default."""

    title: ClassVar[str] = "Backbone"

    weights: Annotated[
        Place | None, About(Decides.INDIRECT, local=True, unset="the backbone's own, if it has any")
    ] = None
    """Pretrained weights: a folder, an original .ckpt file, a hub id, or 'random'."""
    tokenizer: Annotated[Place | None, About(Decides.INDIRECT, local=True, unset="beside the weights")] = None
    """Folder with the vocabulary, for weights that come without one."""
    image_size: Annotated[Side | None, About(Decides.INDIRECT, unset="the backbone's")] = None
    """Short side of the images in pixels."""
    text_length: Annotated[
        Annotated[int, Field(ge=3)] | None, About(Decides.INDIRECT, unset="the backbone's")
    ] = None
    """Maximum text length in tokens, special tokens included."""
    dropout: Annotated[Share | None, About(Decides.INDIRECT, unset="the backbone's")] = None
    """Dropout in training, where the backbone's published code has it (`drop_rate`)."""
    text_encoder: Annotated[Place | None, About(Decides.INDIRECT, local=True, unset="the backbone's")] = None
    """Text encoder to assemble meter from: a folder of transformers, a hub id, or a package."""
    image_encoder: Annotated[Place | None, About(Decides.INDIRECT, local=True, unset="the backbone's")] = None
    """Image encoder to assemble meter from: a folder of transformers, a hub id, a package, or its file."""
    backbone_precision: Annotated[Literal["full", "4bit"], About(Decides.INDIRECT)] = "full"
    """4bit: training keeps the blocks' frozen matrices in 4-bit NormalFloat, as QLoRA does: less memory, slower."""


class TrainingSettings(Group):
    """How a cell is trained; the same for every method of a table."""

    title: ClassVar[str] = "Training"

    epochs: Annotated[Count | None, About(Decides.PROTOCOL, unset="the task's recipe")] = None
    """Passes over the training split."""
    budget: Annotated[Literal["epochs", "total"], About(Decides.PROTOCOL)] = "epochs"
    """epochs: a search comes on top of them, as in papers; total: it is part of them, so all train equally long."""
    batch_size: Annotated[Count | None, About(Decides.PROTOCOL, unset="the task's recipe")] = None
    """Examples per optimiser step, on all devices together."""
    micro_batch: Annotated[MicroBatch | None, About(Decides.NOTHING, unset="the whole batch")] = None
    """Examples per forward and backward pass, whose gradients are added up; auto halves the batch until it fits."""
    learning_rate: Annotated[
        Positive | None, About(Decides.CELL, unset="the backbone's, times the method's scale")
    ] = None
    """Peak learning rate of all parameters except the head's."""
    learning_rate_scale: Annotated[Positive, About(Decides.INDIRECT)] = 1.0
    """Multiple of the methods' default learning rates."""
    tuned_rates: Annotated[LocalPath | None, About(Decides.INDIRECT, local=True, unset="none")] = None
    """File of `harness tune`, with a multiple of the default learning rate for each method on each task."""
    block_learning_rate: Annotated[
        Positive | None, About(Decides.CELL, unset="the same as learning_rate")
    ] = None
    """Peak learning rate of the blocks that are not skipped, with all that a method puts into them, and of poolers."""
    head_learning_rate: Annotated[Positive | None, About(Decides.PROTOCOL, unset="the backbone's")] = None
    """Peak learning rate of the task's head."""
    weight_decay: Annotated[NotNegative, About(Decides.PROTOCOL)] = 0.01
    """AdamW's weight decay, for matrices only (not biases and norms)."""
    decay_norms: Annotated[bool, About(Decides.PROTOCOL)] = False
    """Also decay the gains of LayerNorms in the head and in what a method inserts, as the authors' DAS code does."""
    warmup: Annotated[Share, About(Decides.PROTOCOL)] = 0.1
    """Share of the steps over which learning rates rise linearly; then they fall linearly to 0."""
    betas: Annotated[Betas, About(Decides.PROTOCOL)] = (0.9, 0.98)
    """AdamW's decay rates of the running averages of the gradient and of its square."""
    eps: Annotated[Positive, About(Decides.PROTOCOL)] = 1e-8
    """AdamW's term for numerical stability."""
    select: Annotated[Literal["best", "last"], About(Decides.PROTOCOL)] = "best"
    """Epoch to report: the best on the validation split, or the last."""
    precision: Annotated[Literal["32-true", "bf16-mixed", "16-mixed"], About(Decides.PROTOCOL)] = "32-true"
    """Floating-point precision of training and prediction."""
    activation_checkpointing: Annotated[bool, About(Decides.NOTHING)] = False
    """Save memory by computing each block's activations again in the backward pass."""
    compile: Annotated[bool, About(Decides.NOTHING)] = False
    """Compile the blocks with torch.compile for training."""

    @field_validator("tuned_rates")
    @classmethod
    def _one_rate(cls, tuned_rates: Path | None, info: ValidationInfo) -> Path | None:
        if tuned_rates is not None and info.data.get("learning_rate") is not None:
            raise ValueError("multiplies default learning rates; drop learning_rate.")
        return tuned_rates

    def resolved(self, epochs: int, batch_size: int, head_learning_rate: float) -> ResolvedTraining:
        """These settings; what is None is taken from the arguments."""
        given = {name: value for name, value in self if value is not None}
        open_ones = {"epochs": epochs, "batch_size": batch_size, "head_learning_rate": head_learning_rate}
        return ResolvedTraining(**{**open_ones, **given})


class ResolvedTraining(TrainingSettings):
    """`TrainingSettings` of one task on one backbone; only the learning rate still depends on the method."""

    epochs: Count
    batch_size: Count
    head_learning_rate: Positive


class DeviceSettings(Group):
    """Where cells run."""

    title: ClassVar[str] = "Device"

    accelerator: Annotated[Literal["auto", "cpu", "cuda", "gpu", "mps"], About(Decides.NOTHING)] = "auto"
    """Device to train on; auto takes a GPU if there is one."""
    devices: Annotated[int, Field(ge=1, le=64), About(Decides.NOTHING)] = 1
    """Devices that train one cell together on each node; each takes its share of every batch."""
    nodes: Annotated[Count, About(Decides.NOTHING)] = 1
    """Nodes that train one cell together; srun or torchrun starts the processes."""
    jobs: Annotated[
        Count | None,
        About(Decides.NOTHING, unset="one per GPU, else 1; of small models up to 8 per GPU, or one per core"),
    ] = None
    """Cells that run side by side, each in its own process."""
    timeout: Annotated[Positive | None, About(Decides.NOTHING, unset="no limit")] = None
    """Seconds a cell may take; one that takes longer has failed, and the others continue."""
    checkpoint_minutes: Annotated[NotNegative, About(Decides.NOTHING)] = 10.0
    """Minutes between two checkpoints of a cell, from which it resumes; 0 saves after every step."""
    in_process: Annotated[bool, About(Decides.NOTHING)] = False
    """Run cells one after the other in the main process, where a crash ends the run; for debugging."""

    @field_validator("in_process")
    @classmethod
    def _fits(cls, in_process: bool, info: ValidationInfo) -> bool:
        if in_process and ((info.data.get("jobs") or 1) > 1 or info.data.get("timeout") is not None):
            raise ValueError(
                "in one process cells cannot run at the same time or be stopped; drop jobs and timeout."
            )
        return in_process


class SlurmSettings(Group):
    """Cells as jobs of a Slurm cluster, one job per cell."""

    title: ClassVar[str] = "Slurm"

    launcher: Annotated[Literal["local", "slurm"], About(Decides.NOTHING)] = "local"
    """Run cells on this machine, or submit each as a job of the Slurm cluster that it belongs to."""
    wait: Annotated[bool, About(Decides.NOTHING)] = False
    """Show the jobs' progress until all have ended, instead of returning once they are submitted."""
    slurm_partition: Annotated[str | None, About(Decides.NOTHING, local=True, unset="the cluster's")] = None
    """Partition of the jobs."""
    slurm_minutes: Annotated[Count, About(Decides.NOTHING, local=True)] = 240
    """Time limit of a job in minutes; a cell that is not finished by then is queued again and resumes."""
    slurm_gpus: Annotated[
        Annotated[int, Field(ge=0)] | None,
        About(Decides.NOTHING, local=True, unset="as many as devices, or 0 with accelerator cpu"),
    ] = None
    """GPUs of a job on each of its nodes."""
    slurm_cpus: Annotated[Count, About(Decides.NOTHING, local=True)] = 4
    """CPU cores of a job per process."""
    slurm_memory_gib: Annotated[Count | None, About(Decides.NOTHING, local=True, unset="the cluster's")] = (
        None
    )
    """GiB of main memory of a job on each of its nodes."""
    slurm_constraint: Annotated[str | None, About(Decides.NOTHING, local=True, unset="any node")] = None
    """Features that a node must have, as sbatch takes them."""
    slurm_account: Annotated[str | None, About(Decides.NOTHING, local=True, unset="the user's")] = None
    """Account that the jobs are charged to."""
    slurm_parallel: Annotated[Count, About(Decides.NOTHING, local=True)] = 256
    """Jobs of a run that may run at the same time."""
    slurm_setup: Annotated[str | None, About(Decides.NOTHING, local=True, unset="nothing")] = None
    """Shell command that each job runs first, such as 'module load cuda'."""


class CacheSettings(Group):
    """Cache for the output of frozen encoders (METER's), which is computed once."""

    title: ClassVar[str] = "Encoder cache"

    cache_mib: Annotated[NotNegative, About(Decides.NOTHING)] = 2048.0
    """MiB of memory per process for encodings; with 0 here and on disk they are computed each time."""
    cache_disk_gib: Annotated[NotNegative, About(Decides.NOTHING)] = 8.0
    """GiB of disk space for encodings, in the user's cache folder."""
    cache_precision: Annotated[CachePrecision, About(Decides.PROTOCOL)] = "full"
    """Precision of cached encodings; half rounds them to 16 bits."""


class MeasureSettings(Group):
    """What compute and latency are measured with."""

    title: ClassVar[str] = "Measuring"

    measured_image_size: Annotated[
        ImageSize | None, About(Decides.INDIRECT, unset="the test split's most common")
    ] = None
    """Image size for FLOPs and latency."""
    measure_again: Annotated[bool, About(Decides.NOTHING)] = False
    """Measure latencies again, for example if the machine was busy."""


class OutputSettings(Group):
    """Where results go."""

    title: ClassVar[str] = "Output"

    results: Annotated[LocalPath, About(Decides.NOTHING, local=True)] = Path("results")
    """Folder for records and tables."""
    logger: Annotated[Trackers, About(Decides.NOTHING)] = ()
    """Experiment trackers, which write to logs/ in the results folder: csv, tensorboard, mlflow, wandb."""


class RunSettings(Group):
    """All settings of a run: methods × tasks × seeds on a backbone."""

    title: ClassVar[str] = "Experiment"

    methods: Annotated[
        Specs,
        specs_of("methods"),
        Form("NAME,NAME,…", "names with options, such as das,lora[r=8], or all"),
        About(Decides.INDIRECT),
    ]
    """Methods to run, with options in brackets: das,lora[r=8]; 'all' for every built-in one."""
    tasks: Annotated[
        Specs,
        specs_of("tasks"),
        Form("NAME,NAME,…", "names with options, such as vqa,nlvr2, or all"),
        About(Decides.INDIRECT),
    ]
    """Tasks to run them on, with options in brackets: vqa[limit_train=1000]."""
    backbone: Annotated[
        str, Field(min_length=1), Form("NAME", "the name of a backbone"), About(Decides.INDIRECT)
    ] = DEFAULT_BACKBONE
    """Pretrained backbone; `harness list` shows the names."""
    seeds: Annotated[Seeds, About(Decides.INDIRECT)] = (0,)
    """Seeds; every method runs on every task once per seed."""
    recipe: Annotated[
        Literal["own", "published"] | None,
        About(Decides.INDIRECT, unset="published at full size, if the methods' recipes agree"),
    ] = None
    """Settings that are not given: the harness's own, or those of the authors' code (docs/recipes.md)."""

    data: DataSettings = DataSettings()
    backbone_options: BackboneSettings = BackboneSettings()
    training: TrainingSettings = TrainingSettings()
    device: DeviceSettings = DeviceSettings()
    slurm: SlurmSettings = SlurmSettings()
    cache: CacheSettings = CacheSettings()
    measure: MeasureSettings = MeasureSettings()
    output: OutputSettings = OutputSettings()

    def flat(self) -> dict[str, Any]:
        """All values by key, in the order of the declaration."""
        return {key: value for key, _, value in self._settings()}

    def protocol(self) -> dict[str, Any]:
        """The settings that are part of a cell's protocol."""
        return self._that_decide(Decides.PROTOCOL)

    def identity(self) -> dict[str, Any]:
        """The settings that decide a result and are not implied by what was loaded."""
        return self._that_decide(Decides.PROTOCOL, Decides.CELL)

    def of_cell(self, method: Spec, task: Spec, seed: int, learning_rate: float) -> RunSettings:
        """Narrowed to one cell of the run."""
        training = self.training.model_copy(update={"learning_rate": learning_rate})
        narrow = {"methods": (method,), "tasks": (task,), "seeds": (seed,), "training": training}
        return self.model_copy(update=narrow)

    def to_record(self) -> dict[str, Any]:
        """As JSON, without settings that name something on this machine; `sources.build_settings` reads it back."""
        return {key: _plain(value) for key, what, value in self._settings() if not what.local}

    def _that_decide(self, *wanted: Decides) -> dict[str, Any]:
        return {key: _plain(value) for key, what, value in self._settings() if what.decides in wanted}

    def _settings(self) -> Iterator[tuple[str, About, Any]]:
        for name, field in type(self).model_fields.items():
            value, declared = getattr(self, name), field.annotation
            if isinstance(declared, type) and issubclass(declared, Group):
                for key, inner in declared.model_fields.items():
                    yield key, about(inner), getattr(value, key)
            else:
                yield name, about(field), value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return canonical(value) if isinstance(value, Spec) else value

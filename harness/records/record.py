"""The record of one cell: every key documented where it is defined."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from harness.errors import escaped

SCHEMA_VERSION = 2
"""Increased whenever a key changes its meaning or its place."""


Count = Annotated[int, Field(ge=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


Line = Annotated[str, AfterValidator(escaped)]
"""A text that tables and messages show: line breaks and control characters are read as escapes."""


Splits = dict[str, dict[Line, float]]


class Part(BaseModel):
    """Base of all parts: immutable, no unknown keys, no infinities and no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Failure(Part):
    """Placeholder for a failed measurement."""

    error: Line = Field(description="What went wrong, one line.")


class MethodChoice(Part):
    """The method of a cell."""

    name: Line = Field(description="Registered name, such as lora.")
    options: dict[str, JsonValue] = Field(default={}, description="Resolved options, defaults included.")
    label: Line = Field(description="Shortest label that identifies it in a table, such as lora[r=8].")


class TaskChoice(Part):
    """The task of a cell."""

    name: Line = Field(description="Registered name, such as vqa.")
    title: Line = Field(description="As papers call it, such as VQA2.0.")
    version: int = Field(description="Version of the task; scores of different versions do not compare.")
    options: dict[str, JsonValue] = Field(default={}, description="Resolved options, defaults included.")
    primary_metric: Line = Field(description="Metric that tables show and that selects the epoch.")
    higher_is_better: bool = Field(default=True, description="Direction of the primary metric.")


class BackboneChoice(Part):
    """The backbone of a cell."""

    name: Line = Field(description="Registered name, such as vilt.")
    digest: str = Field(description="SHA-256 (hex) of the pretrained weights and configuration as loaded.")
    config: dict[str, JsonValue] = Field(default={}, description="The processor's settings and the options.")


class CellChoice(Part):
    """What was run."""

    id: str = Field(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Content address: hash of configuration, code, weights and data.",
    )
    method: MethodChoice = Field(description="How the backbone was adapted.")
    task: TaskChoice = Field(description="What it was adapted to.")
    backbone: BackboneChoice = Field(description="What was adapted.")
    configuration: str | None = Field(
        default=None,
        description="Digest of all that decides the result, except code. None: the record is older than this key.",
    )
    code: dict[str, str] = Field(
        default={},
        description="Digests of the code that produced it, or gives the same (adoptions), by part: run, method, "
        "task, backbone.",
    )
    seed: int = Field(description="Seed from which every generator of the cell is derived.")


class DataProvenance(Part):
    """Origin of the data."""

    benchmark: Line = Field(description="'mini' for the embedded data, else the official name, VQA2.0.")
    digest: str | None = Field(
        default=None, description="Digest of the files' bytes and the choice of splits."
    )
    details: dict[str, JsonValue] = Field(default={}, description="Official splits, counts, file digests.")


class ParameterGroups(Part):
    """Numbers of parameters; every parameter is in exactly one group."""

    backbone_frozen: Count = Field(description="Pretrained, not trained.")
    backbone_tuned: Count = Field(description="Pretrained and trained by the method's choice, not common.")
    common: Count = Field(description="Trained by every method: poolers and token-type embeddings.")
    head: Count = Field(description="The task's head.")
    method: Count = Field(description="Added by the method and trained.")
    method_frozen: Count = Field(
        default=0, description="Added by the method and left at its random initialisation (VeRA)."
    )


class Parameters(Part):
    """Parameters of backbone and head."""

    groups: ParameterGroups = Field(description="Disjoint groups that add up to the total.")
    total: Count = Field(description="All parameters.")
    updated: Count = Field(description="What papers print: backbone_tuned + method, no head, no common.")

    @model_validator(mode="after")
    def _adds_up(self) -> Parameters:
        groups = self.groups
        if sum(vars(groups).values()) != self.total:
            raise ValueError(f"groups add up to {sum(vars(groups).values())}, total is {self.total}")
        if self.updated != groups.backbone_tuned + groups.method:
            raise ValueError(f"updated is {self.updated}, not backbone_tuned + method")
        return self


class DecodingCost(Part):
    """What a generative backbone's further tokens cost, beside the prompt's pass."""

    prompt_tokens: Count = Field(
        description="Length of the prompt, its images and the method's tokens included."
    )
    token_macs: Count = Field(description="MACs of the first token after the prompt, all components.")
    cache_bytes: Count = Field(description="Keys and values that are kept of the prompt, in bytes.")
    precision: str = Field(description="Type of the keys and values, such as float32.")


class Compute(Part):
    """Multiply-accumulates of one pass of the finalised model; of the prompt on a generative backbone."""

    image_size: tuple[int, int] = Field(description="Height and width of the image, in pixels.")
    text_length: Count = Field(description="Length of the text, in tokens.")
    batch_size: Count = Field(default=1, description="Examples in the pass.")
    macs: dict[str, int] = Field(description="MACs by component.")
    macs_total: Count = Field(description="MACs of all components; what papers of this field call FLOPs.")
    flops_total: Count = Field(description="Floating-point operations, 2 × MACs.")
    layer_norm_elements: dict[str, int] = Field(
        default={}, description="Elements normalised, by component; not in the MACs."
    )
    convention: str = Field(description="What is counted, one line.")
    decoding: DecodingCost | None = Field(
        default=None, description="Of each token after the prompt; None: the backbone writes none."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Compute:
        if sum(self.macs.values()) != self.macs_total:
            raise ValueError(f"components add up to {sum(self.macs.values())} MACs, not {self.macs_total}")
        if self.flops_total != 2 * self.macs_total:
            raise ValueError(f"flops_total is {self.flops_total}, not 2 × macs_total")
        return self


class ComputePerExample(Part):
    """Multiply-accumulates of a model whose cost depends on the input, over real test examples one by one."""

    mean: float = Field(description="Mean MACs of an example.")
    p10: float = Field(description="10th percentile.")
    p90: float = Field(description="90th percentile.")
    n: Count = Field(description="Examples, drawn from the test split by a hash of their ids, or all of it.")
    untouched_mean: float = Field(description="Mean MACs of the backbone as loaded, on the same examples.")


class Routes(Part):
    """Which blocks the test examples ran, of a method that decides it for each; routes.json.gz has those of each."""

    examples: Count = Field(description="Number of test examples.")
    blocks_run: NotNegative = Field(description="Mean number of blocks that an example runs.")
    different: Count = Field(description="Number of different routes.")
    shares: dict[str, Fraction] = Field(description="Share of examples that run a block, by block.")


class Latency(Part):
    """Latency of the finalised model at one input."""

    part: Literal["pass", "prompt", "token"] = Field(
        default="pass",
        description="A whole pass; on a generative backbone the prompt up to its first token, or one more token.",
    )
    batch_size: Count = Field(description="Examples in a call.")
    image_size: tuple[int, int] = Field(description="Height and width of the image, in pixels.")
    text_length: Count = Field(description="Length of the text, in tokens.")
    p50_ms: float = Field(description="Median, in ms.")
    p90_ms: float = Field(description="90th percentile, in ms.")
    n: Count = Field(description="Number of timed calls.")
    threads: Count = Field(description="torch's threads.")
    device: str = Field(description="Type of device as in torch, or the device's name.")
    samples_ms: tuple[float, ...] = Field(
        min_length=1, description="Raw latencies in the order of the rounds, in ms."
    )
    wall_ms: tuple[float, ...] = Field(default=(), description="Wall clock of the same calls on CUDA, in ms.")
    examples: Count | None = Field(
        default=None,
        description="Number of test examples, if the method's cost depends on the input; None: random inputs.",
    )
    execution: Literal["eager", "graph"] = Field(
        default="eager", description="Kernels launched one by one, or as a replayed CUDA graph."
    )
    precision: str | None = Field(
        default=None,
        description="Type of the weights, such as bfloat16; None: measured before it was recorded.",
    )
    others: float | None = Field(
        default=None,
        description="Processor cores that other programs used meanwhile, on average; None: unknown.",
    )
    cores: Count | None = Field(default=None, description="Processor cores of the machine.")
    group: str = Field(
        description="Id of the interleaved measurement; only latencies of one group are comparable."
    )


class Memory(Part):
    """Peak memory."""

    peak_training_mib: float | None = Field(default=None, description="Highest during training, in MiB.")
    baseline_mib: float | None = Field(default=None, description="In use before training, in MiB.")
    how: str = Field(description="How it was measured.")


class TrainingCost(Part):
    """Cost of training, without the search."""

    examples_per_second: float = Field(description="Training examples per second, waiting for data included.")
    seconds: float = Field(description="Time in training steps, summed over all attempts of a resumed cell.")
    epochs: NotNegative = Field(description="Passes over the training split.")
    best_epoch: Count = Field(
        description="Epoch that is reported, from 1; chosen on validation data. budget=total: the search counts."
    )
    steps: Count = Field(description="Optimiser steps.")
    batch_size: Count | None = Field(default=None, description="Examples per optimiser step.")
    micro_batch: Count | None = Field(
        default=None, description="Examples per forward and backward pass. None: the whole batch."
    )
    devices: Count | None = Field(default=None, description="Devices that trained it together. None: one.")
    data_wait_fraction: Fraction = Field(description="Share of the time spent waiting for data.")
    learning_rate: float = Field(description="Peak learning rate of all parameters except the head's.")
    head_learning_rate: float | None = Field(default=None, description="Peak learning rate of the head.")
    encoder_cache: EncoderCache | None = Field(
        default=None, description="None: encoders ran on every example."
    )


class EncoderCache(Part):
    """Encodings that were kept, so that an encoder ran once for each distinct text or image."""

    halves: list[str] = Field(description="Whose output was kept in training: text, image.")
    precision: str = Field(description="full, or half: kept in 16 bits.")
    memory_mib: float = Field(
        description="Encodings in memory at the end of training, of this and earlier cells."
    )
    disk_mib: float = Field(description="Encodings this process had written to disk by then.")
    notes: list[str] = Field(default=[], description="Why encodings were no longer written to disk.")


class Diagram(Part):
    """The model's blocks and the skipped ones."""

    blocks: tuple[str, ...] = Field(description="Names of all blocks, in the order of the model.")
    skipped: tuple[str, ...] = Field(description="Names of those that are skipped.")


class SearchCost(Part):
    """What a method's search took and found."""

    seconds: float = Field(description="Time of the search.")
    share: Fraction = Field(description="Of the time of search and training together.")
    epochs: NotNegative | None = Field(
        default=None, description="Passes over the whole training split; None: not recorded."
    )
    training_examples: Count | None = Field(default=None, description="Examples it trained on.")
    reward_examples: Count | None = Field(default=None, description="Examples kept apart for rewards.")
    summary: str = Field(description="What it decided, one line.")
    warm_start: bool = Field(description="Whether training began with what the search had trained.")
    figures: dict[str, str] = Field(
        description="What must come out the same when the cell is reproduced, by name, as exact text."
    )
    diagram: Diagram | None = Field(default=None, description="None: the decision skips no blocks.")
    decision: dict[str, JsonValue] = Field(
        description="What the method's `Decision.from_json` takes; its history is in search.json.gz."
    )


class Environment(Part):
    """Where it was run; names no host and no user."""

    versions: dict[str, str | None] = Field(description="Versions of Python and packages; None: not there.")
    hardware: dict[str, JsonValue] = Field(description="CPU model, cores, memory, GPUs.")
    threads: Count = Field(description="torch's threads.")
    device: str | None = Field(default=None, description="Type of device it was trained on: cpu, cuda, mps.")
    commit: str | None = Field(default=None, description="Git commit of the source checkout, if it is one.")
    dirty: bool | None = Field(default=None, description="Whether the checkout's code differed from commit.")
    command: str = Field(description="Command line, home directory and user name replaced.")
    platform: str = Field(description="Operating system and architecture.")


class Timestamps(Part):
    """Times of the run."""

    started: AwareDatetime = Field(description="Start of the first attempt.")
    finished: AwareDatetime = Field(description="When the record was written.")


class Adoption(Part):
    """Adoption of a result by newer code, after a sample of the cells was run again with the same figures."""

    date: AwareDatetime = Field(description="When it was adopted.")
    from_id: str = Field(description="The cell's id before.")
    from_code: dict[str, str] = Field(description="Digests of the code before, by part.")
    to_code: dict[str, str] = Field(description="Digests of the newer code, by part.")
    sampled: tuple[str, ...] = Field(description="Ids (after the adoption) of the cells that were run again.")
    stale: Count = Field(description="Number of cells that the sample was drawn from.")
    seed: int = Field(description="Seed for drawing the sample.")
    commit: str | None = Field(default=None, description="Commit of the newer code, None outside a checkout.")
    dirty: bool | None = Field(default=None, description="Whether that checkout had uncommitted changes.")


class Record(Part):
    """The record of one cell; predictions, weights, curve and search history are in separate files."""

    schema_version: Literal[2] = Field(default=2, description="Version of these keys.")
    cell: CellChoice = Field(description="What was run.")
    status: Literal["finished", "failed"] = Field(description="Failed cells are run again when asked for.")
    error: Line | None = Field(default=None, description="Why it failed, one line.")
    protocol: dict[str, JsonValue] = Field(
        description="What must agree for two cells to be comparable: epochs, batch size, precision, …"
    )
    settings: dict[str, JsonValue] = Field(
        default={},
        description="All settings of the run except those that name something on the machine, resolved.",
    )
    data: DataProvenance = Field(description="Origin of the data.")
    reported_split: str = Field(default="test", description="Key of `metrics` that tables show.")
    metrics: Splits = Field(default={}, description="Metrics in percent, by split.")
    majority_accuracy: float | None = Field(
        default=None, description="Primary metric of always giving the most frequent training answer."
    )
    parameters: Parameters | None = Field(default=None, description="Of the trained model.")
    deployed_parameters: Parameters | None = Field(
        default=None, description="Of the finalised model; merged parameters do not count as trained."
    )
    compute: Compute | Failure | None = Field(default=None, description="Of the finalised model.")
    full_compute: Compute | Failure | None = Field(default=None, description="Of the backbone as loaded.")
    compute_per_example: ComputePerExample | None = Field(
        default=None, description="Of the finalised model, if its cost depends on the input."
    )
    routes: Routes | None = Field(default=None, description="None: all examples run the same blocks.")
    latency: tuple[Latency, ...] | Failure = Field(
        default=(),
        description="Of the finalised model, for one cell per method, measured in one interleaved measurement.",
    )
    full_latency: tuple[Latency, ...] = Field(
        default=(), description="Of the backbone as loaded, in the same interleaved measurement."
    )
    memory: Memory | Failure | None = Field(default=None, description="Peak memory.")
    tuned_file_bytes: Count | None = Field(default=None, description="Size of weights.safetensors.")
    training: TrainingCost | None = Field(default=None, description="What training took.")
    search: SearchCost | None = Field(default=None, description="None for methods that do not search.")
    skipped_images: Count = Field(
        default=0, description="Number of unreadable images that were left out, if that was allowed."
    )
    skipped_files: tuple[str, ...] = Field(default=(), description="Their names.")
    skipped_examples: dict[str, Count] = Field(
        default={}, description="Number of examples left out because of them, by split."
    )
    environment: Environment = Field(description="Environment of the run.")
    timestamps: Timestamps = Field(description="Times of the run.")
    adoptions: tuple[Adoption, ...] = Field(
        default=(), description="Adoptions by newer code, oldest first; see `harness adopt`."
    )

    @model_validator(mode="after")
    def _status_fits(self) -> Record:
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("error must be given if and only if status is 'failed'")
        if self.status == "finished":
            split, metric = self.reported_split, self.cell.task.primary_metric
            if metric not in self.metrics.get(split, {}):
                raise ValueError(f"a finished cell needs metrics.{split}.{metric}")
        return self

    @property
    def primary(self) -> float | None:
        """The primary metric on the reported split; None if the cell failed before it was known."""
        return self.metrics.get(self.reported_split, {}).get(self.cell.task.primary_metric)

"""Estimate how long cells take: from earlier records of this machine, else from timed steps of the cell itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from statistics import median

import torch
from pydantic import JsonValue

from harness.errors import UserError
from harness.experiment.build import adapted_model, loader
from harness.experiment.fitting import decide_unsearched
from harness.experiment.plan import Cell, Testbed
from harness.records.environment import describe_environment
from harness.records.record import Environment, Record
from harness.training.encoder_cache import cached_encoding
from harness.training.encoding_store import Budgets, EncodingStore
from harness.training.fabric import make_fabric
from harness.training.microbatch import MicroBatches
from harness.training.optim import build_optimizer
from tasks.data.columns import groups_of

PASSES = 3.0
"""Forward passes that a training step costs, where only the rate of one of them is known."""


SAMPLE = 64
"""Training examples from which a timed batch is taken, spread evenly over the split."""


ON_CPU = 8
"""Examples in a timed batch on the CPU, where more would take longer but be no faster per example."""


LARGE = 50_000_000
"""Parameters from which a CPU takes seconds or minutes for a training step, which is then not timed."""


FEW_STEPS, FEW_SECONDS = 3, 2.0
"""So many steps are timed, unless the first ones take longer than this."""


MOST_STEPS, MORE_SECONDS = 15, 0.5
"""Up to so many steps are timed while they take less than this."""


BUDGET_SECONDS = 20.0
"""Once timing has taken this long, one method of a task is timed and the others are estimated by it."""


@dataclass(frozen=True)
class Speed:
    """Seconds on one device: of training per example, of a forward pass, and of encoding an example once.

    encoding: what the first epoch costs more, where encodings are cached afterwards; nothing for those cached before.
    """

    training: float
    forward: float
    encoding: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Seconds of a cell by stage.

    encoding: what the first epoch of the first stage costs more. validation: after all of `epochs` epochs together.
    evaluation: of the finished model on validation and test. saved: seconds of the above that an interrupted run has
    done.
    """

    search: float = 0.0
    encoding: float = 0.0
    training: float = 0.0
    validation: float = 0.0
    evaluation: float = 0.0
    epochs: int = 1
    saved: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all that is left to do."""
        everything = self.search + self.encoding + self.training + self.validation + self.evaluation
        return everything - self.saved

    def done(self, stage: str, share: float) -> float:
        """Seconds of all that is done when a stage has seen this share of its examples.

        The examples of the stage "train" are those of the epochs; the validation after the last of the epochs seen so
        far is yet to come.
        """
        match stage:
            case "search":
                return share * (self.search + self.encoding)
            case "train":
                encoded = 1.0 if self.search else min(1.0, share * self.epochs)
                validated = max(0, math.ceil(share * self.epochs - 1e-9) - 1) / self.epochs
                before = self.search + encoded * self.encoding
                return before + share * self.training + validated * self.validation
            case "predict val" | "predict test":
                before = self.search + self.encoding + self.training + self.validation
                return before + (share + (stage == "predict test")) * self.evaluation / 2
        return 0.0


class Estimator:
    """Estimates cells one after the other, timing each method once per task.

    records: earlier results; those of the same method, task, backbone, precision, device and machine give the rate.
    threads: torch's threads while steps are timed, as many as a cell will have.
    """

    def __init__(
        self, records: Sequence[Record], threads: int, timed: Callable[[Cell], Speed] | None = None
    ) -> None:
        self._records = list(records)
        self._threads = threads
        self._timed = timed_speed if timed is None else timed
        self._known: dict[tuple[str, int], Speed] = {}
        self._encoded: set[int] = set()
        self._spent = 0.0

    def __call__(self, cell: Cell) -> Estimate:
        """The estimate; NaN if no step can be timed."""
        speed = _recorded_speed(cell, self._records) or self._timed_once(cell)
        if speed is None:
            return Estimate(training=math.nan)
        testbed, method = cell.testbed, cell.method()
        training, device = testbed.training, testbed.settings.device
        examples = len(testbed.data.splits["train"])
        searched = method.search_epochs if training.budget == "epochs" else 0
        forward = speed.forward / (device.devices * device.nodes)
        encoding = 0.0 if id(testbed) in self._encoded else speed.encoding
        store = testbed.encodings
        if encoding and store is not None and store.budgets.disk_gib:
            self._encoded.add(id(testbed))  # the other cells read them from the disk
        return Estimate(
            search=examples * searched * speed.training / (device.devices * device.nodes),
            encoding=examples * encoding / (device.devices * device.nodes),
            training=examples * training.epochs * speed.training / (device.devices * device.nodes),
            validation=evaluation_passes(testbed, ["val"]) * training.epochs * forward,
            evaluation=evaluation_passes(testbed, ["val", "test"]) * forward,
            epochs=training.epochs,
        )

    def _timed_once(self, cell: Cell) -> Speed | None:
        key = (cell.label, id(cell.testbed))
        if key not in self._known and self._spent >= BUDGET_SECONDS and (alike := self._alike(*key)):
            return alike
        if key not in self._known:
            started, before = time.perf_counter(), torch.get_num_threads()
            torch.set_num_threads(self._threads)
            try:
                self._known[key] = self._timed(cell)
            except UserError:
                raise
            except Exception:  # the cell itself will say what is wrong
                return self._alike(*key)
            finally:
                torch.set_num_threads(before)
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()  # the cell's own process needs the memory
                self._spent += time.perf_counter() - started
        return self._known[key]

    def _alike(self, label: str, place: int) -> Speed | None:
        """From another method on the same task; by their ratio on another task, if both are known there."""
        here = [other for other, testbed in self._known if testbed == place]
        for (same, elsewhere), speed in self._known.items():
            both = {
                other: self._known[other, elsewhere] for other in here if (other, elsewhere) in self._known
            }
            if same == label and both:
                nearest = min(both, key=lambda other: abs(math.log(both[other].training / speed.training)))
                other, there = self._known[nearest, place], both[nearest]
                forward = other.forward / there.forward
                training = speed.training * other.training / there.training
                return Speed(training, speed.forward * forward, speed.encoding * forward)
        return self._known[here[0], place] if here else None


def duration(seconds: float) -> str:
    """`45 s`, `20 min`, `3.5 h`; `unknown` for NaN."""
    if math.isnan(seconds):
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def evaluation_passes(testbed: Testbed, splits: Iterable[str]) -> int:
    """Forward passes to evaluate each of these splits once."""
    total = 0
    for split in splits:
        examples = testbed.data.splits[split]
        ranked = len(set(groups_of(examples))) if testbed.task.evaluates_splits else 1
        total += len(examples) * ranked
    return total


def _recorded_speed(cell: Cell, records: Sequence[Record]) -> Speed | None:
    """From the latest comparable record."""
    testbed = cell.testbed
    for record in reversed(records):
        same = record.cell.method.label == cell.label and record.cell.task.name == testbed.task.name
        on_it = record.cell.backbone.name == testbed.backbone_name
        precision = record.protocol.get("precision") == testbed.settings.training.precision
        if same and on_it and precision and record.training is not None and _is_from_here(record, testbed):
            devices = record.training.devices or 1
            training = devices / record.training.examples_per_second
            return Speed(training, training / (PASSES * testbed.task.texts_per_example))
    return None


def _is_from_here(record: Record, testbed: Testbed) -> bool:
    """Whether a record is of this machine and of the device that would be used."""
    device = make_fabric(testbed.settings).device.type
    here, there = _hardware(), record.environment.hardware
    # A worker sees one of several GPUs.
    same = all(here.get(key) == there.get(key) for key in ("cpu", "usable_cores"))
    return record.environment.device == device and same and _kinds(here) == _kinds(there)


def _kinds(hardware: dict[str, JsonValue]) -> set[str]:
    gpus = hardware.get("gpus")
    return set(map(str, gpus)) if isinstance(gpus, list) else set()


@cache
def _hardware() -> dict[str, JsonValue]:
    return Environment(**describe_environment()).hardware


def timed_speed(cell: Cell) -> Speed:
    """Time a few training steps and forward passes of the cell on real examples, on its device and in its precision.

    Of a large model on a CPU only forward passes of one image and text are timed.
    """
    testbed, method = cell.testbed, cell.method()
    decide_unsearched(method, testbed.fresh_backbone())
    fabric = make_fabric(testbed.settings)
    training, task = testbed.training, testbed.task
    model = adapted_model(cell, method)
    on_cpu = fabric.device.type == "cpu"
    large = on_cpu and sum(parameter.numel() for parameter in model.parameters()) > LARGE
    optimizer = build_optimizer(model, training, cell.learning_rate, training.head_learning_rate)
    wrapped, wrapped_optimizer = fabric.setup(model, optimizer)
    examples = testbed.data.splits["train"]
    size = 1 if large else min(training.batch_size, ON_CPU) if on_cpu else training.batch_size
    spread = examples[:: max(1, len(examples) // max(SAMPLE, size))]
    # Evaluation's batches have one text an example, also where training adds others.
    batches = loader(testbed, "val" if large else "train", 0, spread, batch_size=min(size, len(spread)))
    batches.device = fabric.device
    batch = next(iter(batches))
    micro = MicroBatches(training.micro_batch if isinstance(training.micro_batch, int) else None, halves=True)

    def step() -> None:
        micro.backward(fabric, wrapped, task, batch, partial(method.weighted_regularizer, model.backbone))
        wrapped_optimizer.step()
        wrapped_optimizer.zero_grad(set_to_none=True)

    def forward() -> None:
        with torch.inference_mode():
            micro.forward(fabric, wrapped, batch)

    seconds = math.nan
    cache = None if testbed.encodings is None else EncodingStore(Budgets(folder=None))
    with cached_encoding(model.backbone, cache) as encoder:
        if not large:
            wrapped.train()
            step()  # allocates and, on a GPU, compiles
            seconds = _seconds(step, fabric.device)
        wrapped.eval()
        forward()  # encodes
        passed = _seconds(forward, fabric.device)
    encoding = 0.0
    if encoder is not None and cache is not None and testbed.encodings is not None:
        new = 1 - testbed.encodings.share_of(cache)
        encoding = max(0.0, _seconds(forward, fabric.device) - passed) * new
    texts = task.texts_per_example
    if large:
        return Speed(PASSES * texts * passed, passed, encoding)
    return Speed(seconds / len(batch), passed / (len(batch) * texts), encoding / len(batch))


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Median duration of a call, on which a disturbance of some of the calls has no influence."""
    seconds: list[float] = []
    while (
        sum(seconds) < (FEW_SECONDS if len(seconds) < FEW_STEPS else MORE_SECONDS)
        and len(seconds) < MOST_STEPS
    ):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds)

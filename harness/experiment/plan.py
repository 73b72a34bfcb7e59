"""Plan the cells of a run: methods × tasks × seeds on a backbone."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness import registry
from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.four_bits import check_library
from harness.config import BackboneSettings, ResolvedTraining, RunSettings
from harness.digests import digest_json
from harness.errors import UserError
from harness.experiment.covered import code_of
from harness.experiment.published import by_recipe
from harness.experiment.rates import label_of, rate_multiple
from harness.files import disk_errors
from harness.folders import cache_folder
from harness.specs import Spec
from harness.training.encoding_store import Budgets, EncodingStore
from methods.base import Method
from tasks.base import Data, Task
from tasks.data.image_cache import ImageCache

SHAPES_LOOKED_AT = 256
"""Number of test examples whose most common image shape is used for compute and latency."""


@dataclass(frozen=True)
class MeasuredInput:
    """The input for compute and latency: (height, width) in pixels, text length in tokens."""

    image_size: tuple[int, int]
    text_length: int


@dataclass
class Testbed:
    """One task on one backbone, loaded once and shared by its cells.

    embedded: True for the data of the mini benchmark.
    training: the run's settings, completed by the task's recipe and the backbone's learning rate.
    settings: the run's; settings without effect here have their defaults.
    encodings: cache of the encoders' output; None: not cached.
    methods: those of the run that are trained with these settings; None: all.
    """

    task: Task[Any]
    task_spec: Spec
    data: Data
    data_root: Path
    embedded: bool
    backbone: Backbone
    backbone_name: str
    images: ImageCache
    training: ResolvedTraining
    settings: RunSettings
    encodings: EncodingStore | None = None
    methods: tuple[Spec, ...] | None = None

    def fresh_backbone(self) -> Backbone:
        """A copy with the pretrained weights as loaded."""
        return copy.deepcopy(self.backbone)

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What must agree for two results to be comparable."""
        processor = self.backbone.processor.describe()
        split = self.data.provenance["splits"]["test"]
        return {
            "backbone_digest": self.backbone.digest()[:16],
            "processor": processor,
            "task_version": self.task.version,
            "task_options": self.task.config(),
            "measured_at": asdict(self.measured_input),
            "data": digest_json(self.data.provenance),
            "reported_split": f"test: {split['official split']}",
            "train_examples": len(self.data.splits["train"]),
            "test_examples": len(self.data.splits["test"]),
            **({"backbone_precision": "4bit"} if self.in_four_bits else {}),
            **self.settings.protocol(),
        }

    @property
    def in_four_bits(self) -> bool:
        """Whether the blocks' frozen matrices are kept in four bits during training."""
        return self.settings.backbone_options.backbone_precision == "4bit"

    @cached_property
    def measured_input(self) -> MeasuredInput:
        """The most common processed image shape of the test split, with the maximum text length."""
        examples = self.data.splits["test"][:SHAPES_LOOKED_AT]
        shape = self.settings.measure.measured_image_size
        if shape is None:
            found = self.images.shapes([str(example.images[0]) for example in examples])
            errors = [each for each in found if isinstance(each, UserError)]
            if errors and (not self.settings.data.skip_bad_images or len(errors) == len(found)):
                raise errors[0]
            shapes = Counter(each for each in found if not isinstance(each, UserError))
            shape = min(shapes, key=lambda size: (-shapes[size], size))
        return MeasuredInput(shape, self.backbone.processor.max_text_length)


@dataclass(frozen=True)
class Cell:
    """A cell: one method with one seed on one testbed; `id` identifies its result.

    configuration: digest of all that decides the result, except code: options, data, weights, protocol, seed.
    code: digests of the code that produces it, by part: run, method, task, backbone.
    """

    id: str
    method_spec: Spec
    label: str
    seed: int
    learning_rate: float
    testbed: Testbed = field(repr=False, compare=False)
    configuration: str = field(default="", repr=False, compare=False)
    code: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def method(self) -> Method[Any]:
        """A new instance of the method."""
        return registry.build_method(self.method_spec)

    @property
    def settings(self) -> RunSettings:
        """The run's settings for this cell alone, as its record keeps them."""
        testbed = self.testbed
        return testbed.settings.of_cell(self.method_spec, testbed.task_spec, self.seed, self.learning_rate)


def open_testbeds(settings: RunSettings) -> list[Testbed]:
    """The backbone and the data of every task, loaded; with published recipes, of every set of settings of a task.

    Raises:
        UserError: the device is not available, the backbone or data cannot be loaded, or a recipe is missing.
    """
    check_device(settings)
    for spec in settings.tasks:
        settings.data.root_of(spec.name)  # all are checked before the first is read
    testbeds: list[Testbed] = []
    loaded: list[tuple[BackboneSettings, Backbone, ImageCache, EncodingStore | None]] = []
    for part in by_recipe(settings):
        options = part.backbone_options
        if not any(options == other for other, *_ in loaded):
            backbone = load_backbone(part.backbone, options)
            images = ImageCache(backbone.processor, part.data.image_budget_mib, part.data.image_cache)
            loaded.append((options, backbone, images, open_encodings(part, backbone)))
        _, backbone, images, encodings = next(each for each in loaded if each[0] == options)
        for spec in part.tasks:
            testbed = build_testbed(part, spec, backbone, images, encodings=encodings)
            testbeds.append(replace(testbed, methods=part.methods if part.recipe == "published" else None))
    return testbeds


def check_device(settings: RunSettings) -> None:
    """Raise `UserError` if this machine does not have the chosen accelerator, or cannot use the precision on it."""
    accelerator, precision = settings.device.accelerator, settings.training.precision
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = {"cuda": cuda, "mps": mps, "gpu": cuda or mps}
    if settings.slurm.launcher == "slurm":
        return  # the cells run on other machines
    if settings.backbone_options.backbone_precision == "4bit":
        check_library()
    if not there.get(accelerator, True):
        raise UserError(
            f"accelerator: there is no {accelerator} on this machine; leave it at auto or use cpu."
        )
    if precision == "16-mixed" and (accelerator == "cpu" or not (cuda or mps)):
        raise UserError("precision: 16-mixed needs a GPU; on the CPU use bf16-mixed or 32-true.")


def load_backbone(name: str, settings: BackboneSettings) -> Backbone:
    """A backbone with its pretrained weights."""
    options = settings.model_dump(exclude={"backbone_precision"})
    return registry.resolve_backbone(name)(BackboneOptions(**options))


def open_encodings(settings: RunSettings, backbone: Backbone) -> EncodingStore | None:
    """The cache of the encoders' output; None if it is switched off or the backbone has no separate encoders."""
    cache = settings.cache
    if not backbone.encoders() or (cache.cache_mib == 0 and cache.cache_disk_gib == 0):
        return None
    folder = cache_folder() / "encodings"
    return EncodingStore(Budgets(cache.cache_mib, cache.cache_disk_gib, folder, cache.cache_precision))


def build_testbed(
    settings: RunSettings,
    task_spec: Spec,
    backbone: Backbone,
    images: ImageCache,
    on_stage: Callable[[str], None] = lambda text: None,
    encodings: EncodingStore | None = None,
) -> Testbed:
    """Read a task's data for `backbone`."""
    task = registry.build_task(task_spec)
    _check_measured_size(settings, backbone)
    data_root = settings.data.root_of(task.name)
    if data_root is None:
        on_stage(f"{task.name}: generated data")
        folder = cache_folder()
        with disk_errors(folder):
            root = task.embedded_data(folder)
    else:
        root = data_root
    on_stage(f"{task.name}: reading {root.name}")
    data = task.load(root)
    for split in ("train", "val", "test"):
        if not data.splits.get(split):
            raise UserError(f"{root}: the {split} split of {task.name} is empty.")
    embedded = data_root is None
    recipe = task.embedded_recipe if embedded else task.recipe
    head_rate = backbone.base_learning_rate * backbone.head_learning_rate_scale
    training = settings.training.resolved(recipe.epochs, recipe.batch_size, head_rate)
    _check_micro_batch(training)
    in_force = settings.model_copy(update={"training": training})
    if encodings is None:
        cache = settings.cache.model_copy(update={"cache_precision": "full"})
        in_force = in_force.model_copy(update={"cache": cache})
    return Testbed(
        task,
        task_spec,
        data,
        root,
        embedded,
        backbone,
        settings.backbone,
        images,
        training,
        in_force,
        encodings,
    )


def _check_micro_batch(training: ResolvedTraining) -> None:
    micro_batch = training.micro_batch
    if isinstance(micro_batch, int) and micro_batch > training.batch_size:
        raise UserError(f"micro_batch: {micro_batch} is more than the batch size of {training.batch_size}.")


def _check_measured_size(settings: RunSettings, backbone: Backbone) -> None:
    """Raise `UserError` before training if the backbone cannot process the measured size."""
    size = settings.measure.measured_image_size
    if size is None:
        return
    length = backbone.processor.max_text_length
    try:
        with torch.inference_mode():
            backbone.encode(backbone.example_inputs(1, length, size, torch.Generator().manual_seed(0)))
    except UserError as error:
        raise UserError(f"measured_image_size: {error}") from None


def build_cells(settings: RunSettings, testbeds: list[Testbed]) -> list[Cell]:
    """Every method × task × seed, seeds outermost so that a complete table is available early."""
    return [
        build_cell(testbed, spec, seed)
        for seed in settings.seeds
        for testbed in testbeds
        for spec in testbed.methods or settings.methods
    ]


def build_cell(testbed: Testbed, spec: Spec, seed: int) -> Cell:
    """The cell of one method and seed, with its content address.

    Raises:
        UserError: code that the result depends on cannot be found or has no source, a search leaves nothing of a
            total budget for training, or the method's learning rate has not been tuned.
    """
    method = registry.build_method(spec)
    label = label_of(spec, method)
    rate = testbed.training.learning_rate
    if rate is None:
        rate = testbed.backbone.base_learning_rate * method.learning_rate_scale
        rate *= rate_multiple(testbed.settings, testbed.task.name, label)
    _check_budget(testbed, method)
    configuration = digest_json(
        {
            "method": {"name": method.name, "options": method.config()},
            "task": testbed.task.name,
            "backbone": testbed.backbone_name,
            "protocol": testbed.protocol,
            "settings": {**testbed.settings.identity(), "learning_rate": rate},
            "seed": seed,
        }
    )
    code = code_of(method, testbed.task, testbed.backbone, testbed.backbone_name)
    address = cell_id(configuration, code)
    return Cell(address, spec, label, seed, rate, testbed, configuration, code)


def _check_budget(testbed: Testbed, method: Method[Any]) -> None:
    """Refuse a search that leaves nothing of a total budget for training."""
    training = testbed.training
    if training.budget == "epochs" or not method.searches:
        return
    searched = method.search_epochs * (1 - method.search_holdout)
    if searched >= training.epochs:
        raise UserError(
            f"{method.name}: its search takes {searched:g} epochs of a total budget of {training.epochs}; give "
            "more epochs, or let it search for fewer."
        )


def cell_id(configuration: str, code: Mapping[str, str]) -> str:
    """The id of a cell, 16 hex digits: a hash of everything that decides its result."""
    return digest_json({"configuration": configuration, "code": code})

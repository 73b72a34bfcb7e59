"""Methods of the `peft` library (Mangrulkar et al.) by the names of its tuners: `peft:dora[r=8]`, `peft:ia3`."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import nn

from harness.backbones.base import Backbone
from harness.backbones.block import own_blocks
from harness.errors import UserError, did_you_mean
from methods.base import Method, NoOptions, Slot, freeze
from methods.option_checks import LARGEST, at_least, between, fraction, positive
from methods.peft_tuners import REFUSED, TUNERS, defaults_that_fit

Override = str | int | float | bool

NAME = "petl"
"""Of the added adapter."""

OURS = frozenset(
    {"target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"}
    | {"task_type", "peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"feedforward_modules", "fan_in_fan_out", "target_parameters", "sample_at_inference", "megatron_core"}
)
"""Settings of the library that are not options here: they say where, or suit other models only."""

MOST = 2**24
"""Largest number of other things, such as trained frequencies."""

INITIALIZATIONS = ("true", "gaussian", "orthogonal", "pissa", "olora")
"""`init_lora_weights` that need no data."""


class PeftMethod(Method[NoOptions]):
    """One of the library's tuners on the projections named in `targets`, with overrides of its settings.

    targets: as of `lora`: `query+value`, or whole roles.

    Raises:
        UserError: no such tuner or setting, one that does not work on these backbones, or peft is not installed.
    """

    source: ClassVar[str] = "peft library"
    family: ClassVar[str] = "peft library"
    learning_rate_scale: ClassVar[float] = 10.0
    per_token: ClassVar[bool] = True

    def __init__(self, tuner: str, overrides: Mapping[str, Override] | None = None) -> None:
        super().__init__(NoOptions())
        if tuner in REFUSED:
            raise UserError(f"peft:{tuner} does not work here: {REFUSED[tuner]}.")
        if tuner not in TUNERS:
            raise UserError(f"there is no method 'peft:{tuner}'.{did_you_mean(tuner, TUNERS)}")
        self.tuner = tuner
        self.name = f"peft:{tuner}"  # type: ignore[misc]
        self.summary = f"'{tuner}' of the peft library"  # type: ignore[misc]
        self.source = f"{TUNERS[tuner].source}; peft library"  # type: ignore[misc]
        chosen = dict(overrides or {})
        self.targets = self._targets(chosen.pop("targets", None))
        self.chosen = self._check(chosen)

    @property
    def fills(self) -> frozenset[Slot] | None:  # type: ignore[override]
        """The projections; LayerNorm tuning trains pretrained weights."""
        return frozenset({Slot.PROJECTIONS if TUNERS[self.tuner].targets else Slot.WEIGHTS})

    def _targets(self, given: Override | None) -> tuple[str, ...]:
        default = TUNERS[self.tuner].targets
        if given is None:
            return default
        targets = tuple(part for part in re.split(r"[+\s]+", str(given)) if part)
        if not default or not targets:
            raise UserError(
                f"{self.name}: it has no targets; it trains LayerNorms."
                if not default
                else f"{self.name}: targets names no projection; give at least one, such as query."
            )
        return targets

    def _check(self, chosen: Mapping[str, Override]) -> dict[str, Any]:
        """The overrides as the library takes them, and what makes the tuner what its name says."""
        fixed = TUNERS[self.tuner].fixed
        defaults = settings_of(self.tuner)
        found: dict[str, Any] = dict(fixed)
        for key, value in chosen.items():
            if key not in defaults or key in fixed:
                raise UserError(
                    f"{self.name}: no option '{key}'.{did_you_mean(key, {*defaults, 'targets'} - set(fixed))}"
                )
            expected = type(defaults[key])
            if key == "init_lora_weights":
                if str(value).lower() not in INITIALIZATIONS:
                    raise UserError(
                        f"{self.name}: {key} must be one of {', '.join(INITIALIZATIONS)}, not '{value}'."
                    )
            elif expected is float and type(value) is int:
                value = float(value)
            elif defaults[key] is None:
                expected = int
            if key != "init_lora_weights" and type(value) is not expected:
                raise UserError(f"{self.name}: {key} must be of type {expected.__name__}, not '{value}'.")
            self._check_number(key, value, defaults[key])
            found[key] = value
        if found.get("boft_n_butterfly_factor", 1) != 1:
            raise UserError(
                f"{self.name}: boft_n_butterfly_factor must be 1: without its CUDA extension peft sets it to 1."
            )
        return found

    def _check_number(self, key: str, value: Any, default: object) -> None:
        """Check a number that differs from the library's default; some defaults, such as -1, have a meaning."""
        if isinstance(value, bool | str) or value == default:
            return
        if "seed" in key or "prng" in key:
            at_least(self.name, 0, **{key: value})
        elif key.endswith("dropout"):
            fraction(self.name, **{key: value})
        elif isinstance(value, int):
            between(self.name, 1, LARGEST if key == "r" else MOST, **{key: value})
        else:
            positive(self.name, **{key: value})

    def config(self) -> dict[str, Any]:
        """All settings of the tuner that can be chosen, and the targets."""
        settings = {**settings_of(self.tuner), **self.chosen}
        return {"targets": list(self.targets), **{k: v for k, v in settings.items() if v is not None}}

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Let the library wrap the targets; its random draws are seeded from `generator`.

        Raises:
            UserError: a target matches no projection, or the library refuses the settings.
        """
        freeze(backbone)
        found = self.find(backbone)
        paths = {id(module): path for path, module in backbone.named_modules()}
        settings = self.resolve(found)
        if next(backbone.parameters()).is_meta and isinstance(settings.get("init_lora_weights"), str):
            settings["init_lora_weights"] = True  # decomposes weights, of which there are none
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        if self.tuner == "shira":
            settings.setdefault("random_seed", seed % 2**31)
            # It builds sparse tensors; without a word about their checks torch warns.
            torch.sparse.check_sparse_tensor_invariants.disable()
        if self.tuner == "ia3":
            settings["feedforward_modules"] = [
                paths[id(module)] for role, module in found if role.startswith("mlp.")
            ]
        peft = load_peft_library()
        with _quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                config = getattr(peft, TUNERS[self.tuner].config)(
                    target_modules=[paths[id(module)] for _, module in found], **settings
                )
                peft.get_peft_model(backbone, config, NAME)
            except NotImplementedError as error:
                raise UserError(
                    f"{self.name}: the peft library cannot make it without weights, so it has no full-size profile."
                ) from error
            except (
                ArithmeticError,
                AssertionError,
                LookupError,
                TypeError,
                ValueError,
                RuntimeError,
            ) as error:
                raise UserError(f"{self.name}: the peft library refuses these settings ({error}).") from error

    def find(self, backbone: Backbone) -> list[tuple[str, nn.Module]]:
        """The modules to wrap, with their roles."""
        if not self.targets:
            return [
                (path, module)
                for block in own_blocks(backbone.blocks)
                for path, module in block.named_modules()
                if isinstance(module, nn.LayerNorm)
            ]
        found: list[tuple[str, nn.Module]] = []
        unmatched, known = set(self.targets), set[str]()
        for block in own_blocks(backbone.blocks):
            for role, module in block.projections().items():
                names = {role, role.rsplit(".", 1)[-1]}
                known |= names
                if not names.isdisjoint(self.targets):
                    unmatched -= names
                    found.append((role, module))
        for target in sorted(unmatched):
            raise UserError(
                f"{self.name}: targets: {backbone.name} has no projection '{target}'.{did_you_mean(target, known)}"
            )
        return found

    def resolve(self, found: list[tuple[str, nn.Module]]) -> dict[str, Any]:
        """The settings that are not the library's own defaults, on the modules that `find` has found."""
        maps = [module for _, module in found if isinstance(module, nn.Linear)]
        fitting = defaults_that_fit(self.tuner, {n for m in maps for n in (m.in_features, m.out_features)})
        return {**fitting, **self.chosen}

    @torch.no_grad()
    def merge(self, backbone: Backbone) -> None:
        """Merge every update into the map below it, and restore that map."""
        layer_class = _layer_class()
        for block in own_blocks(backbone.blocks):
            for path, module in list(block.named_modules()):
                if isinstance(module, layer_class):
                    if not module.get_base_layer().weight.is_meta:
                        with _quietly():
                            module.merge()
                    above, _, name = path.rpartition(".")
                    setattr(block.get_submodule(above), name, module.get_base_layer())

    def method_modules(self, backbone: Backbone) -> list[nn.Module]:
        """Everything in the library's layers but the maps below them; shared parts once."""
        layer_class = _layer_class()
        found = {
            id(child): child
            for module in backbone.modules()
            if isinstance(module, layer_class)
            for name, child in module.named_children()
            if name != "base_layer"
            and (any(True for _ in child.parameters()) or any(True for _ in child.buffers()))
        }
        return list(found.values())


def settings_of(tuner: str) -> dict[str, Any]:
    """The tuner's settings that can be chosen, with the library's defaults; None: nothing is set."""
    config = getattr(load_peft_library(), TUNERS[tuner].config)
    values = {
        field.name: field.default
        for field in fields(config)
        if field.name not in OURS and isinstance(field.default, bool | int | float | str | None)
    }
    return {
        key: value for key, value in values.items() if value is not None or key in ("alpha", "random_seed")
    }


def load_peft_library() -> Any:
    """The `peft` library.

    Raises:
        UserError: it is not installed.
    """
    try:
        with _quietly():
            return importlib.import_module("peft")
    except ImportError as error:
        raise UserError("methods peft:… need the extra 'peft': pip install 'petl-harness[peft]'.") from error


def _layer_class() -> type[Any]:
    load_peft_library()
    return importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer  # type: ignore[no-any-return]


@contextmanager
def _quietly() -> Iterator[None]:
    """The library's warnings are about models of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

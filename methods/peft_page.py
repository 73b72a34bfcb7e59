"""The page `docs/peft.md`, probed anew: `python -m methods.peft_page > docs/peft.md`. It takes about a minute."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log10

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from methods.peft_library import PeftMethod, settings_of
from methods.peft_tuners import REFUSED, TUNERS, trained_parameters

INTRODUCTION = """\
# Methods of the peft library

<!-- Written by `python -m methods.peft_page > docs/peft.md`; change methods/peft_tuners.py instead. -->

`peft:dora[r=8]`, `peft:ia3`, `peft:oft[oft_block_size=16]`: tuners of the `peft` library work as methods. Install the
extra (`pip install 'petl-harness[peft]'`). Options are the settings of the library's configuration, and `targets` as
of `lora`: `query`, `key`, `value`, `output`, `up`, `down`, joined by `+`. After training, updates are merged into the
projections, so that the deployed model costs what the backbone costs. Random matrices that the library keeps in
buffers count as parameters that the method adds and never trains. All tuners have the same default learning rate, ten
times the backbone's; choose better ones on validation data with `--learning-rates`.

Every tuner was inserted into both embedded backbones with its default options, and the parameters were moved by noise
of standard deviation 0.05. The columns:

- **per map**: trained parameters of a map with i inputs and o outputs, in the library's option names. The number of
  trained parameters was equal to this formula on both backbones.
- **ViLT**: the same at full size (width 768, 12 blocks), in thousands.
- **start**: largest difference of the pooled features from the pretrained backbone's before training, rounded up to a
  power of ten: `vilt-mini` / `meter-mini`. Where it is large, training does not start at the pretrained function.
- **merge**: largest difference of the pooled features before and after merging and folding, likewise.
- **frozen**: parameters added and never trained, on `vilt-mini`.

"""


@dataclass(frozen=True)
class Probe:
    """What was seen on one backbone: largest differences at the start and by merging, parameters, closed form."""

    start: float
    merge: float
    trained: int
    expected: int
    frozen: int


def probe(tuner: str, backbone: Backbone, plain: Backbone) -> Probe:
    """Insert a tuner into `backbone`, a copy of `plain`, move its parameters, and merge it."""
    method = PeftMethod(tuner)
    found = method.find(plain)
    maps = [(_inputs(module), _outputs(module)) for _, module in found]
    settings = {**settings_of(tuner), **method.resolve(found)}
    method.adapt(backbone, torch.Generator().manual_seed(0))
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    frozen = {
        id(each): each.numel()
        for module in method.method_modules(backbone)
        for each in (*module.parameters(), *module.buffers())
        if each.is_floating_point() and not each.requires_grad
    }
    with torch.no_grad():
        before, start = _features(plain), _features(backbone)
        generator = torch.Generator().manual_seed(3)
        for parameter in trained:
            parameter.add_(torch.empty_like(parameter).normal_(std=0.05, generator=generator))
        tuned = _features(backbone)
        method.finalize(backbone)
        merged = _features(backbone)
    return Probe(
        float((start - before).abs().max()),
        float((merged - tuned).abs().max()),
        sum(parameter.numel() for parameter in trained),
        trained_parameters(tuner, maps, settings),
        sum(frozen.values()),
    )


def render_page() -> str:
    """All tuners as Markdown, probed on both embedded backbones.

    Raises:
        ValueError: a tuner trains another number of parameters than its closed form says.
    """
    from harness.backbones.meter.loading import load_meter_mini
    from harness.backbones.vilt.loading import load_vilt_mini

    lines = [
        INTRODUCTION,
        "| method | paper | per map | ViLT | start | merge | frozen |\n|---|---|---|---|---|---|---|\n",
    ]
    for tuner in TUNERS:
        probes = [
            probe(tuner, load(BackboneOptions()), load(BackboneOptions()))
            for load in (load_vilt_mini, load_meter_mini)
        ]
        for each in probes:
            if each.trained != each.expected:
                raise ValueError(f"{tuner} trains {each.trained} parameters, not {each.expected}")
        start, merge = (
            " / ".join(bound(getattr(each, name)) for each in probes) for name in ("start", "merge")
        )
        cells = (*static_cells(tuner), start, merge, f"{probes[0].frozen:,}" if probes[0].frozen else "–")
        lines.append(f"| {' | '.join(cells)} |\n")
    lines.append("\n## What does not work\n\n| method | why |\n|---|---|\n")
    lines += [f"| `peft:{tuner}` | {reason} |\n" for tuner, reason in REFUSED.items()]
    return "".join(lines)


def static_cells(tuner: str) -> tuple[str, str, str, str]:
    """The cells of a tuner that follow from its declaration: name, paper, formula, size on full-size ViLT."""
    about = TUNERS[tuner]
    shapes = {"down": (3072, 768), "up": (768, 3072)}
    maps = [shapes.get(target, (768, 768)) for target in about.targets or ("norm", "norm")] * 12
    size = trained_parameters(tuner, maps, {**settings_of(tuner), **about.fixed})
    return f"`peft:{tuner}`", about.source, about.formula, f"{size / 1000:,.1f}"


def bound(difference: float) -> str:
    """The next power of ten above a difference; 0 for none."""
    return "0" if difference == 0 else f"1e{ceil(log10(difference))}"


def _features(backbone: Backbone) -> Tensor:
    return backbone.eval()(backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1)))  # type: ignore[no-any-return]


def _inputs(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else _outputs(module)


def _outputs(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.weight.numel()  # type: ignore[union-attr,operator,return-value]


if __name__ == "__main__":
    print(render_page(), end="")

"""The tuners of the `peft` library that work on the backbones, with the sizes they must have, and those that do not.

Sizes are closed forms of a linear map with `i` inputs and `o` outputs, at the library's option names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import gcd, isqrt
from types import SimpleNamespace
from typing import Any

Size = Callable[[int, int, Any], int]
"""Trained parameters of a map from its inputs, its outputs and the library's configuration."""


@dataclass(frozen=True)
class Tuner:
    """One of the library's tuners.

    config: name of its configuration class. source: the paper. formula: its size as text. size: the same as a function.
    shared: parameters that all maps share. fixed: settings that make the tuner what its name says.
    targets: the projections that it updates by default; none: the LayerNorms of the blocks.
    identity: False if training does not start at the pretrained function.
    """

    config: str
    source: str
    formula: str
    size: Size
    shared: Callable[[Any], int] = lambda config: 0
    fixed: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("query", "value")
    identity: bool = True


def _low_rank(inputs: int, outputs: int, config: Any) -> int:
    return int(config.r) * (inputs + outputs)


def _lokr(inputs: int, outputs: int, config: Any) -> int:
    """A Kronecker product; its larger factor has low rank if that is smaller."""
    (small_in, large_in), (small_out, large_out) = _square_factors(inputs), _square_factors(outputs)
    large = large_in * large_out
    if config.r < max(large_in, large_out) / 2:
        large = config.r * (large_in + large_out)
    return small_in * small_out + large


def _square_factors(number: int) -> tuple[int, int]:
    small = next(each for each in range(isqrt(number), 0, -1) if number % each == 0)
    return small, number // small


TUNERS: Mapping[str, Tuner] = {
    "lora": Tuner("LoraConfig", "Hu et al., ICLR 2022", "r (i + o)", _low_rank),
    "dora": Tuner(
        "LoraConfig",
        "Liu et al., ICML 2024",
        "r (i + o) + o",
        lambda i, o, c: _low_rank(i, o, c) + o,
        fixed={"use_dora": True},
    ),
    "rslora": Tuner("LoraConfig", "Kalajdzievski 2023", "r (i + o)", _low_rank, fixed={"use_rslora": True}),
    "pissa": Tuner(
        "LoraConfig",
        "Meng et al., NeurIPS 2024",
        "r (i + o)",
        _low_rank,
        fixed={"init_lora_weights": "pissa"},
    ),
    "olora": Tuner(
        "LoraConfig", "Büyükakyüz 2024", "r (i + o)", _low_rank, fixed={"init_lora_weights": "olora"}
    ),
    "loha": Tuner(
        "LoHaConfig", "Hyeon-Woo et al., ICLR 2022", "2 r (i + o)", lambda i, o, c: 2 * _low_rank(i, o, c)
    ),
    "lokr": Tuner(
        "LoKrConfig",
        "Yeh et al., ICLR 2024",
        "i₁ o₁ + min(r (i₂ + o₂), i₂ o₂), i = i₁ i₂, o = o₁ o₂",
        _lokr,
    ),
    "ia3": Tuner(
        "IA3Config",
        "Liu et al., NeurIPS 2022",
        "o; of the feed-forward's last map i",
        lambda i, o, c: min(i, o) if i <= o else i,
        targets=("key", "value", "down"),
    ),
    "ln_tuning": Tuner("LNTuningConfig", "Zhao et al., ICLR 2024", "2 i", lambda i, o, c: 2 * i, targets=()),
    "oft": Tuner(
        "OFTConfig",
        "Qiu et al., NeurIPS 2023",
        "i (b − 1) / 2, b = oft_block_size",
        lambda i, o, c: i * (c.oft_block_size - 1) // 2,
    ),
    "boft": Tuner(
        "BOFTConfig",
        "Liu et al., ICLR 2024",
        "i b + o, b = boft_block_size",
        lambda i, o, c: i * c.boft_block_size + o,
    ),
    "hra": Tuner("HRAConfig", "Yuan et al., NeurIPS 2024", "r i", lambda i, o, c: c.r * i),
    "fourierft": Tuner(
        "FourierFTConfig",
        "Gao et al., ICML 2024",
        "n_frequency",
        lambda i, o, c: c.n_frequency,
        identity=False,
    ),
    "waveft": Tuner("WaveFTConfig", "Bilican et al. 2025", "n_frequency", lambda i, o, c: c.n_frequency),
    "vera": Tuner("VeraConfig", "Kopiczko et al., ICLR 2024", "r + o", lambda i, o, c: c.r + o),
    "pvera": Tuner("PveraConfig", "documentation of peft", "2 r + o", lambda i, o, c: 2 * c.r + o),
    "vblora": Tuner(
        "VBLoRAConfig",
        "Li et al., NeurIPS 2024",
        "r n (i + o) / v, and n v shared; n = num_vectors, v = vector_length",
        lambda i, o, c: c.r * c.num_vectors * (i + o) // c.vector_length,
        lambda c: c.num_vectors * c.vector_length,
        identity=False,
    ),
    "shira": Tuner("ShiraConfig", "Bhardwaj et al., NeurIPS 2024", "r (i + o)", _low_rank),
    "c3a": Tuner(
        "C3AConfig",
        "Chen et al., ACL 2025",
        "i o / b, b = block_size",
        lambda i, o, c: i * o // c.block_size,
        identity=False,
    ),
    "miss": Tuner("MissConfig", "Kang and Yin 2024", "r o", lambda i, o, c: c.r * o),
    "road": Tuner("RoadConfig", "Liao and Monz, NeurIPS 2024", "o", lambda i, o, c: o),
    "gralora": Tuner("GraloraConfig", "Jung et al., NeurIPS 2025", "r (i + o)", _low_rank),
    "delora": Tuner(
        "DeloraConfig",
        "Bini et al., ICLR 2025",
        "r (i + o) + 1",
        lambda i, o, c: _low_rank(i, o, c) + 1,
    ),
    "hira": Tuner("HiraConfig", "Huang et al., ICLR 2025", "r (i + o)", _low_rank),
    "psoft": Tuner(
        "PsoftConfig",
        "documentation of peft",
        "r (r − 1) / 2 + 2 r",
        lambda i, o, c: c.r * (c.r - 1) // 2 + 2 * c.r,
    ),
    "glora": Tuner(
        "GloraConfig",
        "Chavan et al. 2023",
        "2 r (i + o) + r (i + 1) + 2",
        lambda i, o, c: 2 * _low_rank(i, o, c) + c.r * (i + 1) + 2,
    ),
    "deft": Tuner("DeftConfig", "documentation of peft", "r (i + o)", _low_rank),
    "peanut": Tuner("PeanutConfig", "documentation of peft", "r (i + o)", _low_rank),
    "beft": Tuner("BeftConfig", "documentation of peft", "o", lambda i, o, c: o, targets=("value",)),
    "unilora": Tuner(
        "UniLoraConfig",
        "documentation of peft",
        "theta_d_length, shared",
        lambda i, o, c: 0,
        lambda c: c.theta_d_length,
        identity=False,
    ),
    "tinylora": Tuner("TinyLoraConfig", "documentation of peft", "u", lambda i, o, c: c.u),
    "frod": Tuner(
        "FrodConfig",
        "documentation of peft",
        "i + ⌊s i²⌋, s = sparse_rate",
        lambda i, o, c: i + int(c.sparse_rate * i * i),
        fixed={"progressbar": False},
    ),
}
"""By the name behind `peft:`."""

REFUSED: Mapping[str, str] = {
    "adalora": "its ranks follow from the gradients of all steps, which checkpoints do not keep",
    "lily": "it cannot be merged into the projections",
    "poly": "it needs to know the task of every example",
    "osf": "it trains whole matrices, so it is not parameter-efficient",
    "randlora": "merging it changes the outputs (by 1.9e-2 in float32)",
    "adaption_prompt": "it knows only the attention of language models",
    "xlora": "it mixes adapters that are trained already",
    "shadow": "it needs a language model",
    "prompt_tuning": "prompts of peft act on language models; use shallow_prompt",
    "prefix_tuning": "prompts of peft act on language models; use deep_prompt",
    "p_tuning": "prompts of peft act on language models; use shallow_prompt",
}
"""Why tuners of the library do not work here."""


def defaults_that_fit(name: str, sizes: set[int]) -> dict[str, int]:
    """Block lengths that divide all of the maps' `sizes`, for tuners whose own default may not."""
    largest = gcd(*sizes)
    if name == "vblora":
        return {"vector_length": gcd(256, largest)}
    if name == "c3a":
        return {"block_size": gcd(256, largest) if largest % 256 == 0 else gcd(64, largest)}
    return {}


def trained_parameters(name: str, maps: list[tuple[int, int]], config: Mapping[str, Any]) -> int:
    """The closed form: parameters that a tuner trains on these maps (inputs, outputs)."""
    tuner, settings = TUNERS[name], SimpleNamespace(**config)
    return sum(tuner.size(i, o, settings) for i, o in maps) + tuner.shared(settings)

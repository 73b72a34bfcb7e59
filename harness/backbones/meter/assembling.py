"""Assemble METER from pretrained encoders, save the whole in a folder, and load such a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.checkpoints import (
    check_sizes,
    check_vocabulary,
    describing,
    find_checkpoint,
    fixed_generator,
    load_strictly,
    read_settings,
    read_tensors,
)
from harness.backbones.meter.assembled import MODEL_TYPE, AssembledBackbone, AssembledConfig
from harness.backbones.meter.encoders import config_of, image_encoder, text_encoder
from harness.backbones.meter.processor import MeterProcessor, read_tokenizer, vocabulary_files
from harness.backbones.vilt.processor import read_words
from harness.errors import UserError
from harness.files import read_json, write_atomically

DEPTHS = 6
"""Depths of the fusion, as METER's."""
TEXT_LENGTH = 50
"""Maximum text length in tokens, as METER's."""
HEADS = ("itm_score",)
"""Heads of pre-training that a folder of weights keeps."""
OWN_RESIZING = ("dinov2", "dinov2_with_registers")
"""Image encoders that resize their position embeddings themselves."""


class EncodersProcessor(MeterProcessor):
    """METER's processing with the encoders' own vocabulary, padding id, and mean and deviation of the channels."""

    def __init__(self, vocabulary: Path, config: AssembledConfig, patch_size: int, text_length: int) -> None:
        super().__init__(vocabulary, config.image_size, patch_size, text_length)
        self.pad_id = config.pad_token_id
        self.mean, self.std = config.image_mean, config.image_std

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use; it does not pad."""
        if self._tokenizer is None:
            assert self.vocabulary is not None
            self._tokenizer = read_any_tokenizer(self.vocabulary)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self.max_text_length)
        return self._tokenizer

    def files(self) -> list[Path]:
        """The vocabulary's files."""
        assert self.vocabulary is not None
        return any_vocabulary_files(self.vocabulary)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 0…255 → float32 with the image encoder's mean and standard deviation."""
        mean, std = (255 * images.new_tensor(values, dtype=torch.float32) for values in (self.mean, self.std))
        return images.to(torch.float32).sub_(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))

    def describe(self) -> dict[str, Any]:
        """As METER's, and mean and standard deviation."""
        return {**super().describe(), "mean": list(self.mean), "std": list(self.std)}


def any_vocabulary_files(vocabulary: Path) -> list[Path]:
    """`tokenizer.json`, RoBERTa's two files, or BERT's `vocab.txt` if there is nothing else.

    Raises:
        UserError: there is none of them.
    """
    words = vocabulary / "vocab.txt"
    others = ("tokenizer.json", "merges.txt")
    if words.is_file() and not any((vocabulary / name).is_file() for name in others):
        return [words]
    return vocabulary_files(vocabulary)


def read_any_tokenizer(vocabulary: Path) -> Tokenizer:
    """The tokenizer of a folder or file: `tokenizer.json`, RoBERTa's two files, or BERT's `vocab.txt`.

    Raises:
        UserError: it cannot be read.
    """
    files = any_vocabulary_files(vocabulary)
    if files[0].name != "vocab.txt":
        return read_tokenizer(files)
    settings = files[0].with_name("tokenizer_config.json")
    lowercase = read_json(settings).value.get("do_lower_case", True) if settings.is_file() else True
    words = {word: number for number, word in enumerate(read_words(files[0]))}
    tokenizer: Tokenizer = BertWordPieceTokenizer(words, lowercase=lowercase)._tokenizer
    return tokenizer


def assemble_encoders(
    options: BackboneOptions, width: int | None = None, depths: int | None = None
) -> AssembledBackbone | None:
    """METER from `options.text_encoder` and `options.image_encoder`, with a random fusion; None if neither is given.

    With `weights="random"` only the encoders' shapes are read. The fusion's random weights are the same every time.

    width: of the fusion; by default the text encoder's. depths: of the fusion; by default 6, as published.

    Raises:
        UserError: one is missing, they cannot be read, or weights of a whole METER are given too.
    """
    if options.text_encoder is None and options.image_encoder is None:
        return None
    if options.text_encoder is None or options.image_encoder is None:
        raise UserError("meter: --text-encoder and --image-encoder are given together.")
    if options.weights not in (None, "random"):
        raise UserError(
            f"meter: {options.weights} holds its encoders; leave out --text-encoder and --image-encoder."
        )
    text, image = text_encoder(options.text_encoder), image_encoder(options.image_encoder)
    with describing(str(text.folder / "config.json"), "text encoder"):
        words = config_of(text.settings)
        width = width or words.hidden_size
        vocabulary = Path(options.tokenizer).expanduser() if options.tokenizer else text.folder
        ends = read_any_tokenizer(vocabulary).encode("").ids
        config = AssembledConfig(
            text=text.settings,
            image=image.settings,
            image_mean=image.mean,
            image_std=image.std,
            hidden_size=width,
            num_attention_heads=max(1, width // 64),
            num_hidden_layers=depths or DEPTHS,
            intermediate_size=4 * width,
            initializer_range=0.02 * (768 / width) ** 0.5,  # a layer's output varies as in METER's width
            vocab_size=words.vocab_size,
            max_position_embeddings=words.max_position_embeddings,
            image_size=image.side,
            bos_token_id=ends[0],
            pad_token_id=words.pad_token_id or 0,
            eos_token_id=ends[-1],
        )
    check_sizes(config, str(text.folder / "config.json"))
    state: dict[str, Tensor] = {}
    if options.weights is None:
        state |= {f"text_encoder.{key}": tensor for key, tensor in text.read().items()}
        state |= {f"image_encoder.{key}": tensor for key, tensor in image.read().items()}
    return _build(config, state, options, vocabulary, partial=True)


def assembled_folder(options: BackboneOptions) -> AssembledBackbone | None:
    """An assembled METER from a folder that `save_assembled` wrote; None if `options.weights` is none.

    Raises:
        UserError: the folder cannot be read.
    """
    if options.weights in (None, "random"):
        return None
    path = Path(str(options.weights)).expanduser() / "config.json"
    if not path.is_file() or MODEL_TYPE not in path.read_text(errors="replace"):
        return None
    folder = find_checkpoint(str(options.weights), ("*.json", "*.txt", "*.safetensors"))
    with describing(str(path), "METER"):
        config = AssembledConfig.from_dict(read_settings(folder, MODEL_TYPE))
    check_sizes(config, str(path))
    tensors = read_tensors(folder / "model.safetensors")
    heads = {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in HEADS}
    state = {key: tensor for key, tensor in tensors.items() if key not in heads}
    vocabulary = Path(options.tokenizer).expanduser() if options.tokenizer else folder
    backbone = _build(config, state, options, vocabulary)
    backbone.pretrained_heads = heads
    return backbone


def save_assembled(backbone: AssembledBackbone, folder: Path, heads: Mapping[str, Tensor]) -> None:
    """Write configuration, weights with `heads`, and vocabulary to a folder that `--weights` takes.

    Raises:
        UserError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().contiguous() for key, tensor in backbone.model.state_dict().items()}
    temporary = folder / "model.safetensors.new"
    save_file({**state, **{key: tensor.detach().contiguous() for key, tensor in heads.items()}}, temporary)
    temporary.replace(folder / "model.safetensors")
    settings = json.dumps(backbone.config.to_diff_dict(), indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "config.json", settings.encode())
    files = backbone.processor.files()
    for path in (*files, files[0].with_name("tokenizer_config.json")):
        if path.is_file() and path.parent.resolve() != folder.resolve():
            write_atomically(folder / path.name, path.read_bytes())


def _build(
    config: AssembledConfig,
    state: dict[str, Tensor],
    options: BackboneOptions,
    vocabulary: Path,
    partial: bool = False,
) -> AssembledBackbone:
    """partial: `state` has the encoders only; the fusion keeps its random weights."""
    if options.image_size is not None:
        config.image_size = options.image_size
    if "image_size" in vars(config_of(config.image)) and config.image["model_type"] not in OWN_RESIZING:
        config.image = {**config.image, "image_size": config.image_size}
    if options.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = options.dropout
        config.encoder_dropout = options.dropout
    length = options.text_length or min(TEXT_LENGTH, config.text_positions)
    if length > config.text_positions:
        raise UserError(f"meter: text length {length} exceeds its {config.text_positions} text positions.")
    with describing("meter", "METER"), fixed_generator():
        backbone = AssembledBackbone(config, EncodersProcessor(vocabulary, config, 1, length))
    backbone.processor = EncodersProcessor(vocabulary, config, config.patch_size, length)
    check_vocabulary(backbone.processor.tokenizer.get_vocab_size(), config.vocab_size, vocabulary)
    if state:
        expected = backbone.model.state_dict()
        fitted = {key: _resized(tensor, expected.get(key), key) for key, tensor in state.items()}
        load_strictly(backbone.model, {**(expected if partial else {}), **fitted}, "meter", "METER")
    backbone.requires_grad_(True)
    return backbone.eval()


def _resized(tensor: Tensor, expected: Tensor | None, name: str) -> Tensor:
    """Position embeddings of an image, resized bicubically to another number of tokens; other tensors as they are."""
    if expected is None or tensor.shape == expected.shape or "position" not in name:
        return tensor
    if not name.startswith("image_") or tensor.ndim != expected.ndim:
        return tensor
    table, count = tensor.reshape(-1, tensor.shape[-1]).float(), expected.shape[-2]
    old, new = int((len(table) - 1) ** 0.5), int((count - 1) ** 0.5)
    if old**2 + 1 != len(table) or new**2 + 1 != count:
        return tensor
    square = table[1:].T.reshape(1, -1, old, old)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], resized.flatten(2)[0].T]).reshape(expected.shape)

"""Visual prompting: a trained frame of pixels around every image, which also fits other backbones.

`vp` trains it by the task's loss alone (Bahng et al., arXiv:2203.17274). `tvp` is Transferable Visual Prompting (Zhang
et al., CVPR 2024): two more terms keep the image's features near those without the frame, and the image near the label.
Written from the papers and TVP's public code, zycheiheihei/Transferable-Visual-Prompting.

Beside the frame the task's head, the pooler and the token types train, as with every method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.generative import GenerativeBackbone
from harness.backbones.inputs import Inputs, padded_ids, sent
from harness.errors import UserError
from methods.base import Method, ParameterGroup, Slot, TrainingPart, freeze
from methods.frame import Frame, frame_size, frame_width
from methods.option_checks import module_size, positive

PUBLISHED_VALUES = 69_840
"""Values of a frame of width 30 at 224 pixels."""

LABEL = "this is a photo of a {label}"
MATCHING = "itm_score.fc"
"""Name of the matching head among a backbone's pretrained heads; its second output is for a match."""


class FrameOptions(Protocol):
    """Options of all visual prompts; `VPOptions` explains them."""

    @property
    def width(self) -> int | None: ...

    @property
    def step(self) -> float: ...

    @property
    def update(self) -> Literal["normalized", "adamw"]: ...


@dataclass(frozen=True)
class VPOptions:
    """What can be chosen about visual prompting.

    width: of the frame in pixels at the backbone's image size; by default in the published proportion, 30 at 224.
    update: `normalized` moves all values together by a fixed length against the gradient, as TVP does; `adamw` is the
        optimiser of all other parameters.
    step: length of the first update of 69,840 values, as published; a frame of n values moves √(n / 69,840) times as
        far, so that the mean change of a value is the same. It falls as the learning rate does. For `adamw`, the
        learning rate is 0.001 times as large.
    """

    width: int | None = None
    update: Literal["normalized", "adamw"] = "normalized"
    step: float = 10.0

    def __post_init__(self) -> None:
        check_frame("vp", self)


@dataclass(frozen=True)
class TVPOptions:
    """What can be chosen about transferable visual prompting.

    width, update, step: as in `vp`.
    fca: weight of feature consistency: the mean distance of the image's features from those without the frame.
    tse: weight of task semantics: how well the framed image fits "this is a photo of a" and the label.
    clip: folder or hub id of the CLIP model that judges the fit, such as openai/clip-vit-base-patch32, as published;
        empty: the backbone's own pretrained matching head; on backbones that write, how likely they write the text.
    """

    width: int | None = None
    update: Literal["normalized", "adamw"] = "normalized"
    step: float = 10.0
    fca: float = 0.005
    tse: float = 0.001
    clip: str = ""

    def __post_init__(self) -> None:
        check_frame("tvp", self)
        for name in ("fca", "tse"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"tvp: {name} must be at least 0, got {getattr(self, name)}.")


def check_frame(method: str, options: FrameOptions) -> None:
    """Raise `UserError` if an option of the frame is out of range."""
    module_size(method, width=options.width)
    positive(method, step=options.step)


OptionsT = TypeVar("OptionsT", bound=FrameOptions)


class FrameMethod(Method[OptionsT]):
    """Base class of visual prompts: only the frame is the method's."""

    family: ClassVar[str] = "visual prompts"
    per_token: ClassVar[bool] = True
    transfers: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PIXELS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put a black frame around every image.

        Raises:
            UserError: the frame leaves nothing of the image.
        """
        freeze(backbone)
        side = image_side(backbone)
        width = frame_width(side, self.options.width)
        if 2 * width >= side:
            raise UserError(f"{self.name}: width={width} leaves nothing of images of {side} pixels.")
        values = torch.zeros(3, frame_size(side, width) // 3)
        backbone.frame = Frame(values, side, width, backbone.processor)

    def carry_over(self, backbone: Backbone, tuned: Mapping[str, Tensor], image_size: int) -> None:
        """Put a frame that was trained on another backbone around this one's images.

        tuned: the trained tensors by name. image_size: of the other backbone.
        """
        width = frame_width(image_size, self.options.width)
        backbone.frame = Frame(tuned["frame.values"].clone(), image_size, width, backbone.processor)

    def parameter_groups(self, backbone: Backbone) -> Sequence[ParameterGroup]:
        """The frame, with its own update."""
        values = cast(Frame, backbone.frame).values
        if self.options.update == "adamw":
            rate = self.options.step / 1000
        else:
            rate = self.options.step * (values.numel() / PUBLISHED_VALUES) ** 0.5
        # The group's rate is a multiple of the cell's, of which the backbone's is the default.
        scale = rate / backbone.base_learning_rate
        normalized = self.options.update == "normalized"
        return (ParameterGroup("frame", (values,), scale, weight_decay=False, normalized=normalized),)


class VP(FrameMethod[VPOptions]):
    """The frame is trained by the task's loss."""

    name: ClassVar[str] = "vp"
    summary: ClassVar[str] = "a trained frame of pixels around every image"
    source: ClassVar[str] = "Bahng et al., arXiv:2203.17274"
    Options: ClassVar[type[Any]] = VPOptions

    def weighted_regularizer(self, backbone: Backbone, part: TrainingPart) -> Tensor | None:
        """Nothing; the images of the pass are forgotten."""
        cast(Frame, backbone.frame).take_seen()
        return None


class TVP(FrameMethod[TVPOptions]):
    """The frame is trained with feature consistency and task semantics, so that it works on other backbones too."""

    name: ClassVar[str] = "tvp"
    summary: ClassVar[str] = "a trained frame of pixels that works on other backbones too"
    source: ClassVar[str] = "Zhang et al., CVPR 2024"
    Options: ClassVar[type[Any]] = TVPOptions

    def __init__(self, options: TVPOptions | None = None) -> None:
        super().__init__(options)
        self._clip: Any = None

    def weighted_regularizer(self, backbone: Backbone, part: TrainingPart) -> Tensor | None:
        """`fca · FCA − tse · TSE`, each a mean over the passes.

        Raises:
            UserError: the task has no texts of labels, or nothing can judge how well an image fits its label.
        """
        frame, options = cast(Frame, backbone.frame), self.options
        passes = frame.take_seen()
        if not passes or not (options.fca or options.tse):
            return None
        total = torch.zeros((), device=passes[0][0].device)
        labels = part.labels() if options.tse else None
        if options.tse and labels is None:
            raise UserError("tvp: this task's labels are not texts; give tse=0.")
        for pixels, sizes in passes:
            with frame.mode("quiet"):
                if options.fca:
                    total = total + options.fca * self._consistency(backbone, frame, pixels, sizes)
                if labels is not None:
                    total = total - options.tse * self._fit(backbone, frame, pixels, sizes, labels)
        return total / len(passes)

    def _consistency(self, backbone: Backbone, frame: Frame, pixels: Tensor, sizes: Tensor | None) -> Tensor:
        """Mean over the tokens of the distance between the image's features with the frame and without."""
        with torch.no_grad(), frame.mode("off"):
            clean = image_features(backbone, pixels, sizes)
        return (image_features(backbone, pixels, sizes) - clean).norm(dim=-1).mean()

    def _fit(
        self,
        backbone: Backbone,
        frame: Frame,
        pixels: Tensor,
        sizes: Tensor | None,
        labels: Sequence[str],
    ) -> Tensor:
        """Mean score of the framed images with the texts of their labels."""
        texts = [LABEL.format(label=label) for label in labels]
        if self.options.clip:
            if self._clip is None:
                from methods.clip_score import ClipScore

                self._clip = ClipScore(self.options.clip)
            return self._clip(frame.zero_one(frame(pixels, sizes)), texts)  # type: ignore[no-any-return]
        if isinstance(backbone, GenerativeBackbone):
            return _caption_likelihood(backbone, texts, pixels, sizes)
        heads = backbone.pretrained_heads
        if f"{MATCHING}.weight" not in heads:
            raise UserError(
                f"tvp: {backbone.name} has no pretrained matching head; name a CLIP model with clip=…, or give tse=0."
            )
        weight, bias = (heads[f"{MATCHING}.{kind}"].to(pixels.device).float() for kind in ("weight", "bias"))
        pooled = backbone(_with_texts(backbone, texts, pixels, sizes))
        logits = F.linear(pooled.float(), weight, bias)
        return (logits[:, 1] - logits[:, 0]).mean()


def image_side(backbone: Backbone) -> int:
    """The backbone's image size in pixels: the side of a square image."""
    return int(backbone.processor.describe()["image_size"])


def image_features(backbone: Backbone, pixels: Tensor, sizes: Tensor | None) -> Tensor:
    """What a backbone knows of an image without a text, `(B, …, D)`.

    The image encoder's states, projected; of a backbone without one (ViLT) the states after the blocks, which see the
    image only.
    """
    ids = torch.zeros(len(pixels), 0, dtype=torch.int64, device=pixels.device)
    inputs = Inputs(ids, None, pixels, sizes)
    if len(backbone.stream_names) == 2:
        return backbone.encode_image(pixels, sizes)
    if backbone.encoders():  # a decoder: the projector belongs to `join`
        image = backbone.encode_image(pixels, sizes)
        return backbone.join(image.new_zeros(len(image), 0, backbone.width), image, inputs)["joint"].hidden
    return cast(Any, backbone).run_blocks(backbone.encode(inputs))["joint"].hidden  # type: ignore[no-any-return]


def _caption_likelihood(
    backbone: GenerativeBackbone, texts: Sequence[str], pixels: Tensor, sizes: Tensor | None
) -> Tensor:
    """Log-likelihood of the texts after a prompt with nothing but the image: a mean over tokens, then over texts."""
    answers = [torch.tensor(backbone.processor.answer_ids(text)) for text in texts]
    tokens = sent(nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-1), pixels.device)
    written = tokens >= 0
    prompts = _with_texts(backbone, [""] * len(texts), pixels, sizes)
    logs = backbone.answer_logits(prompts, tokens.clamp(min=0)).float().log_softmax(dim=-1)
    chosen = logs.gather(2, tokens.clamp(min=0)[:, :, None])[:, :, 0] * written
    return (chosen.sum(dim=1) / written.sum(dim=1)).mean()


def _with_texts(backbone: Backbone, texts: Sequence[str], pixels: Tensor, sizes: Tensor | None) -> Inputs:
    """Inputs of these images with these texts, one each."""
    ids = [torch.tensor(each) for each in backbone.processor.tokenize(texts)]
    longest = max(map(len, ids))
    pad = backbone.processor.pad_id
    rows = torch.stack([F.pad(each, (0, longest - len(each)), value=pad) for each in ids])
    mask = torch.stack([torch.arange(longest) < len(each) for each in ids])
    padded = None if bool(mask.all()) else mask
    inputs = Inputs(rows, padded, pixels, sizes, host_ids=padded_ids(rows, padded))
    return inputs.to(pixels.device)

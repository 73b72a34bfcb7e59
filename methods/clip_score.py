"""How well images fit texts, by a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import UserError, one_line

MEAN = (0.48145466, 0.4578275, 0.40821073)
STANDARD_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipScore:
    """`exp(logit scale) · cos` of CLIP's features of an image and a text, the scale at most 100; not trained.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, where: str) -> None:
        from transformers import CLIPModel, CLIPTokenizerFast

        try:
            self._model: Any = CLIPModel.from_pretrained(where).eval().requires_grad_(False)
            self._tokenizer: Any = CLIPTokenizerFast.from_pretrained(where)
        except (OSError, ValueError) as error:
            raise UserError(f"tvp: clip={where}: cannot be loaded ({one_line(error)}).") from None

    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Mean score of images `(B, 3, H, W)` in 0…1 with their texts; the images get a gradient."""
        model = self._model.to(images.device)
        side = model.config.vision_config.image_size
        resized = F.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=True)
        mean, deviation = (resized.new_tensor(each).view(3, 1, 1) for each in (MEAN, STANDARD_DEVIATION))
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            of_text = model.get_text_features(**tokens.to(images.device, non_blocking=True))
            scale = model.logit_scale.exp().clamp(max=100.0)
        of_image = model.get_image_features(pixel_values=(resized - mean) / deviation)
        return (scale * F.cosine_similarity(of_image, of_text)).mean()

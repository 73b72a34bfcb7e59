"""What a further token costs, in closed form, and what is kept of the prompt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.generative import GenerativeBackbone
from harness.measure.decoding import next_token
from harness.measure.flops import count_forward
from tasks.base import Batch
from tests.support.tiny_llava import PATCHES, VOCABULARY, prompts, tiny_llava

WIDTH, KEYS, HIDDEN, LAYERS, TEXT = 64, 32, 96, 4, 9


class Prompt:
    """A task that reads the logits of the first token."""

    images_per_example = 1

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(backbone, GenerativeBackbone)
        return backbone.prompt_logits(batch.inputs)


def test_a_token_costs_its_matrices_and_attention_to_all_before_it() -> None:
    backbone = tiny_llava()
    for skipped, rows in ((0, 1), (0, 3), (1, 1)):
        kept = LAYERS - skipped
        backbone.model.model.language_model.layers = backbone.blocks[skipped:]
        cost = count_forward(
            Prompt(),
            backbone,
            nn.Identity(),
            None,
            image_size=(32, 32),
            text_length=TEXT,
            batch_size=rows,
        ).decoding
        assert cost is not None
        assert cost.prompt_tokens == TEXT + PATCHES
        matrices = 2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * HIDDEN
        attention = 2 * WIDTH * (TEXT + PATCHES + 1)
        assert cost.token_macs == rows * (kept * (matrices + attention) + WIDTH * VOCABULARY)
        assert cost.cache_bytes == rows * kept * 2 * (TEXT + PATCHES) * KEYS * 4
        assert cost.precision == "float32"


@torch.no_grad()
def test_the_next_token_is_what_generation_computes_each_time() -> None:
    backbone, inputs = tiny_llava(), prompts()
    run = next_token(backbone, backbone.prefill(inputs))
    first, again = run(), run()
    assert torch.equal(first, again)
    written = backbone.generate(inputs, 2, ())
    assert torch.equal(first.argmax(dim=-1)[:, 0], written[:, 1])

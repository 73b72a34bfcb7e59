"""LLaVA's prompts and images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from harness.backbones.meter.processor import MeterProcessor, vocabulary_files
from harness.errors import UserError

TEMPLATE = "USER: {image}\n{text} ASSISTANT:"
"""LLaVA-1.5's prompt of one turn."""


IMAGE = "<image>"


class LlavaProcessor(MeterProcessor):
    """Prompts as token ids without the image's placeholder; images as in METER, with CLIP's statistics.

    vocabulary: `tokenizer.json`, or a folder with it. It must know `<image>` as one token.
    text_length: maximum length of a prompt in tokens, without the image's; the user's text is cut to fit.
    """

    def __init__(self, vocabulary: Path | None, image_size: int, patch_size: int, text_length: int) -> None:
        super().__init__(vocabulary, image_size, patch_size, text_length)
        self.pad_id = 0
        if vocabulary is not None:
            self.pad_id = self.end_ids[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:  # type: ignore[override]
        """The tokenizer, read on first use.

        Raises:
            UserError: there is no vocabulary, it cannot be read, or it has no `<image>`.
        """
        if self.vocabulary is None:
            raise UserError(
                "These weights come without a vocabulary; pass the folder of tokenizer.json with --tokenizer."
            )
        (path, *more) = vocabulary_files(self.vocabulary)
        if more:
            raise UserError(f"{self.vocabulary}: no tokenizer.json in this folder.")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{path}: cannot be read as a vocabulary ({error}).") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if tokenizer.token_to_id(IMAGE) is None:
            raise UserError(f"{path}: has no token {IMAGE}; it is not LLaVA's vocabulary.")
        return tokenizer

    @cached_property
    def _template(self) -> tuple[list[int], list[int]]:
        """Token ids of the template before the image and after the text."""
        ids = self._ids("")
        place = ids.index(self.tokenizer.token_to_id(IMAGE))
        marked = self._ids("x")
        tail = 0
        while marked[-1 - tail] == ids[-1 - tail]:
            tail += 1
        return ids[:place], ids[len(ids) - tail :]

    @property
    def image_position(self) -> int:
        """Number of tokens before the image; 1 without a vocabulary, for the token that starts a text."""
        return 1 if self.vocabulary is None else len(self._template[0])

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer.

        Raises:
            UserError: the vocabulary has no `</s>`.
        """
        found = self.tokenizer.token_to_id("</s>")
        if found is None:
            raise UserError(f"{self.vocabulary}: the vocabulary has no </s>.")
        return (found,)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(TEMPLATE.format(image=IMAGE, text=text)).ids  # type: ignore[no-any-return]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt without the image. Long texts are cut; the template is not."""
        head, tail = self._template
        # A text may also contain the placeholder; only the template's is the position of the image.
        prompts = (self._ids(text.replace(IMAGE, "image")) for text in texts)
        room = self.max_text_length - len(head) - len(tail)
        return [[*head, *ids[len(head) + 1 : len(ids) - len(tail)][: max(0, room)], *tail] for ids in prompts]

    def turn_ids(self, text: str, first: bool) -> list[int]:
        """Ids of one turn of a dialogue, up to its answer; only the first has an image."""
        if first:
            return self.tokenize([text])[0]
        turn = TEMPLATE.format(image="", text=text.replace(IMAGE, "image")).replace("\n", "")
        return self.tokenizer.encode(turn, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer after a prompt, including the token that ends it."""
        plain = self._ids("")
        whole = self.tokenizer.encode(TEMPLATE.format(image=IMAGE, text="") + f" {text}").ids
        return [*whole[len(plain) :], self.end_ids[0]]

    def answer_text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids up to the first token that ends it."""
        ends = [place for place, token in enumerate(ids) if token in self.end_ids]
        return self.tokenizer.decode(list(ids[: ends[0]] if ends else ids)).strip()  # type: ignore[no-any-return]

    def describe(self) -> dict[str, Any]:
        """Like METER's, and the template of the prompt."""
        return {**super().describe(), "template": TEMPLATE}

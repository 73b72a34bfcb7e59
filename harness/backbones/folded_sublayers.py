"""The sublayers of a deployed block, made of the parts in `harness.backbones.folded`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones import kernels
from harness.backbones.block import Tokens
from harness.backbones.folded import Closing, Reading
from harness.backbones.folding import Branch


class FeedForward(nn.Module):
    """The last sublayer of a block: two maps with a GELU between them."""

    def __init__(self, reading: Reading, closing: Closing) -> None:
        super().__init__()
        self.reading = reading
        self.closing = closing

    def feed(self, hidden: Tensor) -> Tensor:
        """`(N, D)` → `(N, D)`."""
        return self._feed(hidden, *self.reading.prepare(hidden))

    def add_and_feed(self, residual: Tensor, result: Tensor) -> Tensor:
        """The same of the sum of the residual and the result `(N, D)` of the sublayer before."""
        return self._feed(*self.reading.add_and_prepare(residual, result))

    def _feed(self, hidden: Tensor, read: Tensor, factor: Tensor | None) -> Tensor:
        reading, closing = self.reading, self.closing
        joint = reading.activated(reading.product(read), factor)
        if closing.columns:
            return closing.close(joint, None, hidden)
        if reading.rows:
            inner, main = reading.split(joint)
            return closing.close(main, inner, hidden)
        return closing.close(joint, reading.inner(None, None, hidden), hidden)


class SelfAttention(nn.Module):
    """Self-attention. Rows of the product, in order: branch, query, key, value."""

    def __init__(self, reading: Reading, closing: Closing, heads: int) -> None:
        super().__init__()
        self.reading = reading
        self.closing = closing
        self.heads = heads

    def attend(self, tokens: Tokens, queries: int | None) -> Tensor:
        """Tokens `(B, T, D)` → the first `queries` tokens of each example in rows, `(B · queries, D)`."""
        asking, mixed, inner = self._mix(tokens, queries)
        return self.closing.close(mixed, inner, asking)

    def result(self, tokens: Tokens, queries: int | None) -> tuple[Tensor, Tensor]:
        """The first `queries` of the tokens in rows, `(B · queries, D)`, and what is to be added to them."""
        asking, mixed, inner = self._mix(tokens, queries)
        return asking, self.closing.result(mixed, inner)

    def _mix(self, tokens: Tokens, queries: int | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The asking tokens, what they attend to and the branch's hidden state, all in rows."""
        asking, (query, key, value), inner = self.states(tokens, queries)
        return asking, mix(query, key, value, tokens.mask), inner

    def states(
        self, tokens: Tokens, queries: int | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """The asking tokens in rows; query, key and value by head; the branch's hidden state in rows, if any."""
        reading, hidden = self.reading, tokens.hidden
        batch, _, width = hidden.shape
        rows = hidden.reshape(-1, width)
        if queries is None:
            asking = rows
            read, factor = reading.prepare(rows)
            branch, main = reading.split(reading.product(read))
            query, key, value = by_head(main, batch, 3, self.heads)
        else:
            asking, asked = hidden[:, :queries].reshape(-1, width), reading.rows + width
            read, factor = reading.prepare(asking)
            branch, main = reading.split(reading.product(read, stop=asked))
            (query,) = by_head(main, batch, 1, self.heads)
            answers = reading.product(reading.standardise(rows), start=asked)
            key, value = by_head(answers, batch, 2, self.heads)
        return asking, (query, key, value), reading.inner(branch, factor, asking)


class CrossAttention(nn.Module):
    """Cross-attention: queries from the own stream, keys and values from the other one.

    asking: rows of the branch and of the query. answering: rows of key and value.
    """

    def __init__(self, asking: Reading, answering: Reading, closing: Closing, heads: int) -> None:
        super().__init__()
        self.asking = asking
        self.answering = answering
        self.closing = closing
        self.heads = heads

    def ask(self, own: Tensor) -> tuple[Tensor, ...]:
        """From the own stream `(B, T, D)`: the query by head, and the branch's hidden state `(B, T, r)` if any."""
        batch, length, width = own.shape
        rows = own.view(-1, width)
        read, factor = self.asking.prepare(rows)
        branch, main = self.asking.split(self.asking.product(read))
        (query,) = by_head(main, batch, 1, self.heads)
        inner = self.asking.inner(branch, factor, rows)
        return (query,) if inner is None else (query, inner.view(batch, length, -1))

    def answer(self, context: Tensor) -> tuple[Tensor, ...]:
        """From the other stream `(B, S, D)`: key and value by head, `(B, heads, S, D / heads)`."""
        read = self.answering.standardise(context.reshape(-1, context.shape[-1]))
        return by_head(self.answering.product(read), len(context), 2, self.heads)

    def attend(
        self, own: Tensor, asked: tuple[Tensor, ...], answered: tuple[Tensor, ...], mask: Tensor | None
    ) -> Tensor:
        """Own stream `(B, T, D)`, its queries, and keys and values of the other stream → `(B · T, D)`."""
        key, value = answered
        inner = asked[1].flatten(0, 1) if len(asked) > 1 else None
        return self.closing.close(mix(asked[0], key, value, mask), inner, own.view(-1, own.shape[-1]))


class Shortcut(nn.Module):
    """A single branch: `x + up(act(down(norm(x))))`."""

    def __init__(self, branch: Branch, like: Tensor) -> None:
        super().__init__()
        self.reading = Reading(branch.down, branch.norm, None, like)
        self.closing = Closing(branch.up, like=like)
        self.activation = branch.activation

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, D)` → `(…, D)`."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        reading, read = self.reading, self.reading.standardise(rows)
        if self.activation == "relu":
            inner = kernels.product_with_relu(read, reading.weight, reading.bias)
        else:
            inner = kernels.activate(reading.product(read), self.activation)
        return self.closing.close(inner, None, rows).view(hidden.shape)


def mix(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `(B, heads, T, d)` to `(B, heads, S, d)`; the result in rows, `(B · T, heads · d)`."""
    return in_rows(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))


def in_rows(mixed: Tensor) -> Tensor:
    """`(B, heads, T, d)` → `(B · T, heads · d)`."""
    return mixed.transpose(1, 2).reshape(-1, mixed.shape[1] * mixed.shape[3])


def by_head(rows: Tensor, batch: int, maps: int, heads: int) -> tuple[Tensor, ...]:
    """Split the results of `maps` maps, `(B · T, maps · D)`, by map and head: `(B, heads, T, D / heads)` each."""
    if rows.is_cuda and rows.stride(0) * rows.element_size() % 16:
        rows = rows.contiguous()  # attention reads 16 bytes at a time
    states = rows.view(batch, -1, maps, heads, rows.shape[1] // (maps * heads))
    return states.permute(2, 0, 3, 1, 4).unbind(0)

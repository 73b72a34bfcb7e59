"""The parts of a deployed block: the first and the last matrix product of each sublayer.

The modules that a method has inserted take part in both products, so that they cost few operations of their own. All
parts work on tokens in rows, `(N, D)` with N = batch · tokens. Nothing here trains. Only blocks are called as modules;
their parts are called by ordinary methods, because the overhead of module calls is noticeable in small models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones import kernels
from harness.backbones.folding import Activation, Affine, Branch, Norm


class FoldedPart(nn.Module, ABC):
    """Base of modules whose parameters may hold both pretrained weights and weights of a method."""

    onednn = False
    """Whether `weight` suits oneDNN. Kept, because asking at each product is noticeable in small models."""

    @abstractmethod
    def inserted(self) -> list[Tensor]:
        """Views of exactly those parts of its parameters that a method has added. A view may be empty."""

    def converted(self) -> list[nn.Parameter]:
        """Parameters that autocast converts at each call, because products read them; there need not be any."""
        return []

    def _multiply(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear map `(N, D)` → `(N, M)`."""
        return (kernels.product if self.onednn else F.linear)(hidden, weight, bias)

    def _hold(self, name: str, tensor: Tensor, like: Tensor) -> None:
        """Keep a tensor as a frozen parameter in the type of `like`."""
        held = tensor.detach().to(like.dtype, copy=True).contiguous()
        self.register_parameter(name, nn.Parameter(held, requires_grad=False))
        if name == "weight":
            self.onednn = kernels.suits_onednn(held)


class Reading(FoldedPart):
    """The start of a sublayer: the norm before it, if there is one, and one product of all maps that read its result.

    main: the sublayer's maps, stacked, `(M, D)`.
    norm: the norm of a pre-norm block. Its gain and offset are merged into the maps.
    branch: the parallel branch, of hidden size r. Its down-projection becomes the first r rows of the product. If the
        branch normalises differently from the block, these rows are corrected:

        - the block's norm has another epsilon: they are scaled by the ratio of each token's standard deviations;
        - the block has no norm here: they are divided by each token's standard deviation, and subtract its mean;
        - only the block has a norm: the branch keeps its own product.
    like: a parameter whose type and device are used.
    """

    weight: Tensor
    bias: Tensor
    rescaled_bias: Tensor
    apart_weight: Tensor
    apart_bias: Tensor

    def __init__(self, main: Affine, norm: Norm | None, branch: Branch | None, like: Tensor) -> None:
        super().__init__()
        self.eps = None if norm is None else norm.eps
        self.rows = 0
        self.activation: Activation | None = None if branch is None else branch.activation
        self.rescaled: float | None = None
        self.apart = branch is not None and branch.norm is None and norm is not None
        if norm is not None:
            main = main.after_norm(norm)
        if branch is not None and self.apart:
            self._hold("apart_weight", branch.down.weight, like)
            self._hold("apart_bias", branch.down.bias, like)
        elif branch is not None:
            self.rows = branch.size
            rows = branch.reading()
            if branch.norm is not None and branch.norm.eps != self.eps:
                self.rescaled = branch.norm.eps
                rows = rows if norm is not None else rows.centred()
                self._hold("rescaled_bias", rows.bias, like)
                rows = Affine(rows.weight, torch.zeros_like(rows.bias))  # added after the rescaling
            main = Affine.stack(rows, main)
        self._hold("weight", main.weight, like)
        self._hold("bias", main.bias, like)

    def inserted(self) -> list[Tensor]:
        """The branch's rows, and its own parameters."""
        own = [value for name, value in self.named_parameters() if name not in ("weight", "bias")]
        return [self.weight[: self.rows], self.bias[: self.rows], *own]

    def converted(self) -> list[nn.Parameter]:
        """All but the bias that is added after the product."""
        return [value for name, value in self.named_parameters() if name != "rescaled_bias"]

    def standardise(self, hidden: Tensor) -> Tensor:
        """The input of the product from the stream `(N, D)`."""
        return hidden if self.eps is None else kernels.standardise(hidden, self.eps)[0]

    def prepare(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input of the product, and the factor `(N, 1)` of the branch's rows, or None without rescaling."""
        if self.eps is not None:
            return kernels.standardise(hidden, self.eps, self.rescaled)
        return hidden, None if self.rescaled is None else kernels.inverse_deviation(hidden, self.rescaled)

    def add_and_prepare(self, residual: Tensor, result: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The stream `(N, D)` after a sublayer's result is added to it, and `prepare` of that."""
        if self.eps is not None:
            return kernels.add_and_standardise(residual, result, self.eps, self.rescaled)
        hidden = kernels.add(residual, result)
        return hidden, *self.prepare(hidden)

    def product(self, read: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The rows `start` to `stop` of the product: `(N, D)` → `(N, stop − start)`."""
        if start == 0 and stop is None:
            return self._multiply(read, self.weight, self.bias)
        return self._multiply(read, self.weight[start:stop], self.bias[start:stop])

    def split(self, joint: Tensor) -> tuple[Tensor | None, Tensor]:
        """Split a product into the branch's rows, which come first, `(N, r)`, and the rest."""
        if not self.rows:
            return None, joint
        branch, main = torch.split_with_sizes(joint, (self.rows, joint.shape[1] - self.rows), 1)
        return branch, main

    def inner(self, branch: Tensor | None, factor: Tensor | None, hidden: Tensor) -> Tensor | None:
        """The hidden state `(N, r)` of the branch from its part of the product, or from the stream `(N, D)`.

        None if there is no branch.
        """
        if self.activation is None:
            return None
        if branch is None:
            branch = F.linear(hidden, self.apart_weight, self.apart_bias)
        return kernels.activate(
            branch, self.activation, factor, None if factor is None else self.rescaled_bias
        )

    def activated(self, joint: Tensor, factor: Tensor | None) -> Tensor:
        """A product whose main part gets GELU. The branch's rows, where it has some, are activated in their place."""
        if self.activation is None or not self.rows:
            return kernels.gelu(joint)
        bias = None if factor is None else self.rescaled_bias
        return kernels.activate_jointly(joint, self.rows, self.activation, factor, bias)


class Closing(FoldedPart):
    """The end of a sublayer: its last product, the branches, the residual, the norm of a post-norm block.

    main: the sublayer's last map, `(D, M)`.
    parallel: the parallel branch, whose hidden state is given. joined: the hidden state is the first columns of the
        input, and the branch's up-projection the first columns of the product. (Not used for attention:
        its result would first be copied, which takes as long as a separate product that adds in place.)
    sequential: the branch on the sublayer's output. Its down-projection follows `main` directly. Both become one
        product if this does not need more multiplications.
    norm: the norm of a post-norm block. post_norm: the branch that is added to its output.
    like: a parameter whose type and device are used.
    """

    weight: Tensor
    bias: Tensor
    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    gain: Tensor
    offset: Tensor

    def __init__(
        self,
        main: Affine,
        *,
        parallel: Branch | None = None,
        sequential: Branch | None = None,
        norm: Norm | None = None,
        post_norm: Branch | None = None,
        joined: bool = False,
        like: Tensor,
    ) -> None:
        super().__init__()
        self.columns = self.rows = 0
        self.activation: Activation | None = None
        self.eps = None if norm is None else norm.eps
        self.behind = post_norm is not None
        added = parallel or post_norm or sequential
        constant = torch.zeros_like(main.bias) if added is None else added.up.bias
        if sequential is not None:
            self.activation = sequential.activation
            outputs, inputs = main.weight.shape
            if inputs <= outputs:
                self.rows = sequential.size
                main = Affine.stack(sequential.down.after(main), main.shifted(constant))
            else:
                main = main.shifted(constant)
                # It reads the result including the constant.
                down = sequential.down.shifted(-sequential.down.weight @ constant)
                self._hold("down_weight", down.weight, like)
                self._hold("down_bias", down.bias, like)
        elif not self.behind:
            main = main.shifted(constant)
        if parallel is not None and joined:
            self.columns = parallel.size
            main = Affine(torch.cat([parallel.up.weight, main.weight], dim=1), main.bias)
        elif added is not None:
            self._hold("up_weight", added.up.weight.t(), like)
        self.adds = added is not None and not self.columns
        self._hold("weight", main.weight, like)
        self._hold("bias", main.bias, like)
        if norm is not None:
            self._hold("gain", norm.gain, like)
            self._hold("offset", norm.offset + constant if self.behind else norm.offset, like)

    def inserted(self) -> list[Tensor]:
        """The branch's rows or columns, and its own maps."""
        own = [self.weight[: self.rows], self.bias[: self.rows], self.weight[:, : self.columns]]
        return [*own, *(value for name, value in self.named_parameters() if name.startswith(("down", "up")))]

    def converted(self) -> list[nn.Parameter]:
        """All but the norm's, and the up-projection that is added to its result."""
        kept = ("gain", "offset", "up_weight" if self.behind else "")
        return [value for name, value in self.named_parameters() if name not in kept]

    def result(self, main: Tensor, inner: Tensor | None) -> Tensor:
        """What is added to the residual: `(N, M)` and the branch's hidden state `(N, r)` → `(N, D)`."""
        result = self._multiply(main, self.weight, self.bias)
        if self.activation is not None:
            if self.rows:
                inner, result = result.split_with_sizes((self.rows, result.shape[1] - self.rows), 1)
            else:
                inner = F.linear(result, self.down_weight, self.down_bias)
            inner = kernels.activate(inner, self.activation)
        return self._add(result, inner) if self.adds and not self.behind else result

    def close(self, main: Tensor, inner: Tensor | None, residual: Tensor) -> Tensor:
        """`(N, M)`, the branch's hidden state `(N, r)` and the residual `(N, D)` → `(N, D)`."""
        result = self.result(main, inner)
        if self.eps is None:
            return kernels.add(residual, result)
        hidden = kernels.add_and_normalise(residual, result, self.gain, self.offset, self.eps)
        return self._add(hidden, inner) if self.behind else hidden

    def _add(self, hidden: Tensor, inner: Tensor | None) -> Tensor:
        """Add the result of the branch's up-projection to `hidden`, in place unless gradients are needed."""
        assert inner is not None
        up = self.up_weight
        if not inner.dtype == up.dtype == hidden.dtype:  # autocast converts nothing for what works in place
            inner, up = inner.to(hidden.dtype), up.to(hidden.dtype)
        return torch.addmm(hidden, inner, up) if hidden.requires_grad else hidden.addmm_(inner, up)


@torch.enable_grad()
def inserted_in(module: nn.Module, but: Collection[nn.Module] = ()) -> list[Tensor]:
    """Views of what a method has added to folded parts. They require gradient if their parameters do.

    but: modules that belong to the method entirely, which are left out.
    """
    own = {id(inner) for each in but for inner in each.modules()}
    parts = (part for part in module.modules() if isinstance(part, FoldedPart) and id(part) not in own)
    return [view for part in parts for view in part.inserted() if view.numel()]

"""Rows of `Einsum` layers: their equation says which indices are features, groups and positions."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Inexact, Num

from aqx.errors import UnsupportedError
from aqx.fisher.rows import Call, Rows


@dataclass(frozen=True)
class EinsumRows:
    """einsum(x, kernel) whose every index has one of four places; an ellipsis is spelled out in letters.

    Attributes:
        x: indices of the input.
        kernel: indices of the kernel.
        out: indices of the output.
        positions: in x and out only, the examples among them; in the order of x.
        groups: in x, kernel and out.
        inside: in x and kernel only, so contracted: the input features.
        outside: in kernel and out only: the output features.
        bias, one_hot, dimensions: as in `Rows`.
    """

    bias: bool
    x: str
    kernel: str
    out: str
    positions: str
    groups: str
    inside: str
    outside: str
    dimensions: tuple[int, int, int]
    one_hot: bool = False

    def inputs(self, a: Num[Array, "..."]) -> Num[Array, "N T B d"]:
        """Input rows: what the subscripts contract, for each group."""
        return self._arrange(self.x, self.inside, a, self.dimensions[1])

    def gradients(self, g: Inexact[Array, "..."]) -> Inexact[Array, "N T B p"]:
        """Rows of the output's gradient, for each group."""
        return self._arrange(self.out, self.outside, g, self.dimensions[2])

    def matrix(self, kernel: Num[Array, "..."]) -> Num[Array, "B d p"]:
        """The kernel with its indices in the order groups, inside, outside."""
        order = [self.kernel.index(i) for i in self.groups + self.inside + self.outside]
        return kernel.transpose(order).reshape(self.dimensions)

    def bias_row(self, bias: Num[Array, "..."]) -> Num[Array, "B 1 p"]:
        """The bias, which has the kernel's indices that are in the output, as they stand there."""
        stored = [i for i in self.out if i in self.kernel]
        groups, _, p = self.dimensions
        return bias.transpose([stored.index(i) for i in self.groups + self.outside]).reshape(groups, 1, p)

    def _arrange(self, indices: str, features: str, values: Array, width: int) -> Array:
        values = values.transpose([indices.index(i) for i in self.positions + self.groups + features])
        leading = values.shape[0] if self.positions else 1
        return values.reshape(leading, -1, self.dimensions[0], width)


def einsum_rows(layer: Any, kernel: tuple[int, ...], call: Call) -> Rows:
    """Rows of a Linen or NNX `Einsum`; the equation is an attribute or an argument of the call.

    Raises:
        UnsupportedError: the layer is not Kronecker.
    """
    shape = tuple(call["inputs"].shape)
    x, w, out = _indices(call.get("einsum_str") or layer.einsum_str, len(shape), len(kernel))
    sizes = dict(zip(w, kernel, strict=True))
    for term in (x, w):
        if len(set(term)) < len(term):
            raise UnsupportedError("its equation takes the diagonal of an operand, which is not Kronecker")
        if any(i not in out for i in set(term) - (set(x) & set(w))):
            raise UnsupportedError("its equation sums an index of one operand alone, which is not Kronecker")
    if any(sizes[i] != size for i, size in zip(x, shape, strict=True) if i in sizes):
        raise UnsupportedError("its equation broadcasts an index of size 1, which is not Kronecker")
    positions = "".join(i for i in x if i not in w)
    groups = "".join(i for i in w if i in x and i in out)
    inside = "".join(i for i in w if i not in out)
    outside = "".join(i for i in w if i not in x)
    groups_, d, p = (math.prod(sizes[i] for i in part) for part in (groups, inside, outside))
    # Linen says whether there is a bias; NNX has one or has None. Either has one entry per group and output feature.
    bias = layer.use_bias if hasattr(layer, "use_bias") else layer.bias is not None
    return EinsumRows(bias, x, w, out, positions, groups, inside, outside, (groups_, d, p))


def _indices(equation: str, x_rank: int, kernel_rank: int) -> tuple[str, str, str]:
    """Letters of both operands and of the output, ellipses spelled out."""
    terms, out = equation.replace(" ", "").split("->")
    x, w = terms.split(",")
    spare = "".join(i for i in string.ascii_letters if i not in equation)
    hidden = [rank - len(term.replace("...", "")) for term, rank in ((x, x_rank), (w, kernel_rank))]
    x, w, out = (
        # Ellipses of different length are aligned at their ends, as NumPy broadcasts.
        term.replace("...", spare[len(spare) - length :])
        for term, length in ((x, hidden[0]), (w, hidden[1]), (out, max(hidden)))
    )
    return x, w, out

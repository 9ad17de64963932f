"""The linear layer and the softmax cross-entropy in one, for vocabularies whose logits do not fit in memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_array, check_flag, check_size
from ..layers import buffers
from ..layers.products import add_column_sums, add_gradient, multiply, pack
from .categorical import Rows
from .elements import dtype_of

# Bytes of logits held at once. The gradient of the weights is read and written once for each block, so blocks should
# not be small: at V = 50,000 in float32 this is 335 rows.
BLOCK_BYTES = 1 << 26


def linear_cross_entropy(
    h: Any,
    weight: Any,
    bias: Any,
    targets: Any,
    reduction: str = "mean",
    gradient: bool = True,
    *,
    label_smoothing: float = 0.0,
    class_weight: Any = None,
    ignore_index: int | None = None,
    mask: Any = None,
    lengths: Any = None,
    rows: int | None = None,
) -> tuple[float, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """`cross_entropy(h weight^T + bias, targets)` without ever holding all of the logits.

        logits = h weight^T + bias        loss, dlogits = cross_entropy(logits, targets)
        dh = dlogits weight               dweight = dlogits^T h         dbias = sum of dlogits over n

    The rows n = (t, b) go through in blocks of `rows`: the logits of a block are made, become their own gradient
    in place, and are used up before the next. The numbers are those of `Linear` and `cross_entropy`, bit for bit,
    whatever the blocks.

    h : (..., H), float32 or float64
    weight, bias : (V, H), and (V,) or None, of the type of `h`; those of a `Linear` layer
    targets : (...), integers from 0 to V - 1
    rows : how many rows of logits are held at once; None for 64 MiB of them, but at least one row
    reduction, gradient, label_smoothing, ignore_index, mask, lengths : as in `cross_entropy`; class_weight (V,)
        is its `weight`. Rows that do not count cost nothing, and NaN in their `h` reaches nothing

    Returns the loss, a float, dh, dweight and dbias, of the shape and type of h, weight and bias; None for dbias
    without a bias, and for all three with gradient=False.

    Memory, in numbers, beside arguments and results: R V for the logits (R = `rows`), H V for each of two packings of
    the weights (one without gradient), and about 2^15 for each thread; where rows do not count, 2 N H more. All logits
    at once and their gradient would be 2 N V.

    Raises as `cross_entropy` does, and for a `weight` or `bias` that does not fit.

    >>> import fastrnn as fr, numpy as np
    >>> head = fr.Linear(3, 50_000, seed=0)
    >>> h, targets = np.ones((7, 4, 3), np.float32), np.arange(28).reshape(7, 4)
    >>> weight, bias = head.params["weight"], head.params["bias"]
    >>> loss, dh, dweight, dbias = fr.linear_cross_entropy(h, weight, bias, targets)
    >>> loss == fr.cross_entropy(head(h), targets)[0]
    True
    >>> head.grads["weight"][...] += dweight
    >>> head.grads["bias"][...] += dbias
    """
    dtype, gradient = dtype_of(h), check_flag("gradient", gradient)
    h = check_array("h", h, dtype, "... H", {})
    H = h.shape[-1]
    weight = check_array("weight", weight, dtype, "V H", {"H": H})
    V = weight.shape[0]
    if V == 0 or H == 0:
        raise ValueError(f"weight has shape {weight.shape}, expected (V, H) with V and H from 1")
    nothing = np.empty(0, dtype)
    c = nothing if bias is None else check_array("bias", bias, dtype, "V", {"V": V})
    R = max(1, BLOCK_BYTES // (V * dtype.itemsize)) if rows is None else check_size("rows", rows)
    options = (label_smoothing, class_weight, ignore_index, mask, lengths)
    todo = Rows((*h.shape[:-1], V), dtype, targets, reduction, *options, whole=False)

    x, keep = h.reshape(-1, H), None
    if not todo.all:  # only the rows that count
        keep = todo.targets >= 0
        x, todo.targets = x[keep], todo.targets[keep]
    N = len(x)
    losses = np.empty(N)
    packed = pack(H, V, weight.reshape(-1), True)
    if gradient:
        transposed = pack(V, H, weight.reshape(-1), False)
        dx, dweight, dc = buffers.empty((N, H), dtype), np.zeros((V, H), dtype), np.zeros(len(c), dtype)
    # One array for the logits of every block: a thread that helped with one may still refer to it during the next.
    logits = buffers.empty((min(R, N), V), dtype)
    for n in range(0, N, R):
        block = slice(n, min(n + R, N))
        y = multiply(x[block], packed, V, c, out=logits[: block.stop - n])
        todo.run(y.reshape(-1), block, losses[block], y.reshape(-1) if gradient else nothing)  # y becomes dy
        if gradient:
            add_gradient(dweight, x[block], y)
            if len(c):
                add_column_sums(dc, y)
            multiply(y, transposed, H, nothing, out=dx[block])
    # In ascending order, as the kernel adds.
    loss = float(np.cumsum(losses)[-1]) / todo.divisor if N else 0.0
    if not gradient:
        return loss, None, None, None
    if keep is not None:
        kept, dx = dx, np.zeros((len(keep), H), dtype)
        dx[keep] = kept
    return loss, dx.reshape(h.shape), dweight, None if bias is None else dc

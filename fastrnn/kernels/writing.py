"""What a language model that writes does after its recurrent layers: logits, a character from them, and the next input.

    p = softmax(logits / temperature)       the character is the first whose cumulated p is above a uniform number

in float64, as inverse transform sampling has it; with temperature 0 it is the most likely one. The cells' kernels that
write call it: a character goes from the linear layer to the first recurrent one without Python between them. They take

    count       characters, for every row its own
    pieces      into how many parts the rows are divided for the workers
    layers, batch, h_size, columns      L, B, H; of the linear layer, V
    ids         (count + 1, B) int64: those of step 0 read, the others written
    table       (V, GH), U x + b for each character, read: layer 0 looks its input up
    w, starts   packed weights of all layers, layer 0 without U, from starts[layer] to starts[layer + 1], read
    h           (2, L, B, H), of [0] the initial states read; the states after n characters are in [n % 2], the others
                overwritten

and what `write_item` takes.
"""

import math

from .._jit import device, part
from ..simd.vector import lanes_of
from .matmul import product_item


@device
def places(n, layer, layers, size):
    """Where the states of a layer begin in h, (2, L, size), when character n is read: before it, after it, and after it
    those of the layer below, if there is one.
    """
    new = (n + 1) % 2 * layers
    return (n % 2 * layers + layer) * size, (new + layer) * size, (new + max(0, layer - 1)) * size


@part
def write_item(
    row0, row1, n, batch, h_size, columns, temperature, h, packed, bias, logits, cumulated, uniforms, broken, ids, z
):  # fmt: skip
    """Character n + 1 of some rows.

    h : (B, H), of the topmost layer, read
    packed, bias : of the linear layer, as `product` takes them, read
    logits, cumulated : (B, columns), overwritten
    uniforms : (count, B) float64, from 0 to below 1, read
    broken : (B,) int64, set to 1 where logits are not finite; the row goes on with character 0
    ids : (count + 1, B) int64, written
    """
    lane = lanes_of(packed)
    vectors = (columns + lane - 1) // lane
    product_item(row0, row1, 0, vectors, columns, False, h, h_size, h_size, 0, 1, packed, bias, logits, z)
    for r in range(row0, row1):
        at = r * columns
        k = pick(logits, at, columns, temperature, uniforms[n * batch + r], cumulated)
        if k < 0:
            broken[r], k = 1, 0
        ids[(n + 1) * batch + r] = k


@device
def pick(logits, at, columns, temperature, uniform, cumulated):
    """The index that `uniform` stands for in the distribution of the logits from `at` on; -1 if they are not finite."""
    best = 0
    for k in range(1, columns):
        if logits[at + k] > logits[at + best]:
            best = k
    total, highest = 0.0, float(logits[at + best])
    for k in range(columns):
        below = float(logits[at + k]) - highest
        if not below <= 0.0:  # NaN, or infinity less infinity; a logit of -infinity is a probability of 0
            return -1
        if temperature > 0.0:
            total += math.exp(below / temperature)
            cumulated[at + k] = total
    if temperature > 0.0:
        for k in range(columns):
            if cumulated[at + k] > uniform * total:
                return k
    return best

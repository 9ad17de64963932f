"""What a language model that writes does after its recurrent layers: logits, a character from them, and the next input.

    p = softmax(logits / temperature)       the character is the first whose cumulated p is above a uniform number

in float64, as inverse transform sampling has it; with temperature 0 it is the most likely one. The cells' kernels that
write call it: a character goes from the linear layer to the first recurrent one without Python between them. They take

    count       characters, for every row its own
    pieces      into how many parts the rows are divided for the workers; 1: the panels of each layer are
    layers, batch, h_size, columns      L, B, H; of the linear layer, V
    ids         (count + 1, B) int64: those of step 0 read, the others written
    table       (V, GH), U x + b for each character, read: layer 0 looks its input up
    w, starts   packed weights of all layers, layer 0 without U, from starts[layer] to starts[layer + 1], read
    h           (2, L, B, H), of [0] the initial states read; the states after n characters are in [n % 2], the others
                overwritten
    packed, bias    of the linear layer, as `product` takes them, read
    logits      (B, V), overwritten
    cumulated   (B, V) float64, for each worker its own if panels are divided, overwritten
    uniforms    (count, B) float64, from 0 to below 1, read
    broken      (B,) int64, set to 1 where logits are not finite; the row goes on with character 0

Where panels are divided, all that have a part of the first layer find the character before for themselves: as soon as
one could tell them, and the same. (Two write one row of an LSTM of 2 x 128 units in 0.65 of the time, of 3 x 512 in
0.46, each with its half of the weights in its cache.)
"""

import math

from .._jit import device, part
from ..simd.target import COLS
from ..simd.vector import lanes_of
from .matmul import product_item
from .panels import steps_of_item


@device
def places(n, layer, layers, size):
    """Where the states of a layer begin in h, (2, L, size), when character n is read: before it, after it, and after it
    those of the layer below, if there is one.
    """
    new = (n + 1) % 2 * layers
    return (n % 2 * layers + layer) * size, (new + layer) * size, (new + max(0, layer - 1)) * size


@device
def division(workers, pieces, count, layers, batch, items, numbers):
    """How kernels divide the work: how many characters a worker writes at once for its rows, 0 if panels are divided;
    and the rounds, and the items in each. With panels there is a round for every layer of every character, one for its
    logits, and a last one.

    items : of a layer
    numbers : of weights
    """
    if pieces == 1 and workers > 1:
        return 0, count * (layers + 1) + 1, items
    length = steps_of_item(1, count, batch // pieces, numbers)
    return length, (count + length - 1) // length, pieces


@part
def write_some(
    worker, r, item, items, length, known, count, pieces, layers, batch, h_size, columns, temperature,
    ids, w, starts, h, packed, bias, logits, cumulated, uniforms, broken, z, layer_item, given,
):  # fmt: skip
    """An item of round r, as `division` has them. Returns how many characters this worker knows.

    known : how many it did
    items : of a layer
    layer_item : computes one of them for some rows, from `given` and (row0, row1, item, n, layer, w, below, before,
        after): of the layer the weights; h of the layer below, of this one before character n is read, and after it,
        which is written
    """
    vectors = len(packed) // (h_size * lanes_of(packed))
    if length == 0:
        n, layer = r // (layers + 1), r % (layers + 1)
        if layer == 0 and n > known:
            own = cumulated[worker * batch * columns :]
            write_characters(0, batch, n - 1, batch, columns, temperature, logits, own, uniforms, broken, ids)
            known = n
        if layer < layers and n < count:
            one_item(0, batch, item, n, layer, layers, batch * h_size, w, starts, h, layer_item, given)
        elif layer == layers:
            panels = (vectors + COLS - 1) // COLS
            first, last = panels * item // items * COLS, min(vectors, panels * (item + 1) // items * COLS)
            of_logits(0, batch, first, last, n, layers, batch, h_size, columns, h, packed, bias, logits, z)
        return known
    row0, row1 = batch * item // pieces, batch * (item + 1) // pieces
    for n in range(r * length, min(count, r * length + length)):
        for layer in range(layers):
            for k in range(items):
                one_item(row0, row1, k, n, layer, layers, batch * h_size, w, starts, h, layer_item, given)
        of_logits(row0, row1, 0, vectors, n, layers, batch, h_size, columns, h, packed, bias, logits, z)
        write_characters(row0, row1, n, batch, columns, temperature, logits, cumulated, uniforms, broken, ids)
    return known


@device
def one_item(row0, row1, item, n, layer, layers, size, w, starts, h, layer_item, given):
    """An item of a layer."""
    before, after, below = places(n, layer, layers, size)
    own = w[starts[layer] : starts[layer + 1]]
    layer_item(row0, row1, item, n, layer, own, h[below:], h[before:], h[after:], given)


@device
def of_logits(row0, row1, first, last, n, layers, batch, h_size, columns, h, packed, bias, logits, z):
    """Logits of some rows after character n, in the vectors of columns from `first` to before `last`."""
    top = h[places(n, layers - 1, layers, batch * h_size)[1] :]
    product_item(row0, row1, first, last, columns, False, top, h_size, h_size, 0, 1, packed, bias, logits, z)


@device
def write_characters(row0, row1, n, batch, columns, temperature, logits, cumulated, uniforms, broken, ids):
    """Character n + 1 of some rows."""
    for row in range(row0, row1):
        at = row * columns
        k = pick(logits, at, columns, temperature, uniforms[n * batch + row], cumulated)
        if k < 0:
            broken[row], k = 1, 0
        ids[(n + 1) * batch + row] = k


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

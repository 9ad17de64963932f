"""A fuzzer of the public API: right calls, of which an argument or two are broken.

Whatever an argument has become, a call either gives what a plain call gives on clean copies of the same numbers, bit
for bit, or raises `TypeError` or `ValueError` and says which argument it is about; and then nothing has changed,
neither the objects nor the given arrays, and the right call still gives the right answer.

A case is a recipe: the name of a call, a seed for its numbers, and some (argument, mutation, seed). Recipes that reach
lines of the package which no earlier one has reached are kept, and varied: breaking a call twice often goes further
than breaking it once.

It runs in a process of its own (test_bad_input.py): what it is afraid of is a crash.
"""

import copy
import faulthandler
import random
import re
import resource
import sys
import threading
import warnings
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn as fr

# All of one size: what is compiled is compiled for types, and these are enough to be wrong about.
T, B, I, H, V = 3, 2, 3, 5, 4  # noqa: E741 - the glossary's letters
HUGE = 1 << 46  # elements: more than there are addresses for
LARGE = 1 << 20  # no array of a right answer has so many
SECONDS = 600  # for one case, the first ones of which compile, on a machine that has other things to do
MEMORY = 4 << 30  # addresses; what asks for more gets MemoryError at once


# --- right calls --------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A right call: `run(args)`. `on` is what it may change if it succeeds, and may not if it fails."""

    args: dict[str, Any]
    run: Any
    on: Any = None
    errors: tuple = (TypeError, ValueError)
    names: tuple = ()  # what complaints may speak of beside the arguments


def make_models():
    """Every kind of layer. Those that are compared are made twice, equal."""
    return {
        "rnn": fr.RNN(I, H, seed=1),
        "lstm": fr.LSTM(I, H, num_layers=2, seed=2, dropout=0.5),
        "peephole": fr.LSTM(I, H, peephole="diagonal", bidirectional=True, seed=3),
        "gru": fr.GRU(I, H, batch_first=True, seed=4),
        "linear": fr.Linear(I, V, seed=5),
        "embedding": fr.Embedding(V, I, seed=6),
        "dropout": fr.Dropout(0.5, seed=7),
        "last": fr.Last(),
        "mean": fr.Mean(batch_first=True),
        "repeat": fr.Repeat(3),
        "language": fr.Sequential(fr.Embedding(V, I, seed=8), fr.LSTM(I, H, seed=9), fr.Linear(H, V, seed=10)),
        "seq2seq": fr.EncoderDecoder(
            fr.Sequential(fr.Embedding(V, I, seed=15), fr.GRU(I, H, num_layers=2, dropout=0.5, seed=16)),
            fr.Sequential(fr.Embedding(V, I, seed=17), fr.GRU(I, H, num_layers=2, seed=18), fr.Linear(H, V, seed=19)),
        ),
        "deep": fr.Sequential(fr.Linear(I, I, seed=11), fr.GRU(I, H, seed=12), fr.Dropout(0.5, seed=13),
                              fr.Sequential(fr.RNN(H, H, seed=14), fr.Last())),
    }  # fmt: skip


class World:
    """Models, and how they are put back to what they were."""

    def __init__(self):
        self.models = make_models()
        self.first = {name: contents(model) for name, model in self.models.items()}
        self.kept = {name: (m.state_dict(), states(m)) for name, m in self.models.items()}

    def restore(self):
        for name, model in self.models.items():
            if contents(model) != self.first[name]:
                values, generators = self.kept[name]
                model.load_state_dict(values)
                model.zero_grad()
                for generator, state in zip(model.generators(), generators, strict=True):
                    generator.bit_generator.state = state


def states(model):
    return [generator.bit_generator.state for generator in model.generators()]


def contents(model):
    """The values, gradients and generators of a layer."""
    stores = model._stores.values()
    return [(s._values.tobytes(), s.grads.tobytes()) for s in stores], repr(states(model))


def everything(on):
    """All that can be seen of what a call is made on."""
    if isinstance(on, tuple):
        return [everything(one) for one in on]
    if isinstance(on, fr.Stream):
        return [contents(on.model), bits(on.state)]
    if isinstance(on, fr.StreamPool):
        return [contents(on.model), on.ids(), on.capacity, [bits(on.state(id)) for id in sorted(on.ids())]]
    if hasattr(on, "stores"):
        return contents(on)
    if hasattr(on, "state_dict"):
        return bits(on.state_dict())
    return None


# What a call gets is made from `rng`; the same numbers in both worlds.


def floats(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def state_of(rng, model):
    if isinstance(model, fr.Sequential):
        return tuple(state_of(rng, part) for part in model.layers if part.recurrent)
    D = model.num_layers * model.directions
    if isinstance(model, fr.LSTM):
        return floats(rng, D, B, H), floats(rng, D, B, H)
    return floats(rng, D, B, H)


def input_of(rng, model):
    """x of any kind that the model takes."""
    first = model.parts()[0]
    shape = (B, T) if getattr(first, "batch_first", False) else (T, B)
    if not first.takes_numbers:
        return rng.integers(0, V, shape)
    if first.recurrent and rng.integers(3) == 0:
        return rng.integers(0, I, shape)
    return floats(rng, *shape, I)


def name_of(rng, *names):
    return names[rng.integers(len(names))]


def lengths_of(rng):
    return rng.integers(0, T + 1, B)


RECURRENT = ("rnn", "lstm", "peephole", "gru", "language", "deep")


def infer(world, rng):
    """Inference of what has a state."""
    model = world.models[name_of(rng, *RECURRENT)]
    args = {"x": input_of(rng, model), "state": state_of(rng, model), "lengths": lengths_of(rng)}
    for name in ("state", "lengths"):
        if rng.integers(3) == 0:
            args[name] = None
    return Call(args, lambda a: model(**a), model, names=("ids", "L"))


def step(world, rng):
    """One step, which may go the quick way."""
    model = world.models[name_of(rng, "rnn", "lstm", "language")]
    x = input_of(rng, model)[:1]
    model(x)
    return Call({"x": x, "state": state_of(rng, model)}, lambda a: model(**a), model, names=("ids", "L"))


def forward(world, rng):
    """A forward of training, and what a backward makes of its tape."""
    model = world.models[name_of(rng, *RECURRENT)]
    args = {"x": input_of(rng, model), "state": state_of(rng, model), "lengths": lengths_of(rng)}

    def run(a):
        y, state, tape = model.forward(**a)
        return y, state, model.backward(tape, np.ones_like(y), None)

    return Call(args, run, model, names=("ids", "L"))


def backward(world, rng):
    model = world.models[name_of(rng, *RECURRENT)]
    y, _, tape = model.forward(input_of(rng, model), state_of(rng, model), lengths_of(rng))
    args = {"tape": tape, "dy": floats(rng, *y.shape), "dstate": state_of(rng, model)}
    return Call(args, lambda a: model.backward(**a), model)


def intermediates(world, rng):
    model = world.models[name_of(rng, *RECURRENT)]
    tape = model.forward(input_of(rng, model))[-1]
    return Call({"tape": tape}, lambda a: model.intermediates(**a), model)


def translate(world, rng):
    """An encoder and a decoder."""
    model = world.models["seq2seq"]
    args = {"x": rng.integers(0, V, (T, B)), "inputs": rng.integers(0, V, (2, B)), "lengths": lengths_of(rng)}
    if rng.integers(2):
        args |= {"start": 1, "end": 3}
        del args["inputs"]
        # Not the length: what asks for 2^31 steps gets them, in a week.
        return Call(args, lambda a: model.generate(**a, length=2), model, names=("ids",))

    def run(a):
        y, tape = model.forward(**a)
        return y, model.backward(tape, np.ones_like(y))

    return Call({**args, "input_lengths": rng.integers(0, 3, B)}, run, model, names=("ids",))


STATELESS = ("linear", "embedding", "dropout", "last", "mean", "repeat")


def stateless_input(rng, name):
    if name == "embedding":
        return rng.integers(0, V, (T, B))
    if name == "repeat":
        return floats(rng, B, I) if rng.integers(2) else rng.integers(0, V, B)
    return floats(rng, T, B, I)


def stateless(world, rng):
    """Layers without a state: inference, or forward and backward."""
    name, training = name_of(rng, *STATELESS), rng.integers(2)
    model = world.models[name]
    args = {"x": stateless_input(rng, name)}
    if model.takes_lengths:
        args["lengths"] = rng.integers(0, min(T, B) + 1, B if name == "last" else T)

    def run(a):
        a = {"ids" if name == "embedding" and k == "x" else k: v for k, v in a.items()}
        if not training:
            return model(**a)
        y, tape = model.forward(**a)
        return y, model.backward(tape, np.ones_like(y) if y.dtype.kind == "f" else None)

    return Call(args, run, model, names=("ids",))


def stateless_backward(world, rng):
    name = name_of(rng, *STATELESS)
    model = world.models[name]
    y, tape = model.forward(stateless_input(rng, name))
    dy = floats(rng, *y.shape) if y.dtype.kind == "f" else None
    return Call({"tape": tape, "dy": dy}, lambda a: model.backward(**a), model)


def probabilities(rng, *shape):
    p = rng.random(shape)
    return (p / p.sum(-1, keepdims=True)).astype(np.float32)


def some_counts(rng):
    which = rng.integers(4)
    if which == 0:
        return {"mask": rng.random((T, B)) < 0.7}
    return {"lengths": rng.integers(1, T + 1, B)} if which == 1 else {}


def cross_entropy(world, rng):
    args = {"logits": floats(rng, T, B, V), "targets": rng.integers(0, V, (T, B)), "reduction": "sum", "gradient": True}
    args |= some_counts(rng)
    if rng.integers(4) == 0:
        args["targets"] = probabilities(rng, T, B, V)
    elif rng.integers(2):
        args |= {"weight": rng.random(V, np.float32), "ignore_index": 1}
    if rng.integers(2):
        args["label_smoothing"] = 0.1
    return Call(args, lambda a: fr.cross_entropy(**a))


def linear_cross_entropy(world, rng):
    args = {
        "h": floats(rng, T, B, H), "weight": floats(rng, V, H), "bias": floats(rng, V),
        "targets": rng.integers(0, V, (T, B)), "class_weight": rng.random(V, np.float32), "rows": 4,
        "reduction": "sum", "gradient": True, **some_counts(rng),
    }  # fmt: skip
    return Call(args, lambda a: fr.linear_cross_entropy(**a))


def densities(world, rng):
    """The other likelihoods."""
    y, target = floats(rng, T, B, I), floats(rng, T, B, I)
    both = {"mean": floats(rng, T, B, 2, 2), "log_scale": floats(rng, T, B, 2, 2), "targets": floats(rng, T, B, 2)}
    loss, args = {
        0: (fr.mse, {"y": y, "target": target}),
        1: (fr.bernoulli_nll, {"logits": y, "targets": rng.random((T, B, I), np.float32)}),
        2: (fr.gaussian_nll, {"mean": y, "targets": target, "variance": rng.random((T, B, I), np.float32)}),
        3: (fr.gaussian_nll, {"mean": y, "targets": target, "log_variance": floats(rng, T, B, 1), "eps": 1e-3}),
        4: (fr.multivariate_gaussian_nll, {"mean": y, "factor": floats(rng, T, B, I, I), "targets": target}),
        5: (fr.gaussian_mixture_nll, {"logits": floats(rng, T, B, 2), **both}),
        6: (fr.bivariate_mixture_nll, {"logits": floats(rng, T, B, 2), "correlation": floats(rng, T, B, 2), **both}),
    }[int(rng.integers(7))]
    return Call({**args, "reduction": "sum", **some_counts(rng)}, lambda a: loss(**a))


def divergences(world, rng):
    p, q = floats(rng, T, V), floats(rng, T, V)
    kind = name_of(rng, "categorical", "bernoulli")
    if rng.integers(2):
        return Call({"kind": kind, "p": p}, lambda a: fr.entropy(**a))
    return Call({"kind": kind, "p": p, "q": q}, lambda a: fr.kl_divergence(**a))


def softmax(world, rng):
    if rng.integers(2):
        return Call({"logits": floats(rng, T, V)}, lambda a: fr.log_softmax(**a))
    return Call({"logits": floats(rng, T, V), "temperature": 0.5}, lambda a: fr.softmax(**a))


def optimizer(world, rng):
    """Made, and a step of it."""
    model = world.models["linear"]
    kind, args = {
        0: (fr.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        1: (fr.Adam, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}),
        2: (fr.RMSProp, {"lr": 0.1, "alpha": 0.9, "momentum": 0.5, "centered": True}),
    }[int(rng.integers(3))]

    def run(a):
        opt = kind(**a)
        opt.step()
        return opt.state_dict(), a["model"].state_dict()

    return Call({"model": model, **args}, run, model, names=("beta1", "beta2"))


def optimizer_state(world, rng):
    model = world.models["linear"]
    graves = {"lr": 0.1, "momentum": 0.5, "centered": True}
    make = (lambda: fr.Adam(model), lambda: fr.RMSProp(model, **graves))[rng.integers(2)]
    opt, other = make(), make()
    for gradient in model.grads.values():
        gradient[...] = floats(rng, *gradient.shape)
    other.step()
    state = other.state_dict()
    return Call({"state": state}, lambda a: opt.load_state_dict(**a), (opt, model), names=tuple(state))


def clip(world, rng):
    model = world.models["linear"]
    for gradient in model.grads.values():
        gradient[...] = floats(rng, *gradient.shape)
    if rng.integers(2):
        return Call({"model": model, "max_norm": 0.1}, lambda a: fr.clip_grad_norm(**a), model)
    return Call({"model": model, "limit": 0.1}, lambda a: fr.clip_grad_value(**a), model)


def noise(world, rng):
    model = world.models["linear"]

    def run(a):
        with fr.weight_noise(**a):
            return None if a["seed"] is None else a["model"].state_dict()

    return Call({"model": model, "std": 0.5, "seed": 3}, run, model)


def assign(world, rng):
    model = world.models[name_of(rng, "linear", "gru", "language")]
    names = list(model.params)
    name = names[rng.integers(len(names))]

    def run(a):
        model.params[a["name"]] = a["value"]
        return model.state_dict()

    args = {"name": name, "value": floats(rng, *model.params[name].shape)}
    return Call(args, run, model, (TypeError, ValueError, KeyError), (*names, "parameter"))


def load(world, rng):
    model = world.models[name_of(rng, "linear", "gru", "deep")]
    args = {"d": {name: floats(rng, *value.shape) for name, value in model.state_dict().items()}}

    def run(a):
        model.load_state_dict(**a)
        return model.state_dict()

    return Call(args, run, model, names=(*args["d"], "state dict"))


def stream(world, rng):
    model = world.models[name_of(rng, "rnn", "lstm", "gru", "language")]
    stream = model.stream()
    n, x = int(rng.integers(3)), input_of(rng, model)
    stream.push_many(x[:, 0] if not getattr(model, "batch_first", False) else x[0])
    one = x[0, 0] if x.dtype.kind == "f" else int(x[0, 0])
    if n == 0:
        return Call({"x": one}, lambda a: stream.push(**a), stream, names=("index",))
    if n == 1:
        return Call({"x": np.ascontiguousarray(x[:, 0])}, lambda a: stream.push_many(**a), stream)

    def run(a):
        stream.state = a["state"]
        return stream.push(one)

    return Call({"state": stream.state}, run, stream)


def pool(world, rng):
    """Every method of a pool with three open streams and a closed one."""
    model = world.models[name_of(rng, "lstm", "gru", "language")]
    pool = model.stream_pool(4, full=name_of(rng, "grow", "evict"))
    a, b, c, gone = (pool.open() for _ in range(4))
    pool.close(gone)
    x = input_of(rng, model)
    x = np.ascontiguousarray(x[:, 0])
    one = x[0] if x.dtype.kind == "f" else int(x[0])
    pool.step([c, a], x[:2])
    errors = (TypeError, ValueError, KeyError)
    run, args = {
        0: (lambda a: pool.step(**a), {"ids": np.array([b, a]), "x": x[:2]}),
        1: (lambda a: pool.open(**a), {"state": pool.state(a)}),
        2: (lambda a: pool.close(**a), {"id": b}),
        3: (lambda a: pool.evict(**a), {"count": 2}),
        4: (lambda a: pool.set_state(**a), {"id": c, "state": pool.state(a)}),
        5: (lambda a: pool.state(**a), {"id": c}),
        6: (lambda a: pool.clone(**a), {"id": a}),
        7: (lambda a: pool.reset(**a), {"id": a}),
        8: (lambda a: pool.submit(**a).result(timeout=60), {"id": a, "x": one}),
    }[int(rng.integers(8))]  # submit starts a thread each time: tried on its own, below
    return Call(args, run, pool, errors, names=("ids", "count"))


def submit(world, rng):
    made = world.__dict__.setdefault("submitting", {})
    kind = name_of(rng, "lstm", "language")
    if kind not in made:
        made[kind] = world.models[kind].stream_pool(2, linger_us=0)
        made[kind].open()
        made[kind].open()
    pool = made[kind]
    a = min(pool.ids())
    for id in sorted(pool.ids()):  # in the order of use that both worlds have
        pool.reset(id)
    x = input_of(rng, world.models[kind])[0, 0]
    return Call(
        {"id": a, "x": x}, lambda a: pool.submit(**a).result(timeout=60), pool, (TypeError, ValueError, KeyError),
        names=("ids",),
    )  # fmt: skip


def build(world, rng):
    """Objects are made."""
    make, args = {
        0: (fr.LSTM, {"input_size": I, "hidden_size": H, "dropout": 0.1, "dtype": "float32", "seed": 1,
                      "peephole": "diagonal", "clip": 3.0, "activations": ("sigmoid", "tanh", "tanh"),
                      "proj_size": 2, "bias": True, "coupled": True}),
        1: (fr.GRU, {"input_size": I, "hidden_size": H, "reset": "before", "bidirectional": True, "seed": 1}),
        2: (fr.RNN, {"input_size": I, "hidden_size": H, "nonlinearity": "relu", "seed": 1}),
        3: (fr.Linear, {"in_features": I, "out_features": H, "dtype": "float64", "seed": 1}),
        4: (fr.Embedding, {"num": I, "dim": H, "seed": 1, "frozen": True}),
        5: (fr.Dropout, {"p": 0.5, "seed": 1}),
        6: (fr.Repeat, {"steps": 3}),
    }[int(rng.integers(7))]  # fmt: skip

    def run(a):
        layer = make(**a)
        return list(layer.state_dict()) if a.get("seed") is None else [contents(layer), layer.state_dict()]

    return Call(args, run)


def build_streams(world, rng):
    model = world.models[name_of(rng, "lstm", "language")]
    args = {"model": model, "capacity": 3, "full": "evict", "linger_us": 3.5}
    return Call(args, lambda a: fr.StreamPool(**a).capacity, names=("stream",))


def threads(world, rng):
    def run(a):
        before = fr.get_num_threads()
        try:
            fr.set_num_threads(**a)
            return fr.get_num_threads()
        finally:
            fr.set_num_threads(before)

    return Call({"n": 2}, run)


CALLS = {
    call.__name__: call
    for call in (
        infer, step, forward, backward, intermediates, translate, stateless, stateless_backward, cross_entropy,
        linear_cross_entropy, densities, divergences, softmax, optimizer, optimizer_state, clip, noise, assign, load,
        stream, pool, submit, build, build_streams, threads,
    )
}  # fmt: skip


# --- mutations ----------------------------------------------------------------------------------------------


def leaves(value, path=()):
    """The paths to everything in nested tuples, lists and dicts, and to those themselves."""
    yield path
    if isinstance(value, tuple | list):
        for k, part in enumerate(value):
            yield from leaves(part, (*path, k))
    elif isinstance(value, dict):
        for k, part in value.items():
            yield from leaves(part, (*path, k))


def at(value, path):
    for k in path:
        if not isinstance(value, tuple | list | dict):
            raise LookupError
        value = value[k]
    return value


def with_one(value, path, new):
    """`value` with `new` at `path`; what is on the way is copied."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, dict):
        return {**value, head: with_one(value[head], rest, new)}
    parts = list(value)
    parts[head] = with_one(parts[head], rest, new)
    return type(value)(parts)


def _axis(a, r):
    return r.randrange(a.ndim)


def _misaligned(a, r):
    raw = np.zeros(a.nbytes + 16, np.uint8)
    start = 1 + -raw.ctypes.data % 16
    out = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    out[...] = a
    return out


def _strided(a, r):
    wide = np.zeros(tuple(2 * n + 1 for n in a.shape), a.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
    view[...] = a
    return view


def _backwards(a, r):
    turn = tuple(slice(None, None, r.choice((1, -1))) for _ in a.shape)
    return np.ascontiguousarray(a[turn])[turn]


def _read_only(a, r):
    a = a.copy()
    a.flags.writeable = False
    return a


def _subclass(a, r):
    class Mine(np.ndarray):
        pass

    return r.choice((lambda: a.view(Mine), lambda: np.ma.MaskedArray(a), lambda: np.asfortranarray(a)))()


# The same numbers, in other places: the answer has to be the same.
SAME = {
    "misaligned": _misaligned,
    "strided": _strided,
    "backwards": _backwards,
    "read-only": _read_only,
    "other byte order": lambda a, r: a.astype(a.dtype.newbyteorder(">")),
    "by columns": lambda a, r: np.asfortranarray(a.T.copy().T),
}


def _value(a, r):
    a = a.copy()
    if not a.size:
        return a
    k = r.randrange(a.size)
    if a.dtype.kind == "f":
        a.flat[k] = r.choice((np.nan, np.inf, -np.inf, 1e30, -0.0, 1e-42, -1.0, 2.0))
    elif a.dtype.kind in "iu":
        largest = np.iinfo(a.dtype).max
        a.flat[k] = r.choice((-1, I, V, T + 1, 10**6, 2**31, 2**62)) & largest if r.random() < 0.9 else largest
        if r.random() < 0.5:
            a.flat[k] = -1 if a.dtype.kind == "i" else largest
    elif a.dtype.kind == "b":
        a.flat[k] ^= True
    return a


def _other_size(a, r):
    axis = _axis(a, r)
    n = r.choice((0, 1, a.shape[axis] - 1, a.shape[axis] + 1))
    return np.take(a, np.arange(n) % max(1, a.shape[axis]), axis=axis) if a.shape[axis] else a[None]


def _huge(a, r):
    flat = np.zeros(1, a.dtype)
    shapes = [(HUGE,), (HUGE, *a.shape[1:]), (*a.shape[:-1], HUGE), (*a.shape, HUGE), (HUGE, *a.shape)]
    return np.broadcast_to(flat.reshape(()), r.choice(shapes))


DTYPES = ["f2", "f4", "f8", "g", "i1", "i4", "i8", "u1", "u8", "?", "c8", "O", "S2", "U2", "M8[s]"]


def _other_type(a, r):
    with np.errstate(all="ignore"):
        return a.astype(r.choice(DTYPES))


def _windows(a, r):
    """Rows that overlap in memory."""
    raw = np.resize(a, a.size + 1) if a.size else np.zeros(2, a.dtype)
    steps = tuple(a.itemsize if n > 1 else 0 for n in a.shape)
    if sum(n - 1 for n in a.shape) + 1 > raw.size:
        return a[::-1]
    return np.lib.stride_tricks.as_strided(raw, a.shape, steps)


ARRAYS = {
    **SAME,
    "a value": _value,
    "values": lambda a, r: _value(_value(_value(a, r), r), r),
    "another size": _other_size,
    "empty": lambda a, r: a[tuple(slice(0) if k == 0 else slice(None) for k in range(a.ndim))],
    "higher rank": lambda a, r: np.expand_dims(a, r.randrange(a.ndim + 1)),
    "lower rank": lambda a, r: r.choice((lambda: a[0], lambda: a.reshape(-1), lambda: a.sum(_axis(a, r))))(),
    "transposed": lambda a, r: a.T,
    "another type": _other_type,
    "broadcast": lambda a, r: np.broadcast_to(a[:1], a.shape),
    "overlapping": _windows,
    "a subclass": _subclass,
    "huge": _huge,
    "a list": lambda a, r: a.tolist(),
    "a ragged list": lambda a, r: [*a.tolist(), [[0.5]]],
    "a number": lambda a, r: r.choice((0, 1.5, a.dtype.type(1), np.array(1), True)),
}
NUMBERS = [
    0, -1, 1, 2, 3, 1.5, -0.5, 1e300, 2**31, 2**63, -(2**63), 10**30, float("nan"), float("inf"), True, "3", b"3",
    None, np.int8(3), np.float32(0.5), np.float64(0.1), np.bool_(True), np.array(2), np.array([2]),
    np.array([2.0, 3.0]), Fraction(1, 3), 1j, [], (), {}, [1], object(),
]  # fmt: skip
THINGS = [
    None, "text", b"bytes", 0, 1.5, True, [], (), {}, object(), np.zeros(0), np.array(None), np.array("a"), range(3),
    np.zeros((2, 2), "i4,f4"), int, fr.Linear, threading.Lock(), float("nan"),
]  # fmt: skip


def mutate(value, mutation, args, r):
    """`value` broken in one way; None in the place of the name of a mutation for any that fits."""
    if isinstance(value, np.ndarray) and max(value.size, *value.shape, 0) < LARGE and r.random() < 0.85:
        try:
            return ARRAYS[r.choice(list(ARRAYS)) if mutation not in ARRAYS else mutation](value, r)
        except (IndexError, TypeError, ValueError):  # an array that cannot be broken in this way
            return r.choice(THINGS)
    if isinstance(value, tuple | list) and r.random() < 0.85:
        as_dict = dict(enumerate(value))
        return r.choice((value[:-1], (*value, *value[-1:]), value[::-1], list(value), tuple(value), {}, as_dict))
    if isinstance(value, dict) and r.random() < 0.85:
        keys = list(value)
        changed = dict(value)
        if keys and r.random() < 0.5:
            changed.pop(r.choice(keys))
        else:
            changed[r.choice(("more", 3, None))] = np.zeros(2)
        return r.choice((changed, list(value.items()), keys))
    if isinstance(value, int | float | np.number) and r.random() < 0.85:
        return r.choice(NUMBERS)
    return r.choice([*THINGS, *args.values()])


def used_tape(world, r):
    """A tape that is no good: of another layer, used, or from before the parameters changed."""
    name = r.choice([*RECURRENT, *STATELESS])
    model = world.models[name]
    rng = np.random.default_rng(1)
    x = stateless_input(rng, name) if name in STATELESS else input_of(rng, model)
    y, *_, tape = model.forward(x)
    if r.random() < 0.5 and y.dtype.kind == "f":
        model.backward(tape, np.zeros_like(y))
    elif model.params and r.random() < 0.5:
        tape.versions = [version - 1 for version in tape.versions]
    return tape


# --- right answers ------------------------------------------------------------------------------------------


def clean(value, given, plain):
    """Clean copies of what a call was given; what was not broken is what the other world has in its place."""
    if value is given:
        return plain
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.size < LARGE:
        dtype = value.dtype.newbyteorder("=")
        return np.array(value, np.float32 if dtype == np.float16 else dtype, order="C", subok=False)
    if isinstance(value, tuple | list) and type(value) is type(given) and len(value) == len(given):
        return type(value)(clean(*three) for three in zip(value, given, plain, strict=True))
    if isinstance(value, dict) and isinstance(given, dict) and set(value) == set(given):
        return {name: clean(value[name], given[name], plain[name]) for name in value}
    return copy.deepcopy(value) if isinstance(value, tuple | list | dict) else value


def bits(value):
    """Everything in a result or an argument, comparable; NaN is NaN."""
    if isinstance(value, np.ndarray | np.generic):
        if value.size > LARGE:
            return "huge", value.dtype.str, value.shape
        if value.dtype.char == "g":  # a longdouble has bytes that stand for nothing
            return type(value).__name__, value.dtype.str, value.shape, repr(value.tolist())
        if value.dtype.kind == "f":
            value = np.where(np.isnan(value), np.nan, value)
        return type(value).__name__, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return [type(value).__name__, *(bits(part) for part in value)]
    if isinstance(value, dict):
        return {repr(name): bits(part) for name, part in value.items()}
    return repr(value) if isinstance(value, int | float | str | bytes | complex | None) else None


def says_which(error, call):
    """Whether a complaint names an argument."""
    text = str(error)
    return any(re.search(rf"(?<!\w){re.escape(str(name))}(?!\w)", text) for name in (*call.args, *call.names))


class WrongError(AssertionError):
    """The package did what it must not do."""


PACKAGE = str(Path(fr.__file__).parent)


class Lines:
    """Which lines of the package have been reached."""

    def __init__(self):
        self.seen = set()

    def __enter__(self):
        sys.settrace(self.call)

    def __exit__(self, *exception):
        sys.settrace(None)

    def call(self, frame, event, arg):
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame, event, arg):
        self.seen.add((frame.f_code, frame.f_lineno))
        return self.line


def case(worlds, recipe, lines):
    """Runs one case; returns what became of it. `WrongError` if it was wrong."""
    name, seed, mutations = recipe
    calls = [CALLS[name](world, np.random.default_rng([seed, zlib.crc32(name.encode())])) for world in worlds]
    mine, other = calls
    args, tapes = dict(mine.args), {}
    for place, mutation, mseed in mutations:
        r = random.Random(mseed)
        paths = [(key, *path) for key in mine.args for path in leaves(mine.args[key])]
        path = paths[place % len(paths)]
        try:
            broken = at(args, path)
        except (LookupError, TypeError):
            continue  # an earlier mutation has taken its place
        is_tape = path == ("tape",) and r.random() < 0.7
        if is_tape:
            new, its_twin = (used_tape(world, random.Random(mseed)) for world in worlds)
            tapes[new] = its_twin
        else:
            new = mutate(broken, mutation, args, r)
        args = with_one(args, path, new)
    on, given = everything(mine.on), bits(args)
    try:
        with lines:
            result = mine.run(args)
    except mine.errors as error:
        if not says_which(error, mine):
            raise WrongError(f"{type(error).__name__} does not name an argument: {error}") from error
        outcome = "refused"
    except MemoryError as error:
        if "huge" not in repr(given) and not name.startswith("build"):
            raise WrongError("MemoryError") from error
        outcome = "too large"
    except BaseException as error:
        raise WrongError(f"{type(error).__name__}: {error}") from error
    else:
        outcome = "answered"
    if bits(args) != given:
        raise WrongError("the given arrays were changed")
    if outcome != "answered":
        if everything(mine.on) != on:
            raise WrongError("a failed call changed its object")
        args, plain = mine.args, other.args
        try:
            result = mine.run(args)
        except BaseException as error:
            raise WrongError(f"after a failed call the right one fails: {type(error).__name__}: {error}") from error
    else:
        plain = {key: clean(args[key], mine.args[key], other.args[key]) for key in args}
        plain |= {"tape": tapes[args["tape"]]} if args.get("tape") in tapes else {}
    try:
        expected = other.run(plain)
    except BaseException as error:
        raise WrongError(f"clean copies are refused: {type(error).__name__}: {error}") from error
    if bits(result) != bits(expected):
        raise WrongError(f"not the answer for clean copies ({outcome})")
    if everything(mine.on) != everything(other.on):
        raise WrongError(f"the objects differ from those of the plain call ({outcome})")
    return outcome


# --- the loop -----------------------------------------------------------------------------------------------


def fresh(r, names):
    mutation = (r.randrange(1000), r.choice([None, *ARRAYS]), r.randrange(1 << 30))
    return r.choice(names), r.randrange(1 << 30), (mutation,)


def varied(recipe, r):
    """A kept recipe with another mutation more, less, or changed."""
    name, seed, mutations = recipe
    one = fresh(r, [name])[2]
    k = r.randrange(len(mutations))
    choice = r.randrange(4)
    if choice == 0 and len(mutations) < 4:
        return name, seed, mutations + one
    if choice == 1:
        return name, seed, mutations[:k] + one + mutations[k + 1 :]
    if choice == 2:
        return name, r.randrange(1 << 30), mutations
    return name, seed, (*mutations[:k], (mutations[k][0], mutations[k][1], r.randrange(1 << 30)), *mutations[k + 1 :])


def resident():
    """Bytes of memory that this process has."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def fuzz(cases, seed=0, stop=20, names=tuple(CALLS)):
    """Tries so many cases of the calls `names`; returns figures, and what was wrong: recipes and complaints."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    r, worlds, lines = random.Random(seed), (World(), World()), Lines()
    kept, wrong, memory = [], [], []
    figures = {"refused": 0, "answered": 0, "too large": 0}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for n in range(cases):
            recipe = varied(r.choice(kept), r) if kept and r.random() < 0.5 else fresh(r, names)
            print(recipe, file=sys.stderr, flush=True)  # the last one, if this is the end
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            before = len(lines.seen)
            try:
                figures[case(worlds, recipe, lines)] += 1
            except WrongError as error:
                wrong.append((recipe, str(error)))
                worlds = (World(), World())
                if len(wrong) >= stop:
                    break
            if len(lines.seen) > before:
                kept.append(recipe)
            for world in worlds:
                world.restore()
            if n % max(1, cases // 20) == 0:
                memory.append(resident())
    faulthandler.cancel_dump_traceback_later()
    return {**figures, "kept": len(kept), "lines": len(lines.seen), "wrong": wrong, "memory": memory}


def replay(recipe):
    """One recipe by itself, to look at."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return case((World(), World()), recipe, Lines())


if __name__ == "__main__":
    found = fuzz(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, stop=400)
    groups = {}
    for recipe, complaint in found.pop("wrong"):
        groups.setdefault((recipe[0], re.sub(r"\d+", "#", complaint)[:150]), []).append(recipe)
    for (name, complaint), recipes in sorted(groups.items(), key=lambda g: g[0]):
        print(len(recipes), name, "|", complaint, "|", min(recipes, key=lambda one: len(one[2])))
    print(found)

"""JAX on the CPU: `lax.scan` over the cell, jitted, the input product for all steps at once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..cases import CELLS, Case, Cell
from ..job import Job, Results, Unsupported
from ..problem import STEPS, Problem

VERSIONS = ("jax", "jaxlib")


def start(threads: int) -> None:
    # XLA has no setting for its number of threads: it takes as many as there are processors that it may run
    # on.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)


def make(case: Case) -> Job:
    kinds: dict[str, type[_Sequence]] = {"infer": Infer, "train": Train, "step": Step}
    if case.kind not in kinds:
        raise Unsupported("only sequences and steps are written, no language model")
    if CELLS[case.cell].gru or case.D > 1 or case.shortest:
        raise Unsupported("neither GRU nor a second direction nor lengths are written")
    return kinds[case.kind](Problem(case))


def forward(cell: Cell, params: dict[str, Any], x: Any, state: Any) -> Any:
    """x (T, B, I), state: a tuple of h, and for an LSTM c, each (L, B, H) -> y, state"""
    import jax
    from jax import lax
    from jax import numpy as jnp

    final = []
    for n in range(state[0].shape[0]):
        U, W, b_u, b_w = (params[f"{p}_l{n}"] for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        p = params.get(f"weight_peep_l{n}")

        def rnn(carry: Any, z: Any, W: Any = W) -> Any:
            (h,) = carry
            h = (jnp.tanh if cell.nonlinearity == "tanh" else jax.nn.relu)(z + h @ W.T)
            return (h,), h

        def lstm(carry: Any, z: Any, W: Any = W, p: Any = p) -> Any:
            h, c = carry
            a_i, a_f, a_g, a_o = jnp.split(z + h @ W.T, 4, axis=-1)
            if p is not None:
                a_i, a_f = a_i + p[0] * c, a_f + p[1] * c
            c = jax.nn.sigmoid(a_f) * c + jax.nn.sigmoid(a_i) * jnp.tanh(a_g)
            h = jax.nn.sigmoid(a_o if p is None else a_o + p[2] * c) * jnp.tanh(c)
            return (h, c), h

        end, x = lax.scan(lstm if cell.lstm else rnn, tuple(s[n] for s in state), x @ U.T + (b_u + b_w))
        final.append(end)
    return x, tuple(jnp.stack(parts) for parts in zip(*final))


class _Sequence(Job):
    def __init__(self, problem: Problem) -> None:
        import jax
        from jax import numpy as jnp

        case, cell = problem.case, CELLS[problem.case.cell]
        self.params = {name: jnp.asarray(array) for name, array in problem.weights.items()}
        self.x, self.dy = jnp.asarray(problem.x), jnp.asarray(problem.dy)
        self.zeros = tuple(jnp.zeros((case.L, case.B, case.H), case.dtype) for _ in range(1 + cell.lstm))
        self.y: Any = None
        self.state = self.zeros
        self.run: Any = jax.jit(lambda params, x, state: forward(cell, params, x, state))

        def train(params: Any, x: Any, state: Any, dy: Any) -> Any:
            y, back = jax.vjp(lambda params, x: forward(cell, params, x, state)[0], params, x)
            return y, back(dy)

        self.train: Any = jax.jit(train)

    def outputs(self) -> Results:
        return {"y": np.asarray(self.y), **{name: np.asarray(s) for name, s in zip("hc", self.state)}}


class Infer(_Sequence):
    how = "lax.scan, jitted"

    def call(self) -> None:
        self.y, self.state = self.run(self.params, self.x, self.zeros)
        self.y.block_until_ready()

    def results(self) -> Results:
        self.call()
        return self.outputs()


class Step(_Sequence):
    how = "lax.scan, jitted, state fed back"

    def call(self) -> None:
        self.y, self.state = self.run(self.params, self.x, self.state)
        self.y.block_until_ready()

    def results(self) -> Results:
        self.state = self.zeros
        for _ in range(STEPS):
            self.call()
        return self.outputs()


class Train(_Sequence):
    how = "lax.scan and its vjp, jitted together"

    def call(self) -> None:
        import jax

        self.y, self.grads = jax.block_until_ready(self.train(self.params, self.x, self.zeros, self.dy))

    def results(self) -> Results:
        self.call()
        grads, dx = self.grads
        return {
            "y": np.asarray(self.y),
            "dx": np.asarray(dx),
            **{f"d{name}": np.asarray(g) for name, g in grads.items()},
        }

"""JAX on the CPU: `lax.scan` over the cell, jitted, the input product for all steps at once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..cases import CELLS, Case, Cell
from ..job import Job, Results, Unsupported, Writer
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
    if case.kind == "generate":
        return Generate(Problem(case))
    kinds: dict[str, type[_Sequence]] = {"infer": Infer, "train": Train, "step": Step}
    if case.kind not in kinds:
        raise Unsupported("only sequences, steps and writing are written, no training of a language model")
    return kinds[case.kind](Problem(case))


def forward(cell: Cell, params: dict[str, Any], x: Any, state: Any, lengths: Any) -> Any:
    """x (T, B, I), state: a tuple of h, and for an LSTM c, each (L D, B, H), lengths (B,) or None -> y, state

    With lengths the state of a row that has ended is carried on, and y is zero; the second direction reads each row
    turned within its own length.
    """
    from jax import lax
    from jax import numpy as jnp

    steps = jnp.arange(x.shape[0])[:, None]
    back = steps[::-1] if lengths is None else jnp.where(steps < lengths, lengths - 1 - steps, steps)
    directions = 2 if "weight_hh_l0_reverse" in params else 1
    final = []
    for n in range(state[0].shape[0] // directions):
        outputs = []
        for d in range(directions):
            name = f"l{n}_reverse" if d else f"l{n}"
            step, z = _cell(cell, params, name, jnp.take_along_axis(x, back[:, :, None], 0) if d else x)
            start = tuple(s[n * directions + d] for s in state)

            def one(carry: Any, now: Any, step: Any = step) -> Any:
                z, t = now
                new = step(carry, z)
                if lengths is None:
                    return new, new[0]
                there = (t < lengths)[:, None]
                return tuple(jnp.where(there, s, old) for s, old in zip(new, carry)), jnp.where(there, new[0], 0)

            end, y = lax.scan(one, start, (z, steps[:, 0]))
            outputs.append(jnp.take_along_axis(y, back[:, :, None], 0) if d else y)
            final.append(end)
        x = outputs[0] if directions == 1 else jnp.concatenate(outputs, axis=-1)
    return x, tuple(jnp.stack(parts) for parts in zip(*final))


def _cell(cell: Cell, params: dict[str, Any], name: str, x: Any) -> tuple[Any, Any]:
    """One step, carry and z to the new carry; and z for all steps, the input product."""
    import jax
    from jax import numpy as jnp

    U, W, b_u, b_w = (params[f"{p}_{name}"] for p in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    p = params.get(f"weight_peep_{name}")

    def rnn(carry: Any, z: Any) -> Any:
        return ((jnp.tanh if cell.nonlinearity == "tanh" else jax.nn.relu)(z + carry[0] @ W.T),)

    def lstm(carry: Any, z: Any) -> Any:
        h, c = carry
        a_i, a_f, a_g, a_o = jnp.split(z + h @ W.T, 4, axis=-1)
        if p is not None:
            a_i, a_f = a_i + p[0] * c, a_f + p[1] * c
        c = jax.nn.sigmoid(a_f) * c + jax.nn.sigmoid(a_i) * jnp.tanh(a_g)
        return jax.nn.sigmoid(a_o if p is None else a_o + p[2] * c) * jnp.tanh(c), c

    def gru(carry: Any, z: Any) -> Any:
        (h,) = carry
        u_r, u_z, u_n = jnp.split(z, 3, axis=-1)
        w_r, w_z, w_n = jnp.split(h @ W.T + b_w, 3, axis=-1)
        r, z = jax.nn.sigmoid(u_r + w_r), jax.nn.sigmoid(u_z + w_z)
        return ((1 - z) * jnp.tanh(u_n + r * w_n) + z * h,)

    if cell.gru:
        return gru, x @ U.T + b_u
    return lstm if cell.lstm else rnn, x @ U.T + (b_u + b_w)


class _Sequence(Job):
    def __init__(self, problem: Problem) -> None:
        import jax
        from jax import numpy as jnp

        case, cell = problem.case, CELLS[problem.case.cell]
        self.params = {name: jnp.asarray(array) for name, array in problem.weights.items()}
        self.x, self.dy = jnp.asarray(problem.x), jnp.asarray(problem.dy)
        self.zeros = tuple(jnp.zeros((case.L * case.D, case.B, case.H), case.dtype) for _ in range(1 + cell.lstm))
        lengths = None if problem.lengths is None else jnp.asarray(problem.lengths)
        self.y: Any = None
        self.state = self.zeros
        self.run: Any = jax.jit(lambda params, x, state: forward(cell, params, x, state, lengths))

        def train(params: Any, x: Any, state: Any, dy: Any) -> Any:
            y, back = jax.vjp(lambda params, x: forward(cell, params, x, state, lengths)[0], params, x)
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


class Generate(Writer):
    how = "lax.scan over the characters, jitted whole"

    def __init__(self, problem: Problem) -> None:
        import jax
        from jax import lax
        from jax import numpy as jnp

        super().__init__(problem)
        case, cell = problem.case, CELLS[problem.case.cell]
        self.params = {name: jnp.asarray(array) for name, array in problem.model_weights.items()}
        zeros = tuple(jnp.zeros((case.L, case.B, case.H), case.dtype) for _ in range(1 + cell.lstm))

        def write(params: dict[str, Any], count: int) -> Any:
            layers = {name[2:]: array for name, array in params.items() if name.startswith("1.")}

            def one(carry: Any, _: Any) -> Any:
                ids, state = carry
                y, state = forward(cell, layers, params["0.weight"][ids][None], state, None)
                ids = (y[0] @ params["2.weight"].T + params["2.bias"]).argmax(-1)
                return (ids, state), ids

            return lax.scan(one, (jnp.zeros(case.B, int), zeros), length=count)[1]

        self._write: Any = jax.jit(write, static_argnums=1)

    def write(self, count: int) -> np.ndarray:
        return np.asarray(self._write(self.params, count))

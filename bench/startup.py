"""What a start costs: imports and first results, each in a process of its own, from its start to its word
that it is done. Cold: an empty `FASTRNN_CACHE_DIR`; warm: the same folder in a later process. Python's own bytecode is
there in both, as it is after an installation.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import loop
from .cases import CELLS, Case
from .client import environment
from .stats import Spread, spread
from .verify import TOLERANCES

# What a user's first lines would be, by library: the layer; inference; a training step; and then, when the
# clock has stopped, what has come out, so that it can be verified.
SCRIPTS = {
    "fastrnn": (
        """
import numpy as np, fastrnn as fr
layer = fr.LSTM({I}, {H}, seed=0)
x = np.ones(({T}, {B}, {I}), "float32")
""",
        "y, state = layer(x)",
        "y, state, tape = layer.forward(x); dx, dstate = layer.backward(tape, np.ones_like(y))",
        "import sys; np.savez(sys.argv[1], y=y, dweight=layer.grads['weight_hh_l0'], **layer.state_dict())",
    ),
    "torch": (
        """
import torch
layer = torch.nn.LSTM({I}, {H})
x = torch.ones({T}, {B}, {I})
""",
        "with torch.inference_mode(): y, state = layer(x)",
        "x.requires_grad_(); y, state = layer(x); y.backward(torch.ones_like(y))",
        "import sys, numpy as np; g = layer.weight_hh_l0.grad; np.savez(sys.argv[1], y=y.detach().numpy(), "
        "dweight=0 if g is None else g.numpy(), **{{n: p.numpy() for n, p in layer.state_dict().items()}})",
    ),
}
COLD = ", cold cache"


@dataclass
class Measure:
    """Seconds of one kind of start, one for each round."""

    name: str
    seconds: list[float]

    @property
    def spread(self) -> Spread:
        return spread(self.seconds)


@dataclass
class _Start:
    """One kind of start: code, what follows when the clock has stopped, and whether it is a training step."""

    name: str
    code: str
    after: str = ""
    training: bool = False


def _starts(case: Case, libraries: list[str]) -> list[_Start]:
    starts = [
        _Start("python", "pass"),
        _Start("import numpy", "import numpy"),
        _Start("import numba", "import numba"),
    ]
    starts += [_Start(f"import {n}", f"import {n}") for n in ("fastrnn", "torch", "onnxruntime") if n in libraries]
    for library, (make, infer, train, after) in SCRIPTS.items():
        if library in libraries:
            make, after = make.format(**_sizes(case)), after.format()
            starts.append(_Start(f"{library}: first inference", make + infer, after))
            starts.append(_Start(f"{library}: first training step", make + train, after, training=True))
    return starts


def _sizes(case: Case) -> dict[str, int]:
    return {"T": case.T, "B": case.B, "I": case.I, "H": case.H}


def _seconds(case: Case, start: _Start, cache: Path) -> float:
    """From the start of a Python to the end of the code. `RuntimeError` if its result is wrong."""
    results = cache / "results.npz"
    code = f"{start.code}\nprint('done', flush=True)\n{start.after}\n"
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(results)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(FASTRNN_CACHE_DIR=str(cache), PYTHONDONTWRITEBYTECODE=""),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        word = process.stdout.readline()
        took = time.perf_counter() - begin
        complaint = process.stderr.read().strip().splitlines()[-1:]
    if word != "done\n" or process.returncode:
        raise RuntimeError(f"{start.name}: {complaint[0] if complaint else 'no result'}")
    if start.after:
        with np.load(results) as arrays:
            _verify(case, start, {name: array.astype("float64") for name, array in arrays.items()})
    return took


def _verify(case: Case, start: _Start, arrays: loop.Params) -> None:
    """Against the reference with the layer's own weights, for inputs and gradients of one."""
    cell = CELLS["lstm"]
    x = np.ones((case.T, case.B, case.I))
    y, _, tape = loop.forward(cell, arrays, x, loop.zero_state(cell, arrays, case.B))
    wanted = {"y": y}
    if start.training:
        wanted["dweight"] = loop.backward(cell, arrays, tape, np.ones_like(y))[1]["weight_hh_l0"]
    for (name, want), allowed in zip(wanted.items(), TOLERANCES["float32"]):
        error = np.abs(arrays[name] - want).max() / np.abs(want).max()
        if not error <= allowed:
            raise RuntimeError(f"{start.name}: {name} is off by {error:.1e}, allowed {allowed:.0e}")


def measure(case: Case, libraries: list[str], rounds: int, cold_rounds: int) -> list[Measure]:
    """All kinds of starts, in turns within each round."""
    starts = _starts(case, libraries)
    found: dict[str, list[float]] = {start.name: [] for start in starts}
    with tempfile.TemporaryDirectory() as parent:

        def cache(start: _Start, n: int) -> Path:
            folder = Path(parent, f"{starts.index(start)}-{n}")
            folder.mkdir(exist_ok=True)
            return folder

        # The first one writes the bytecode of a checkout.
        _seconds(case, _Start("fastrnn's modules", SCRIPTS["fastrnn"][0].format(**_sizes(case))), Path(parent))
        for n in range(cold_rounds):
            for start in starts:
                if start.name.startswith("fastrnn:"):
                    found.setdefault(start.name + COLD, []).append(_seconds(case, start, cache(start, n)))
        for _ in range(rounds):
            for start in starts:
                found[start.name].append(_seconds(case, start, cache(start, 0)))
    return [Measure(name, seconds) for name, seconds in found.items()]


def import_cost(measures: list[Measure]) -> float | None:
    """Seconds that `import fastrnn` takes beyond `import numba`: the median of the rounds' differences."""
    by_name = {m.name: m.seconds for m in measures}
    if "import fastrnn" not in by_name:
        return None
    return spread(a - b for a, b in zip(by_name["import fastrnn"], by_name["import numba"])).median

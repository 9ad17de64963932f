"""What a stream adds to a call, and what a pool of streams saves: `python -m bench.streams`.

Everything is compared bit for bit before it is timed; the two sides of a row alternate, and rows give medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn as fr

from .machine.about import describe
from .stats import spread

CELLS: dict[str, Any] = {"lstm": fr.LSTM, "gru": fr.GRU, "rnn-tanh": fr.RNN}
INNER = 300  # steps in one sample of a single stream
SECONDS = 0.2  # of one sample of a pool


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes the record."""
    args = _parser().parse_args(argv)
    rows = [_push(cell, H, L, args.rounds) for cell in CELLS for H in args.sizes for L in args.layers]
    print(f"{'one stream':<22}{'call':>12}{'push':>12}{'overhead':>12}{'push_many':>14}")
    for row in rows:
        name = f"{row['cell']} {row['L']} x {row['H']}"
        print(
            f"{name:<22}{row['call_us']:>9.2f} us{row['push_us']:>9.2f} us{row['overhead_us']:>9.2f} us"
            f"{row['push_many_us']:>8.2f} us a step"
        )
    pools = [_pool("lstm", args.hidden_size, n, args.rounds) for n in args.streams]
    print(f"\n{'lstm ' + str(args.hidden_size) + ', streams':<22}{'each alone':>14}{'pool.step':>14}{'times':>8}")
    for row in pools:
        print(f"{row['streams']:<22}{row['alone_us']:>11.0f} us{row['pool_us']:>11.0f} us{row['ratio']:>8.1f}")
    args.json.write_text(json.dumps({"machine": describe(), "one": rows, "pools": pools}) + "\n")
    return 0


def _push(cell: str, H: int, L: int, rounds: int) -> dict[str, Any]:
    """A stream's push beside the layers' own call with the state passed by hand."""
    layer = CELLS[cell](H, H, num_layers=L, seed=0)
    x = np.random.default_rng(0).standard_normal((INNER, H)).astype("float32")
    stream, steps = layer.stream(), [x[t] for t in range(INNER)]
    blocks = [step[None, None] for step in steps]

    def call() -> list[np.ndarray]:
        state, out = first, []
        for block in blocks:
            y, state = layer(block, state)
            out.append(y)
        return out

    def push() -> list[np.ndarray]:
        stream.reset()
        return [stream.push(step) for step in steps]

    def push_many() -> np.ndarray:
        stream.reset()
        return stream.push_many(x)

    _, first = layer(np.zeros_like(blocks[0]))
    first = tuple(np.zeros_like(s) for s in first) if isinstance(first, tuple) else np.zeros_like(first)
    _same(cell, np.stack([y[0, 0] for y in call()]), np.stack(push()), push_many())
    samples = _alternate(rounds, *(partial(_each, one, 0.0) for one in (call, push, push_many)))
    overhead = spread(b - a for a, b in zip(*samples[:2], strict=True)).median
    call_us, push_us, many_us = (spread(s).median / INNER * 1e6 for s in samples)
    return {
        "cell": cell, "H": H, "L": L, "call_us": call_us, "push_us": push_us, "push_many_us": many_us,
        "overhead_us": overhead / INNER * 1e6,
    }  # fmt: skip


def _pool(cell: str, H: int, streams: int, rounds: int) -> dict[str, Any]:
    """`streams` of them stepped by the pool, beside each on its own."""
    layer = CELLS[cell](H, H, seed=0)
    x = np.random.default_rng(0).standard_normal((streams, H)).astype("float32")
    lone, steps = [layer.stream() for _ in range(streams)], list(x)
    with layer.stream_pool(streams) as pool:
        ids = [pool.open() for _ in range(streams)]

        def alone() -> list[np.ndarray]:
            return [stream.push(step) for stream, step in zip(lone, steps, strict=True)]

        def together() -> np.ndarray:
            return pool.step(ids, x)

        for _ in range(3):
            _same(f"{streams} streams", np.stack(alone()), together())
        # Throughput: of so many steps in a row that what wakes up and what fills the caches is a small part.
        one, all_ = _alternate(rounds, partial(_each, alone, SECONDS), partial(_each, together, SECONDS))
    ratio = spread(a / b for a, b in zip(one, all_, strict=True)).median
    return {
        "cell": cell, "H": H, "streams": streams, "ratio": ratio,
        "alone_us": spread(one).median * 1e6, "pool_us": spread(all_).median * 1e6,
    }  # fmt: skip


def _each(call: Callable[[], Any], least: float) -> float:
    """Seconds of one call, made once, or again and again for `least` seconds."""
    count, took, start = 0, 0.0, time.perf_counter()
    while not count or took < least:
        call()
        count += 1
        took = time.perf_counter() - start
    return took / count


def _alternate(rounds: int, *samples: Callable[[], float]) -> list[list[float]]:
    """What each gives, round by round."""
    found: list[list[float]] = [[] for _ in samples]
    for _ in range(rounds):
        for sample, values in zip(samples, found, strict=True):
            values.append(sample())
    return found


def _same(what: str, *arrays: np.ndarray) -> None:
    for other in arrays[1:]:
        if arrays[0].tobytes() != other.tobytes():
            raise SystemExit(f"bench.streams: {what}: the outputs differ, so nothing is timed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.streams", description="streams beside plain calls")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 128], help="I = H of one stream")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2], help="of one stream")
    parser.add_argument("--hidden-size", type=int, default=128, help="I = H of the pool's streams")
    parser.add_argument("--streams", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).parent / "streams.json", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

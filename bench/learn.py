"""Learning, not only speed: the same model trained on the same text, with the same weights to begin with, by
fastrnn and by PyTorch: `python -m bench.learn TEXT`. After every epoch the loss on the text's held-out end,
and the time.

The epochs of the libraries alternate, so that whatever disturbs the machine disturbs both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .cases import Case
from .client import Worker, WorkerError
from .lm import Hyper
from .machine.about import describe
from .peers import LIBRARIES

HELD_OUT = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; prints a line for each epoch; writes the record."""
    args = _parser().parse_args(argv)
    if not args.text.is_file():
        print(f"bench.learn: {args.text} is not a file", file=sys.stderr)
        return 2
    case = Case("charlm", args.cell, args.seq_length, args.batch_size, args.embedding, args.hidden_size, args.layers)
    from fastrnn import get_num_threads

    threads = args.threads or get_num_threads()
    workers = {name: Worker(f"{__package__}.learner", name, str(threads), threads=threads) for name in args.libraries}
    try:
        return _learn(workers, case, threads, args)
    except WorkerError as error:
        print(f"bench.learn: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers.values():
            worker.close()


def _learn(workers: dict[str, Worker], case: Case, threads: int, args: argparse.Namespace) -> int:
    for name, worker in list(workers.items()):
        if worker.missing:
            print(f"{name}: missing, so not compared ({worker.missing})")
            workers.pop(name).close()
    characters = 0
    for worker in workers.values():
        answer = worker.ask("prepare", case=asdict(case), text=str(args.text), held_out=HELD_OUT)
        characters = answer["characters"]
    what = (
        f"{case.cell}, {case.L} layers of {case.H}, embedding {case.I}, batch {case.B}, length {case.T}, on "
        f"{args.text.name} ({characters:,} characters, and the last {100 * HELD_OUT:.0f} % held out), Adam "
        f"at {Hyper.adam_lr} halved every {args.halve_every} epochs, clipped to norm {Hyper.clip_norm:g}, "
        f"{threads} threads."
    )
    print(what + "\n")
    print(f"{'epoch':>5}{'lr':>9}" + "".join(f"{name + ': loss':>20}{'validation':>12}{'s':>8}" for name in workers))
    epochs: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for n in range(args.epochs):
        lr = Hyper.adam_lr * 0.5 ** (n // args.halve_every)
        line = f"{n + 1:>5}{lr:>9.2g}"
        for name, worker in workers.items():
            done = worker.ask("epoch", lr=lr)
            epochs[name].append({key: done[key] for key in ("loss", "validation", "training", "seconds")})
            line += f"{done['loss']:>20.4f}{done['validation']:>12.4f}{done['seconds']:>8.1f}"
        print(line, flush=True)
    print()
    for name, done_epochs in epochs.items():
        seconds, training = (sum(e[key] for e in done_epochs) for key in ("seconds", "training"))
        lowest = min((e["validation"] for e in done_epochs), default=float("nan"))
        rate = characters * len(done_epochs) / training / 1e3 if training else 0.0
        print(f"{name}: validation {lowest:.4f} at best, {seconds:.1f} s in all, {rate:.0f} kchar/s in training")
    record = {
        "what": what,
        "machine": describe(),
        "threads": threads,
        "versions": {name: worker.hello["versions"] for name, worker in workers.items()},
        "epochs": epochs,
    }
    args.json.write_text(json.dumps(record) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench.learn", description="one model, one text, two libraries")
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--halve-every", type=int, default=5, help="epochs after which the learning rate is halved")
    parser.add_argument("--cell", choices=("lstm", "rnn-tanh"), default="lstm")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seq-length", type=int, default=50)
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=["fastrnn", "torch"])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "learn.json", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())

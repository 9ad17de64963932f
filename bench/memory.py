"""What a training pass needs of memory: the most that a fresh process has held of it, from its birth on, with all that
its library brings; and how much that is beyond what it held when the layer and its inputs were made.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from . import verify
from .cases import Case
from .client import Worker, WorkerError


@dataclass
class Memory:
    """Bytes of one library's process."""

    case: str
    library: str
    peak: int
    beyond: int


def measure(case: Case, libraries: list[str], threads: int) -> list[Memory]:
    """Every library that has the case. `RuntimeError` for one whose results are wrong."""
    training = Case(**{**vars(case), "kind": "train"})
    wanted = verify.expected(training)
    found = []
    for library in libraries:
        worker = Worker(f"{__package__}.worker", library, str(threads), threads=threads)
        try:
            if worker.missing or "unsupported" in (ready := worker.ask("prepare", case=asdict(training))):
                continue
            held = worker.ask("memory", way=ready["ways"][0])
            _verify(library, worker, ready["ways"][0], training, wanted)
        except WorkerError as error:
            raise RuntimeError(f"{case.name}: {library}: {error}") from None
        finally:
            worker.close()
        found.append(Memory(case.name, library, held["peak"], held["peak"] - held["before"]))
    return found


def _verify(library: str, worker: Worker, way: str, case: Case, wanted: dict[str, np.ndarray]) -> None:
    """After the measuring: the arrays that are compared are memory too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.npz")
        worker.ask("check", way=way, path=str(path))
        with np.load(path) as results:
            if said := verify.wrong(case, verify.errors(case, dict(results), wanted)):
                raise RuntimeError(f"{case.name}: {library}: {said}")

"""The process of one library in a learning run: `python -m bench.learner LIBRARY THREADS`; see learn.py.

{"do": "prepare", "case", "text", "held_out"}   -> {"characters": that one epoch learns}
{"do": "epoch", "lr"}                           -> {"loss", "validation": nats per character, "seconds"}
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from .cases import Case
from .job import Model, ModelJob
from .worker import Answer, module_of, own_standard_output, serve, version_of


class Learner:
    """One library's model and the text that it learns."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def prepare(self, case: dict[str, Any], text: str, held_out: float) -> Answer:
        from fastrnn.text import Streams, Vocabulary, read_text, split_text

        chosen = Case(**{**case, "groups": tuple(case["groups"])})
        whole = read_text(Path(text))
        vocabulary = Vocabulary(whole)
        train, _, end = split_text(whole, 0.0, held_out)
        ids = [vocabulary.encode(part) for part in (train, end)]
        self._train, self._validation = (Streams(part, chosen.B, chosen.T) for part in ids)
        job = self._module.make(Case(**{**vars(chosen), "V": len(vocabulary)}))
        assert isinstance(job, ModelJob)
        job.use(job.ways[0])
        job.call()  # what a library does only once, compiling say, is paid before the clock runs
        self._model: Model = job.make(job.ways[0])
        return {"characters": self._train.characters, "how": job.how}

    def epoch(self, lr: float) -> Answer:
        start = time.perf_counter()
        self._model.lr = lr
        self._model.forget()
        total = 0.0
        for ids, targets in self._train:
            total += self._model.step(ids, targets) * targets.size
        self._model.forget()
        trained = time.perf_counter()
        held = sum(self._model.loss(ids, targets) * targets.size for ids, targets in self._validation)
        return {
            "loss": total / self._train.characters,
            "validation": held / self._validation.characters,
            "training": trained - start,
            "seconds": time.perf_counter() - start,
        }


def main() -> None:
    library, threads = sys.argv[1:]
    answers = own_standard_output()
    try:
        module = module_of(library)
        module.start(int(threads))
    except ImportError as error:
        serve(sys.stdin, answers, {}, {"missing": str(error)})
        return
    learner = Learner(module)
    hello = {"versions": {name: version_of(name) for name in module.VERSIONS}}
    serve(sys.stdin, answers, {"prepare": learner.prepare, "epoch": learner.epoch}, hello)


if __name__ == "__main__":
    main()

"""The other end of a worker's pipe: starts it, asks it, and ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import fastrnn

ROOT = Path(fastrnn.__file__).resolve().parent.parent
PATIENCE = 900.0  # seconds for one answer; then the worker is ended

# What libraries read their number of threads from, if they are not told otherwise.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "FASTRNN_NUM_THREADS",
)  # fmt: skip


class WorkerError(RuntimeError):
    """The worker reported an error, or is gone."""


def environment(threads: int | None = None, **more: str) -> dict[str, str]:
    """Of a process that finds this package, with a number of threads for every library."""
    variables = {**os.environ, **more}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    if threads is not None:
        variables.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    return variables


class Worker:
    """One process of one library. `hello` is what it said first."""

    def __init__(self, module: str, *arguments: str, threads: int) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=environment(threads),
        )  # fmt: skip
        self._hello: dict[str, Any] | None = None
        #: processor time that it has used, by its last word
        self.cpu = 0.0

    @property
    def hello(self) -> dict[str, Any]:
        if self._hello is None:
            try:
                self._hello = self._answer()
            except WorkerError as error:  # a library that cannot even be imported is as good as missing
                self._hello = {"missing": str(error)}
        return self._hello

    @property
    def missing(self) -> str:
        """Why the library is not there; empty if it is."""
        return self.hello.get("missing", "")

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """The answer to one request. `WorkerError` if it is an error."""
        assert self._process.stdin is not None
        if self.missing:
            raise WorkerError(self.missing)
        try:
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(self._last_words()) from None
        answer = self._answer()
        self.cpu = answer.get("cpu", self.cpu)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        watch = threading.Timer(PATIENCE, self._process.kill)
        watch.start()
        try:
            line = self._process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise WorkerError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().strip().splitlines()[-1:]
        return f"the process ended with exit code {code}" + (f": {words[0]}" if words else "")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the process. A process that waits for a request ends at the end of its input."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

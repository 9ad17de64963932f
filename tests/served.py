"""The application that test_processes.py has gunicorn serve: loaded and warmed once, before the workers are forked."""

import os
import threading

from offspring import infer, make, train

MODEL, IDS = make()
WARM = train(), infer(MODEL, IDS)  # with all threads, before the fork
STREAM = MODEL.stream()
POOL = MODEL.stream_pool(2)
POOL.submit(POOL.open(), int(IDS[0, 0])).result()  # the pool's thread is the parent's
LOCK = threading.Lock()


def streamed():
    """A sequence through a stream that was made before the fork and is shared by this worker's threads."""
    with LOCK:
        STREAM.reset()
        return STREAM.push_many(IDS[:, 0])[-1].tobytes().hex()[:32]


def pooled():
    """The same through a pool of that kind, each step with whoever else asks."""
    one = POOL.open()
    y = [POOL.submit(one, int(k)).result(timeout=100) for k in IDS[:, 0]][-1]
    POOL.close(one)
    return y.tobytes().hex()[:32]


CALLS = {
    "/infer": lambda: infer(MODEL, IDS), "/train": train, "/stream": streamed, "/pool": pooled, "/pid": lambda: "",
}  # fmt: skip


def application(environ, start_response):
    """The WSGI way."""
    answer = CALLS[environ["PATH_INFO"]]()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid()} {answer}".encode()]

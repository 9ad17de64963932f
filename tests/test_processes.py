"""Parents that have trained with all threads, and their children, however they were started."""

import collections
import importlib.util
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from helpers import ROOT, import_or_skip, run_python

METHODS = multiprocessing.get_all_start_methods()


@pytest.mark.parametrize("method", METHODS)
def test_children_and_grandchildren(method):
    """Each trains and infers before it has a child, and after."""
    code = f"""
        import offspring
        if __name__ == "__main__":
            answers = offspring.family({method!r}, 3)
            print(len(answers), len(set(answers)))
    """
    assert run_python(code, timeout=300).split() == ["6", "1"]


def test_workers_of_a_data_loader(effort):
    """PyTorch's, which forks after both libraries have had threads at work."""
    import_or_skip("torch")
    for method in effort(["fork"], METHODS):
        code = f"""
            import offspring
            if __name__ == "__main__":
                import torch
                torch.ones(300, 300) @ torch.ones(300, 300)
                before = offspring.train()
                alone, loaded = offspring.load(None, 0), offspring.load({method!r}, 2)
                print(alone == loaded, before == offspring.train())
        """
        assert run_python(code, timeout=600).split() == ["True", "True"]


# --- a server -----------------------------------------------------------------------------------------------


KINDS = ("/infer", "/stream", "/pool", "/train")


class Clients:
    """Threads that ask a server all the time; what it answered, from which worker, and what got lost."""

    def __init__(self, path, count):
        self.path, self.stop = path, threading.Event()
        self.answers = collections.defaultdict(collections.Counter)
        self.pids, self.lost, self.lock = collections.Counter(), 0, threading.Lock()
        self.threads = [threading.Thread(target=self.work, args=(seed,), daemon=True) for seed in range(count)]

    def ask(self, what):
        """(pid, answer); OSError or ValueError if the worker died meanwhile."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(120)
            connection.connect(self.path)
            connection.sendall(f"GET {what} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            got = b""
            while part := connection.recv(1 << 16):
                got += part
        head, _, body = got.partition(b"\r\n\r\n")
        if b"200" not in head.split(b"\r\n")[0]:
            raise ValueError(got[:80])
        pid, _, answer = body.decode().partition(" ")
        return int(pid), answer

    def work(self, seed):
        r = random.Random(seed)
        while not self.stop.is_set():
            what = r.choice(KINDS)
            try:
                pid, answer = self.ask(what)
            except (OSError, ValueError):
                with self.lock:
                    self.lost += 1
                time.sleep(0.02)
                continue
            with self.lock:
                self.pids[pid] += 1
                self.answers[what][answer] += 1


def test_gunicorn(tmp_path, effort, reliability, minutes):
    """Loaded and warm, then four workers of two threads; eight clients; workers are killed, ended and replaced."""
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip('no server to try (pip install "fastrnn[peers]")')
    seconds, pause = effort(3, 60 * minutes(5)), effort(1, 4)
    path = str(tmp_path / "socket")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"), *sys.path))}
    command = ["-m", "gunicorn", "--preload", "-w", "4", "--threads", "2", "-t", "120", "-b", f"unix:{path}"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, *command, "served:application"], env=environment, stderr=log, cwd=tmp_path
        )
    clients, killed = Clients(path, 8), collections.Counter()
    try:
        until = time.monotonic() + 300
        while True:
            try:
                clients.ask("/pid")
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.2)
        expected = {what: clients.ask(what)[1] for what in KINDS}
        assert expected["/stream"] == expected["/pool"]
        for thread in clients.threads:
            thread.start()
        r, until = random.Random(0), time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(r.uniform(pause / 8, pause))
            number = r.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP))
            if number == signal.SIGHUP:
                server.send_signal(number)  # all workers, one after the other
            else:
                try:
                    os.kill(clients.ask("/pid")[0], number)
                except (OSError, ValueError):
                    continue
            killed[number.name] += 1
            assert server.poll() is None, (tmp_path / "log").read_text()
        clients.stop.set()
        for thread in clients.threads:
            thread.join(timeout=180)
        assert not any(thread.is_alive() for thread in clients.threads)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=180) == 0
    finally:
        server.kill()
        server.wait()
    for what, answer in expected.items():
        assert set(clients.answers[what]) == {answer}, what
    assert sum(killed.values()) > seconds / 10
    # Only what a killed worker had in hand is lost.
    assert clients.lost <= 2 * 8 * sum(killed.values())
    assert "Traceback" not in (tmp_path / "log").read_text()
    reliability(
        answers=sum(sum(counter.values()) for counter in clients.answers.values()), different_workers=len(clients.pids),
        killed=killed["SIGKILL"], ended=killed["SIGTERM"], reloads_of_all=killed["SIGHUP"],
        requests_lost_with_their_worker=clients.lost,
    )  # fmt: skip

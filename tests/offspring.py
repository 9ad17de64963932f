"""What processes of test_processes.py do: importable, as `spawn` and PyTorch's workers want it."""

import hashlib
import multiprocessing

import numpy as np
from helpers import JIT

import fastrnn as fr

T, B, H = (20, 13, 100) if JIT else (2, 3, 6)  # large enough for several threads
fr.set_num_threads(3)


def make():
    """A model, and what it reads."""
    layers = (fr.Embedding(31, 20, seed=1), fr.LSTM(20, H, num_layers=2, seed=2), fr.Linear(H, 31, seed=3))
    return fr.Sequential(*layers), np.random.default_rng(4).integers(0, 31, (T, B))


def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def infer(model, ids):
    """The bits of inference."""
    y, ((h, c),) = model(ids)
    return digest(y, h, c)


def train(steps=3):
    """The bits of everything that some steps of training give."""
    model, ids = make()
    adam = fr.Adam(model)
    for _ in range(steps):
        model.zero_grad()
        y, _, tape = model.forward(ids)
        _, dlogits = fr.cross_entropy(y, ids)
        model.backward(tape, dlogits)
        adam.step()
    return digest(*model.params.values())


def family(method, generations):
    """What this process computes, and its child, and that one's, each started by `method` after its parent's work."""
    mine = [train() + infer(*make())]
    if generations > 1:
        context = multiprocessing.get_context(method)
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(method, generations - 1, writer))
        child.start()
        writer.close()
        mine += reader.recv()
        child.join()
        assert child.exitcode == 0
    return [*mine, train() + infer(*make())]


def _child(method, generations, writer):
    writer.send(family(method, generations))
    writer.close()


class Sentences:
    """A data set of PyTorch's kind: item k is what a model makes of row k."""

    def __init__(self):
        self.model, self.ids = make()

    def __len__(self):
        return B

    def __getitem__(self, k):
        return self.model(self.ids[:, k : k + 1])[0][:, 0]


def load(method, workers):
    """All items through a DataLoader with such workers, in order."""
    from torch.utils.data import DataLoader

    context = method if workers else None
    loader = DataLoader(Sentences(), batch_size=4, num_workers=workers, multiprocessing_context=context)
    return digest(*(batch.numpy() for _ in range(2) for batch in loader))

"""PyTorch's numbers: outputs, gradients, weights as they are, optimizers, and a hundred steps of training."""

import numpy as np
import pytest
from helpers import CELLS, JIT, Problem, assert_close, import_or_skip, mixed_lengths, seldom
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems

import fastrnn as fr

torch = import_or_skip("torch")
torch.set_num_threads(1)  # its threads spin for a while after each call, on the processors that ours want

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
SHARED = ("rnn_tanh", "rnn_relu", "lstm", "gru", "lstm_projected")  # PyTorch's too
SIZES = [
    {"T": 1, "B": 2, "I": 3, "H": 5},
    {"T": 20, "B": 13, "I": 37, "H": 100} if JIT else {"T": 4, "B": 3, "I": 7, "H": 18},
]
STEPS = 100 if JIT else 60


cells_and_types = pytest.mark.parametrize(
    ("cell", "dtype"),
    [pytest.param(cell, dtype, marks=seldom(cell, dtype)) for cell in SHARED for dtype in TOLERANCE],
)


def to_numpy(tensor):
    return tensor.detach().numpy().copy()


def peer_of(problem):
    """The PyTorch module with the problem's weights."""
    shape = {"num_layers": problem.L, "bias": problem.bias, "bidirectional": problem.bidirectional}
    peer = getattr(torch.nn, problem.kind)(
        problem.I, problem.H, dtype=getattr(torch, problem.dtype), **shape, **problem.options
    )
    peer.load_state_dict({name: torch.from_numpy(a.astype(problem.dtype)) for name, a in problem.params.items()})
    return peer


def solve_by_torch(problem):
    """The outputs and gradients of the PyTorch module, under the names of `Problem.solve`, time-major.

    It packs sequences of any order but none of length zero: those rows have no output, keep their state, and pass
    its gradient on.
    """
    peer, pack = peer_of(problem), torch.nn.utils.rnn
    x = torch.from_numpy(problem.turned(problem.x)).requires_grad_()
    state = {n: torch.from_numpy(a).requires_grad_() for n, a in problem.unpack(problem.state).items()}
    if problem.lengths is None:
        y, final = peer(x, problem.pack(state))
        final = problem.unpack(final)
    else:
        some = torch.tensor(problem.lengths).nonzero()[:, 0]
        y, final = torch.zeros(problem.shape_of("y"), dtype=x.dtype), {n: s.clone() for n, s in state.items()}
        if len(some):
            packed = pack.pack_padded_sequence(x[:, some], torch.tensor(problem.lengths)[some], enforce_sorted=False)
            packed, ended = peer(packed, problem.pack({n: s[:, some] for n, s in state.items()}))
            y[:, some] = pack.pad_packed_sequence(packed, total_length=problem.T)[0]
            for name, end in problem.unpack(ended).items():
                final[name][:, some] = end
    outputs = {"y": y} | final
    douts = {n: torch.from_numpy(d.astype(problem.dtype)) for n, d in problem.doutputs.items()}
    reached = [name for name, output in outputs.items() if output.requires_grad]  # not y, if no row has a step
    torch.autograd.backward([outputs[name] for name in reached], [douts[name] for name in reached])
    gradients = {f"d{name}": gradient_of(p) for name, p in peer.named_parameters()}
    gradients |= {f"d{n}0": gradient_of(s) for n, s in state.items()} | {"dx": gradient_of(x)}
    return {name: to_numpy(output) for name, output in outputs.items()}, gradients


def gradient_of(tensor):
    """Zeros where nothing came back: no row had a step."""
    return to_numpy(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)


@pytest.mark.parametrize("size", SIZES, ids=["small", "large"])
@pytest.mark.parametrize("L", [1, 2, 3])
@cells_and_types
def test_outputs_and_gradients(cell, dtype, L, size):
    """nn.RNN, nn.LSTM and nn.GRU, forward and every gradient."""
    problem = Problem(cell, **size, L=L, dtype=dtype)
    outputs, gradients = problem.solve()
    expected_outputs, expected_gradients = solve_by_torch(problem)
    assert_close(outputs, expected_outputs, TOLERANCE[dtype])
    assert_close(gradients, expected_gradients, TOLERANCE[dtype])


@pytest.mark.parametrize("lengths", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
@cells_and_types
def test_directions_and_lengths(cell, dtype, bidirectional, lengths):
    """Two layers of either direction, padded sequences and packed ones, forward and every gradient."""
    size = SIZES[1]
    problem = Problem(cell, **size, L=2, bidirectional=bidirectional, dtype=dtype)
    if lengths:
        problem = problem.but(lengths=mixed_lengths(size["T"], size["B"]))
    for got, want in zip(problem.solve(), solve_by_torch(problem), strict=True):
        assert_close(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("cell", SHARED)
@given(data=st.data())
def test_random_options(cell, data):
    """Any size, depth, direction, lengths and options together."""
    problem = data.draw(problems(cell, indices=False, has_state=True))
    for got, want in zip(problem.solve(), solve_by_torch(problem), strict=True):
        assert_close(got, want, TOLERANCE["float64"])


@pytest.mark.parametrize("cell", SHARED)
@given(data=st.data())
def test_reference(cell, data):
    """So are the reference's, by which all else is judged: outputs and complex-step gradients."""
    problem = data.draw(problems(cell, indices=False, has_state=True))
    outputs, gradients = solve_by_torch(problem)
    assert_close(problem.outputs(), outputs, TOLERANCE["float64"])
    assert_close(problem.gradients, gradients, 1e-11)


@pytest.mark.parametrize("options", [{"bias": False}, {"batch_first": True}], ids=["no bias", "batch first"])
@pytest.mark.parametrize("cell", SHARED)
def test_options(cell, options):
    """The options that both have mean the same."""
    problem = Problem(cell, T=5, B=3, I=4, H=9, L=2, **options)
    results, expected = problem.solve(), solve_by_torch(problem)
    for got, want in zip(results, expected, strict=True):
        assert_close(got, want, TOLERANCE["float64"])


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("cell", SHARED)
def test_state_dict_as_it_is(cell, bidirectional):
    """A PyTorch state_dict() loads as it is, and ours loads there; names, order and shapes are the same."""
    problem = Problem(cell, T=2, B=3, I=4, H=9, L=3, dtype="float32")
    kind, options = CELLS[cell][0], CELLS[cell][1] | {"bidirectional": bidirectional}
    peer = getattr(torch.nn, kind)(problem.I, problem.H, num_layers=problem.L, **options)
    layer = getattr(fr, kind)(problem.I, problem.H, num_layers=problem.L, **options)
    assert list(layer.state_dict()) == list(peer.state_dict())
    layer.load_state_dict(peer.state_dict())
    for name, tensor in peer.state_dict().items():
        assert np.array_equal(layer.params[name], to_numpy(tensor)), name
    other = getattr(torch.nn, kind)(problem.I, problem.H, num_layers=problem.L, **options)
    other.load_state_dict({name: torch.from_numpy(array) for name, array in layer.state_dict().items()})
    assert torch.equal(other(torch.from_numpy(problem.x))[0], peer(torch.from_numpy(problem.x))[0])


def test_initial_weights_have_pytorch_s_distribution():
    """U(-1/sqrt(H), 1/sqrt(H)) for everything in a recurrent layer: its bounds, mean and variance."""
    H = 64
    layer = fr.LSTM(50, H, num_layers=2, seed=7)
    for name, array in layer.params.items():
        bound = H**-0.5
        assert 0.9 * bound < np.abs(array).max() <= bound, name
        assert abs(array.mean()) < 5 * bound / np.sqrt(3 * array.size), name
        assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.15), name


# --- training -----------------------------------------------------------------------------------------------


def test_hundred_steps_of_adam():
    """The same batches from the same weights: the loss within 1e-3 at every step; and it falls."""
    V, E, H = (61, 24, 80) if JIT else (9, 5, 10)
    T, B = (25, 16) if JIT else (4, 3)
    model = fr.Sequential(fr.Embedding(V, E, seed=1), fr.LSTM(E, H, num_layers=2, seed=2), fr.Linear(H, V, seed=3))
    torch.manual_seed(4)
    peer = torch.nn.Sequential(torch.nn.Embedding(V, E), torch.nn.LSTM(E, H, num_layers=2), torch.nn.Linear(H, V))
    assert list(model.state_dict()) == list(peer.state_dict())
    model.load_state_dict(peer.state_dict())
    lr = 2e-3 if JIT else 1e-2  # a tiny model learns a little of it in as many steps
    adam, peer_adam = fr.Adam(model, lr=lr), torch.optim.Adam(peer.parameters(), lr=lr)

    rng = np.random.default_rng(6)
    words = rng.integers(0, V, (7, 5))  # a text of few words, so that there is something to learn
    losses, peer_losses = [], []
    for _ in range(STEPS):
        text = words[rng.integers(0, len(words), (T // 5 + 2, B))].transpose(0, 2, 1).reshape(-1, B)
        ids, targets = text[:T], text[1 : T + 1]

        model.zero_grad()
        logits, _, tape = model.forward(ids)
        loss, dlogits = fr.cross_entropy(logits, targets)
        model.backward(tape, dlogits)
        adam.step()
        losses.append(loss)

        peer_adam.zero_grad()
        embedding, lstm, linear = peer
        peer_logits = linear(lstm(embedding(torch.from_numpy(ids)))[0])
        peer_loss = torch.nn.functional.cross_entropy(peer_logits.reshape(-1, V), torch.from_numpy(targets).reshape(-1))
        peer_loss.backward()
        peer_adam.step()
        peer_losses.append(peer_loss.item())

    assert np.abs(np.subtract(losses, peer_losses)).max() <= 1e-3
    part = STEPS // 3
    assert np.mean(losses[-part:]) < np.mean(losses[:part]) - (0.5 if JIT else 0)


OPTIMIZERS = {
    "SGD": {"lr": 0.1},
    "SGD with momentum": {"lr": 0.1, "momentum": 0.9},
    "Adagrad": {"lr": 0.1},
    "SGD with Nesterov's momentum": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "SGD with all": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "SGD with weight decay": {"lr": 0.1, "weight_decay": 0.1},
    "Adagrad with weight decay": {"lr": 0.1, "weight_decay": 0.1},
    "Adadelta": {},
    "Adadelta with all": {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1},
    "RMSProp": {"lr": 0.01},
    "RMSProp with momentum": {"lr": 0.01, "momentum": 0.9},
    "RMSProp, centred": {"lr": 0.01, "alpha": 0.9, "centered": True},
    "RMSProp with all": {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1},
    "RMSProp, other constants": {"lr": 0.01, "alpha": 0.9, "eps": 1e-3},
    "Adam": {},
    "Adam, other constants": {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3},
    "Adam with weight decay": {"weight_decay": 0.1},
    "AdamW": {},
    "AdamW, other constants": {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3},
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer(name, dtype, tolerance):
    """A hundred steps on the same gradients give the same weights, with the same defaults."""
    options = OPTIMIZERS[name]
    kind = name.split()[0].strip(",")
    layer, peer = fr.Linear(7, 5, dtype=dtype, seed=1), torch.nn.Linear(7, 5, dtype=getattr(torch, dtype))
    peer.load_state_dict({n: torch.from_numpy(a) for n, a in layer.state_dict().items()})
    optimizer = getattr(fr, kind)(layer, **options)
    peer_optimizer = getattr(torch.optim, {"RMSProp": "RMSprop"}.get(kind, kind))(peer.parameters(), **options)
    rng = np.random.default_rng(3)
    for _ in range(100):
        for parameter, tensor in peer.named_parameters():
            gradient = rng.standard_normal(tensor.shape).astype(dtype)
            layer.grads[parameter][...] = gradient
            tensor.grad = torch.from_numpy(gradient)
        optimizer.step()
        peer_optimizer.step()
        assert_close(layer.params, {n: to_numpy(p) for n, p in peer.named_parameters()}, tolerance)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm(max_norm):
    """The norm before, and the clipped gradients, to PyTorch's 1e-6 in the denominator."""
    layer = fr.Linear(7, 5, dtype="float64")
    rng = np.random.default_rng(3)
    tensors = []
    for gradient in layer.grads.values():
        gradient[...] = rng.standard_normal(gradient.shape)
        tensors.append(torch.zeros(gradient.shape, dtype=torch.float64))
        tensors[-1].grad = torch.from_numpy(gradient.copy())
    norm = fr.clip_grad_norm(layer, max_norm)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(tensors, max_norm).item(), rel=1e-12)
    for gradient, tensor in zip(layer.grads.values(), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-6)

"""Recurrent networks that are fast on CPUs, on numpy and numba alone.

Words used everywhere, in code, documentation and messages:

    T, B         time steps, sequences in the batch
    I, H, O, V   input size, hidden size, output size, vocabulary size
    L, D         layers, directions (1 or 2)
    W, P         lanes of a vector, panels of W hidden units (kernels only)
    x, h, c, y   input, hidden state, cell state, output
    i f g o      LSTM: input gate, forget gate, cell candidate, output gate; in this order in every parameter
    r z n        GRU: reset gate, update gate, candidate; in this order in every parameter
    U, W, V      the lecture's letters for weight_ih, weight_hh and the output layer's weight; b, c its biases
    K            components of a mixture
    dX           gradient of the loss with respect to X

    sequences    time-major (T, B, I); batch_first=True takes (B, T, I)
    output       y (T, B, D*H); of two directions the forward one's half comes first; merge="sum" adds them (T, B, H)
    lengths      (B,) how many steps each row has, in any order; y and all gradients past them are zero
    state        RNN, GRU: h (L*D, B, H); LSTM: (h, c); the directions of a layer follow each other
    parameters   PyTorch's names and shapes: weight_ih_l0 (4H, I), weight_hh_l0 (4H, H), bias_ih_l0, bias_hh_l0 (4H,);
                 `_reverse` after it for the second direction
    peepholes    weight_peep_l0, rows i f o: (3, H) diagonal, (3, H, H) full; i and f see c[t-1], o sees c[t]
    GRU          h[t] = (1-z) n + z h[t-1]; within n, reset="after" puts r on the product W h[t-1], "before" on h[t-1]

Where to look: `help(fastrnn.layers)`, `.models` (the shapes of sequence tasks), `.losses`, `.optim`, `.schedules`,
`.streaming`, `.wordvectors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module. Loaded when first asked for: `import fastrnn` itself costs nothing and compiles nothing.
_WHERE = {
    "RNN": "layers.rnn",
    "LSTM": "layers.lstm",
    "GRU": "layers.gru",
    "Embedding": "layers.embedding",
    "Linear": "layers.linear",
    "Dropout": "layers.dropout",
    "Sequential": "layers.sequential",
    "Last": "layers.steps",
    "Mean": "layers.steps",
    "Repeat": "layers.steps",
    "EncoderDecoder": "models.encoder_decoder",
    "WordVectors": "wordvectors",
    "load_word_vectors": "wordvectors",
    "cross_entropy": "losses",
    "mse": "losses",
    "softmax": "losses",
    "log_softmax": "losses",
    "linear_cross_entropy": "losses",
    "bernoulli_nll": "losses",
    "gaussian_nll": "losses",
    "multivariate_gaussian_nll": "losses",
    "gaussian_mixture_nll": "losses",
    "bivariate_mixture_nll": "losses",
    "kl_divergence": "losses",
    "entropy": "losses",
    "SGD": "optim",
    "Adagrad": "optim",
    "Adadelta": "optim",
    "RMSProp": "optim",
    "Adam": "optim",
    "AdamW": "optim",
    "clip_grad_norm": "optim",
    "clip_grad_value": "optim",
    "weight_noise": "optim",
    "StepLR": "schedules",
    "ExponentialLR": "schedules",
    "CosineAnnealingLR": "schedules",
    "ReduceLROnPlateau": "schedules",
    "WarmupLR": "schedules",
    "get_num_threads": "threads",
    "set_num_threads": "threads",
    "last_call_info": "threads",
    "Stream": "streaming",
    "StreamPool": "streaming",
    "CharLM": "models.charlm",
    "ModelFileError": "modelfile",
}

__all__ = sorted(_WHERE)

if TYPE_CHECKING:
    from .layers.dropout import Dropout as Dropout
    from .layers.embedding import Embedding as Embedding
    from .layers.gru import GRU as GRU
    from .layers.linear import Linear as Linear
    from .layers.lstm import LSTM as LSTM
    from .layers.rnn import RNN as RNN
    from .layers.sequential import Sequential as Sequential
    from .layers.steps import Last as Last
    from .layers.steps import Mean as Mean
    from .layers.steps import Repeat as Repeat
    from .losses import bernoulli_nll as bernoulli_nll
    from .losses import bivariate_mixture_nll as bivariate_mixture_nll
    from .losses import cross_entropy as cross_entropy
    from .losses import entropy as entropy
    from .losses import gaussian_mixture_nll as gaussian_mixture_nll
    from .losses import gaussian_nll as gaussian_nll
    from .losses import kl_divergence as kl_divergence
    from .losses import linear_cross_entropy as linear_cross_entropy
    from .losses import log_softmax as log_softmax
    from .losses import mse as mse
    from .losses import multivariate_gaussian_nll as multivariate_gaussian_nll
    from .losses import softmax as softmax
    from .modelfile import ModelFileError as ModelFileError
    from .models.charlm import CharLM as CharLM
    from .models.encoder_decoder import EncoderDecoder as EncoderDecoder
    from .optim import SGD as SGD
    from .optim import Adadelta as Adadelta
    from .optim import Adagrad as Adagrad
    from .optim import Adam as Adam
    from .optim import AdamW as AdamW
    from .optim import RMSProp as RMSProp
    from .optim import clip_grad_norm as clip_grad_norm
    from .optim import clip_grad_value as clip_grad_value
    from .optim import weight_noise as weight_noise
    from .schedules import CosineAnnealingLR as CosineAnnealingLR
    from .schedules import ExponentialLR as ExponentialLR
    from .schedules import ReduceLROnPlateau as ReduceLROnPlateau
    from .schedules import StepLR as StepLR
    from .schedules import WarmupLR as WarmupLR
    from .streaming import Stream as Stream
    from .streaming import StreamPool as StreamPool
    from .threads import get_num_threads as get_num_threads
    from .threads import last_call_info as last_call_info
    from .threads import set_num_threads as set_num_threads
    from .wordvectors import WordVectors as WordVectors
    from .wordvectors import load_word_vectors as load_word_vectors


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")
    value = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

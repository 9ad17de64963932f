"""What `CharLM.inspect` says of models whose units are known, because their weights were written by hand, and the page
and the command that show it.
"""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import reference
from helpers import assert_close, bits_of

from fastrnn.cli import main
from fastrnn.inspection import text_properties
from fastrnn.inspection_page import page
from fastrnn.models.charlm import CharLM

LINES = [
    "def f(x):\n",
    '    return "a <b> & c" + x\n',
    "\n",
    "x = [1, (2, 3)]\n",
    "if Long_name: pass  # done\n",
]
RNG = np.random.default_rng(5)
TEXT = "".join(LINES[k] for k in RNG.integers(0, len(LINES), 150))


def handmade(hidden_size=5):
    """An LSTM over one-hot characters: unit 0 counts the characters since the last line end, unit 1 knows line ends,
    unit 2 stands still, the others have small random weights. Gates are given as pre-activations of +-20.
    """
    lm = CharLM(hidden_size=hidden_size, num_layers=1, embedding_size=None, seed=2, dtype="float64").build(TEXT)
    layer, H = lm.model.layers[0], hidden_size
    params = {name: layer.params[name].copy() for name in layer.params}
    end = lm.vocabulary.characters.index("\n")
    u, w, b = params["weight_ih_l0"], params["weight_hh_l0"], params["bias_ih_l0"]
    for unit in range(3):
        rows = unit + H * np.arange(4)  # i f g o
        u[rows], w[rows], b[rows], params["bias_hh_l0"][rows] = 0, 0, 20, 0
    i, f, g, o = H * np.arange(4)
    b[g], u[g, end] = 0.02, -0.02  # c grows by tanh(0.02), but not at a line end
    u[f, end] = -40  # where it is forgotten
    b[f + 1], b[g + 1], u[g + 1, end] = -20, 0, 1.0
    b[[i + 2, f + 2]] = -20
    b[o : o + 3] = 2.0, 2.4, -2.0  # 0.88, 0.92, 0.12
    layer.load_state_dict(params)
    return lm


def test_a_unit_that_counts_is_found():
    """And the one that knows line ends, which is even surer; the one that stands still follows nothing."""
    found = handmade().inspect(TEXT, depth=10)
    first, second, *rest = found.units()
    assert (first.layer, first.number, first.follows) == (0, 1, "line end")
    assert first.r == pytest.approx(1, abs=1e-6)
    assert (second.layer, second.number, second.follows) == (0, 0, "position in the line")
    assert 0.99 < second.r < 1
    assert all(abs(unit.r) < 0.95 for unit in rest)
    assert next(unit.r for unit in rest if unit.number == 2) == 0
    # The value itself, and r as NumPy has it.
    column = found.properties["position in the line"]
    assert np.allclose(found.values[:, 0, 0], np.tanh(column * np.tanh(0.02)), atol=1e-6)
    assert found.shown == "tanh(c)"
    for m, p in enumerate(found.properties.values()):
        for unit in (0, 1, 3, 4):
            want = np.corrcoef(found.values[:, 0, unit], p)[0, 1] if p.std() else 0
            assert found.correlation[0, unit, m] == pytest.approx(want, abs=1e-9)


def test_saturation_of_known_gates():
    """Forget gate 0 is open but at line ends; 1 and 2 are shut; input gate 0 is open."""
    found = handmade().inspect(TEXT, depth=10)
    ends = TEXT.count("\n") / len(TEXT)
    assert list(found.saturation) == ["i", "f", "o"]
    assert np.allclose(found.saturation["f"][0, :3], [[ends, 1 - ends], [1, 0], [1, 0]])
    assert found.saturation["o"][0, :3].tolist() == [[0, 0], [0, 1], [0, 0]]
    assert np.allclose(found.saturation["i"][0, :3], [[0, 1], [0, 1], [1, 0]])


@pytest.mark.parametrize("depth", [100, 6])
def test_gradient_is_the_complex_step_s(depth):
    """dh[t-k] and dc[t-k] of one prediction, by the reference: the median over every place that has K steps before."""
    lm = CharLM(hidden_size=6, num_layers=2, embedding_size=None, seed=3, dtype="float64", dropout=0.5).build("abcd\n")
    text = "abca\nddab"
    found = lm.inspect(text, depth=depth)
    ids = lm.vocabulary.encode(text)
    K = min(depth, len(ids) - 1)
    assert {name: norms.shape for name, norms in found.gradient.items()} == {"h": (2, K), "c": (2, K)}
    rnn = {n[2:]: a.copy() for n, a in lm.model.params.items() if n.startswith("0.")}
    out = {n[2:]: a.copy() for n, a in lm.model.params.items() if not n.startswith("0.")}
    x = reference.one_hot(ids[:, None], 5)
    for k in range(1, K + 1):
        norms = {"h": [], "c": []}
        for end in range(K, len(ids)):  # what is predicted
            at = {name: np.zeros((2, 1, 6)) for name in "hc"}
            if end > k:
                _, at["h"], at["c"] = reference.lstm(rnn, x[: end - k])

            def loss(state, k=k, end=end):
                y, _, _ = reference.lstm(rnn, x[end - k : end], state["h"], state["c"])
                return reference.cross_entropy(reference.linear(out, y[..., -1:, :, :]), ids[end : end + 1, None])

            for name, d in reference.complex_step(loss, at).items():
                norms[name].append(np.linalg.norm(d[:, 0], axis=-1))
        want = {name: np.median(rows, axis=0) for name, rows in norms.items()}
        assert_close({name: found.gradient[name][:, k - 1] for name in "hc"}, want, 1e-9)


def test_vanishing_at_a_known_rate():
    """A vanilla RNN with W = I / 2 and next to no input: half of the gradient is left at every step."""
    lm = CharLM(cell="rnn", hidden_size=4, num_layers=1, embedding_size=None, seed=1).build(TEXT)
    layer = lm.model.layers[0]
    new = {name: 1e-4 * layer.params[name] for name in layer.params} | {"weight_hh_l0": np.eye(4, dtype="float32") / 2}
    layer.load_state_dict(new)
    found = lm.inspect(TEXT, depth=30)
    assert (list(found.gradient), found.shown, found.saturation) == (["h"], "h", {})
    assert np.allclose(found.gradient["h"][0, 1:] / found.gradient["h"][0, :-1], 0.5, rtol=1e-3)
    assert found.half_lives()["h"][0] in (2, 3)  # to rounding
    assert lm.inspect(TEXT, depth=1).half_lives() == {"h": [None]}


def test_the_model_is_left_alone():
    """Weights, gradients and random generators; the same result again, and whatever the dropout."""
    lm = CharLM(hidden_size=6, num_layers=2, embedding_size=4, dropout=0.5, seed=1).build(TEXT)
    text = TEXT[:200]
    lm.fit(text, epochs=1, progress=False)
    before = bits_of(lm.model.params), bits_of(lm.model.grads), [g.bit_generator.state for g in lm.model.generators()]
    found = lm.inspect(text, depth=20)
    again = bits_of(lm.model.params), bits_of(lm.model.grads), [g.bit_generator.state for g in lm.model.generators()]
    assert again == before
    y = lm.model.layers[1](lm.model.layers[0](lm.vocabulary.encode(text)[:, None]))[1]
    assert np.allclose(found.values[-1], np.tanh(y[1][:, 0]), atol=1e-6)
    assert bits_of(lm.inspect(text, depth=20).gradient) == bits_of(found.gradient)


def test_properties_of_a_text():
    """By hand: where each is 1, and the counts."""
    text = '\tA1 = ["b\n\n("""x\n\n"y" """) “z”'
    p = text_properties(text)
    where = {
        "inside quotes": [7, 8, 9, 12, *range(14, 24), 27, 28],
        "line end": [9, 10, 16, 17],
        "between words": sorted(set(range(30)) - {1, 2, 8, 15, 19, 28}),
        "capital letter": [1],
        "digit": [2],
        "indentation": list(range(9)),
        "depth of brackets": [*range(6, 10), *range(11, 17)],
    }
    counts = {
        "position in the line": [*range(1, 10), 0, 0, *range(1, 6), 0, 0, *range(1, 13)],
        "position in the word": [0, 1, 2, *[0] * 5, 1, *[0] * 6, 1, *[0] * 3, 1, *[0] * 8, 1, 0],
    }
    assert {name: np.flatnonzero(p[name]).tolist() for name in where} == where
    assert {name: p[name].tolist() for name in counts} == counts
    assert set(p) == set(where) | set(counts)
    assert text_properties("  x\n\t\t((")["indentation"].tolist() == [1, 2, 2, 0, 1, 2, 2, 2]
    assert text_properties("((])")["depth of brackets"].tolist() == [1, 2, 1, 0]


# --- the page -----------------------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Every tag closed in order, no script, nothing loaded; the text of every <pre>."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not [value for name, value in attrs if name in ("src", "href", "style") or name.startswith("on")]
        self.tags.append(tag)
        if tag == "pre":
            self.texts.append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in ("path", "circle")
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "pre" in self.open:
            self.texts[-1] += data


def checked(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert "url(" not in html
    assert "nan" not in html
    return checker


def test_the_page_is_whole_and_escaped():
    """The text comes back as it was, whatever is in it; a point for every gate, a line for every state and layer."""
    found = handmade().inspect(TEXT, depth=10)
    html = page(found, "<model> & more", "a\x00b", count=3)
    checker = checked(html)
    assert "<h1>&lt;model&gt; &amp; more</h1>" in html
    assert "a␀b" in html
    assert "<b>" not in re.sub(r"<b>[ifo]</b>, ", "", html)
    assert len(checker.texts) == 3
    for unit, text in zip(found.units(), checker.texts):
        assert text.replace("↵", "") == TEXT[found.passage(unit.follows)]
    assert checker.tags.count("circle") == 3 * 5
    assert len(re.findall('class="line', html)) == 2
    assert re.search(r"layer 0, unit 1: line end, r = \+1\.00", html, re.IGNORECASE)


def test_a_counting_unit_gets_darker_along_the_line():
    """The shades of a line of unit 0, from the page."""
    html = page(handmade().inspect(TEXT, depth=10), "t")
    pre = re.search(r"unit 0: position.*?<pre>(.*?)</pre>", html, re.DOTALL)[1]
    line = next(line for line in pre.split("\n") if "done" in re.sub("<.*?>", "", line))
    shades = [int(k) for k in re.findall(r'class="p(\d)"', line)]
    assert len(shades) > 3
    assert shades == sorted(set(shades))


@pytest.mark.parametrize("text", ["ab", "\n\n", "a" * 300, "\r\x1b\t \n" * 80])
def test_texts_with_little_in_them(text):
    """Two characters, no line end, nothing that varies, control characters."""
    lm = CharLM(cell="rnn", hidden_size=3, num_layers=1, embedding_size=2, seed=1).build(text)
    checker = checked(page(lm.inspect(text), "t"))
    assert not set("\r\x1b") & set("".join(checker.texts))


def test_what_is_refused():
    lm = handmade()
    with pytest.raises(ValueError, match=r"text has characters that the training text does not have: 'Z' \(U\+005A\)"):
        lm.inspect("Z" * 9)
    with pytest.raises(ValueError, match="text has 1 characters, expected at least 2"):
        lm.inspect("a")
    with pytest.raises(TypeError, match="text is bytes, expected a str"):
        lm.inspect(b"ab")
    with pytest.raises(ValueError, match="depth is 0, expected at least 1"):
        lm.inspect("ab", depth=0)
    with pytest.raises(RuntimeError, match="no weights yet"):
        CharLM().inspect("ab")
    lm.model.params["0.bias_ih_l0"] = np.full(20, np.nan)
    with pytest.raises(ValueError, match="not finite: its training has diverged"):
        lm.inspect("aa")


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    handmade().save("model.npz")
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text("Züge")
    return tmp_path


def test_the_command_with_a_file(folder, capsys):
    assert main(["inspect", "model.npz", "text.txt", "--length", "900", "--units", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1] == "text: text.txt, the beginning: 900 characters"
    assert out[2] == "layer 0, unit 1: line end, r = +1.00"
    assert out[3].startswith("layer 0, unit 0: position in the line")
    assert out[-1] == "page: model.html"
    html = (folder / "model.html").read_text(encoding="utf-8")
    assert len(checked(html).texts) == 1
    assert "model.npz: what its hidden units do" in html


def test_the_command_with_the_model_s_own_text(folder, capsys):
    for name in ("a.html", "b.html"):
        assert main(["inspect", "model.npz", "-o", name, "--length", "300", "--seed", "4"]) == 0
    assert "written by the model itself, seed 4: 300 characters" in capsys.readouterr().out
    assert (folder / "a.html").read_bytes() == (folder / "b.html").read_bytes()
    checked((folder / "a.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.npz", "none.npz: No such file"),
        ("text.txt", "text.txt: not a fastrnn model file"),
        ("model.npz none.txt", "none.txt: No such file"),
        ("model.npz other.txt", r"text has characters that the training text does not have: .*'ü' \(U\+00FC\)"),
        ("model.npz text.txt --length 1", "text has 1 characters, expected at least 2"),
        ("model.npz text.txt -o text.txt", "text.txt is read: name another file for the page"),
        ("model.npz -o model.npz", "model.npz is read: name another file for the page"),
        ("model.npz text.txt -o no/where.html", "no/where.html.*No such file"),
        ("model.npz text.txt -o .", "folder"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["inspect", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

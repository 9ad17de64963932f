"""Models built from the layers, and the five shapes that a task with sequences can have, a line each.

    one to one                one vector in, one out; no sequence
    one to many               a caption for a picture
    many to one               the sentiment of a sentence
    many to many, in step     a label for every frame; the next character
    many to many              a translation: an encoder reads all, then a decoder writes

>>> import fastrnn as fr, numpy as np
>>> T, B, I, H, O = 6, 3, 4, 8, 5
>>> rng = np.random.default_rng(0)
>>> vector, sequence = rng.random((B, I), np.float32), rng.random((T, B, I), np.float32)

One to one: one step from a zero state, which is a network with one hidden layer.

>>> model = fr.Sequential(fr.Repeat(1), fr.RNN(I, H), fr.Last(), fr.Linear(H, O))
>>> y, state = model(vector)
>>> y.shape
(3, 5)

One to many: the vector is there at every step.

>>> model = fr.Sequential(fr.Repeat(T), fr.LSTM(I, H), fr.Linear(H, O))
>>> y, state = model(vector)
>>> y.shape
(6, 3, 5)

Many to one: the output at each row's last step, or with `fr.Mean()` the mean over all of them.

>>> model = fr.Sequential(fr.LSTM(I, H), fr.Last(), fr.Linear(H, O))
>>> y, state = model(sequence)
>>> y.shape
(3, 5)

Many to many, in step: an output for every input.

>>> model = fr.Sequential(fr.LSTM(I, H), fr.Linear(H, O))
>>> y, state = model(sequence)
>>> y.shape
(6, 3, 5)

Many to many: the final state of one starts the other, and the lengths have nothing to do with each other.

>>> model = fr.EncoderDecoder(fr.LSTM(I, H), fr.Sequential(fr.Embedding(O, I), fr.LSTM(I, H), fr.Linear(H, O)))
>>> said = rng.integers(0, O, (2, B))
>>> model(sequence, said).shape, model.generate(sequence, start=0, length=9).shape
((2, 3, 5), (9, 3))

All of them are trained in the same way: `forward`, a loss, `backward`, an optimizer's `step`.

>>> logits, tape = model.forward(sequence, said)
>>> loss, dlogits = fr.cross_entropy(logits, said)
>>> dx, _ = model.backward(tape, dlogits)
>>> dx.shape
(6, 3, 4)
>>> fr.Adam(model).step()
"""

"""Layers: parameters, shapes, validation; forward directly above backward. They call kernels and nothing above.

The files:

    rnn lstm gru        one for each cell: how one direction of one layer runs
    recurrent layout    what those share: stacks, directions, lengths, dropout between layers
    embedding linear dropout sequential
    steps               the time axis taken away or added: Last, Mean, Repeat
    layer store         what all layers are: named parameters in one flat vector, their gradients in another; checks
    products buffers    the packed matrix product; working memory
"""

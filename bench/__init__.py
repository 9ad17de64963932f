"""The comparison of fastrnn with its peers: verified, then timed. `python -m bench`; see README.md beside
this file.

cases       what is compared: one table that drives everything
problem     the numbers of a case: weights and inputs, from a seed
loop, lm    the same mathematics in NumPy: in float64 the reference, in float32 a peer
verify      results against the reference
job         what a library does for a case: its call and its results
peers/      one file for each library; imported in that library's own process only
machine/    what this machine is and can do: multiply-adds and bytes per second
worker      the process of one library; `client` is the other end of its pipe
contest     one case: verify everybody, then time everybody, in turns
stats, work medians and quartiles of ratios; the multiply-adds and bytes of a case
startup     import times and first results, each in a fresh process
memory      what a training pass holds, likewise
neighbour   calls alone and beside a process that keeps one processor busy, which is `spinner`
installed   what a library takes on the disk, with all that it needs
learn       one model trained on a text by two libraries; `learner` is the process of one
report      tables and pictures from a run's JSON file
"""

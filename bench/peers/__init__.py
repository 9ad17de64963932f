"""One file for each library, `with_<library>.py`; imported in that library's own process only (NumPy's
everywhere).

VERSIONS             names of the distributions whose versions are reported
start(threads)       imports the library and tells it how many threads to use; `ImportError`: not installed. What it
                     returns, if anything, are further versions
make(case) -> Job    the case in this library; `Unsupported` says why not
"""

#: In the order in which they are shown.
LIBRARIES = ("fastrnn", "torch", "onnxruntime", "openvino", "jax", "numpy", "onednn")
#: Of them those that nobody calls from Python: shown, but no rivals where a row's fastest peer counts.
YARDSTICKS = ("onednn",)

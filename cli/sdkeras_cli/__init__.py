"""The command line: options in, one library call, exit status out."""

import os

# Runs go on side by side, one thread each; BLAS threads of their own would fight over the same cores (a 40-step run
# was seen to take 50 times as long). Read by OpenBLAS when NumPy is imported, hence here, before anything else.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

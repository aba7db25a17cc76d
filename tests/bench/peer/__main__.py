"""`python -m bench.peer`: see `trial`."""

import sys

from bench.peer import trial

if __name__ == "__main__":
    trial.main(*sys.argv[1:])

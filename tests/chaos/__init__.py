"""Faults of every kind, thrown at litejobs, and checkers that look for a broken promise."""

import sys
from pathlib import Path

# As pytest has it: for `programs`, which ordeals start as the tests do.
sys.path.append(str(Path(__file__).resolve().parent.parent))

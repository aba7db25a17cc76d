"""Faults of every kind, thrown at litejobs, and checkers that look for a broken promise."""

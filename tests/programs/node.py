"""A program that runs the definitions of `trouble`: python -m programs.node PATH [options]."""

from __future__ import annotations

import argparse

from litejobs import LiteJobs
from programs import trouble

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--grace", type=float, default=0.3)
    parser.add_argument("--until", choices=["empty"])
    parser.add_argument("--node")
    options = parser.parse_args()
    jobs = LiteJobs(options.path)
    jobs.register(*trouble.DEFINITIONS)
    jobs.work(options.workers, node=options.node, until=options.until, grace=options.grace)
    print("worked to the end")

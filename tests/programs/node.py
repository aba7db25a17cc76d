"""A program that runs the definitions of `trouble`, or of another module here:
python -m programs.node PATH [options]."""

from __future__ import annotations

import argparse
import importlib

from litejobs import LiteJobs

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--grace", type=float, default=0.3)
    parser.add_argument("--until", choices=["empty"])
    parser.add_argument("--node")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--module", default="trouble")
    options = parser.parse_args()
    jobs = LiteJobs(options.path)
    jobs.register(*importlib.import_module(f"programs.{options.module}").DEFINITIONS)
    jobs.work(
        None if options.threads else options.workers,
        threads=options.threads,
        node=options.node,
        until=options.until,
        grace=options.grace,
    )
    print("worked to the end")

#!/usr/bin/env python3
"""Times one peer in one workload: training step, log_prob and sample of a batch.

    python benches/peers/measure.py --only realnvp-2d --peer pytorch --runs 7 --threads 2
    python benches/peers/measure.py --list

One process has one peer, so that its memory is its own. Prints one JSON object a line: workload, peer,
op, median milliseconds, peak resident MiB so far (`peak_mib`) and what the runtime took of them before
there was a model (`base_mib`). A step is timed with both of PyTorch's Adams and the faster one counts:
`adam` names it. Where there is a compiler, op `compile` is the time of the first calls of all three.
`../compare.py` runs this beside ours and prints the table.
"""
import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time

from workloads import PACKAGES, WORKLOADS, peers_of

UNCOUNTED = 2  # runs before those that count


def milliseconds(function):
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def peak_mib():
    try:
        with open("/proc/self/status") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        import resource

        unit = 2**20 if platform.system() == "Darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def limit_threads(threads):
    """XLA and the compilers' helpers look at the processors that they may run on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=WORKLOADS, metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--peer", choices=PACKAGES, metavar="PEER", help=", ".join(PACKAGES))
    parser.add_argument("--runs", type=int, default=7, help="timed runs of an operation (default 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: one a processor")
    parser.add_argument("--list", action="store_true", help="workloads and their peers")
    arguments = parser.parse_args()
    if arguments.list:
        for workload in WORKLOADS:
            print(f"{workload}: {', '.join(peers_of(workload))}")
        return
    workload, peer = arguments.only, arguments.peer
    if not (workload and peer):
        parser.error("--only and --peer are needed; --list shows what there is")
    if peer not in peers_of(workload):
        parser.error(f"{workload} has {', '.join(peers_of(workload))}, not {peer}")
    if arguments.runs < 1 or arguments.threads < 1:
        parser.error("--runs and --threads are 1 or more")

    limit_threads(arguments.threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # every start is a first start
    runtime = importlib.import_module("on_jax" if peer == "flowjax" else "on_torch")
    runtime.start(arguments.threads, PACKAGES[peer])
    base = peak_mib()

    def report(op, **fields):
        row = {"workload": workload, "peer": peer, "op": op} | fields
        row |= {"peak_mib": round(peak_mib(), 1), "base_mib": round(base, 1)}
        print(json.dumps(row), flush=True)

    num_parameters, first_calls, timed = runtime.operations(WORKLOADS[workload], peer)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES[peer]}
    versions["python"] = platform.python_version()
    report("start", num_parameters=num_parameters, versions=versions)
    if first_calls:
        report("compile", ms=round(sum(map(milliseconds, first_calls)), 3))
    best = {}
    for op, note, function in timed:
        for _ in range(UNCOUNTED):
            function()
        ms = statistics.median(milliseconds(function) for _ in range(arguments.runs))
        if op not in best or ms < best[op]["ms"]:
            best[op] = {"ms": round(ms, 3)} | note
        if op != "train" or note.get("adam") != "default":
            report(op, **best[op])


if __name__ == "__main__":
    main()

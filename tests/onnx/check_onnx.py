"""Runs what burn-flows exported as ONNX in onnxruntime, and compares and measures it.

    pip install onnx onnxruntime safetensors numpy
    BURN_FLOWS_EXPORT_DIR=DIR cargo nextest run --all-features --test onnx
    python check_onnx.py DIR

Of each model DIR holds NAME.log_prob.onnx, NAME.sample.onnx and NAME.onnx.safetensors with inputs and what has to
come out. With --time FILE.onnx and a shape, the seconds of one run on one thread and on all: see
benches/README.md."""

import argparse
import pathlib
import time

import numpy
import onnx
import onnxruntime
from safetensors.numpy import load_file

TOLERANCE = 1e-4


def run(path, name, value, threads=0):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session, session.run(None, {name: value})[0]


def check(folder, path):
    name = path.name.removesuffix(".onnx.safetensors")
    expected = load_file(path)
    for kind, given, wanted in [("log_prob", "x", "log_prob"), ("sample", "noise", "drawn")]:
        file = folder / f"{name}.{kind}.onnx"
        onnx.checker.check_model(onnx.load(file), full_check=True)
        _, got = run(file, given, expected[given])
        error = (abs(got - expected[wanted]) / (1 + abs(expected[wanted]))).max()
        print(f"{file.name}  {error:.1e}")
        assert error < TOLERANCE, file
        # Any number of samples.
        run(file, given, numpy.repeat(expected[given], 3, axis=0))


def measure(path, shape, repeats):
    given = onnx.load(path).graph.input[0].name
    value = numpy.random.default_rng(0).uniform(0.05, 0.95, shape).astype(numpy.float32)
    for threads in [1, 0]:
        session, _ = run(path, given, value, threads)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            session.run(None, {given: value})
            times.append(time.perf_counter() - start)
        name = "one thread" if threads else "all threads"
        print(f"{path.name}, {name}: {numpy.median(times):.4f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=pathlib.Path)
    parser.add_argument("--time", type=int, nargs="+", metavar="SIZE", help="the shape of the input")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    if options.time:
        measure(options.path, options.time, options.repeats)
    else:
        files = sorted(options.path.glob("*.onnx.safetensors"))
        assert files, f"nothing was exported to {options.path}"
        for file in files:
            check(options.path, file)
        print(f"{len(files)} models agree")

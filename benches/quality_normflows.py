#!/usr/bin/env python3
"""The training of benches/quality.rs in normflows: see there.

    python3 -m venv benches/peers/venv
    benches/peers/venv/bin/pip install -r benches/peers/requirements.txt
    benches/peers/venv/bin/python benches/quality_normflows.py --order order.bin --minutes 10
"""
import argparse
import gzip
import json
import math
import pathlib
import sys
import time

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
from libraries import normflows_glow  # noqa: E402

BATCH, LEARNING_RATE, ALPHA = 64, 5e-4, 1e-6


def images(name):
    folder = pathlib.Path(__file__).resolve().parent.parent / "data" / "mnist"
    with gzip.open(folder / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)


def logits(pixels, generator):
    """The logits of dequantized pixels, and the log-determinant from [0, 1) to them."""
    x = torch.from_numpy(pixels.astype(np.float32))
    x = (x + torch.rand(x.shape, generator=generator)) / 256
    p, q = ALPHA + (1 - 2 * ALPHA) * x, ALPHA + (1 - 2 * ALPHA) * (1 - x)
    log_det = (math.log(1 - 2 * ALPHA) - p.log() - q.log()).flatten(1).sum(1)
    return p.log() - q.log(), log_det


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--order", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--every", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    train, test = images("train-images-idx3-ubyte.gz"), images("t10k-images-idx3-ubyte.gz")[::10]
    order = np.fromfile(arguments.order, "<u4").reshape(-1, BATCH)
    noise = torch.Generator().manual_seed(1)

    model = normflows_glow((1, 28, 28), 2, 8, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    with torch.no_grad():
        model.log_prob(logits(train[order[0]], noise)[0], None)  # data-dependent initialization
    start, measuring, upcoming, step = time.perf_counter(), 0.0, 0.0, 0
    while True:
        seconds = time.perf_counter() - start - measuring
        last = seconds >= arguments.minutes * 60
        if seconds >= upcoming or last:
            total, fixed = 0.0, torch.Generator().manual_seed(2)
            with torch.no_grad():
                for batch in np.split(test, len(test) // 100):
                    x, log_det = logits(batch, fixed)
                    total += (model.log_prob(x, None) + log_det).sum().item()
            bits = (math.log(256) - total / len(test) / 784) / math.log(2)
            row = {"peer": "normflows", "step": step, "seconds": seconds, "bits_per_dim": bits}
            print(json.dumps(row), flush=True)
            measuring, upcoming = time.perf_counter() - start - seconds, seconds + arguments.every
        if last:
            break
        x, log_det = logits(train[order[step]], noise)
        optimizer.zero_grad()
        (-(model.log_prob(x, None) + log_det).mean()).backward()
        optimizer.step()
        step += 1


if __name__ == "__main__":
    main()

"""The workloads of `benches/peers.rs` under the same names, and who competes in each.

Standard library only: `compare.py` reads this without PyTorch.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Glow:
    batch: int
    image_shape: tuple
    num_levels: int
    num_steps: int
    hidden_width: int


@dataclass(frozen=True)
class AffineCouplings:
    batch: int
    features: int
    num_couplings: int
    hidden: tuple


@dataclass(frozen=True)
class AdditiveCouplings:
    batch: int
    features: int
    num_couplings: int
    hidden: tuple


@dataclass(frozen=True)
class ImageRealNvp:
    batch: int
    image_shape: tuple
    num_scales: int
    hidden_width: int
    num_blocks: int


@dataclass(frozen=True)
class SplineCouplings:
    batch: int
    features: int
    num_couplings: int
    hidden: tuple
    num_bins: int
    bound: float
    context: int = 0


@dataclass(frozen=True)
class Autoregressive:
    batch: int
    features: int
    num_layers: int
    hidden: tuple


WORKLOADS = {
    "glow-mnist": Glow(64, (1, 28, 28), 2, 8, 128),
    "glow-faces": Glow(8, (3, 64, 64), 3, 8, 256),
    "glow-wide": Glow(16, (3, 32, 32), 2, 4, 512),
    "realnvp-2d": AffineCouplings(1024, 2, 8, (64, 64)),
    "realnvp-vec64": AffineCouplings(4096, 64, 8, (256, 256)),
    "nice-mnist": AdditiveCouplings(100, 784, 4, (1000,) * 5),
    "realnvp-mnist": ImageRealNvp(32, (1, 28, 28), 2, 16, 1),
    "nsf-vec16": SplineCouplings(1024, 16, 8, (128, 128), 8, 3.0),
    "maf-vec16": Autoregressive(1024, 16, 5, (128, 128)),
    "cnsf-sbi": SplineCouplings(200, 2, 5, (50, 50), 10, 3.0, context=8),
}

CHANNELS_LAST, COMPILED = "pytorch-channels-last", "pytorch-compiled"

# What a peer imports, and what an installer calls it.
PACKAGES = {
    "pytorch": ["torch"],
    CHANNELS_LAST: ["torch"],
    COMPILED: ["torch"],
    "normflows": ["torch", "normflows"],
    "zuko": ["torch", "zuko"],
    "nflows": ["torch", "nflows"],
    "nflows-sbi": ["torch", "nflows"],
    "flowjax": ["jax", "flowjax", "equinox", "optax", "paramax"],
}

_LIBRARIES = {
    "glow-mnist": ["normflows"],
    "glow-faces": ["normflows"],
    "glow-wide": ["normflows"],
    "realnvp-2d": ["normflows", "flowjax"],
    "realnvp-vec64": ["normflows", "zuko", "flowjax"],
    "nice-mnist": [],
    "realnvp-mnist": [],
    "nsf-vec16": ["normflows", "zuko", "nflows", "flowjax"],
    "maf-vec16": ["normflows", "zuko", "nflows", "flowjax"],
    "cnsf-sbi": ["zuko", "nflows", "nflows-sbi"],
}


def peers_of(workload):
    """All that the workload has: plain PyTorch and its variants first, then the libraries."""
    variants = [CHANNELS_LAST] if isinstance(WORKLOADS[workload], Glow) else []
    return ["pytorch", *variants, COMPILED, *_LIBRARIES[workload]]

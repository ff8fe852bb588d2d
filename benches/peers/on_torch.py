"""The peers that run on PyTorch: what a workload's model is in each, and the operations that are timed."""
import importlib

import libraries
import torch
import workloads as of
from libraries import Peer
from plain_images import Glow, ImageRealNvp
from plain_vectors import Affine, CouplingFlow, MaskedAutoregressiveFlow, Nice, RationalQuadratic

LEARNING_RATE = 1e-4


def plain(w):
    match w:
        case of.Glow():
            return Glow(w.image_shape, w.num_levels, w.num_steps, w.hidden_width)
        case of.ImageRealNvp():
            return ImageRealNvp(w.image_shape, w.num_scales, w.hidden_width, w.num_blocks)
        case of.AdditiveCouplings():
            return Nice(w.features, w.num_couplings, w.hidden)
        case of.AffineCouplings():
            return CouplingFlow(w.features, w.num_couplings, w.hidden, lambda: Affine(w.features // 2))
        case of.SplineCouplings():
            spline = lambda: RationalQuadratic(w.num_bins, w.bound)
            return CouplingFlow(w.features, w.num_couplings, w.hidden, spline, w.context)
        case of.Autoregressive():
            return MaskedAutoregressiveFlow(w.features, w.num_layers, w.hidden)


LIBRARIES = {
    ("normflows", of.Glow): libraries.normflows_images,
    ("normflows", of.AffineCouplings): libraries.normflows_affine,
    ("normflows", of.SplineCouplings): libraries.normflows_splines,
    ("normflows", of.Autoregressive): libraries.normflows_autoregressive,
    ("zuko", of.AffineCouplings): libraries.zuko_affine,
    ("zuko", of.SplineCouplings): libraries.zuko_splines,
    ("zuko", of.Autoregressive): libraries.zuko_autoregressive,
    ("nflows", of.SplineCouplings): libraries.nflows_splines,
    ("nflows", of.Autoregressive): libraries.nflows_autoregressive,
    ("nflows-sbi", of.SplineCouplings): libraries.nflows_splines_of_sbi,
}


def build(w, peer):
    if (peer, type(w)) in LIBRARIES:
        return LIBRARIES[peer, type(w)](w)
    model = plain(w)
    if peer == of.COMPILED:
        return Peer(model, *(torch.compile(f, dynamic=False) for f in (model.log_prob, model.sample)))
    if peer == of.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    return Peer(model, model.log_prob, model.sample)


def batch(w, peer):
    """Data and, where the workload has them, contexts."""
    match w:
        case of.Glow():
            x = torch.randn(w.batch, *w.image_shape)
            if peer == of.CHANNELS_LAST:
                x = x.to(memory_format=torch.channels_last)
            return [x]
        case of.ImageRealNvp():
            return [torch.rand(w.batch, *w.image_shape)]
        case of.AdditiveCouplings():
            return [torch.rand(w.batch, w.features)]
        case of.SplineCouplings() if w.context:
            return [torch.randn(w.batch, w.features), torch.randn(w.batch, w.context)]
    return [torch.randn(w.batch, w.features)]


def start(threads, packages):
    """Brings the runtime up: imports, autograd's threads, what an optimizer imports when it first steps."""
    for package in packages:
        importlib.import_module(package)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    weight = torch.ones(1, requires_grad=True)
    weight.square().sum().backward()
    torch.optim.Adam([weight]).step()


def operations(w, peer):
    """Number of parameters, the first calls of a compiler, and an iterator of (operation, note, function)."""
    model, log_prob, sample = build(w, peer)
    x, *context = batch(w, peer)

    def step(optimizer):
        def train():
            optimizer.zero_grad()
            (-log_prob(x, *context).mean()).backward()
            optimizer.step()

        return train

    @torch.no_grad()
    def density():
        log_prob(x, *context)

    @torch.no_grad()
    def draw():
        sample(len(x), *context)

    def timed():
        for adam, options in (("default", {}), ("fused", {"fused": True})):
            optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **options)
            yield "train", {"adam": adam}, step(optimizer)
        model.eval()
        yield "log_prob", {}, density
        yield "sample", {}, draw

    def first_calls():
        if peer != of.COMPILED:
            return []
        train = step(torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))
        return [train, model.eval, density, draw, model.train]

    if peer != of.COMPILED:
        density()  # some libraries' layers take their start from data; plain PyTorch's do not
    return sum(p.numel() for p in model.parameters()), first_calls(), timed()

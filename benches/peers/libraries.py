"""The models of the workloads in normflows, zuko and nflows as published.

Nets are multilayer perceptrons of the workload's widths, so that the numbers of parameters agree.
Where a library's ready-made flow differs from the workload, its own parts are put together instead,
and a comment says why. Each library is imported only where it is used.
"""
from functools import partial
from typing import Callable, NamedTuple

import torch
from plain_vectors import mlp
from torch import nn


class Peer(NamedTuple):
    """A model with what is timed; `log_prob` takes data and contexts, `sample` a number and contexts."""

    model: nn.Module
    log_prob: Callable
    sample: Callable


class Conditioner(nn.Module):
    """A multilayer perceptron with the signature that nflows and normflows call a coupling's net by."""

    def __init__(self, num_in, num_out, hidden, context=0):
        super().__init__()
        self.net = mlp(num_in + context, hidden, num_out)
        self.hidden_features = hidden[-1]  # the splines divide their raw widths and heights by its root

    def forward(self, x, context=None):
        return self.net(x if context is None else torch.cat([x, context], 1))


# normflows: a model is a list of flows from the prior to the data; `forward` is the way of sampling.


def normflows_glow(image_shape, num_levels, num_steps, hidden_width):
    """Multi-scale Glow with standard normal priors; its `log_prob` asks for a class, which may be None."""
    import normflows as nf

    channels, height, width = image_shape
    priors, flows = [], []
    for level in range(num_levels, 0, -1):  # from the coarsest one
        channels_here = channels * 2 ** (level + 1)
        latent_channels = channels_here if level == num_levels else channels_here // 2
        latent_shape = (latent_channels, height // 2**level, width // 2**level)
        priors.append(nf.distributions.DiagGaussian(latent_shape, trainable=False))
        step = partial(nf.flows.GlowBlock, channels_here, hidden_width, split_mode="channel", scale=True)
        flows.append([*(step() for _ in range(num_steps)), nf.flows.Squeeze()])
    merges = [nf.flows.Merge() for _ in range(num_levels - 1)]
    return nf.MultiscaleFlow(priors, flows, merges)


def _normflows(flows, features):
    import normflows as nf

    prior = nf.distributions.DiagGaussian(features, trainable=False)
    model = nf.NormalizingFlow(prior, flows)
    return Peer(model, model.log_prob, model.sample)


def normflows_images(w):
    model = normflows_glow(w.image_shape, w.num_levels, w.num_steps, w.hidden_width)
    return Peer(model, lambda x: model.log_prob(x, None), model.sample)


def normflows_affine(w):
    import normflows as nf

    flows = []
    for _ in range(w.num_couplings):
        net = nf.nets.MLP([w.features // 2, *w.hidden, w.features], init_zeros=True)
        flows.append(nf.flows.AffineCouplingBlock(net))
        flows.append(nf.flows.Permute(w.features, mode="swap"))
    return _normflows(flows, w.features)


def normflows_splines(w):
    import normflows as nf
    from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
    from normflows.utils.masks import create_alternating_binary_mask

    # CoupledRationalQuadraticSpline wraps this with a residual net of five layers and with splines on
    # the half that the net sees, which the workload has not. Its forward is the way of density.
    flows = []
    for i in range(w.num_couplings):
        mask = create_alternating_binary_mask(w.features, even=i % 2 == 0)
        net = partial(Conditioner, hidden=w.hidden)
        spline = {"num_bins": w.num_bins, "tails": "linear", "tail_bound": w.bound}
        flows.append(nf.flows.Reverse(PiecewiseRationalQuadraticCoupling(mask, net, **spline)))
    return _normflows(flows, w.features)


def normflows_autoregressive(w):
    import normflows as nf

    flows = []
    for _ in range(w.num_layers):
        # The first hidden layer stands before the blocks. Unreversed it is an inverse autoregressive
        # flow: fast to sample, slow to train.
        net = {"num_blocks": len(w.hidden) - 1, "use_residual_blocks": False}
        layer = nf.flows.MaskedAffineAutoregressive(w.features, w.hidden[0], **net)
        flows += [nf.flows.Reverse(layer), nf.flows.Permute(w.features, mode="swap")]
    return _normflows(flows, w.features)


# zuko: a model called with contexts is a distribution.


def _zuko(model):
    def log_prob(x, *context):
        return model(*context).log_prob(x)

    def sample(n, *context):
        # With contexts, one draw for each.
        return model(*context).sample(() if context else (n,))

    return Peer(model, log_prob, sample)


def zuko_affine(w):
    import zuko

    return _zuko(zuko.flows.RealNVP(w.features, transforms=w.num_couplings, hidden_features=w.hidden))


def zuko_splines(w):
    import zuko

    # zuko.flows.NSF is autoregressive; its coupling flow takes any univariate map.
    return _zuko(
        zuko.flows.NICE(
            w.features,
            w.context,
            transforms=w.num_couplings,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=w.bound),
            shapes=[(w.num_bins,), (w.num_bins,), (w.num_bins - 1,)],
            hidden_features=w.hidden,
        )
    )


def zuko_autoregressive(w):
    import zuko

    return _zuko(zuko.flows.MAF(w.features, transforms=w.num_layers, hidden_features=w.hidden))


# nflows: a model is a transform from data to latents and a distribution.


def _nflows(layers, features):
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform

    model = Flow(CompositeTransform(layers), StandardNormal([features]))

    def sample(n, *context):
        return model.sample(1 if context else n, *context)

    return Peer(model, model.log_prob, sample)


def _nflows_splines(w, net, between=()):
    from nflows.transforms import PiecewiseRationalQuadraticCouplingTransform
    from nflows.utils.torchutils import create_alternating_binary_mask

    layers = []
    for i in range(w.num_couplings):
        mask = create_alternating_binary_mask(w.features, even=i % 2 == 0)
        spline = {"num_bins": w.num_bins, "tails": "linear", "tail_bound": w.bound}
        layers.append(PiecewiseRationalQuadraticCouplingTransform(mask, net, **spline))
        layers += [layer() for layer in between]
    return _nflows(layers, w.features)


def nflows_splines(w):
    return _nflows_splines(w, partial(Conditioner, hidden=w.hidden, context=w.context))


def nflows_splines_of_sbi(w):
    """The spline estimator of the package sbi: gated residual nets of two blocks, LU layers in between.

    It has three times the parameters of the others.
    """
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import LULinear

    width = w.hidden[0]

    def net(num_in, num_out):
        return ResidualNet(num_in, num_out, width, context_features=w.context, num_blocks=2)

    return _nflows_splines(w, net, [partial(LULinear, w.features, identity_init=True)])


def nflows_autoregressive(w):
    from nflows.transforms import MaskedAffineAutoregressiveTransform, ReversePermutation

    layers = []
    for _ in range(w.num_layers):
        # The first hidden layer stands before the blocks.
        net = {"num_blocks": len(w.hidden) - 1, "use_residual_blocks": False}
        layers.append(MaskedAffineAutoregressiveTransform(w.features, w.hidden[0], **net))
        layers.append(ReversePermutation(w.features))
    return _nflows(layers, w.features)

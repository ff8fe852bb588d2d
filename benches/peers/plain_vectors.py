"""Flows of vectors in plain PyTorch, as fast as it runs them without a compiler.

The two halves of a vector stay two tensors from the first coupling to the prior, so that nothing is
masked, permuted or put together in between. `log_prob(x, context)` and `sample(n, context)` are in
every model; a context is optional, one a sample.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

HALF_LN_2_PI = 0.5 * math.log(2 * math.pi)


def standard_normal(z):
    """Log-density of each sample under a standard normal."""
    z = z.flatten(1)
    return -0.5 * z.square().sum(1) - HALF_LN_2_PI * z.shape[1]


def mlp(num_in, hidden, num_out):
    """A multilayer perceptron with ReLU whose last layer starts at zero: the flow is then the identity."""
    net = nn.Sequential()
    for width in hidden:
        net.extend([nn.Linear(num_in, width), nn.ReLU(inplace=True)])
        num_in = width
    net.append(nn.Linear(num_in, num_out))
    for parameter in net[-1].parameters():
        nn.init.zeros_(parameter)
    return net


class Additive(nn.Module):
    """NICE: `z = x + shift`."""

    params_per_feature = 1

    def forward(self, x, shift):
        return x + shift, 0.0

    def inverse(self, z, shift):
        return z - shift


class Affine(nn.Module):
    """RealNVP: `z = x exp(s) + shift` with `s = gain tanh(h)`, a learned gain for each feature."""

    params_per_feature = 2

    def __init__(self, features):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))

    def forward(self, x, params):
        shift, h = params.chunk(2, 1)
        log_scale = self.gain * h.tanh()
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.sum(1)

    def inverse(self, z, params):
        shift, h = params.chunk(2, 1)
        return (z - shift) * torch.exp(-self.gain * h.tanh())


class RationalQuadratic(nn.Module):
    """The monotone splines of Durkan et al. (arXiv:1906.04032), the identity outside of [-bound, bound].

    Raw parameters of a feature: widths, heights, slopes at the inner knots. The corners of the bin that
    a value is in come out of one table of knots and slopes.
    """

    SMALLEST = 1e-3  # width, height (as shares) and slope
    SLOPE_OF_ONE = math.log(math.expm1(1 - SMALLEST))  # softplus takes it to 1 - SMALLEST

    def __init__(self, num_bins, bound):
        super().__init__()
        self.num_bins, self.bound = num_bins, bound
        self.params_per_feature = 3 * num_bins - 1

    def corners(self, value, params, axis):
        """Position, height and slope at the left and the right end of the bin, `[2, batch, features]` each.

        `axis` says what `value` is looked up in: 0 for positions, 1 for heights.
        """
        num_bins, length = self.num_bins, 2 * self.bound
        params = params.unflatten(1, (value.shape[1], self.params_per_feature))
        shares = params[..., : 2 * num_bins].unflatten(-1, (2, num_bins)).softmax(-1)
        sizes = shares * (length * (1 - self.SMALLEST * num_bins)) + length * self.SMALLEST
        knots = F.pad(sizes.cumsum(-1) - self.bound, (1, 0), value=-self.bound)
        slopes = F.softplus(params[..., 2 * num_bins :] + self.SLOPE_OF_ONE) + self.SMALLEST
        table = torch.cat([knots, F.pad(slopes, (1, 1), value=1.0).unsqueeze(-2)], -2)
        inner = knots[..., axis, 1:-1]
        index = (value.unsqueeze(-1) >= inner).sum(-1)
        index = torch.stack([index, index + 1], -1).unsqueeze(-2).expand(-1, -1, 3, -1)
        return table.gather(-1, index).permute(2, 3, 0, 1)

    def forward(self, x, params):
        inside = x.clamp(-self.bound, self.bound)
        (x0, x1), (z0, z1), (d0, d1) = self.corners(inside, params, 0)
        width, height = x1 - x0, z1 - z0
        slope = height / width
        r = (inside - x0) / width
        rest = 1 - r
        both = r * rest
        denominator = slope + (d0 + d1 - 2 * slope) * both
        z = z0 + height * (slope * r.square() + d0 * both) / denominator
        numerator = d1 * r.square() + 2 * slope * both + d0 * rest.square()
        log_slope = (numerator * (slope / denominator).square()).log()
        outside = x != inside
        return torch.where(outside, x, z), log_slope.masked_fill(outside, 0.0).sum(1)

    def inverse(self, z, params):
        inside = z.clamp(-self.bound, self.bound)
        (x0, x1), (z0, z1), (d0, d1) = self.corners(inside, params, 1)
        width, height, above = x1 - x0, z1 - z0, inside - z0
        slope = height / width
        bend = above * (d0 + d1 - 2 * slope)
        a, b, c = height * (slope - d0) + bend, height * d0 - bend, -slope * above
        # The form of the root that does not cancel.
        r = -2 * c / (b + (b.square() - 4 * a * c).sqrt())
        return torch.where(z != inside, z, x0 + width * r)


class Coupling(nn.Module):
    """One half goes through a transform whose parameters a net makes of the other half and the context."""

    def __init__(self, half, hidden, transform, context):
        super().__init__()
        self.net = mlp(half + context, hidden, half * transform.params_per_feature)
        self.transform = transform

    def params(self, kept, context):
        return self.net(kept if context is None else torch.cat([kept, context], 1))

    def forward(self, x, kept, context):
        return self.transform(x, self.params(kept, context))

    def inverse(self, z, kept, context):
        return self.transform.inverse(z, self.params(kept, context))


class CouplingFlow(nn.Module):
    """Couplings of two halves in turn and a standard normal prior.

    `transform()` makes the transform of one coupling.
    """

    def __init__(self, features, num_couplings, hidden, transform, context=0):
        super().__init__()
        self.half = features // 2
        couplings = (Coupling(self.half, hidden, transform(), context) for _ in range(num_couplings))
        self.couplings = nn.ModuleList(couplings)

    def forward(self, kept, x, context=None):
        log_det = 0.0
        for coupling in self.couplings:
            z, step_log_det = coupling(x, kept, context)
            log_det = log_det + step_log_det
            kept, x = z, kept
        return kept, x, log_det

    def inverse(self, kept, z, context=None):
        for coupling in reversed(self.couplings):
            kept, z = z, coupling.inverse(kept, z, context)
        return kept, z

    def log_prob(self, x, context=None):
        first, second, log_det = self(*x.chunk(2, 1), context)
        return log_det + standard_normal(first) + standard_normal(second)

    def sample(self, n, context=None):
        return torch.cat(self.inverse(*torch.randn(2, n, self.half), context), 1)


class Nice(CouplingFlow):
    """NICE as published: even and odd pixels, a scale for each, a standard logistic prior (arXiv:1410.8516)."""

    def __init__(self, features, num_couplings, hidden):
        super().__init__(features, num_couplings, hidden, Additive)
        self.log_scale = nn.Parameter(torch.zeros(2, self.half))
        for name, parameter in self.couplings.named_parameters():
            if name.endswith("weight"):
                nn.init.uniform_(parameter, -0.01, 0.01)

    def log_prob(self, x):
        # The nets' products want rows without gaps.
        even, odd = (part.contiguous() for part in x.unflatten(1, (self.half, 2)).unbind(2))
        first, second, _ = self(even, odd)
        log_prob = self.log_scale.sum()
        for z, log_scale in zip((first, second), self.log_scale):
            z = z * log_scale.exp()
            log_prob = log_prob - (z + 2 * F.softplus(-z)).sum(1)
        return log_prob

    def sample(self, n):
        latents = torch.rand(2, n, self.half).logit() * torch.exp(-self.log_scale).unsqueeze(1)
        return torch.stack(self.inverse(*latents), 2).flatten(1)


class MaskedLinear(nn.Linear):
    """A linear layer whose output sees an input only where the mask is 1."""

    def __init__(self, mask):
        num_out, num_in = mask.shape
        super().__init__(num_in, num_out)
        self.register_buffer("mask", mask.float())

    def masked(self):
        return self.weight * self.mask, self.bias

    def forward(self, x):
        return F.linear(x, *self.masked())


class Made(nn.Module):
    """A masked autoregressive layer (arXiv:1502.03509, arXiv:1705.07057).

    `z_i = x_i exp(s_i) + t_i`, where `s_i` and `t_i` see the features that come before `i` in `order`.
    """

    def __init__(self, order, hidden):
        super().__init__()
        self.order = order
        rank = torch.tensor(order).argsort()
        seen, layers = rank, []
        for width in hidden:
            degree = torch.arange(width).remainder(len(order) - 1)
            layers.append(MaskedLinear(degree.unsqueeze(1) >= seen))
            seen = degree
        self.hidden = nn.ModuleList(layers)
        self.out = MaskedLinear((rank.unsqueeze(1) > seen).repeat(2, 1))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x):
        h = x
        for layer in self.hidden:
            h = layer(h).relu_()
        shift, log_scale = self.out(h).chunk(2, 1)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.sum(1)

    def inverse(self, z):
        hidden = [layer.masked() for layer in self.hidden]
        weight, bias = (part.unflatten(0, (2, -1)) for part in self.out.masked())
        x = torch.zeros_like(z)
        for i in self.order:
            h = x
            for layer in hidden:
                h = F.linear(h, *layer).relu_()
            shift, log_scale = F.linear(h, weight[:, i], bias[:, i]).unbind(1)
            x[:, i] = (z[:, i] - shift) * torch.exp(-log_scale)
        return x


class MaskedAutoregressiveFlow(nn.Module):
    """Masked autoregressive layers, each in the opposite order of the one before."""

    def __init__(self, features, num_layers, hidden):
        super().__init__()
        self.features = features
        orders = [list(range(features)), list(reversed(range(features)))]
        self.layers = nn.ModuleList(Made(orders[i % 2], hidden) for i in range(num_layers))

    def log_prob(self, x):
        log_det = 0.0
        for layer in self.layers:
            x, step_log_det = layer(x)
            log_det = log_det + step_log_det
        return log_det + standard_normal(x)

    def sample(self, n):
        z = torch.randn(n, self.features)
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z

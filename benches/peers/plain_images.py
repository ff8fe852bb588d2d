"""Flows of images in plain PyTorch: Glow (arXiv:1807.03039) and RealNVP (arXiv:1605.08803)."""
import math

import torch
import torch.nn.functional as F
from plain_vectors import standard_normal
from torch import nn

EPSILON, MOMENTUM = 1e-4, 0.1  # of all batch normalizations
ALPHA = 0.05  # of RealNVP's logit


class GlowStep(nn.Module):
    """ActNorm, invertible 1x1 convolution, affine coupling of channel halves."""

    def __init__(self, channels, hidden_width):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.mixing = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, hidden_width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_width, hidden_width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden_width, channels, 3, padding=1),
        )
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def shift_and_logit(self, kept):
        """The coupling's shift, and what the sigmoid makes its scale of; it starts at sigmoid(2)."""
        shift, h = self.net(kept).chunk(2, 1)
        return shift, h + 2

    def forward(self, x):
        x = torch.addcmul(self.shift, x, self.log_scale.exp())
        x = F.conv2d(x, self.mixing[:, :, None, None])
        kept, x = x.chunk(2, 1)
        shift, logit = self.shift_and_logit(kept)
        of_all_pixels = self.log_scale.sum() + torch.linalg.slogdet(self.mixing).logabsdet
        log_det = F.logsigmoid(logit).flatten(1).sum(1) + x[0, 0].numel() * of_all_pixels
        return torch.cat([kept, (x + shift) * logit.sigmoid()], 1), log_det

    def inverse(self, z):
        kept, z = z.chunk(2, 1)
        shift, logit = self.shift_and_logit(kept)
        x = torch.cat([kept, z / logit.sigmoid() - shift], 1)
        x = F.conv2d(x, torch.linalg.inv(self.mixing)[:, :, None, None])
        return (x - self.shift) * torch.exp(-self.log_scale)


class Glow(nn.Module):
    """Levels of squeeze and steps; half of the channels splits off after each but the last."""

    def __init__(self, image_shape, num_levels, num_steps, hidden_width):
        super().__init__()
        channels, height, width = image_shape
        levels, self.latent_shapes = [], []
        for level in range(num_levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            levels.append(nn.ModuleList(GlowStep(channels, hidden_width) for _ in range(num_steps)))
            if level < num_levels - 1:
                channels //= 2
            self.latent_shapes.append((channels, height, width))
        self.levels = nn.ModuleList(levels)

    def log_prob(self, x):
        log_prob = 0.0
        for level, steps in enumerate(self.levels, 1):
            x = F.pixel_unshuffle(x, 2)
            for step in steps:
                x, log_det = step(x)
                log_prob = log_prob + log_det
            if level < len(self.levels):
                x, z = x.chunk(2, 1)
                log_prob = log_prob + standard_normal(z)
        return log_prob + standard_normal(x)

    def sample(self, n):
        x = torch.empty(n, 0, *self.latent_shapes[-1][1:])
        for steps, shape in zip(reversed(self.levels), reversed(self.latent_shapes)):
            x = torch.cat([x, torch.randn(n, *shape)], 1)
            for step in reversed(steps):
                x = step.inverse(x)
            x = F.pixel_shuffle(x, 2)
        return x


class WeightNormConv(nn.Conv2d):
    """A convolution whose weight is, for each output channel, a gain times a direction of length 1.

    What `torch.nn.utils.parametrizations.weight_norm` does, without the 5 % that its hooks take here.
    """

    def __init__(self, channels_in, channels_out, kernel, bias=True):
        super().__init__(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
        self.gain = nn.Parameter(torch.ones(channels_out, 1, 1, 1))

    def forward(self, x):
        weight = torch._weight_norm(self.weight, self.gain)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def net_norm(channels):
    return nn.BatchNorm2d(channels, EPSILON, MOMENTUM)


class ResidualBlock(nn.Sequential):
    def __init__(self, width):
        super().__init__(
            net_norm(width),
            nn.ReLU(inplace=True),
            WeightNormConv(width, width, 3, bias=False),
            net_norm(width),
            nn.ReLU(inplace=True),
            WeightNormConv(width, width, 3),
        )

    def forward(self, h):
        return h + super().forward(h)


class ResidualNet(nn.Module):
    """The net of RealNVP's couplings; all convolutions are weight normalized."""

    def __init__(self, channels_in, width, channels_out, num_blocks, input_gain):
        super().__init__()
        self.input_gain = input_gain
        self.norm_in = net_norm(channels_in)
        self.conv_in = WeightNormConv(2 * channels_in, width, 3)
        self.skip_in = WeightNormConv(width, width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(num_blocks))
        self.skips = nn.ModuleList(WeightNormConv(width, width, 1) for _ in range(num_blocks))
        self.out = nn.Sequential(net_norm(width), nn.ReLU(inplace=True), WeightNormConv(width, channels_out, 1))
        nn.init.zeros_(self.out[-1].gain)  # the net starts at zero

    def forward(self, x):
        x = self.input_gain * self.norm_in(x)
        h = self.conv_in(torch.cat([x, -x], 1).relu_())
        total = self.skip_in(h)
        for block, skip in zip(self.blocks, self.skips):
            h = block(h)
            total = total + skip(h)
        return self.out(total)


class FlowBatchNorm(nn.Module):
    """Batch normalization as a layer of the flow; the moments are constants for the gradient."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x):
        mean, variance = self.mean, self.variance
        if self.training:
            with torch.no_grad():
                variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
                self.mean.lerp_(mean, MOMENTUM)
                self.variance.lerp_(variance, MOMENTUM)
        z = F.batch_norm(x, mean, variance, eps=EPSILON)
        return z, -0.5 * x[0, 0].numel() * (variance + EPSILON).log().sum()

    def inverse(self, z):
        deviation = (self.variance + EPSILON).sqrt()
        return torch.addcmul(self.mean[:, None, None], z, deviation[:, None, None])


class ImageCoupling(nn.Module):
    """`z = x exp(s) + t` with `s = gain tanh(h)`, then batch normalization.

    Which values are kept is up to `apart` and `together`.
    """

    def __init__(self, channels, seen, width, num_blocks, input_gain):
        super().__init__()
        self.net = ResidualNet(seen, width, 2 * seen, num_blocks, input_gain)
        self.gain = nn.Parameter(torch.ones(seen, 1, 1))
        self.norm = FlowBatchNorm(channels)

    def params(self, kept):
        shift, h = self.net(kept).chunk(2, 1)
        return shift, self.gain * h.tanh()

    def forward(self, x):
        kept, x = self.apart(x)
        shift, log_scale = self.params(kept)
        z = torch.addcmul(shift, x, log_scale.exp())
        z, log_det = self.norm(self.together(kept, z))
        return z, log_det + log_scale.flatten(1).sum(1)

    def inverse(self, z):
        kept, z = self.apart(self.norm.inverse(z))
        shift, log_scale = self.params(kept)
        return self.together(kept, (z - shift) * torch.exp(-log_scale))


class CheckerboardCoupling(ImageCoupling):
    """Keeps every other pixel; the net sees zeros elsewhere, which its input gain makes up for."""

    def __init__(self, channels, size, width, num_blocks, odd):
        super().__init__(channels, channels, width, num_blocks, input_gain=2.0)
        pixels = torch.arange(size)
        kept = (pixels.unsqueeze(1) + pixels).remainder(2) == odd
        self.register_buffer("kept", kept.float())
        self.register_buffer("changed", 1 - kept.float())

    def params(self, kept):
        # Where shift and log-scale are zero, a pixel is kept.
        shift, h = (self.net(kept) * self.changed).chunk(2, 1)
        return shift, self.gain * h.tanh()

    def apart(self, x):
        return x * self.kept, x

    def together(self, kept, x):
        return x


class ChannelCoupling(ImageCoupling):
    """Keeps the first half of the channels, or the second."""

    def __init__(self, channels, size, width, num_blocks, odd):
        super().__init__(channels, channels // 2, width, num_blocks, input_gain=1.0)
        self.odd = odd

    def apart(self, x):
        first, second = x.chunk(2, 1)
        return (second, first) if self.odd else (first, second)

    def together(self, kept, x):
        return torch.cat([x, kept] if self.odd else [kept, x], 1)


class Scale(nn.Module):
    """Checkerboard couplings; where another scale follows, squeeze and couplings of channel halves."""

    def __init__(self, channels, size, width, num_blocks, is_last):
        super().__init__()
        boards = (CheckerboardCoupling(channels, size, width, num_blocks, i % 2) for i in range(4 if is_last else 3))
        self.boards = nn.ModuleList(boards)
        squeezed = (4 * channels, size // 2, 2 * width, num_blocks)
        halves = (ChannelCoupling(*squeezed, i % 2) for i in range(0 if is_last else 3))
        self.halves = nn.ModuleList(halves)

    def forward(self, x):
        log_det = 0.0
        for coupling in self.boards:
            x, step_log_det = coupling(x)
            log_det = log_det + step_log_det
        if self.halves:
            x = F.pixel_unshuffle(x, 2)
        for coupling in self.halves:
            x, step_log_det = coupling(x)
            log_det = log_det + step_log_det
        return x, log_det

    def inverse(self, z):
        for coupling in reversed(self.halves):
            z = coupling.inverse(z)
        if self.halves:
            z = F.pixel_shuffle(z, 2)
        for coupling in reversed(self.boards):
            z = coupling.inverse(z)
        return z


class ImageRealNvp(nn.Module):
    """Logit, then scales; half of the channels splits off after each but the last.

    In training all moments are those of the batch.
    """

    def __init__(self, image_shape, num_scales, hidden_width, num_blocks):
        super().__init__()
        channels, size, _ = image_shape
        scales, self.latent_shapes = [], []
        for scale in range(num_scales):
            is_last = scale == num_scales - 1
            scales.append(Scale(channels, size, hidden_width, num_blocks, is_last))
            if not is_last:
                channels, size, hidden_width = 2 * channels, size // 2, 2 * hidden_width
            self.latent_shapes.append((channels, size, size))
        self.scales = nn.ModuleList(scales)

    def log_prob(self, x):
        p = ALPHA + (1 - 2 * ALPHA) * x
        log_p, log_rest = p.log(), (1 - p).log()
        x = log_p - log_rest
        log_prob = x[0].numel() * math.log(1 - 2 * ALPHA) - (log_p + log_rest).flatten(1).sum(1)
        for number, scale in enumerate(self.scales, 1):
            x, log_det = scale(x)
            log_prob = log_prob + log_det
            if number < len(self.scales):
                x, z = x.chunk(2, 1)
                log_prob = log_prob + standard_normal(z)
        return log_prob + standard_normal(x)

    def sample(self, n):
        x = torch.randn(n, *self.latent_shapes[-1])
        rest = list(zip(self.scales, self.latent_shapes))[:-1]
        x = self.scales[-1].inverse(x)
        for scale, shape in reversed(rest):
            x = scale.inverse(torch.cat([x, torch.randn(n, *shape)], 1))
        return (x.sigmoid() - ALPHA) / (1 - 2 * ALPHA)

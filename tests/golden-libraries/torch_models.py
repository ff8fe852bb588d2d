"""The models of the published repositories, written anew from their formulas, with the names of their
state dicts. Each forward(x) gives (list of latents, log_det, log_p); README.md says what differs between
the libraries."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def normal(z, mean, log_std):
    density = -0.5 * ((z - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).sum(1)


def squeeze(x):
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, 4 * c, h // 2, w // 2)


def unsqueeze(x):
    n, c, h, w = x.shape
    x = x.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // 4, 2 * h, 2 * w)


def pixels(x):
    return x.shape[2] * x.shape[3]


def parameter(*shape):
    return nn.Parameter(torch.zeros(*shape))


def apply_matrix(matrix, x):
    return torch.einsum("oc,nchw->nohw", matrix, x)


class Named(nn.Module):
    """Submodules under given names, among them those that Python cannot spell."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name.lstrip("_"), child)


def numbered(**children):
    return Named(**{"_" + name.lstrip("n"): child for name, child in children.items()})


# rosinality/glow-pytorch


class RosinalityActNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.loc, self.scale = parameter(1, channels, 1, 1), parameter(1, channels, 1, 1)
        self.register_buffer("initialized", torch.tensor(1, dtype=torch.uint8))

    def forward(self, x):
        return self.scale * (x + self.loc), pixels(x) * self.scale.abs().log().sum()


class RosinalityConv(nn.Module):
    def __init__(self, channels, lu):
        super().__init__()
        self.lu = lu
        if not lu:
            self.weight = parameter(channels, channels, 1, 1)
            return
        ones = torch.ones(channels, channels)
        self.w_l, self.w_u = parameter(channels, channels), parameter(channels, channels)
        self.w_s = parameter(channels)
        for name, value in {
            "w_p": torch.eye(channels),
            "u_mask": ones.triu(1),
            "l_mask": ones.tril(-1),
            "s_sign": torch.ones(channels),
            "l_eye": torch.eye(channels),
        }.items():
            self.register_buffer(name, value)

    def forward(self, x):
        if not self.lu:
            matrix = self.weight[:, :, 0, 0]
            return apply_matrix(matrix, x), pixels(x) * torch.linalg.slogdet(matrix)[1]
        lower = self.w_l * self.l_mask + self.l_eye
        upper = self.w_u * self.u_mask + torch.diag(self.s_sign * self.w_s.exp())
        return apply_matrix(self.w_p @ lower @ upper, x), pixels(x) * self.w_s.sum()


class RosinalityZeroConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(inputs, outputs, 3), parameter(1, outputs, 1, 1)

    def forward(self, x):
        return self.conv(F.pad(x, [1, 1, 1, 1], value=1.0)) * (3 * self.scale).exp()


class RosinalityCoupling(nn.Module):
    def __init__(self, channels, hidden, affine):
        super().__init__()
        self.affine = affine
        self.net = nn.Sequential(
            nn.Conv2d(channels // 2, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            RosinalityZeroConv(hidden, channels if affine else channels // 2),
        )

    def forward(self, x):
        kept, changed = x.chunk(2, 1)
        if not self.affine:
            return torch.cat([kept, changed + self.net(kept)], 1), x.new_zeros(len(x))
        h, t = self.net(kept).chunk(2, 1)
        log_scale = F.logsigmoid(h + 2)
        z = (changed + t) * log_scale.exp()
        return torch.cat([kept, z], 1), log_scale.flatten(1).sum(1)


class Rosinality(nn.Module):
    def __init__(self, in_channel, n_flow, n_block, affine, conv_lu, filter_size, **_):
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = in_channel
        for index in range(n_block):
            channels *= 4
            last = index + 1 == n_block
            steps = [
                Named(
                    actnorm=RosinalityActNorm(channels),
                    invconv=RosinalityConv(channels, conv_lu or last),
                    coupling=RosinalityCoupling(channels, filter_size, affine),
                )
                for _ in range(n_flow)
            ]
            part = channels if last else channels // 2
            prior = RosinalityZeroConv(part, 2 * part)
            self.blocks.append(Named(flows=nn.ModuleList(steps), prior=prior))
            channels //= 2

    def forward(self, x):
        latents, log_det, log_p = [], 0, 0
        for index, block in enumerate(self.blocks):
            x = squeeze(x)
            for step in block.flows:
                for part in [step.actnorm, step.invconv, step.coupling]:
                    x, more = part(x)
                    log_det = log_det + more
            last = index + 1 == len(self.blocks)
            x, out = (torch.zeros_like(x), x) if last else x.chunk(2, 1)
            mean, log_std = block.prior(x).chunk(2, 1)
            log_p = log_p + normal(out, mean, log_std)
            latents.append(out)
        return latents, log_det, log_p


# y0ast/Glow-PyTorch


class Y0astActNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias, self.logs = parameter(1, channels, 1, 1), parameter(1, channels, 1, 1)

    def forward(self, x):
        return (x + self.bias) * self.logs.exp(), pixels(x) * self.logs.sum()


class Y0astConv(nn.Module):
    def __init__(self, channels, lu):
        super().__init__()
        self.lu = lu
        if not lu:
            self.weight = parameter(channels, channels)
            return
        self.register_buffer("p", torch.eye(channels))
        self.register_buffer("sign_s", torch.ones(channels))
        self.lower, self.upper = parameter(channels, channels), parameter(channels, channels)
        self.log_s = parameter(channels)

    def forward(self, x):
        if not self.lu:
            return apply_matrix(self.weight, x), pixels(x) * torch.linalg.slogdet(self.weight)[1]
        lower = self.lower.tril(-1) + torch.eye(len(self.lower)).to(self.lower)
        upper = self.upper.triu(1) + torch.diag(self.sign_s * self.log_s.exp())
        return apply_matrix(self.p @ lower @ upper, x), pixels(x) * self.log_s.sum()


class Y0astZeroConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.logs = nn.Conv2d(inputs, outputs, 3, padding=1), parameter(outputs, 1, 1)

    def forward(self, x):
        return self.conv(x) * (3 * self.logs).exp()


class Y0astHidden(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.actnorm = Y0astActNorm(outputs)

    def forward(self, x):
        return self.actnorm(self.conv(x))[0]


class Y0astStep(nn.Module):
    def __init__(self, channels, hidden, permutation, coupling, lu, order):
        super().__init__()
        self.affine, self.order = coupling == "affine", order
        self.actnorm = Y0astActNorm(channels)
        if permutation == "invconv":
            self.invconv = Y0astConv(channels, lu)
        outputs = channels if self.affine else channels // 2
        self.block = nn.Sequential(
            Y0astHidden(channels // 2, hidden, 3),
            nn.ReLU(),
            Y0astHidden(hidden, hidden, 1),
            nn.ReLU(),
            Y0astZeroConv(hidden, outputs),
        )

    def forward(self, x):
        x, log_det = self.actnorm(x)
        if self.order is None:
            x, more = self.invconv(x)
            log_det = log_det + more
        else:
            x = x[:, self.order]
        kept, changed = x.chunk(2, 1)
        h = self.block(kept)
        if not self.affine:
            return torch.cat([kept, changed + h], 1), log_det.expand(len(x))
        log_scale = F.logsigmoid(h[:, 1::2] + 2)
        z = (changed + h[:, 0::2]) * log_scale.exp()
        return torch.cat([kept, z], 1), log_det + log_scale.flatten(1).sum(1)


class Y0ast(nn.Module):
    def __init__(self, shape, hidden_channels, K, L, flow_permutation, flow_coupling, LU_decomposed,
                 learn_top, indices=None, **_):
        super().__init__()
        channels, height, width = shape
        layers, orders = nn.ModuleList(), iter(indices or [])
        for level in range(L):
            channels, height, width = 4 * channels, height // 2, width // 2
            layers.append(nn.Module())
            for _ in range(K):
                order = {
                    "invconv": lambda: None,
                    "reverse": lambda: list(range(channels))[::-1],
                    "shuffle": lambda: next(orders),
                }[flow_permutation]()
                layers.append(Y0astStep(channels, hidden_channels, flow_permutation,
                                        flow_coupling, LU_decomposed, order))
            if level + 1 < L:
                layers.append(Named(conv=Y0astZeroConv(channels // 2, channels)))
                channels //= 2
        self.flow = Named(layers=layers)
        if learn_top:
            self.learn_top_fn = Y0astZeroConv(2 * channels, 2 * channels)
        self.register_buffer("prior_h", torch.zeros(1, 2 * channels, height, width))

    def forward(self, x):
        latents, log_det, log_p = [], 0, 0
        for layer in self.flow.layers:
            if isinstance(layer, Y0astStep):
                x, more = layer(x)
                log_det = log_det + more
            elif hasattr(layer, "conv"):
                x, out = x.chunk(2, 1)
                h = layer.conv(x)
                log_p = log_p + normal(out, h[:, 0::2], h[:, 1::2])
                latents.append(out)
            else:
                x = squeeze(x)
        h = self.prior_h.expand(len(x), -1, -1, -1)
        h = self.learn_top_fn(h) if hasattr(self, "learn_top_fn") else h
        mean, log_std = h.chunk(2, 1)
        return latents + [x], log_det, log_p + normal(x, mean, log_std)


# chrischute/real-nvp


class Weighted(nn.Module):
    """A weight g v / |v| by the old names of weight normalization."""

    def __init__(self, shape, bias):
        super().__init__()
        self.weight_v = nn.Parameter(torch.ones(shape))
        self.weight_g = nn.Parameter(torch.ones([shape[0]] + [1] * (len(shape) - 1)))
        self.bias = parameter(shape[0]) if bias else None

    def weight(self):
        length = self.weight_v.flatten(1).norm(dim=1).reshape(self.weight_g.shape)
        return self.weight_g * self.weight_v / length


class WeightedConv(nn.Module):
    def __init__(self, inputs, outputs, kernel, bias=True):
        super().__init__()
        self.conv = Weighted([outputs, inputs, kernel, kernel], bias)

    def forward(self, x):
        padding = self.conv.weight_v.shape[-1] // 2
        return F.conv2d(x, self.conv.weight(), self.conv.bias, padding=padding)


class ResidualBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.in_norm, self.out_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.in_conv = WeightedConv(width, width, 3, bias=False)
        self.out_conv = WeightedConv(width, width, 3)

    def forward(self, x):
        h = self.in_conv(F.relu(self.in_norm(x)))
        return x + self.out_conv(F.relu(self.out_norm(h)))


class ResidualNet(nn.Module):
    def __init__(self, inputs, width, outputs, blocks, gain):
        super().__init__()
        self.gain = gain
        self.in_norm, self.out_norm = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.in_conv, self.in_skip = WeightedConv(2 * inputs, width, 3), WeightedConv(width, width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightedConv(width, width, 1) for _ in range(blocks))
        self.out_conv = WeightedConv(width, outputs, 1)

    def forward(self, x):
        x = self.gain * self.in_norm(x)
        x = self.in_conv(F.relu(torch.cat([x, -x], 1)))
        total = self.in_skip(x)
        for block, skip in zip(self.blocks, self.skips):
            x = block(x)
            total = total + skip(x)
        return self.out_conv(F.relu(self.out_norm(total)))


class ChrischuteCoupling(nn.Module):
    def __init__(self, channels, width, blocks, checkerboard, reverse):
        super().__init__()
        self.checkerboard, self.reverse = checkerboard, reverse
        part, gain = (channels, 2.0) if checkerboard else (channels // 2, 1.0)
        self.st_net = ResidualNet(part, width, 2 * part, blocks, gain)
        self.rescale = Weighted([part, 1, 1], bias=False)

    def scale_and_shift(self, kept):
        s, t = self.st_net(kept).chunk(2, 1)
        return self.rescale.weight() * s.tanh(), t

    def forward(self, x):
        if self.checkerboard:
            rows, columns = torch.arange(x.shape[2]), torch.arange(x.shape[3])
            keep = ((rows[:, None] + columns) % 2 == (0 if self.reverse else 1)).to(x)
            s, t = self.scale_and_shift(x * keep)
            s, t = s * (1 - keep), t * (1 - keep)
            return x * keep + (x * (1 - keep) + t) * s.exp() * (1 - keep), s.flatten(1).sum(1)
        first, second = x.chunk(2, 1)
        kept, changed = (first, second) if self.reverse else (second, first)
        s, t = self.scale_and_shift(kept)
        z = (changed + t) * s.exp()
        parts = [kept, z] if self.reverse else [z, kept]
        return torch.cat(parts, 1), s.flatten(1).sum(1)


class ChrischuteScale(nn.Module):
    def __init__(self, channels, width, blocks, scales):
        super().__init__()
        count = 4 if scales == 1 else 3
        self.in_couplings = nn.ModuleList(
            ChrischuteCoupling(channels, width, blocks, True, index % 2 == 1)
            for index in range(count)
        )
        if scales > 1:
            self.out_couplings = nn.ModuleList(
                ChrischuteCoupling(4 * channels, 2 * width, blocks, False, index % 2 == 1)
                for index in range(3)
            )
            self.next_block = ChrischuteScale(2 * channels, 2 * width, blocks, scales - 1)

    def forward(self, x):
        log_det = 0
        for coupling in self.in_couplings:
            x, more = coupling(x)
            log_det = log_det + more
        if not hasattr(self, "next_block"):
            return x, log_det
        x = squeeze(x)
        for coupling in self.out_couplings:
            x, more = coupling(x)
            log_det = log_det + more
        # Undone and made again, pixel by pixel of each block: which is an order of the channels.
        channels = x.shape[1] // 4
        order = [4 * c + pixel for pixel in [0, 3, 1, 2] for c in range(channels)]
        stays, out = x[:, order].chunk(2, 1)
        stays, more = self.next_block(stays)
        z = torch.empty_like(x)
        z[:, order] = torch.cat([stays, out], 1)
        return unsqueeze(z), log_det + more


class Chrischute(nn.Module):
    def __init__(self, num_scales, in_channels, mid_channels, num_blocks, **_):
        super().__init__()
        self.register_buffer("data_constraint", torch.tensor([0.9]))
        self.flows = ChrischuteScale(in_channels, mid_channels, num_blocks, num_scales)
        self.eval()

    def forward(self, x):
        p = (1 + (2 * x - 1) * self.data_constraint) / 2
        log_det = (self.data_constraint.log() - p.log() - (1 - p).log()).flatten(1).sum(1)
        z, more = self.flows(p.log() - (1 - p).log())
        return [z], log_det + more, normal(z, torch.zeros_like(z), torch.zeros_like(z))


def build(source, hyperparameters):
    for name, model in {"rosinality": Rosinality, "y0ast": Y0ast, "chrischute": Chrischute}.items():
        if source.startswith(name):
            return model(**hyperparameters)
    raise SystemExit(f"no model of {source} here")

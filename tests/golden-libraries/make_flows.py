"""Golden files of flows of vectors, by nflows, zuko, normflows and sbi themselves.

    pip install torch nflows zuko normflows sbi safetensors numpy
    python make_flows.py OUT            # write
    python make_flows.py DIR --check    # compute again and compare (1e-10)

`build` makes the model of a file from its metadata; check_export.py uses it too."""

import argparse
import json
import math
import pathlib
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SIZES = dict(features=4, context=3)


def sbi_data(features, context):
    generator = torch.Generator().manual_seed(7)
    draw = lambda count: torch.randn(50, count, generator=generator)
    return draw(features) * 3 + 1, draw(context) * 0.5 - 2


def nflows_maf(features, hidden, layers, blocks, **options):
    from nflows.flows.autoregressive import MaskedAutoregressiveFlow

    return MaskedAutoregressiveFlow(features, hidden, layers, blocks, **options)


def nflows_couplings(features, context, masks, hidden, affine, tails, unconditional):
    from nflows import distributions, flows, transforms
    from nflows.nn import nets

    layers = []
    for mask in masks:
        net = lambda i, o: nets.ResidualNet(i, o, hidden, context or None, num_blocks=1)
        if affine:
            layers.append(transforms.AffineCouplingTransform(mask, net))
        else:
            layers.append(transforms.PiecewiseRationalQuadraticCouplingTransform(
                mask, net, num_bins=4, tails=tails, tail_bound=1.0,
                apply_unconditional_transform=unconditional))
        if tails or affine:
            layers.append(transforms.LULinear(features))
    if affine:
        inner = transforms.MaskedAffineAutoregressiveTransform(
            features, hidden, context_features=context or None)
        layers.append(transforms.InverseTransform(inner))
    base = distributions.DiagonalNormal([features]) if affine else distributions.StandardNormal([features])
    return flows.Flow(transforms.CompositeTransform(layers), base)


def zuko_flow(name, **options):
    import zuko

    for key in ["order", "adjacency"]:
        if key in options:
            options[key] = torch.tensor(options[key])
    if "activation" in options:
        options["activation"] = getattr(torch.nn, options["activation"])
    return getattr(zuko.flows, name)(**options)


def sbi_estimator(builder, features, context, embedding=None, **options):
    from sbi.neural_nets.embedding_nets import FCEmbedding
    from sbi.neural_nets.net_builders import flow

    if embedding:
        options["embedding_net"] = FCEmbedding(context, **embedding)
    theta, data = sbi_data(features, context)
    return getattr(flow, builder)(theta, data, **options)


def normflows_flow(layers, base, features, context=0, classes=0):
    import normflows

    made = []
    for layer in layers:
        kind, arguments = layer
        if kind == "MaskedAffineFlow":
            nets = [normflows.nets.MLP([features, 6, features]) for _ in range(2)]
            made.append(normflows.flows.MaskedAffineFlow(torch.tensor(arguments["b"]), *nets))
        else:
            made.append(getattr(normflows.flows, kind)(**arguments))
    if classes:
        return normflows.ClassCondFlow(normflows.distributions.ClassCondDiagGaussian(features, classes), made)
    if base == "GaussianMixture":
        return normflows.NormalizingFlow(normflows.distributions.GaussianMixture(2, features), made)
    if context:
        encoder = torch.nn.Linear(context, 2 * features)
        return normflows.ConditionalNormalizingFlow(
            normflows.distributions.base.ConditionalDiagGaussian(features, encoder), made)
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(features), made)


BUILDERS = {"nflows_maf": nflows_maf, "nflows_couplings": nflows_couplings, "zuko": zuko_flow,
            "sbi": sbi_estimator, "normflows": normflows_flow}

SPLINES = dict(num_input_channels=4, num_blocks=1, num_hidden_channels=8, num_bins=4)
PERMUTE = ["LULinearPermute", dict(num_channels=4)]

# Builder, its arguments, the class that the reader knows it by, and the reader's options.
CASES = {
    "nflows_maf_residual": ("nflows_maf", dict(features=4, hidden=8, layers=2, blocks=1), "nflows", {}),
    "nflows_maf_random": ("nflows_maf", dict(features=5, hidden=9, layers=2, blocks=2,
                                             use_residual_blocks=False, use_random_masks=True,
                                             use_random_permutations=True), "nflows", {}),
    "nflows_affine_couplings": ("nflows_couplings", dict(SIZES, masks=[[1, 0, 0, 1], [-1, 1, -1, 1]], hidden=6,
                                                         affine=True, tails=None, unconditional=False),
                                "nflows", {}),
    "nflows_spline_couplings": ("nflows_couplings", dict(features=4, context=0, masks=[[1, 0, 1, 0], [0, 0, 0, 1]],
                                                         hidden=6, affine=False, tails="linear",
                                                         unconditional=True), "nflows", {}),
    "nflows_spline_unit": ("nflows_couplings", dict(features=4, context=0, masks=[[1, 0, 1, 0], [0, 1, 0, 1]],
                                                    hidden=6, affine=False, tails=None, unconditional=False),
                           "nflows", {"interval": "unit"}),
    "sbi_maf": ("sbi", dict(SIZES, builder="build_maf", hidden_features=8, num_transforms=2),
                "sbi nflows", {"defaults": "sbi_maf"}),
    "sbi_maf_rqs": ("sbi", dict(SIZES, builder="build_maf_rqs", hidden_features=8, num_transforms=2, num_bins=5,
                                z_score_x="structured", z_score_y="none"), "sbi nflows", {"defaults": "sbi_maf"}),
    "sbi_nsf": ("sbi", dict(SIZES, builder="build_nsf", hidden_features=8, num_transforms=2, z_score_y="structured"),
                "sbi nflows", {"defaults": "sbi_nsf"}),
    "sbi_nsf_embedding": ("sbi", dict(features=2, context=5, builder="build_nsf", hidden_features=8,
                                      num_transforms=2, num_bins=5,
                                      embedding=dict(output_dim=3, num_layers=2, num_hiddens=6)),
                          "sbi nflows", {"defaults": "sbi_nsf"}),
    "sbi_nsf_one_feature": ("sbi", dict(features=1, context=2, builder="build_nsf", hidden_features=8,
                                        num_transforms=2, num_bins=5), "sbi nflows", {"defaults": "sbi_nsf"}),
    "sbi_zuko_maf": ("sbi", dict(SIZES, builder="build_zuko_maf", hidden_features=8, num_transforms=2),
                     "sbi zuko", {}),
    "sbi_zuko_nsf": ("sbi", dict(SIZES, builder="build_zuko_nsf", hidden_features=8, num_transforms=2, num_bins=5,
                                 embedding=dict(output_dim=2, num_layers=3, num_hiddens=6)), "sbi zuko", {}),
    "zuko_maf_random": ("zuko", dict(name="MAF", features=5, transforms=2, randperm=True, hidden_features=[7, 9]),
                        "zuko", {}),
    "zuko_nsf_residual": ("zuko", dict(name="NSF", features=3, context=2, transforms=2, bins=4,
                                       hidden_features=[6, 6], residual=True, activation="ELU"),
                          "zuko", {"activation": "elu"}),
    "zuko_nsf_coupling": ("zuko", dict(name="NSF", features=4, transforms=2, bins=4, passes=2,
                                       hidden_features=[8]), "zuko", {}),
    "zuko_ncsf_circle": ("zuko", dict(name="NCSF", features=3, context=2, transforms=2, bins=4,
                                      hidden_features=[8, 8]), "zuko", {}),
    "zuko_maf_narrow": ("zuko", dict(name="MAF", features=6, transforms=2, hidden_features=[3]), "zuko", {}),
    "normflows_rqs_coupled": ("normflows", dict(features=4, base="DiagGaussian", layers=[
        ["CoupledRationalQuadraticSpline", SPLINES], PERMUTE,
        ["CoupledRationalQuadraticSpline", SPLINES | dict(reverse_mask=True)], PERMUTE]), "normflows", {}),
    "normflows_rqs_autoregressive": ("normflows", dict(features=4, base="GaussianMixture", layers=[
        ["AutoregressiveRationalQuadraticSpline", SPLINES | dict(permute_mask=True)], PERMUTE,
        ["AutoregressiveRationalQuadraticSpline", SPLINES]]), "normflows", {}),
    "normflows_conditional": ("normflows", dict(features=4, context=2, base="ConditionalDiagGaussian", layers=[
        ["CoupledRationalQuadraticSpline", SPLINES | dict(num_context_channels=2)], PERMUTE,
        ["AutoregressiveRationalQuadraticSpline", SPLINES | dict(num_context_channels=2)],
        ["MaskedAffineAutoregressive", dict(features=4, hidden_features=6, context_features=2, num_blocks=1)]]),
        "normflows", {}),
    "normflows_classes": ("normflows", dict(features=4, base="", classes=3, layers=[
        ["MaskedAffineFlow", dict(b=[1.0, 0.0, 1.0, 0.0])], ["MaskedAffineFlow", dict(b=[0.0, 1.0, 0.0, 1.0])]]),
        "normflows classes", {}),
}


def build(metadata):
    """The model of a file, in f64."""
    torch.manual_seed(1)
    arguments = json.loads(metadata["hyperparameters"])
    model = BUILDERS[metadata["builder"]](**arguments["arguments"]).double().eval()
    for module in model.modules():
        # sbi makes it in f32, which is 2e-8 a feature off.
        if hasattr(module, "_log_z"):
            module._log_z = torch.tensor(0.5 * arguments["arguments"]["features"] * math.log(2 * math.pi), dtype=torch.float64)
    return model


# Where the usual noise would squeeze a sample by e^20, so that its way back had only six digits.
NOISE = {"sbi_nsf": 0.3, "normflows_conditional": 0.3}


def randomize(model, generator, size):
    for name, tensor in sorted(model.named_parameters()):
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.add_(size * noise * (0.5 if "final_layer" in name or "unnormalized" in name else 0.2))


def compute(model, kind, x, given):
    """z, log_det and log_prob of x, whatever the library calls them."""
    if kind == "nflows":
        z, log_det = model._transform(x, context=given)
        return dict(z=z, log_det=log_det, log_prob=model.log_prob(x, context=given))
    if kind == "sbi nflows":
        embedded = model.net._embedding_net(given)
        z, log_det = model.net._transform(x, context=embedded)
        log_prob = model.log_prob(x[None], condition=given)[0]
        return dict(z=z, log_det=log_det, log_prob=log_prob)
    if kind in ["zuko", "sbi zuko"]:
        flow = model.net if kind == "sbi zuko" else model
        embedded = model._embedding_net(given) if kind == "sbi zuko" else given
        transform = flow(embedded).transform
        z = transform(x)
        log_det = transform.log_abs_det_jacobian(x, z)
        log_prob = (model.log_prob(x[None], condition=given)[0] if kind == "sbi zuko"
                    else model(given).log_prob(x))
        return dict(z=z, log_det=log_det, log_prob=log_prob)
    z, log_det = x, torch.zeros(len(x), dtype=x.dtype)
    context = given if kind == "normflows" and given is not None else None
    for flow in reversed(model.flows):
        z, part = flow.inverse(z, context=context) if context is not None else flow.inverse(z)
        log_det = log_det + part
    if kind == "normflows classes":
        return dict(z=z, log_det=log_det, log_prob=model.log_prob(x, given.argmax(1)))
    log_prob = model.log_prob(x, context=context) if context is not None else model.log_prob(x)
    return dict(z=z, log_det=log_det, log_prob=log_prob)


def write(folder, name, case, seed):
    builder, arguments, kind, options = case
    metadata = {
        "class": f"flow of vectors of {kind}",
        "builder": builder,
        "hyperparameters": json.dumps({"arguments": arguments, "options": options}),
        "case": name,
        "seed": str(seed),
        "dtype": "float64",
        "torch": torch.__version__,
    }
    model = build(metadata)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        randomize(model, generator, NOISE.get(name, 1.0))
    features = arguments["features"]
    batch = 5
    x = torch.randn(batch, features, generator=generator, dtype=torch.float64) * 1.5
    if options.get("interval") == "unit":
        x = torch.rand(batch, features, generator=generator, dtype=torch.float64)
    if kind.startswith("sbi"):
        x = x + 1
    if arguments.get("classes"):
        given = torch.eye(arguments["classes"], dtype=torch.float64)[torch.arange(batch) % arguments["classes"]]
    elif arguments.get("context"):
        given = torch.randn(batch, arguments["context"], generator=generator, dtype=torch.float64) - 1
    else:
        given = None
    with torch.no_grad():
        computed = compute(model, kind, x, given)
    one = lambda row: compute(model, kind, row[None], None if given is None else given[:1])["z"][0]
    jacobian = torch.autograd.functional.jacobian(one, x[0])
    computed["log_det_jacobian_0"] = torch.linalg.slogdet(jacobian)[1].reshape(1)
    gap = abs(computed["log_det"][0] - computed["log_det_jacobian_0"][0])
    assert gap < 1e-9, f"{name}: log_det is {gap:.1e} off its Jacobian"
    tensors = {f"param.{key}": value for key, value in model.state_dict().items()}
    tensors |= {"x": x} | computed | ({} if given is None else {"context": given})
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, folder / f"{name}.safetensors", metadata=metadata)
    size = (folder / f"{name}.safetensors").stat().st_size
    print(f"{name}  {size} bytes  log_det {computed['log_det'][0]:.3f}")


def check(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata.get("builder") not in BUILDERS:
            return
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    model = build(metadata)
    state = {key.removeprefix("param."): value for key, value in tensors.items() if key.startswith("param.")}
    model.load_state_dict(state, strict=True)
    kind = metadata["class"].removeprefix("flow of vectors of ")
    with torch.no_grad():
        computed = compute(model, kind, tensors["x"], tensors.get("context"))
    for key, value in computed.items():
        error = ((value - tensors[key]).abs() / (1 + tensors[key].abs())).max().item()
        assert error < 1e-10, f"{path.name}: {key} is {error:.1e} off"
    print(f"{path.name}  ok")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    for seed, (name, case) in enumerate(CASES.items()):
        if options.only in name:
            if options.check:
                check(options.folder / f"{name}.safetensors")
            else:
                write(options.folder, name, case, seed)

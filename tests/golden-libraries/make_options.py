"""Further golden files of the libraries' models, with the options that the first ones do not have.

    python make_options.py OUT            # write
    python make_options.py DIR --check    # recompute every golden file of DIR and compare (1e-10)
    python make_options.py DIR --save     # what torch.save makes of rosinality_one_block, good and bad

The numbers are those of torch_models.py, which --check compares with the files that the repositories' own
code wrote."""

import argparse
import json
import math
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import torch_models

ROSINALITY = dict(shape=[2, 8, 12], in_channel=2, n_flow=2, n_block=2, affine=True, conv_lu=True,
                  filter_size=5)
Y0AST = dict(shape=[2, 8, 12], hidden_channels=5, K=2, L=2, actnorm_scale=1.0,
             flow_permutation="invconv", flow_coupling="affine", LU_decomposed=True, learn_top=True,
             y_condition=False)
CHRISCHUTE = dict(shape=[2, 8, 12], num_scales=2, in_channels=2, mid_channels=4, num_blocks=1)
GENERATOR = torch.Generator().manual_seed(0)
SHUFFLES = [torch.randperm(n, generator=GENERATOR).tolist() for n in [8, 8, 16, 16]]

CASES = {
    "rosinality_additive": ("rosinality/glow-pytorch", ROSINALITY | dict(affine=False)),
    "rosinality_plain_conv": ("rosinality/glow-pytorch", ROSINALITY | dict(conv_lu=False)),
    "rosinality_one_block": ("rosinality/glow-pytorch", ROSINALITY | dict(n_block=1, n_flow=1)),
    "y0ast_additive": ("y0ast/Glow-PyTorch", Y0AST | dict(flow_coupling="additive")),
    "y0ast_plain_conv": ("y0ast/Glow-PyTorch", Y0AST | dict(LU_decomposed=False)),
    "y0ast_no_learned_top": ("y0ast/Glow-PyTorch", Y0AST | dict(learn_top=False)),
    "y0ast_reverse": ("y0ast/Glow-PyTorch", Y0AST | dict(flow_permutation="reverse")),
    "y0ast_shuffle": ("y0ast/Glow-PyTorch",
                      Y0AST | dict(flow_permutation="shuffle", indices=SHUFFLES)),
    "chrischute_realnvp_s2": ("chrischute/real-nvp", CHRISCHUTE),
    "chrischute_realnvp_s3": ("chrischute/real-nvp",
                              CHRISCHUTE | dict(shape=[1, 8, 12], num_scales=3, in_channels=1, num_blocks=2,
                                                mid_channels=2)),
}
CLASSES = {"rosinality": "model.Glow", "y0ast": "model.Glow",
           "chrischute": "models.RealNVP, eval mode"}


def randomize(model, generator):
    """Parameters of a size that every formula shows in the numbers."""

    def draw(tensor, spread=0.2):
        return spread * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    for name, tensor in model.state_dict().items():
        last = name.rsplit(".", 1)[-1]
        if last in ["initialized", "num_batches_tracked", "u_mask", "l_mask", "l_eye", "prior_h",
                    "data_constraint"]:
            continue
        if last in ["w_p", "p"]:
            order = torch.randperm(len(tensor), generator=generator)
            tensor.copy_(torch.eye(len(tensor)).to(tensor)[order])
        elif last in ["s_sign", "sign_s"]:
            tensor.copy_(torch.sign(torch.randn(tensor.shape, generator=generator)))
        elif last == "running_var":
            tensor.copy_((draw(tensor)).exp())
        elif name.endswith("actnorm.scale"):
            signs = torch.sign(torch.randn(tensor.shape, generator=generator))
            tensor.copy_(signs * draw(tensor).exp())
        elif name.endswith("invconv.weight"):
            square = torch.randn(len(tensor), len(tensor), generator=generator, dtype=tensor.dtype)
            tensor.copy_((torch.linalg.qr(square)[0] * 1.1).reshape(tensor.shape))
        else:
            tensor.copy_(draw(tensor, 0.1 if "invconv" in name else 0.2))


def compute(model, x):
    latents, log_det, log_p = model(x)
    log_prob = log_det + log_p
    bits = -log_prob / (x[0].numel() * math.log(2))
    names = ["z"] if len(latents) == 1 else [f"z.{index}" for index in range(len(latents))]
    one = x[:1]
    flat = lambda row: torch.cat([z.flatten() for z in model(row.reshape(one.shape))[0]])
    jacobian = torch.autograd.functional.jacobian(flat, one.flatten())
    computed = dict(zip(names, latents))
    return computed | {
        "log_det": log_det,
        "log_det_jacobian_0": torch.linalg.slogdet(jacobian)[1].reshape(1),
        "log_prob": log_prob,
        "bits_per_dim": bits,
        "bits_per_dim_8bit": bits + 8,
    }


def write(folder, name, source, hyperparameters, seed):
    generator = torch.Generator().manual_seed(seed)
    model = torch_models.build(source, hyperparameters).double()
    with torch.no_grad():
        randomize(model, generator)
    x = torch.rand([3] + hyperparameters["shape"], generator=generator, dtype=torch.float64)
    x = x * 0.98 + 0.01 if source.startswith("chrischute") else x - 0.5
    computed = compute(model, x)
    gap = abs(computed["log_det"][0] - computed["log_det_jacobian_0"][0])
    assert gap < 1e-9, f"{name}: log_det is {gap:.1e} off its Jacobian"
    tensors = {f"param.{key}": value for key, value in model.state_dict().items()}
    tensors |= {"x": x} | computed
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    metadata = {
        "class": CLASSES[source.split("/")[0]],
        "case": name,
        "source": f"{source} (torch_models.py)",
        "hyperparameters": json.dumps(hyperparameters),
        "seed": str(seed),
        "dtype": "float64",
        "torch": torch.__version__,
    }
    save_file(tensors, folder / f"{name}.safetensors", metadata=metadata)
    print(name)


def check(folder):
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        model = torch_models.build(metadata["source"], json.loads(metadata["hyperparameters"]))
        model = model.double()
        prefix = "param."
        model.load_state_dict(
            {key[len(prefix):]: v for key, v in tensors.items() if key.startswith(prefix)},
            strict=True)
        worst = 0.0
        for key, value in compute(model, tensors["x"]).items():
            error = ((value - tensors[key]).abs() / (1 + tensors[key].abs())).max().item()
            worst = max(worst, error)
        print(f"{path.stem}  {worst:.1e}")
        assert worst < 1e-10, path


class RunsCode:
    """Pickled, a call of a function that is no part of a tensor."""

    def __reduce__(self):
        return print, ("this must not be run",)


def save(folder):
    """Files of torch.save: a state dict in both of its formats, a checkpoint, and what is refused."""
    source, sizes = CASES["rosinality_one_block"]
    model = torch_models.build(source, sizes)
    with torch.no_grad():
        randomize(model, torch.Generator().manual_seed(1))
    state = model.state_dict()
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}
    checkpoint = {"net": parallel, "epoch": 7, "test_loss": 2.5, "optimizer": optimizer}
    torch.save(state, folder / "state_dict.pt")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(checkpoint, folder / "best.pth.tar")
    torch.save(state | {"epoch": 7}, folder / "with_a_number.pt")
    torch.save(state | {"hook": RunsCode()}, folder / "runs_code.pt")
    torch.save(state | {"hook": RunsCode()}, folder / "runs_code_legacy.pt",
               _use_new_zipfile_serialization=False)
    torch.save(model, folder / "whole_model.pt")
    save_file(state, folder / "state_dict.safetensors")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=pathlib.Path)
parser.add_argument("--check", action="store_true")
parser.add_argument("--save", action="store_true")
options = parser.parse_args()
if options.check:
    check(options.folder)
elif options.save:
    options.folder.mkdir(parents=True, exist_ok=True)
    save(options.folder)
else:
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed, (case, (origin, sizes)) in enumerate(CASES.items()):
        write(options.folder, case, origin, sizes, 100 + seed)

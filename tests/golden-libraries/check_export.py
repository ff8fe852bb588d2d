"""Loads what burn-flows exported into PyTorch, strictly, and compares the numbers.

    BURN_FLOWS_EXPORT_DIR=DIR cargo nextest run --all-features --test weights exports
    python check_export.py DIR

For each golden file of this folder and of ../golden whose model the test trained and exported, DIR holds
NAME.safetensors and NAME.pt, the state dict, and NAME.expected.safetensors with what the model computes of
the file's x. Models of normflows are built by ../golden/make_golden.py (pip install normflows), flows of
vectors by make_flows.py (pip install nflows zuko normflows sbi)"""

import json
import pathlib
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import make_flows
import torch_models

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE.parent / "golden"
TOLERANCE = 1e-10


def normflows_case(name):
    sys.path.insert(0, str(GOLDEN))
    import make_golden

    return next(case for case in make_golden.CASES if case.name == name)


def vectors_case(name, metadata, state):
    """log_prob of a flow of vectors by its own library."""
    golden = load_file(HERE / f"{name}.safetensors")
    model = make_flows.build(metadata)
    model.load_state_dict(state, strict=True)
    kind = metadata["class"].removeprefix("flow of vectors of ")
    return make_flows.compute(model, kind, golden["x"], golden.get("context"))


def check(folder, path):
    name = path.name.removesuffix(".expected.safetensors")
    expected = load_file(path)
    for ending in ["safetensors", "pt"]:
        file = folder / f"{name}.{ending}"
        state = load_file(file) if ending == "safetensors" else torch.load(file, weights_only=True)
        if (HERE / f"{name}.safetensors").exists():
            with safe_open(HERE / f"{name}.safetensors", "pt") as golden:
                metadata = golden.metadata()
        else:
            metadata = {}
        if metadata.get("builder") in make_flows.BUILDERS:
            computed = vectors_case(name, metadata, state)
        elif metadata:
            sizes = json.loads(metadata["hyperparameters"])
            model = torch_models.build(metadata["source"], sizes).double()
            model.load_state_dict(state, strict=True)
            _, log_det, log_p = model(expected["x"])
            computed = {"log_det": log_det, "log_prob": log_det + log_p}
        else:
            case = normflows_case(name)
            model = case.build()
            model.load_state_dict(state, strict=True)
            computed = case.run(model, {"x": expected["x"]})
        for key in expected.keys() - {"x"}:
            error = ((computed[key] - expected[key]).abs() / (1 + expected[key].abs())).max().item()
            print(f"{file.name}  {key}  {error:.1e}")
            assert error < TOLERANCE, file


directory = pathlib.Path(sys.argv[1])
files = sorted(directory.glob("*.expected.safetensors"))
assert files, f"nothing was exported to {directory}"
with torch.no_grad():
    for file in files:
        check(directory, file)
print(f"{len(files)} models agree")

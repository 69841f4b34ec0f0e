"""From a student's folder to PyTorch deployments, and from the original's checkpoints to a folder.

python -m bridge.torch_export --folder runs/quickstart/grid_export --format torchscript onnx
python -m bridge.torch_export --original best_model.pt --folder runs/from_torch
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bridge import config as configs
from bridge import manifest, weights
from bridge.errors import InputError
from bridge.proofs import Proof, Verdict, hold, read_proofs
from bridge.torch_original import from_original
from bridge.torch_student import make_mirror
from bridge.weights import Array

TorchFormat = Literal["torchscript", "onnx"]
SCRIPT, PROGRAM = manifest.FORMATS["torchscript"]


@dataclass(frozen=True, kw_only=True)
class TorchExportConfig:
    """Which folder, and whether it is to be made of an original checkpoint."""

    folder: Path
    """an export of student_jax.export; with --original, the folder to write"""
    format: tuple[TorchFormat, ...] = ("torchscript",)
    """torchscript writes model.torchscript.pt and model.pt2; onnx writes encode.onnx and
    answer.onnx, or, of a student that reads features, model.onnx"""
    original: Path | None = None
    """a checkpoint of the original's training script"""


def main(config: TorchExportConfig) -> None:
    """Check an exported student in PyTorch and write it as TorchScript or ONNX.

    Fails, and writes nothing, if the mirror or any of what is made from it gives another answer
    than the JAX student to any proof input. With --original, turn a checkpoint of the original into
    a folder that `python -m student_jax.import_weights` reads.
    """
    if config.original:
        from_original(config.original, config.folder)
        print(f"wrote {config.folder}: the original's weights; its projector was never saved")
        return
    formats = tuple(dict.fromkeys(config.format))
    manifest.remove(config.folder, formats)  # of weights that may have changed
    student = load(config.folder)
    proofs = read_proofs(config.folder)
    print(f"mirror: {check(student, proofs, 'mirror')}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of sizes, and torch of TorchScript's age
        for name in formats:
            write = write_onnx if name == "onnx" else write_torchscript
            write(config.folder, student, proofs)


def load(folder: Path) -> torch.nn.Module:
    """Builds the mirror that a folder describes, with its weights.

    Raises:
        InputError: if they do not fit each other.
    """
    path = folder / "config.json"
    try:
        about = json.loads(path.read_text())
        student = make_mirror(about["model"], about["feature_width"], about["scaling"]).eval()
    except (AssertionError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: expected an export's config.json, got: {error!r}") from None
    file = folder / weights.MODEL
    tensors, _ = weights.load(file)
    for name, value in student.state_dict().items():
        weights.check_leaf(name, tensors.get(name), tuple(value.shape), str(file))
    if about.get("weights_sha256") != manifest.digest_of(file):
        raise InputError(f"{file}: expected the weights that config.json tells, got others")
    try:
        student.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    except RuntimeError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())[:200]}") from None
    return student


def check(student: Callable[..., Any], proofs: Sequence[Proof], what: str) -> Verdict:
    """Holds a PyTorch student against the proofs.

    Raises:
        InputError: naming the first proof that it answers otherwise.
    """

    def answer(inputs: dict[str, Array]) -> tuple[Array, Array | None]:
        with torch.no_grad():
            output = student(*map(torch.tensor, inputs.values()))
        logits, projected = (output, None) if torch.is_tensor(output) else output
        log_probs = torch.log_softmax(logits, -1).numpy()
        return log_probs, None if projected is None else projected.numpy()

    return hold(answer, proofs, what)


def write_torchscript(folder: Path, student: torch.nn.Module, proofs: Sequence[Proof]) -> None:
    """Writes model.torchscript.pt and a torch.export program once both answered all proofs."""
    program = make_program(student, proofs)
    verdict = check(program.module(), proofs, "torch.export")
    print(f"torch.export: {verdict}")
    script: Any = torch.jit.trace(student, largest_sample(proofs), check_trace=False)
    told = check(script, proofs, "TorchScript")
    print(f"TorchScript: {told}")
    torch.jit.save(script, str(folder / SCRIPT))
    torch.export.save(program, folder / PROGRAM)
    worst = max(told, verdict, key=lambda each: each.largest)
    manifest.record(folder, "torchscript", worst)
    print(f"wrote {folder / SCRIPT} and {PROGRAM}")


def write_onnx(folder: Path, student: torch.nn.Module, proofs: Sequence[Proof]) -> None:
    """Writes its graphs once onnxruntime answered all proofs with them."""
    try:
        from bridge import torch_onnx  # what it needs is not in every installation
    except ImportError as error:
        raise InputError(
            f"format onnx: expected onnx, onnxscript and onnxruntime, got: {error}; "
            "pip install 'sage-distill[export]'"
        ) from None
    with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx.") as partial:
        for name, module, taken in torch_onnx.graphs_of(student, proofs):
            program = make_program(module, taken)
            (Path(partial) / name).write_bytes(torch_onnx.convert(program, name))
        verdict = torch_onnx.check(Path(partial), proofs)
        print(f"ONNX: {verdict}")
        for path in sorted(Path(partial).iterdir()):
            path.replace(folder / path.name)
            print(f"wrote {folder / path.name}")
    manifest.record(folder, "onnx", verdict)


def make_program(student: torch.nn.Module, proofs: Sequence[Proof]) -> torch.export.ExportedProgram:
    """Returns a student as a program in which the sizes that differ between proofs are free."""
    shapes = dynamic_shapes(proofs)
    return torch.export.export(student, largest_sample(proofs), dynamic_shapes=shapes)


def largest_sample(proofs: Sequence[Proof]) -> tuple[torch.Tensor, ...]:
    """Returns inputs to trace with; torch.export takes a size of 1 for a constant."""
    free = dynamic_shapes(proofs)

    def sizes(proof: Proof) -> list[int]:
        inputs = zip(proof.inputs.values(), free, strict=True)
        return [array.shape[axis] for array, axes in inputs for axis in axes]

    best = max(proofs, key=lambda proof: (min(sizes(proof), default=0), sizes(proof)))
    return tuple(map(torch.tensor, best.inputs.values()))


def dynamic_shapes(proofs: Sequence[Proof]) -> tuple[dict[int, Any], ...]:
    """Marks the sizes that differ between proofs, and nothing else, as free."""
    # Not named Dims: with those the export takes minutes, and refuses what only a check bounds.
    arrays = [list(proof.inputs.values()) for proof in proofs]
    return tuple(
        {
            axis: torch.export.Dim.AUTO
            for axis in range(arrays[0][place].ndim)
            if len({each[place].shape[axis] for each in arrays}) > 1
        }
        for place in range(len(arrays[0]))
    )


if __name__ == "__main__":
    configs.command(main, TorchExportConfig)

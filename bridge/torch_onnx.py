"""A student as ONNX: one file, all sizes free, weights inside; and its check by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401  torch.onnx needs it and would say so with a traceback
import torch

from bridge.errors import InputError
from bridge.proofs import INPUTS, Proof, Verdict, hold
from bridge.weights import Array


class Answers(torch.nn.Module):
    """A student that keeps what it projects to its teacher's features to itself.

    No answer needs it, and an orthogonal projector's QR has no ONNX.
    """

    def __init__(self, student: torch.nn.Module) -> None:
        """Takes the student."""
        super().__init__()
        self.student = student

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps features f32[B, S, F] and mask bool[B, S] to logits f32[B, N, N, V]."""
        return self.student(features, mask)[0]


def convert(program: torch.export.ExportedProgram, inputs: Mapping[str, Array]) -> bytes:
    """Returns an exported student as an ONNX file's content.

    Args:
        program: of one output; its free sizes stay free.
        inputs: any that it answers, by name.

    Raises:
        InputError: if PyTorch's exporter fails.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of torchvision's absence
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = torch.onnx.export(
                program, (), input_names=list(inputs), output_names=["logits"], dynamo=True
            )
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise InputError(
            f"ONNX: expected torch.onnx to convert the student, got: {fault}"
        ) from None
    assert made is not None  # with dynamo it returns a program
    model = made.model_proto
    _name_sizes(model.graph)
    for node in model.graph.node:
        del node.metadata_props[:]  # traces of this machine's files
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    onnx.checker.check_model(model)
    return model.SerializeToString()


def check(path: Path, proofs: Sequence[Proof]) -> Verdict:
    """Holds an ONNX file against the proofs, on the CPU.

    Raises:
        InputError: naming the first proof that it answers otherwise.
    """
    options = onnxruntime.SessionOptions()
    # Threads that wait without giving way take minutes where others want the same cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def answer(inputs: dict[str, Array]) -> tuple[Array, Array | None]:
        try:
            outputs: Any = session.run(None, inputs)
        except Exception as error:  # onnxruntime's own kinds have no base but this
            raise RuntimeError(str(error)) from None
        return log_softmax(outputs[0]), None

    return hold(answer, proofs, "ONNX")


def log_softmax(logits: Array) -> Array:
    """Normalises over the classes, the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _name_sizes(graph: onnx.GraphProto) -> None:
    """Calls the free sizes of inputs and outputs by their names, in place of torch's s27."""
    names = [value.name for value in graph.input]
    axes = next(axes for axes in INPUTS.values() if list(axes) == names)
    known: dict[str, str] = {}
    for value in graph.input:
        for size, word in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if size.dim_param:
                known[size.dim_param] = word
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = known.get(size.dim_param, size.dim_param)
    del graph.value_info[:]  # sizes in between are products of the old names

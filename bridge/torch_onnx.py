"""A student as ONNX: all sizes free, weights inside; and its check by onnxruntime."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxscript  # noqa: F401  torch.onnx needs it and would say so with a traceback
import torch

from bridge.errors import InputError
from bridge.onnx_student import (
    ANSWER,
    CPU,
    ENCODE,
    GRAPHS,
    WHOLE,
    Axes,
    OnnxStudent,
    open_session,
    run,
)
from bridge.proofs import Proof, Verdict, hold
from bridge.weights import Array


class Encoder(torch.nn.Module):
    """Of a grid student, what reads tasks."""

    def __init__(self, student: Any) -> None:
        """Takes the student."""
        super().__init__()
        self.student = student

    def forward(
        self, demonstrations: torch.Tensor, palette: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `GridMirror.encode_task`."""
        return self.student.encode_task(demonstrations, palette)


class Answerer(torch.nn.Module):
    """Of a grid student, what answers."""

    def __init__(self, student: Any) -> None:
        """Takes the student."""
        super().__init__()
        self.student = student

    def forward(
        self,
        tokens: torch.Tensor,
        shown: torch.Tensor,
        mask: torch.Tensor,
        palette: torch.Tensor,
        query: torch.Tensor,
    ) -> torch.Tensor:
        """Returns log-probabilities; see `GridMirror.answer`."""
        return torch.log_softmax(self.student.answer(tokens, shown, mask, palette, query), -1)


class Whole(torch.nn.Module):
    """A student that reads features, without what it projects to its teacher's.

    No answer needs it, and an orthogonal projector's QR has no ONNX.
    """

    def __init__(self, student: torch.nn.Module) -> None:
        """Takes the student."""
        super().__init__()
        self.student = student

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Maps features f32[B, S, F] and mask bool[B, S] to log-probabilities f32[B, N, N, V]."""
        return torch.log_softmax(self.student(features, mask)[0], -1)


def graphs_of(
    student: torch.nn.Module, proofs: Sequence[Proof]
) -> Iterator[tuple[str, torch.nn.Module, list[Proof]]]:
    """Yields each graph's file, what it is made of, and inputs of all sizes that it takes."""
    if "features" in proofs[0].inputs:
        yield WHOLE, Whole(student), list(proofs)
        return
    encoder, answerer = Encoder(student).eval(), Answerer(student).eval()
    taken: dict[str, list[Proof]] = {ENCODE: [], ANSWER: []}
    for proof in proofs:
        read = {name: torch.tensor(proof.inputs[name]) for name in GRAPHS[ENCODE][0]}
        with torch.no_grad():
            task = zip(GRAPHS[ENCODE][1], encoder(*read.values()), strict=True)
        known = {**proof.inputs, **{name: value.numpy() for name, value in task}}
        for name, (takes, _) in GRAPHS.items():
            if name in taken:
                inputs = {each: known[each] for each in takes}
                taken[name].append(Proof(inputs, proof.log_probs))
    yield ENCODE, encoder, taken[ENCODE]
    yield ANSWER, answerer, taken[ANSWER]


def convert(program: torch.export.ExportedProgram, name: str) -> bytes:
    """Returns an exported module as an ONNX file's content.

    Args:
        program: its free sizes stay free.
        name: of its graph.

    Raises:
        InputError: if PyTorch's exporter fails.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of torchvision's absence
    takes, returns = (list(axes) for axes in GRAPHS[name])
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = torch.onnx.export(
                program, (), input_names=takes, output_names=returns, dynamo=True
            )
    except RuntimeError as error:
        fault = " ".join(str(error).split())[:200]
        raise InputError(
            f"ONNX: expected torch.onnx to convert the student, got: {fault}"
        ) from None
    assert made is not None  # with dynamo it returns a program
    model = made.model_proto
    _name_sizes(model.graph, {**GRAPHS[name][1], **GRAPHS[name][0]})
    for node in model.graph.node:
        del node.metadata_props[:]  # traces of this machine's files
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    onnx.checker.check_model(model)
    return model.SerializeToString()


def check(folder: Path, proofs: Sequence[Proof]) -> Verdict:
    """Holds a folder's ONNX files against the proofs, on the CPU.

    Raises:
        InputError: naming the first proof that they answer otherwise.
    """
    if "features" in proofs[0].inputs:
        session = open_session(folder / WHOLE, CPU, patient=True)

        def answer(inputs: dict[str, Array]) -> tuple[Array, None]:
            return run(session, inputs)[0], None

        return hold(answer, proofs, "ONNX")
    student = OnnxStudent(folder, CPU, patient=True)

    def read_and_answer(inputs: dict[str, Array]) -> tuple[Array, None]:
        *read, query = inputs.values()
        return student.answer(student.encode(*read), query), None

    return hold(read_and_answer, proofs, "ONNX")


def _name_sizes(graph: onnx.GraphProto, axes: Axes) -> None:
    """Calls the free sizes of inputs and outputs by their names, in place of torch's s27."""
    for value in (*graph.input, *graph.output):
        for size, word in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if size.dim_param:
                size.dim_param = word
    del graph.value_info[:]  # sizes in between are products of the old names

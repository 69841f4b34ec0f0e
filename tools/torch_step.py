"""The training step in eager PyTorch, on the students' mirrors: what JAX's step is held against.

AdamW is PyTorch's fused one, which takes all arrays in one call; the plain one goes through them
one by one on a CPU.

In the shape descriptions: `B` batch, `R` those of it that come with a teacher's features, `N`
canvas side, `T` teacher tokens, `F` teacher feature width, `D` width, `V` cell classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

from bridge import weights
from bridge.errors import InputError
from bridge.from_torch import from_numpy
from bridge.torch_grid_student import GridMirror, one_hot
from bridge.torch_student import FeatureMirror, Scale, make_mirror
from bridge.tree import flatten
from student_jax import state as states
from student_jax.batch import Batch
from student_jax.config import LossConfig, TrainConfig

Tensors = dict[str, torch.Tensor]  # a `Batch`


def torch_side(
    settings: TrainConfig, feature_width: int, steps: int, params: Any, batches: list[Batch]
) -> Callable[[int], float]:
    """Returns PyTorch's step on the same weights: JAX's loss, clipping, AdamW and rates.

    Args:
        settings: the training run.
        feature_width: `F`.
        steps: how many will be taken.
        params: the weights to start from, as JAX has them.
        batches: taken in turn.

    Returns:
        Takes the step of a number, from 0, and returns its loss.
    """
    device, optim = torch_device(), settings.optim
    mirror = make_mirror(asdict(settings.model), feature_width).to(device)
    given = weights.to_torch(flatten(params), settings.model.kind)
    own = mirror.state_dict()  # holds the scaling, too, which changes nothing
    mirror.load_state_dict({**own, **{name: torch.tensor(x) for name, x in given.items()}})
    forward = make_forward(mirror, Scale(feature_width, "none").to(device))
    groups = parameter_groups(mirror, settings, params)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = states.make_schedule(optim)  # asked now: the clock must not see JAX in torch's step
    learning_rates = [np.asarray(schedule(i)).item() for i in range(steps)]
    placed = [
        {
            name: from_numpy(np.array(array)).to(device)
            for name, array in vars(batch).items()
            if array is not None
        }
        for batch in batches
    ]

    def step(number: int) -> float:
        batch, loss = placed[number % len(placed)], torch.zeros((), device=device)
        shares = {name: whole.chunk(optim.accumulate) for name, whole in batch.items()}
        optimizer.zero_grad()
        for i in range(optim.accumulate):
            share = {name: parts[i] for name, parts in shares.items()}
            with torch.autocast(device, torch.bfloat16, settings.model.compute == "bfloat16"):
                part = torch_loss(*forward(share), share, batch, settings.loss)
            part.backward()
            loss += part.detach()
        torch.nn.utils.clip_grad_norm_(trained, optim.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rates[number]
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


def torch_device() -> str:
    """Returns the kind of device that JAX runs on, as PyTorch calls it."""
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("torch: expected a GPU beside JAX's, got none; add --against_torch False")
    return "cuda"


def parameter_groups(mirror: torch.nn.Module, settings: TrainConfig, params: Any) -> list[Any]:
    """Returns the trained parameters: those that decay, as JAX's own mask has it, and the rest."""
    original, kind = settings.loss.form == "original", settings.model.kind
    decays = (states.decays_all if original else states.decays_matrices)(params)
    decayed = {weights.torch_name(name, kind): value for name, value in flatten(decays).items()}
    named = dict(mirror.named_parameters())
    for name in [n for n in named if original and n.startswith(states.PROJECTOR)]:
        named.pop(name).requires_grad_(False)  # the original's optimizer never saw it
    return [
        {
            "params": [parameter for name, parameter in named.items() if decayed[name] == which],
            "weight_decay": settings.optim.weight_decay * which,
        }
        for which in (True, False)
    ]


Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_forward(mirror: torch.nn.Module, scale: Scale) -> Callable[[Tensors], Triple]:
    """Returns what maps a batch to logits [B, N, N, V], and features and targets [R, T, F].

    Hooks see what a mirror keeps to itself, since its answers do not need it.
    """
    seen: dict[str, tuple[Any, Any]] = {}
    for part in {"scaling", "encoder", "core"} & {name for name, _ in mirror.named_children()}:
        mirror.get_submodule(part).register_forward_hook(
            lambda _module, given, said, part=part: seen.update({part: (given, said)})
        )

    def forward(batch: Tensors) -> Triple:
        teacher, mask = batch["teacher"].float(), batch["teacher_mask"]
        if isinstance(mirror, FeatureMirror):
            return *mirror(teacher, mask), seen.pop("scaling")[1]
        target = scale(teacher, mask)
        if not isinstance(mirror, GridMirror):
            return *mirror(target, mask), target
        names = ("demonstrations", "demonstration_mask", "palette", "query")
        logits = mirror(*(batch[name] for name in names))
        side, palette = logits.shape[1], batch["palette"]
        pairs, query = (
            to_patches(paint(mirror, palette, *seen.pop(part)), side)
            for part in ("encoder", "core")
        )
        every = len(query) // len(target)  # that the teacher saw
        pairs = pairs.unflatten(0, (len(query), -1))[::every].flatten(0, 1)
        query = query[::every]
        frames = torch.stack([mirror.input_projector(pairs), mirror.output_projector(pairs)], 1)
        frames = frames.reshape(len(query), -1, frames.shape[-1])
        return logits, torch.cat([frames, mirror.query_projector(query)], 1), target

    return forward


def paint(mirror: GridMirror, palette: torch.Tensor, given: Any, said: Any) -> torch.Tensor:
    """Gathers a grid student's state of no color and those of all colors shown, [B, T, M].

    Args:
        mirror: whose states they are.
        palette: u8[B, C].
        given: what its trunk was called with; the third is which colors are shown, bool[*B, C].
        said: what that returned, [*B, T, C, D] and [*B, T, S].
    """
    states, own = said
    each = palette.long().repeat_interleave(len(states) // len(palette), 0)
    real = (one_hot(each) & given[2][..., None]).to(states.dtype)
    weights = torch.einsum("bcv,vdm->bcdm", real, mirror.paint.to(states.dtype))
    return torch.cat([torch.einsum("btcd,bcdm->btm", states, weights), own], -1)


def to_patches(x: torch.Tensor, side: int) -> torch.Tensor:
    """Averages 2 x 2 of the last N * N tokens: [B, *, D] to [B, N/2 * N/2, D]."""
    cells = x[:, -(side**2) :].reshape(len(x), side // 2, 2, side // 2, 2, -1)
    return cells.mean((2, 4)).flatten(1, 2)


def torch_loss(
    logits: torch.Tensor,
    said: torch.Tensor,
    target: torch.Tensor,
    share: Tensors,
    whole: Tensors,
    form: LossConfig,
) -> torch.Tensor:
    """Returns a micro-batch's part of its batch's loss, f32[]; see `student_jax/losses.py`.

    Args:
        logits: [B, N, N, V].
        said: projected features, [R, T, F].
        target: scaled teacher features, f32[R, T, F].
        share: the micro-batch.
        whole: the batch that it is a part of.
        form: the terms' weights and means.
    """
    classes, mask, said = share["answer"].long(), share["teacher_mask"], said.float()
    cells = functional.cross_entropy(logits.float().permute(0, 3, 1, 2), classes, reduction="sum")
    task = cells / (len(whole["answer"]) * classes[0].numel())
    squares = (said - target).square()
    squares = squares.sum(-1) if form.form == "original" else squares.mean(-1)
    cosine = 1 - functional.cosine_similarity(said, target, dim=-1)
    tokens = mask * (form.mse * squares + form.cosine * cosine)
    seen = whole["teacher_mask"]
    if form.form == "original":
        return form.task * task + form.feature * tokens.sum() / seen.sum()
    examples = tokens.sum(1) / mask.sum(1).clamp(min=1)
    return form.task * task + form.feature * examples.sum() / seen.any(1).sum().clamp(min=1)


def allow_tf32(allowed: bool) -> None:
    """Lets PyTorch multiply float32 in TF32 on a GPU, as JAX does by itself, or not."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")  # high: TF32
    torch.backends.cudnn.allow_tf32 = allowed

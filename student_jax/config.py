"""The student's configs. Defaults live here, once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from bridge.arc import MAX_SIDE
from bridge.canvas import SIDES
from bridge.task_set import TaskSet

Scalings = Literal["standardise", "phi_s", "layer_norm", "none"]
Tier = Literal["tokens", "weights", "joint"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A student's network."""

    kind: Literal["feature", "grid", "original"] = "grid"
    """feature: reads frozen teacher features; grid: reads raw grids and stands alone; original:
    reads features as the original did, see configs/original.yaml"""
    width: int = 256
    """of a token's state; grid: of its state of one color"""
    heads: int = 8
    mlp_width: int = 512
    """of a token's hidden layer; grid: of one color's"""
    invariant_width: int = 0
    """grid: of a token's state that is of no color, beside those of colors; 0: it has none. Most of
    a large student's weights belong here: what they cost is not multiplied by the colors"""
    depth: int = 4
    """blocks of the trunk, each with its own weights"""
    loops: int = 1
    """how often the trunk is run, with the same weights"""
    encoder_depth: int = 2
    """grid: blocks that read one demonstration"""
    tokens_per_pair: int = 8
    """grid: task tokens that a demonstration leaves behind"""
    table: int = 0
    """grid: rows of a table of task tokens, one for each training task, learnt beside the encoder's
    (VARC, arXiv 2511.14761); a task that has none, as all that are to be solved, shares one more"""
    positions: Literal["2-d", "1-d"] = "2-d"
    """grid: rotary angles of a cell's row and column, or of its place in reading order, to see what
    the second dimension is worth"""
    convolution: bool = True
    """grid: 3 x 3 depthwise, inside the gate of each MLP"""
    canvas: int = 32
    """feature: side of the answer's canvas"""
    max_tokens: int = 6144
    """feature: longest teacher sequence, with a learned position each"""
    projector: Literal["linear", "orthogonal"] = "linear"
    """from the student's width to the teacher's; orthogonal: turns features, cannot reshape them"""
    dropout: float = 0.0
    """drawn per device: runs on different device counts then differ"""
    compute: Literal["float32", "bfloat16"] = "float32"
    """of activations and matrix products; weights, norms' statistics, softmax, losses, gradients
    between devices and the optimizer stay in float32"""
    remat: bool = False
    """compute each block's activations again in the backward pass: less memory, more time"""
    scan_layers: bool = False
    """one block in a compiled program, in a loop, and not depth times loops of them: it compiles so
    much sooner, which on a GPU is minutes a shape. Single answers and exports do without"""

    @property
    def key_width(self) -> int:
        """grid: of all heads' keys together."""
        return self.invariant_width or self.mlp_width

    @property
    def invariant_mlp_width(self) -> int:
        """grid: of the hidden layer of no color; in the proportion of a color's."""
        return self.invariant_width * self.mlp_width // self.width

    @property
    def cell_width(self) -> int:
        """grid: of what a cell is to the teacher's projectors, all colors together."""
        return self.mlp_width + self.invariant_width

    def to_answer(self, compute: str) -> ModelConfig:
        """The same network where no gradient is taken and every microsecond counts."""
        return replace(self, compute=compute, remat=False, scan_layers=False)  # pyright: ignore[reportArgumentType]

    def to_learn_many(self) -> ModelConfig:
        """The same network where many tasks learn at once on a GPU: little memory, soon compiled.

        As it was trained, but for dropout: tasks are learnt without.
        """
        return replace(self, remat=True, dropout=0.0, scan_layers=True)

    @property
    def reads_features(self) -> bool:
        """Whether it needs the teacher's features to answer."""
        return self.kind != "grid"

    @property
    def answer_side(self) -> int:
        """Side of a feature reader's answer."""
        return MAX_SIDE if self.kind == "original" else self.canvas

    def __post_init__(self) -> None:
        """Checks that the sizes fit together."""
        if min(self.width, self.heads, self.mlp_width, self.max_tokens) < 1:
            raise ValueError("width, heads, mlp_width, max_tokens: expected at least 1")
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(
                f"width: expected a multiple of 4 * heads = {4 * self.heads}, got {self.width}"
            )
        if self.kind == "grid" and self.mlp_width % (4 * self.heads):
            raise ValueError(
                f"mlp_width: expected a multiple of 4 * heads = {4 * self.heads}, "
                f"got {self.mlp_width}"
            )
        if self.invariant_width % (4 * self.heads) or self.invariant_width < 0:
            raise ValueError(
                f"invariant_width: expected a multiple of 4 * heads = {4 * self.heads}, "
                f"got {self.invariant_width}"
            )
        if self.canvas not in SIDES:
            raise ValueError(f"canvas: expected one of {SIDES}, got {self.canvas}")
        if self.kind == "original" and (self.loops, self.projector) != (1, "linear"):
            raise ValueError("loops, projector: expected 1 and linear with kind original")
        if self.scan_layers and (self.kind == "original" or self.dropout):
            raise ValueError("scan_layers: expected false with kind original, or with dropout")
        if min(self.depth, self.loops, self.encoder_depth, self.tokens_per_pair) < 1:
            raise ValueError("depth, loops, encoder_depth, tokens_per_pair: expected at least 1")
        if self.table < 0 or (self.table and self.kind != "grid"):
            raise ValueError(f"table: expected 0, or more with kind grid; got {self.table}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 <= x < 1, got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss.

    `task * (task_loss + left_out * left_out_loss)
    + feature * (mse * MSE + cosine * (1 - cos) + smooth_l1 * SL1)`
    """

    task: float = 1.0
    left_out: float = 0.0
    """grid: of the task loss of the demonstrations, each answered from the others; about half the
    price of as many further examples, since each demonstration is read once"""
    feature: float = 0.5
    fade: float = 0.0
    """share of the steps, the last ones, over which the weight `feature` falls to 0 in a straight
    line; 1 from the first step on; 0 for a constant weight"""
    mse: float = 1.0
    cosine: float = 0.5
    smooth_l1: float = 0.0
    """Theia's mixture is mse 0, cosine 0.9, smooth_l1 0.1"""
    task_loss: Literal["cross_entropy", "focal", "class_weighted"] = "cross_entropy"
    scaling: Scalings = "standardise"
    """of the teacher's features: each channel to std 1; PHI-S, which rotates them to equal
    variances and keeps their proportions; each token to mean 0 and std 1; or as they are"""
    form: Literal["corrected", "original"] = "corrected"
    """original: MSE summed over channels and averaged over tokens, projector frozen"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 <= self.fade <= 1:
            raise ValueError(f"fade: expected 0 <= x <= 1, got {self.fade}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    total_steps: int = 1000
    batch_size: int = 16
    """examples over all devices"""
    peak_lr: float = 1e-3
    warmup_fraction: float = 0.1
    """share of the steps"""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    """micro-batches that a device takes one after the other for one update: less memory, the same
    gradient"""
    ema_decay: float = 0.0
    """above 0: an exponential moving average of the weights is kept, and answers"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if min(self.total_steps, self.batch_size, self.accumulate) < 1:
            raise ValueError("total_steps, batch_size, accumulate: expected at least 1")
        if not (0 < self.peak_lr < math.inf and 0 < self.clip_norm < math.inf):
            raise ValueError("peak_lr, clip_norm: expected a finite number above 0")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction: expected 0 <= x < 1, got {self.warmup_fraction}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 <= x < 1, got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the student is trained on."""

    tasks: TaskSet = field(default_factory=TaskSet)
    store: str | None = None
    """the teacher's feature store; grid can do without one (None), feature cannot"""
    cache: str = "ram"
    """where decoded features are kept: ram (half of what is free), none, or a folder for
    memory-mapped files, which processes share"""
    rearc: Path | None = None
    """grid: folder of further pairs of the same tasks, see python -m bridge.rearc; no teacher saw
    those"""
    max_demonstrations: int = 10
    """grid: how many demonstrations of a question are read"""
    augmented_fraction: float = 0.5
    """grid: share of each batch that is turned, mirrored, scaled, shifted; no teacher saw it so.
    The rest is shown as it is, original pairs first, however many are generated beside them"""

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.max_demonstrations < 1:
            raise ValueError(
                f"max_demonstrations: expected 1 or more, got {self.max_demonstrations}"
            )
        if not 0 <= self.augmented_fraction <= 1:
            raise ValueError(f"augmented_fraction: expected 0..1, got {self.augmented_fraction}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    out: Path = Path("runs/train")
    """folder for checkpoints, metrics and the resolved config"""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    map: Literal["shard_map", "pmap"] = "shard_map"
    """how the per-device step is spread over devices; the numbers are the same, but pmap keeps two
    copies of the state"""
    log_steps: int = 10
    checkpoint_steps: int = 100
    dev_questions: int = 64
    """held-out questions answered at each checkpoint, to keep the best one; 0 for none"""
    patience: int = 0
    """stop after so many checkpoints without a better one; 0 for never"""
    init: Path | None = None
    """folder of another run whose weights this one starts from; step, optimizer and data order
    start anew. Once this run has a checkpoint of its own, it goes on from that"""
    may_differ: tuple[str, ...] = ()
    """keys, such as optim.total_steps, in which this config may differ from that of the run it
    goes on with; the result is then no longer that of an unbroken run"""
    dry_run: bool = False
    """train nothing: print shapes, parameters, memory and the time an epoch takes"""

    def __post_init__(self) -> None:
        """Checks what needs neither disk nor devices."""
        if self.model.reads_features and self.data.rearc is not None:
            raise ValueError("data.rearc: expected none: no teacher saw those pairs")
        if self.model.reads_features and self.data.store is None:
            raise ValueError(
                f"data.store: a student of kind {self.model.kind} needs a store; run extract first"
            )
        if self.loss.form == "original" and not self.model.reads_features:
            raise ValueError("loss.form: expected corrected with model.kind grid, got original")
        if self.model.kind != "grid" and self.loss.left_out:
            raise ValueError("loss.left_out: expected 0 without model.kind grid: it reads no grids")
        if self.model.kind == "original" and self.loss.scaling != "none":
            raise ValueError("loss.scaling: expected none with model.kind original, as it was")
        if min(self.log_steps, self.checkpoint_steps) < 1:
            raise ValueError("log_steps, checkpoint_steps: expected at least 1")
        if min(self.seed, self.dev_questions, self.patience) < 0:
            raise ValueError("seed, dev_questions, patience: expected 0 or more")
        if self.patience and not self.dev_questions:
            raise ValueError("patience: expected dev_questions above 0 to judge by, got 0")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a task is learnt."""

    tier: Tier = "weights"
    """what is learnt: the task tokens alone; with them the weights that answer, not those that read
    demonstrations, for each task its own; or one copy of these weights for all tasks together"""
    steps: int = 2000
    """at most, for each task"""
    seconds: float = 60.0
    """at most, for each task on average; what is learnt by then answers"""
    lr: float = 3e-3
    """Adam's; it falls to 0 along a cosine, sooner where the time will not do for all steps"""
    weight_decay: float = 0.01
    copies: int = 1
    """of a task's demonstrations a step, in views drawn at random, shifted and scaled"""
    tasks_at_once: int | None = None
    """at most, in one program, where all wait for the slowest; by default 16, but 1 on a CPU, whose
    cores each take a task, unless they learn jointly"""
    rounds: int = 4
    """at most, in which a task is learnt: first from the student's weights, then from new random
    ones, while as much is left of its steps and seconds as a round takes; all that fit vote. Only
    with tier weights"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        at_once = 1 if self.tasks_at_once is None else self.tasks_at_once
        if min(self.steps, self.copies, self.rounds, at_once) < 1 or self.seed < 0:
            raise ValueError(
                "expected steps, copies, rounds and tasks_at_once of at least 1, seed of at least 0"
            )
        if not (self.seconds > 0 and self.lr > 0):
            raise ValueError("seconds, lr: expected more than 0")

"""One visible loop: fit(net, objective, batches) yields after every step."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path as File
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import flowtext
from flowtext.data import Batches
from flowtext.objectives import At
from flowtext.tensors import check_state

Rate = float | Callable[[float], float]


class Step(NamedTuple):
    """What stands after a step: its number from 1, its loss, the net and its average.

    Sample with `ema`, whose weights are the mean over recent steps.
    """

    number: int
    loss: Float[Tensor, ""]
    net: nn.Module
    ema: nn.Module


def fading(lr: float, warm: float = 0.02) -> Rate:
    """A learning rate that rises over the share `warm` of a run, then fades to 0."""

    def rate(progress: float) -> float:
        if progress < warm:
            return lr * progress / warm
        left = (1 - progress) / (1 - warm)
        return lr * left * (2 - left)

    return rate


def fit(
    net: nn.Module,
    objective: Callable,
    batches: Batches,
    *,
    steps: int,
    lr: Rate = 1e-3,
    ema: float = 0.999,
    clip: float = 1.0,
    generator: Generator | None = None,
    keep: str | File | None = None,
    every: int = 500,
) -> Iterator[Step]:
    """Train a net by Adam on the mean of an objective; yields after each step.

    `batches(generator)` draws x1, or x1 and labels. With `keep`, the whole state is in
    that file after every `every` steps and at the end, however the run ends; the same
    call then goes on from there, to the same weights. Raises ValueError when loss or
    gradient is no number; the weights are then those of the step before.
    """
    _check(net, steps, every, lr, ema, keep)
    run = _Run(net, ema, generator)
    if keep and File(keep).exists():
        run.load(keep)
    try:
        for number in range(run.done + 1, steps + 1):
            loss = run.advance(objective, batches, (number - 1) / steps, lr, clip)
            if keep and number % every == 0:
                run.save(keep)
            yield Step(number, loss, net, run.average.module)
    finally:
        if keep and run.whole:
            run.save(keep)


def _check(net, steps: int, every: int, lr: Rate, ema: float, keep) -> None:
    """Refuse settings of a training that could not end well."""
    if not (isinstance(steps, int) and steps >= 1 and every >= 1):
        got = f"{steps} steps, saved every {every}"
        raise ValueError(f"got {got}, expected 1 or more of each, whole numbers")
    if not 0 <= ema < 1 or not (callable(lr) or lr > 0):
        got = f"ema {ema} and lr {lr}"
        raise ValueError(f"got {got}, expected 0 <= ema < 1 and a rate above 0")
    if not all(weight.requires_grad for weight in net.parameters()):
        got = "a net whose weights are frozen"
        raise ValueError(f"got {got}, expected them free: net.requires_grad_(True)")
    if keep and not File(keep).parent.is_dir():
        raise ValueError(f"got {keep}, expected a file in a folder that exists")


class _Run:
    """All that changes while a net is trained, to be kept and taken up again."""

    def __init__(self, net: nn.Module, ema: float, generator: Generator | None):
        self.net, self.generator = net, generator
        self.adam = torch.optim.Adam(net.parameters())

        def mean(averaged, current, n):
            decay = min(ema, float((1 + n) / (10 + n)))  # a short memory at first
            get_ema_multi_avg_fn(decay)(averaged, current, n)

        self.average = AveragedModel(net, multi_avg_fn=mean)
        self.done, self.whole = 0, True

    def advance(self, objective, batches, progress, lr, clip) -> Float[Tensor, ""]:
        """One step; where it fails before the weights move, its draws are undone."""
        start = self.generator.get_state() if self.generator else None
        try:
            loss = self.differentiate(objective, batches, progress, clip)
        except BaseException:
            if self.generator:
                self.generator.set_state(start)
            raise
        self.whole = False
        for group in self.adam.param_groups:
            group["lr"] = lr(progress) if callable(lr) else lr
        self.adam.step()
        self.average.update_parameters(self.net)
        self.done += 1
        self.whole = True
        return loss

    def differentiate(self, objective, batches, progress, clip) -> Float[Tensor, ""]:
        device = next(self.net.parameters()).device
        batch = batches(self.generator)
        parts = batch if isinstance(batch, tuple | list) else (batch, None)
        if len(parts) != 2:
            raise ValueError(f"got a batch of {len(parts)} parts, expected x1 or x1, y")
        x1, y = parts
        check_state(x1)
        x1, y = x1.to(device), None if y is None else y.to(device)
        at = At(progress, self.average.module)
        with precision(device):
            each = objective(self.net, x1, y, at=at, generator=self.generator)
        loss = each.mean()
        self.adam.zero_grad()
        loss.backward()
        size = nn.utils.clip_grad_norm_(self.net.parameters(), clip)
        if not torch.isfinite(loss + size):
            got = f"a loss of {loss:g} with a gradient of size {size:g}"
            hint = "the weights are those of the step before; try a smaller rate"
            raise ValueError(f"got {got} at step {self.done + 1}, {hint}")
        return loss.detach()

    def save(self, path: str | File) -> None:
        state = {"net": self.net.state_dict(), "average": self.average.state_dict()}
        state |= {"adam": self.adam.state_dict(), "done": self.done}
        if self.generator:
            state["generator"] = self.generator.get_state()
        _whole(path, lambda draft: torch.save(state, draft))

    def load(self, path: str | File) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.average.load_state_dict(state["average"])
            self.adam.load_state_dict(state["adam"])
            self.done = state["done"]
            if self.generator:
                self.generator.set_state(state["generator"])
            # Last, so that a refused file leaves the net as it was.
            self.net.load_state_dict(state["net"])
        except Exception as error:
            got = f"{path}, which is damaged or of another net"
            raise ValueError(f"got {got}, expected a run to go on with") from error


def precision(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where a GPU computes it natively, else the precision of the weights."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(
        including_emulation=False
    ):
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def save(
    path: str | File, net: nn.Module, facts: dict, dtype: torch.dtype = torch.float32
) -> None:
    """Write a net's weights and facts (JSON) as safetensors, all or nothing."""
    facts = facts | {"net": type(net).__name__, "version": flowtext.__version__}
    weights = {
        name: value.detach().to("cpu", dtype).contiguous()
        for name, value in net.state_dict().items()
    }
    words = {"facts": json.dumps(facts)}
    _whole(path, lambda draft: save_file(weights, draft, metadata=words))


def read(path: str | File, net: nn.Module) -> dict:
    """Fill a net with saved weights, in its own precision, and return their facts.

    Raises ValueError for a file that is damaged, or whose weights are of another net.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            kind = facts["net"]
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, OSError, ValueError) as error:
        raise ValueError(f"got {path}, which cannot be read: {error}") from error
    wanted = {name: value.shape for name, value in net.state_dict().items()}
    found = {name: value.shape for name, value in weights.items()}
    if kind != type(net).__name__ or found != wanted:
        got = f"weights of a {kind} that fit another net in {path}"
        raise ValueError(f"got {got}, expected those of this {type(net).__name__}")
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError(f"got NaN or infinity in {path}, expected finite weights")
    net.load_state_dict(weights)
    return facts


def _whole(path: str | File, write: Callable[[File], None]) -> None:
    """Write a file all or nothing: a draft first, then a change of name."""
    draft = File(f"{path}.draft")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)

"""The training loop of both networks (`ldm` uses it too): exact resume, averaged weights,
cosine learning rate, one or many devices."""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from sr3.memory import fast_dtype
from sr3.saving import open_to_others

Loss = Callable[[nn.Module, int, slice], tuple[Tensor, dict[str, float]]]
BASE = "weights of --"
SAMPLES, SAMPLE = 64, 2**16  # of each file of a base: how many are read, and how many bytes each
NAMED = 5  # changes of each kind that a message names; then it counts
# Of a training's settings, those that may be others when it goes on.
FREE = {"out", "loop", "workers", "skip_bad", "checkpointing", "allow_download"}


@dataclass(frozen=True)
class LoopConfig:
    steps: int = 100_000
    minutes: float | None = None
    """Stop cleanly, with a resumable state, after so many minutes."""
    batch_size: int = 16
    learning_rate: float = 4e-4
    warmup: int = 300
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved as the model."""
    device: str = "auto"
    threads: int | None = None
    compile: bool = False
    save_every: int = 1000
    log_every: int = 50


class Training(Protocol):
    """The dataclass of a training's settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path:
        """The folder that gets the state, the logs and the weights."""

    @property
    def loop(self) -> LoopConfig:
        """How long and how fast."""


def what_is_trained(config: Training) -> dict[str, Any]:
    """The settings that an interrupted training must have again, as JSON gives them back; of paths the last name, since
    a training may go on elsewhere."""
    kept = {k: v for k, v in asdict(config).items() if k not in FREE}
    named: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return {k: Path(v).name if isinstance(v, str) else v for k, v in named.items()}


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine down to zero at `config.steps`."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def digest(file: Path) -> dict[str, str]:
    """A pack of data by its name, for `fit`'s `contents`."""
    with file.open("rb") as opened:
        return {file.name: hashlib.file_digest(opened, "sha256").hexdigest()[:16]}


def base_digest(option: str, folder: Path | None, out: Path) -> dict[str, str]:
    """The weights that a training starts from by the option's name, for `fit`'s `contents`: of a pipeline's directory
    or of one of its parts, wherever it lies. Nothing of one below `out`, which the training may write over."""
    if folder is None or folder.resolve().is_relative_to(out.resolve()):
        return {}
    index = folder / "model_index.json"
    parts = [folder / name for name in json.loads(index.read_text())] if index.is_file() else [folder]
    found = hashlib.sha256()
    # model.safetensors or model-00001-of-00002.safetensors, but not model.fp16.safetensors
    for file in sorted(f for part in parts for f in part.glob("*.safetensors") if f.name.count(".") == 1):
        size = file.stat().st_size
        with file.open("rb") as opened:
            for at in range(0, size, max(size // SAMPLES, SAMPLE)):
                opened.seek(at)
                found.update(opened.read(SAMPLE))
    return {f"{BASE}{option}": found.hexdigest()[:16]}


def own_device(name: str) -> str:
    """The device that this process trains on: of several GPUs the one that its launcher says (LOCAL_RANK)."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or not (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return name
    return f"cuda:{rank}"


def mixed(device: torch.device) -> torch.autocast:
    """The networks in bfloat16 where the hardware multiplies it; elsewhere it would be many times slower."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device) == "bfloat16")


def generator(*key: int) -> torch.Generator:
    """The CPU generator of a key such as (seed, step): the same whatever ran before it."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


class State:
    """Weights, averaged weights, optimiser moments and step; saved and read as one safetensors file."""

    def __init__(self, model: nn.Module, training: Training, contents: dict[str, str] | None = None) -> None:
        self.model, self.config, self.step = model, training.loop, 0
        self.trained, self.contents = what_is_trained(training), contents
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.parameters]
        fused = self.parameters[0].device.type in ("cuda", "cpu")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01, fused=fused)

    def update(self) -> float:
        """One step of the optimiser from the gradients that are there. Returns their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 1 - decay)
        return float(norm)

    def average_into_model(self) -> list[Tensor]:
        """Put the averaged weights into the model; returns the others, for `restore`."""
        kept = [p.detach().clone() for p in self.parameters]
        self.restore(self.averaged)
        return kept

    def restore(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)

    def save(self, path: Path) -> None:
        tensors: dict[str, Tensor] = {}
        for i, (weight, averaged) in enumerate(zip(self.parameters, self.averaged, strict=True)):
            moments = self.optimizer.state.get(weight, {})
            tensors |= {f"{i}.weight": weight.detach(), f"{i}.averaged": averaged}
            tensors |= {f"{i}.{k}": moments[k] for k in ("exp_avg", "exp_avg_sq", "step") if k in moments}
        buffers = {f"buffer.{name}": value for name, value in self.model.named_buffers()}
        temporary = path.with_name(path.name + ".part")
        form = torch.contiguous_format
        whole = {k: v.detach().to("cpu", copy=True, memory_format=form) for k, v in (tensors | buffers).items()}
        metadata = {"step": self.step, "trained": self.trained, "contents": self.contents}
        save_file(whole, temporary, metadata={k: json.dumps(v) for k, v in metadata.items()})
        open_to_others(temporary)
        temporary.rename(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote. Raises ValueError for the state of another training, and for a broken file."""
        try:
            with safe_open(str(path), framework="pt") as file, torch.no_grad():
                self._fill(file, path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no state of a training: {error}") from None

    def _fill(self, file: Any, path: Path) -> None:
        metadata = file.metadata() or {}
        before = json.loads(metadata.get("trained", "{}"))
        for name in sorted(self.trained.keys() & before.keys()):
            was, now = before[name], self.trained[name]
            if was != now:
                raise ValueError(
                    f"{path} is of a training with {name} {was!r}, not {now!r}; give another folder to write"
                )
        contents, now = json.loads(metadata.get("contents", "null")) or {}, self.contents or {}
        unknown = {k for k in contents.keys() ^ now.keys() if k.startswith(BASE)}  # to one of both: of an earlier state
        was, now = ({k: v for k, v in each.items() if k not in unknown} for each in (contents, now))
        if was and now and was != now:
            changes = _changes(was, now)
            raise ValueError(f"{path} is of a training on other data ({changes}); give another folder to write")
        keys = set(file.keys())
        weights = range(sum(key.endswith(".weight") and key[0].isdigit() for key in keys))
        shapes = [tuple(file.get_slice(f"{i}.weight").get_shape()) for i in weights]
        if shapes != [tuple(p.shape) for p in self.parameters]:
            raise ValueError(f"{path} is the state of other networks; give another folder to write")
        self.step = json.loads(metadata["step"])
        for i, weight in enumerate(self.parameters):
            weight.copy_(file.get_tensor(f"{i}.weight"))
            self.averaged[i].copy_(file.get_tensor(f"{i}.averaged"))
            names = [k for k in ("exp_avg", "exp_avg_sq", "step") if f"{i}.{k}" in keys]
            if names:
                fused = bool(self.optimizer.param_groups[0]["fused"])
                self.optimizer.state[weight] = {k: _like(file.get_tensor(f"{i}.{k}"), weight, fused) for k in names}
        for name, value in self.model.named_buffers():
            if f"buffer.{name}" in keys:
                value.copy_(file.get_tensor(f"buffer.{name}"))


def _changes(before: dict[str, str], now: dict[str, str]) -> str:
    """Which names are new, gone or stand for something else."""
    found = {
        "new": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
        "changed": {k for k in before.keys() & now.keys() if before[k] != now[k]},
    }
    said = []
    for what, names in found.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        said += [f"{what}: {', '.join(sorted(names)[:NAMED])}{more}"] if names else []
    return "; ".join(said)


def _like(moment: Tensor, weight: Tensor, fused: bool) -> Tensor:
    """On the weight's device in its memory layout, which the fused optimiser takes for granted; the count of steps
    stays on the CPU where it is not fused."""
    if moment.ndim:
        return torch.empty_like(weight).copy_(moment)
    return moment.to(weight.device) if fused else moment


def fit(
    model: nn.Module,
    loss: Loss,
    training: Training,
    on_save: Callable[[int], dict[str, Tensor]],
    clock: Callable[[], float] = time.monotonic,
    contents: dict[str, str] | None = None,
) -> State:
    """Train for `training.loop.steps` or `minutes`. Continues from OUT/state.safetensors where there is one.

    `loss(model, step, rows)` computes the loss of one step for the samples `rows` of its batch; everything random
    in it must follow from the step, so that an interrupted training equals an uninterrupted one. `on_save(step)`
    is called with the averaged weights in the model, and returns sample images (3, H, W) in [0, 1] by name. `clock`
    tells seconds; that of the first of several processes decides. `contents` are digests of the data, and of what is
    started from, by name.
    Raises ValueError for numbers that `training.loop` cannot have, where OUT holds the state of another training or of
    one on other `contents`, and where the gradient is not finite: OUT then stays as it was last saved.
    """
    config, out = training.loop, training.out
    for name in ("steps", "batch_size", "save_every", "log_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"loop.{name} is {getattr(config, name)}; it must be 1 or more")
    if config.minutes is not None and not config.minutes > 0:
        raise ValueError(f"loop.minutes is {config.minutes}; it must be more than 0")
    if not 0 <= config.learning_rate < math.inf:
        raise ValueError(f"loop.learning_rate is {config.learning_rate}; it must be finite and 0 or more")
    if not config.clip > 0:
        raise ValueError(f"loop.clip is {config.clip}; it must be more than 0")
    if not 0 <= config.ema < 1:
        raise ValueError(f"loop.ema is {config.ema}; it must be at least 0 and less than 1")
    out.mkdir(parents=True, exist_ok=True)
    run, backward, rank, world = _prepare(model, config)  # before the state, which must be on this process's device
    if config.batch_size % world:
        raise ValueError(f"loop.batch_size is {config.batch_size}; it must be a multiple of the {world} processes")
    if config.threads:
        torch.set_num_threads(config.threads)
    state_path = out / "state.safetensors"
    state = State(model, training, contents)
    if state_path.exists():
        state.load(state_path)
        print(f"{state_path}: goes on from step {state.step} of {config.steps}", file=sys.stderr)
    share = config.batch_size // world
    rows = slice(rank * share, (rank + 1) * share)
    ends = None if config.minutes is None else clock() + 60 * config.minutes
    scalars: dict[str, float] = {}
    model.train()
    with _writer(out / "logs") if rank == 0 else nullcontext() as writer:
        with tqdm(total=config.steps, initial=state.step, disable=rank != 0, mininterval=5, smoothing=0.05) as bar:
            while state.step < config.steps and not (ends is not None and _first_says(clock() >= ends, state, world)):
                value, scalars = loss(run, state.step, rows)
                backward(value)
                norm = state.update()
                bar.update()
                if not math.isfinite(norm):
                    raise ValueError(
                        f"the gradient of step {state.step} is not finite; {out} stays as it was last saved, "
                        "and a lower --loop.learning-rate may go on from there"
                    )
                if writer and state.step % config.log_every == 0:
                    scalars |= {"gradient_norm": norm, "learning_rate": learning_rate(state.step, config)}
                    bar.set_postfix({k: f"{v:.3g}" for k, v in scalars.items()})
                    for name, scalar in scalars.items():
                        writer.add_scalar(name, scalar, state.step)
                if rank == 0 and state.step % config.save_every == 0:
                    _save(state, state_path, on_save, writer)
        if rank == 0:
            _save(state, state_path, on_save, writer)
            last = "".join(f", {name} {scalar:.3g}" for name, scalar in scalars.items())
            print(f"{out}: step {state.step} of {config.steps}{last}")
    if world > 1:
        torch.distributed.barrier()  # nobody reads what the first process is still writing
    return state


def _first_says(value: bool, state: State, world: int) -> bool:
    """The first process's value in all of them, so that none waits for one that has stopped."""
    if world == 1:
        return value
    said = torch.tensor(int(value), device=state.parameters[0].device)
    torch.distributed.broadcast(said, 0)
    return bool(said)


def _save(state: State, path: Path, on_save: Callable[[int], dict[str, Tensor]], writer: Any) -> None:
    state.save(path)
    kept = state.average_into_model()
    state.model.eval()
    for name, image in on_save(state.step).items():
        if writer:
            writer.add_image(name, image, state.step)
    state.model.train()
    state.restore(kept)


def _prepare(model: nn.Module, config: LoopConfig) -> tuple[nn.Module, Callable[[Tensor], Any], int, int]:
    """The model to call, the backward pass, this process's rank and their number. The model moves to its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
        prepared = accelerator.prepare(model)
        return prepared, accelerator.backward, accelerator.process_index, accelerator.num_processes
    if config.compile:
        model.compile()
    return model, lambda value: value.backward(), 0, 1


def _writer(folder: Path) -> Any:
    """Of TensorBoard's logs, to be entered; None within where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return nullcontext()
    return SummaryWriter(str(folder))

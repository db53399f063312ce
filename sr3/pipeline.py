"""The second stage as a diffusers pipeline: a low-resolution picture becomes one four times larger."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from sr3 import memory
from sr3.images import SMALLEST_SIDE, VIEWS, to_tensor, to_uint8
from sr3.memory import Plan, fast_dtype
from sr3.mistakes import first_line
from sr3.model import SCALE, LowResEncoder, SR3UNet, estimate, reduce, upsample
from sr3.process import Noise, augment, project, scheduler_gamma
from sr3.tiling import Tiling, count, evaluate

Picture = Image.Image | np.ndarray | Tensor
Callback = Callable[["SR3Pipeline", int, int, dict[str, Tensor]], dict[str, Tensor]]
Generators = torch.Generator | Sequence[torch.Generator] | None
OUTPUT_TYPES = ("uint8", "pil", "pt")
CONSISTENCY = 2


@dataclass
class SR3Output(BaseOutput):
    images: Any
    """A list of uint8 arrays (4h, 4w, 3) or of PIL pictures, or a tensor (N, 3, 4h, 4w) in [-1, 1]."""


class ModelError(ValueError):
    """A model directory that is missing or wrong; its text says how."""


class SR3Pipeline(DiffusionPipeline):
    """Encoder once, then `num_inference_steps` of denoising what the encoder's estimate μ misses.

    `temperature` scales the residual that the steps draw: the line from μ (0) to the sample (1) is the best trade of
    fidelity for likeness where μ is the conditional mean (Freirich, Michaeli and Meir, arXiv 2107.02555). Few steps
    draw less than the sample, so that it may be more than 1.
    `ceiling`: the most that the expected size s of that residual is taken for, of [-1, 1]. Where more is unknown, at
    the edges of what was blurred heavily, a few steps leave grain, and what they draw costs the most fidelity.
    `overestimate`: how many times the variance of the schedule's noise the denoiser is told. What it is given is off by
    its own errors of the steps before, which it never saw in training (exposure bias, arXiv 2308.15321): told more, it
    takes them for noise, told less for texture. All three are part of a model, chosen by evaluation.
    `on_pass()`, an attribute to set, is called after each back-projection of a result or a region of one, of which
    there can be minutes; it may raise to stop.
    """

    on_pass: Callable[[], None] = staticmethod(lambda: None)  # of the class: pickle takes no lambda of an object

    def __init__(
        self,
        encoder: LowResEncoder,
        unet: SR3UNet,
        scheduler: SchedulerMixin,
        temperature: float = 1.0,
        overestimate: float = 1.0,
        ceiling: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_modules(encoder=encoder, unet=unet, scheduler=scheduler)
        self.register_to_config(temperature=temperature, overestimate=overestimate, ceiling=ceiling)

    def sampling(self) -> dict[str, float]:
        """What a pipeline of the same networks must be given too."""
        return {name: self.config[name] for name in ("temperature", "overestimate", "ceiling")}

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | Sequence[Picture],
        num_inference_steps: int = 4,
        generator: Generators = None,
        aug_level: float = 0.0,
        consistency: int | None = None,
        callback_on_step_end: Callback | None = None,
        output_type: str = "uint8",
        tiling: Tiling | None = None,
        on_tile: Callable[[], None] = lambda: None,
        max_memory: int | None = None,
        views: int = 1,
    ) -> SR3Output:
        """Enlarge one picture, or several of one size, four times.

        `image`: PIL RGB, uint8 (h, w, 3), or a float tensor (N, 3, h, w) in [-1, 1]; sides of at least 8.
        `num_inference_steps`: 0 gives μ (projected, see `consistency`), the faithful picture; more add texture.
        `generator`: a CPU generator for each picture; the same one gives the same picture in any batch.
        `aug_level` in [0, 1): noise conditioning augmentation of this standard deviation (arXiv 2106.15282).
        `consistency`: how many times the result is projected so that its antialiased bicubic reduction equals the
        input (2 if None, but 0 with an aug_level: then the input's own noise is not wanted back).
        `callback_on_step_end(pipeline, step, timestep, {"sample": d})` may raise to stop.
        `on_tile()` is called after each evaluation of a network on a tile.
        `max_memory`: bytes that the process (on CUDA: its tensors) may hold; then a large picture is cut into regions
        which go through all steps one after the other, and `tiling` is chosen. Running out of memory is answered with
        smaller pieces. Without it or `tiling`, the memory that is free is the bound, as far as it can be kept.
        `views`: of how many views of the picture (1 to 8: itself, mirrored, turned) μ is the mean, at an encoder's pass
        each: test-time augmentation.
        Raises ValueError for what it does not take, and where memory is too small.
        """
        device = next(self.unet.parameters()).device
        given = to_tensor(image).to(device)
        if consistency is None:
            consistency = 0 if aug_level else CONSISTENCY
        self._check(given, num_inference_steps, aug_level, consistency, output_type, views)
        generators = self._generators(generator, len(given))
        states = [g.get_state() for g in generators]
        height, width = given.shape[-2:]
        plan = self.plan(height, width, len(given), tiling, max_memory)
        settings = (num_inference_steps, generators, aug_level, consistency, callback_on_step_end, on_tile, views)
        while True:
            try:
                high_res = self._enlarge(given, plan, *settings)
                break
            except (RuntimeError, MemoryError) as error:
                smaller = plan.smaller() if memory.is_out_of_memory(error) else None
                if smaller is None or (smaller.region and self._looks_across()):
                    raise
                plan = smaller
            for each, state in zip(generators, states, strict=True):
                each.set_state(state)
        if output_type == "pt":
            return SR3Output(images=high_res)
        arrays = to_uint8(high_res)
        return SR3Output(images=arrays if output_type == "uint8" else [Image.fromarray(a) for a in arrays])

    def _enlarge(
        self,
        given: Tensor,
        plan: Plan,
        steps: int,
        generators: Sequence[torch.Generator],
        aug_level: float,
        consistency: int,
        callback: Callback | None,
        on_tile: Callable[[], None],
        views: int,
    ) -> Tensor:
        """high_res (N, 3, 4h, 4w) of `given` (N, 3, h, w), both in [-1, 1] in float32, as `plan` says."""
        patch = self.unet.config.patch_size
        multiple = self._multiple
        noises = [Noise(given.shape, generators, given.device)] if aug_level else []
        if steps:
            shape = (*given.shape[:1], 3 * patch**2, *(-(-n // multiple) * multiple for n in given.shape[-2:]))
            noises.append(Noise(shape, generators, given.device, SCALE // patch, multiple))

        def run(piece: Tensor, *drawn: Tensor) -> tuple[Tensor]:
            height, width = piece.shape[-2:]
            level = piece.new_full((len(piece),), aug_level)
            noised = augment(piece, level, drawn[0]) if aug_level else piece
            padded = F.pad(noised, (0, -width % multiple, 0, -height % multiple), mode="replicate")

            def encode(tile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                encoded = estimate(self.encoder, tile, level, views)
                return encoded.mean, encoded.log_scale, encoded.features

            high_res, log_scale, features = evaluate(encode, [padded], plan.tiling, multiple, on_tile)
            if steps:
                sample = self._denoise(features, drawn[-1], steps, generators, callback, plan.tiling, on_tile)
                del features
                scale = log_scale.float().exp().clamp(max=self.config.ceiling)
                scale = scale.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)
                high_res.addcmul_(scale, F.pixel_shuffle(sample, patch))
                del sample, scale
            high_res = high_res[..., : SCALE * height, : SCALE * width].clamp_(-1, 1)
            return (project(high_res, piece, reduce, upsample, consistency, self.on_pass),)

        if plan.region is None:
            return run(given, *(noise.values.to(given.device) for noise in noises))[0]
        return evaluate(run, [given, *noises], plan.region, multiple)[0]

    def plan(
        self, height: int, width: int, count: int = 1, tiling: Tiling | None = None, max_memory: int | None = None
    ) -> Plan:
        """How a call on `count` pictures of this size would cut them. Raises ValueError where memory is too small."""
        device = next(self.unet.parameters()).device
        if max_memory is not None:
            return memory.plan(height, width, self._cost(count), max_memory - memory.in_use(device))
        if tiling or self._looks_across():
            return Plan(tiling or Tiling())
        return memory.plan_for_free(height, width, self._cost(count), device)

    @property
    def _multiple(self) -> int:
        """What the low-resolution sides are padded to a multiple of."""
        return max(self.unet.multiple * self.unet.config.patch_size // SCALE, self.encoder.multiple)

    def evaluations(self, height: int, width: int, steps: int, tiling: Tiling | None = None) -> int:
        """How often a call on a picture of this size will call its `on_tile`."""
        tiling = tiling or Tiling()
        multiple, ratio = self._multiple, SCALE // self.unet.config.patch_size
        tall, wide = height + -height % multiple, width + -width % multiple
        finer = Tiling(tiling.size * ratio, tiling.overlap * ratio)
        each = count(tall * ratio, wide * ratio, finer, self.unet.multiple)
        return count(tall, wide, tiling, multiple) + steps * each

    def _denoise(
        self,
        features: Tensor,
        noise: Tensor,
        steps: int,
        generators: Sequence[torch.Generator],
        callback: Callback | None,
        tiling: Tiling,
        on_tile: Callable[[], None],
    ) -> Tensor:
        """The residual d (N, 3·patch², H, W) in float32, from noise (SR3, algorithm 2, with any scheduler in the
        place of its ancestral step)."""
        ratio = SCALE // self.unet.config.patch_size
        tiling = Tiling(tiling.size * ratio, tiling.overlap * ratio)
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        known = int(self.estimates and scheduler.config.prediction_type == "sample")
        scheduler.set_timesteps(steps + known)
        sample = noise.mul_(float(scheduler.init_noise_sigma))
        extra = {"generator": list(generators)} if "generator" in scheduler.step.__code__.co_varnames else {}
        for index, timestep in enumerate(scheduler.timesteps, -known):
            scaled = scheduler.scale_model_input(sample, timestep).to(features.dtype)
            gamma = scheduler_gamma(scheduler, timestep)
            gamma = (gamma - (self.config.overestimate - 1) * (1 - gamma)).clamp(min=0)
            gamma = gamma.to(features.device).expand(len(features))

            def predict(noisy: Tensor, condition: Tensor, gamma: Tensor = gamma) -> tuple[Tensor]:
                return (self.unet(noisy, condition, gamma),)

            if index < 0:  # all that pure noise tells of the residual is its mean, which is 0 as μ is high_res's
                output = torch.zeros_like(sample)
            else:
                (output,) = evaluate(predict, [scaled, features], tiling, self.unet.multiple, on_tile)
            del scaled
            sample = scheduler.step(output.float(), timestep, sample, **extra).prev_sample
            if callback and index >= 0:
                sample = (callback(self, index, int(timestep), {"sample": sample}) or {}).get("sample", sample)
        return sample.mul_(self.config.temperature)

    def _cost(self, count: int) -> memory.Cost:
        """What `count` pictures take. Raises ValueError for models that no region can stand for the whole of."""
        if self._looks_across():
            raise ValueError("max_memory cannot bound this model or scheduler; set a tiling instead")
        config, each = self.unet.config, next(self.unet.parameters()).dtype.itemsize
        cost = memory.cost(self.encoder.config.channels, config.base_channels, config.patch_size, each)
        return memory.Cost(*(count * value for value in (cost.picture, cost.tile, cost.result)))

    @property
    def estimates(self) -> bool:
        """Whether there is a μ; the paper's conditioning has none."""
        return bool(self.encoder.config.num_blocks)

    def _looks_across(self) -> bool:
        """Whether a part of the picture depends on what is far from it: by attention, or by noise that the scheduler
        draws at each step for all that it is given."""
        return bool(self.unet.config.attention_levels) or isinstance(self.scheduler, DDPMScheduler)

    def _check(
        self, low_res: Tensor, steps: int, aug_level: float, consistency: int, output_type: str, views: int
    ) -> None:
        if min(low_res.shape[-2:]) < SMALLEST_SIDE:
            tall, wide = low_res.shape[-2:]
            raise ValueError(f"the picture is {wide}x{tall}; both sides must be at least {SMALLEST_SIDE} pixels")
        if steps < 0:
            raise ValueError(f"num_inference_steps is {steps}; it must be 0 or more")
        if steps == 0 and not self.estimates:
            raise ValueError("this model has no regression estimate: num_inference_steps must be 1 or more")
        if steps:
            self._check_scheduler()
        if not 0 <= aug_level < 1:
            raise ValueError(f"aug_level is {aug_level}; it must be at least 0 and less than 1")
        if consistency < 0:
            raise ValueError(f"consistency is {consistency}; it must be 0 or more")
        if not 1 <= views <= VIEWS:
            raise ValueError(f"views is {views}; it must be between 1 and {VIEWS}")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}")

    def _check_scheduler(self) -> None:
        """Raises ValueError for a scheduler that would misread what the denoiser predicts, or knows no γ to tell it;
        beside an estimate also for one that asks twice a step, whose first step, from pure noise, goes astray."""
        kind, predicted = type(self.scheduler).__name__, "sample" if self.estimates else "epsilon"
        known = self.scheduler.config.prediction_type if hasattr(self.scheduler, "alphas_cumprod") else "something else"
        if known != predicted:
            raise ValueError(
                f"{kind} is for models that predict {known}; this one predicts {predicted}, which a scheduler keeps "
                "that from_config makes of this model's own scheduler's config"
            )
        if self.estimates and getattr(self.scheduler, "order", 1) > 1:
            raise ValueError(f"{kind} asks the denoiser twice a step; take a scheduler that asks it once")

    def _generators(self, generator: Generators, number: int) -> list[torch.Generator]:
        if generator is None:
            seeds = torch.randint(2**63 - 1, (number,)).tolist()  # as torch.manual_seed has it
            return [torch.Generator().manual_seed(seed) for seed in seeds]
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        if not all(isinstance(each, torch.Generator) for each in generators):
            raise ValueError(f"got {generator!r} as generator; it must be a torch.Generator for each picture")
        if len(generators) != number:
            raise ValueError(f"{len(generators)} generators for {number} pictures; there must be one for each")
        return generators


def resolve_device(device: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises ModelError for a device that is not there."""
    if device != "auto":
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:  # of a torch without CUDA
            raise ModelError(f"device is {device!r}, which cannot be used: {first_line(error)}") from None
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load(model: str | Path | None = None, device: str = "auto", dtype: str | torch.dtype = "auto") -> SR3Pipeline:
    """An SR3 pipeline from a local directory (the bundled weights by default), ready on its device.

    `dtype`: float32, bfloat16, float16, as names or torch's, or auto: bfloat16 where the hardware multiplies it (CUDA
    from Ampere on, and CPUs with AVX512-BF16 or AMX: half the seconds, within a level of 255 or two of float32),
    float16 on older CUDA cards that multiply it, float32 elsewhere.
    Raises ModelError, with one line that says what is missing or wrong.
    """
    folder = Path(model) if model else Path(__file__).parent / "weights"
    if not (folder / "model_index.json").is_file():
        raise ModelError(f"{folder} is not an SR3 pipeline: it has no model_index.json")
    place = resolve_device(device)
    chosen = fast_dtype(place) if dtype == "auto" else str(dtype).removeprefix("torch.")
    if chosen not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype is {dtype}; it must be auto, float32, bfloat16 or float16")
    try:
        pipeline = SR3Pipeline.from_pretrained(
            folder, dtype=getattr(torch, chosen), use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {first_line(error)}") from None
    for network in (pipeline.encoder, pipeline.unet):
        network.to(memory_format=torch.channels_last)
    return pipeline.to(place)

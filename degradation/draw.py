"""Drawing a plan: all of the randomness of a degradation is here.

Source of every range and probability: arXiv 2103.14006, section 3, and the code that its authors
released; the camera's from arXiv 1811.11127, section 3 (as in its released code). Departures from the
authors' code: ``_draw_gaussian``, ``_draw_rescale`` and the preset ``bsr-plus`` say theirs, and kernels have odd sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from degradation.plan import (
    AnisotropicBlur,
    Blur,
    CameraNoise,
    Decimate,
    GaussianNoise,
    Jpeg,
    Matrix3,
    NoiseKind,
    Plan,
    PoissonNoise,
    Resize,
    Sharpen,
    SpeckleNoise,
    Step,
)
from degradation.presets import Preset, find_preset

_NOISE_KINDS: tuple[NoiseKind, ...] = ("colour", "grey", "correlated")
_NOISE_SLOTS = ("gaussian_noise", "poisson_noise", "speckle_noise", "camera_noise")
_LARGEST_SEED = 2**53  # exact in every reader of JSON

# XYZ to the colours of four cameras (Sony A7R, Olympus E-M10, Sony RX100 IV, Huawei Nexus 6P).
_XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def sample_plan(
    rng: np.random.Generator, preset: Preset | str, scale: int = 4, size: tuple[int, int] = (256, 256)
) -> Plan:
    """Draw a plan for an image of ``size`` (height, width) that makes it ``scale`` times smaller.

    Raises ValueError for an unknown preset, a scale that the preset does not allow, or a size that is
    not a multiple of the scale.
    """
    preset = find_preset(preset)
    height, width = int(size[0]), int(size[1])
    if scale not in preset.scales:
        raise ValueError(f"preset {preset.name} allows the scales {preset.scales}, got {scale}")
    scale = int(scale)  # of numpy's too, which JSON does not take
    check_multiple(height, width, scale)
    sharpen = Sharpen() if rng.random() < preset.sharpen_probability else None
    steps: list[Step] = []
    factor = scale
    if scale >= 4 and rng.random() < preset.halve_probability:
        factor = scale // 2
        methods = preset.interpolations if rng.random() < 0.5 else ("bicubic",)
        steps.append(Resize(height // 2, width // 2, _choice(rng, methods)))
    low_size = (height // scale, width // scale)
    current = (height * factor // scale, width * factor // scale)
    for slot in _ordered_slots(rng, preset):
        step = _draw_step(rng, preset, slot, factor, current, low_size)
        if step is not None:
            steps.append(step)
            current = size_after(step, current)
    if preset.final_jpeg:
        steps.append(_draw_jpeg(rng, preset))
    return Plan(preset.name, scale, (height, width), tuple(steps), sharpen)


def check_multiple(height: int, width: int, scale: int) -> None:
    """Raises ValueError if height or width is not a positive multiple of the scale, or that is under 1."""
    if scale < 1 or height < scale or width < scale or height % scale or width % scale:
        raise ValueError(
            f"an image of {height}×{width} (height × width) pixels cannot be made exactly {scale} times "
            f"smaller; crop it to multiples of {scale} first (crop_to_multiple does)"
        )


def _ordered_slots(rng: np.random.Generator, preset: Preset) -> list[str]:
    """The slots in the order in which they run, "final_resize" after every "downsample"."""
    slots: list[str] = list(preset.slots)
    if rng.random() < preset.shuffle_probability:
        slots = [slots[i] for i in rng.permutation(len(slots))]
    else:
        slots = _shuffle_noise_runs(rng, slots)
    if "final_resize" not in slots:
        return [*slots, "final_resize"]
    # Where final_resize came before the last downsample, the two change places, as the paper's code does.
    last_downsample = max((i for i, slot in enumerate(slots) if slot == "downsample"), default=-1)
    final = slots.index("final_resize")
    if final < last_downsample:
        slots[final], slots[last_downsample] = slots[last_downsample], slots[final]
    return slots


def _shuffle_noise_runs(rng: np.random.Generator, slots: list[str]) -> list[str]:
    shuffled: list[str] = []
    run: list[str] = []
    for slot in [*slots, ""]:
        if slot in _NOISE_SLOTS:
            run.append(slot)
            continue
        shuffled += [run[i] for i in rng.permutation(len(run))] + [slot]
        run = []
    return shuffled[:-1]


def _draw_step(
    rng: np.random.Generator,
    preset: Preset,
    slot: str,
    factor: int,
    current: tuple[int, int],
    low_size: tuple[int, int],
) -> Step | None:
    """The step of one slot, or None where the slot does nothing this time."""
    if slot == "blur":
        return _draw_blur(rng, preset, factor)
    if slot == "downsample":
        return _draw_downsample(rng, preset, factor, current)
    if slot == "rescale":
        return _draw_rescale(rng, preset, factor, current, low_size)
    if slot == "final_resize":
        return Resize(*low_size, _choice(rng, preset.final_interpolations))
    if slot == "gaussian_noise":
        return GaussianNoise(*_draw_gaussian(rng, preset))
    if slot == "poisson_noise" and rng.random() < preset.poisson_probability:
        peak = 10 ** rng.uniform(*preset.poisson_exponents)
        return PoissonNoise(peak, bool(rng.random() < 0.5), _draw_seed(rng))
    if slot == "speckle_noise" and rng.random() < preset.speckle_probability:
        return SpeckleNoise(*_draw_gaussian(rng, preset))
    if slot == "camera_noise" and rng.random() < preset.camera_probability:
        return _draw_camera(rng)
    if slot == "jpeg" and rng.random() < preset.jpeg_probability:
        return _draw_jpeg(rng, preset)
    return None


def _draw_blur(rng: np.random.Generator, preset: Preset, factor: int) -> Step:
    low, high = preset.kernel_sizes
    size = low + 2 * int(rng.integers((high - low) // 2 + 1))
    if rng.random() < preset.anisotropic_probability:
        eigenvalues = rng.uniform(0, preset.blur_strength * (4 + factor), 2)  # of the covariance
        sigma_x, sigma_y = (math.sqrt(value) for value in eigenvalues)
        return AnisotropicBlur(sigma_x, sigma_y, rng.uniform(0, math.pi), size)
    return Blur(rng.uniform(0, preset.blur_strength * (2 + 0.2 * factor)), size)


def _draw_downsample(rng: np.random.Generator, preset: Preset, factor: int, current: tuple[int, int]) -> Step:
    divisible = current[0] % factor == 0 and current[1] % factor == 0
    if rng.random() < preset.resize_probability or not divisible:
        by = rng.uniform(1, 2 * factor)
        height, width = (max(1, round(side / by)) for side in current)
        return Resize(height, width, _choice(rng, preset.interpolations))
    return Decimate(factor, rng.uniform(0.1, 0.6 * factor))


def _draw_rescale(
    rng: np.random.Generator,
    preset: Preset,
    factor: int,
    current: tuple[int, int],
    low_size: tuple[int, int],
) -> Step | None:
    """Up by U(1, 2), keep, or down to U(1/(2f), 1), but never under half of the final size.

    The bound is this project's: two of these in a row would else leave 1/64 of a side, which is no
    image. It is what one of them at its strongest leaves.
    """
    up, keep, _ = preset.rescale_probabilities
    draw = rng.random()
    if up <= draw < up + keep:
        return None
    by = rng.uniform(1, 2) if draw < up else rng.uniform(0.5 / factor, 1)
    height, width = (max(1, math.ceil(low / 2), round(side * by)) for side, low in zip(current, low_size, strict=True))
    return Resize(height, width, _choice(rng, preset.interpolations))


def _draw_gaussian(rng: np.random.Generator, preset: Preset) -> tuple[float, NoiseKind, int, Matrix3 | None]:
    """Level, kind, seed and, for correlated noise, M = U √D: a random 3 × 3 covariance is U D Uᵀ.

    The authors' code differs for correlated noise: there its level is always the largest, 25 for ``bsr``, not
    drawn, so it is stronger than here; and it takes |U D Uᵀ|, whose correlations are never negative.
    """
    low, high = preset.noise_levels
    level = float(rng.integers(low, high + 1))
    kind = _NOISE_KINDS[int(rng.choice(3, p=preset.noise_kind_probabilities))]
    mixing = None
    if kind == "correlated":
        orthogonal, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        mixing = _matrix(orthogonal * np.sqrt(rng.random(3)))
    return level, kind, _draw_seed(rng), mixing


def _draw_camera(rng: np.random.Generator) -> CameraNoise:
    """Noise, gains and colour matrix: arXiv 1811.11127, sections 3.1 to 3.3."""
    log_shot = rng.uniform(math.log(0.0001), math.log(0.012))
    log_read = 2.18 * log_shot + 1.20 + rng.normal(0, 0.26)
    camera = np.tensordot(rng.dirichlet(np.ones(4)), _XYZ_TO_CAMERA, axes=1) @ _RGB_TO_XYZ
    camera /= camera.sum(axis=1, keepdims=True)  # white stays white
    return CameraNoise(
        shot=math.exp(log_shot),
        read=math.exp(log_read),
        red_gain=rng.uniform(1.9, 2.4),
        blue_gain=rng.uniform(1.5, 1.9),
        digital_gain=1 / max(0.5, rng.normal(0.8, 0.1)),
        camera_matrix=_matrix(camera),
        pattern=_choice(rng, ("RGGB", "GRBG", "GBRG", "BGGR")),
        seed=_draw_seed(rng),
    )


def _draw_jpeg(rng: np.random.Generator, preset: Preset) -> Jpeg:
    low, high = preset.jpeg_qualities
    return Jpeg(int(rng.integers(low, high + 1)), _choice(rng, preset.jpeg_subsamplings))


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(_LARGEST_SEED))


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _matrix(array: np.ndarray) -> Matrix3:
    first, second, third = (tuple(float(value) for value in row) for row in array)
    return (first, second, third)  # type: ignore[return-value]


def size_after(step: Step, current: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of an image of the current size after the step."""
    if isinstance(step, Resize):
        return (step.height, step.width)
    if isinstance(step, Decimate):
        return (current[0] // step.factor, current[1] // step.factor)
    return current

"""How fast SR3 is, beside Real-ESRGAN x4plus in the same run: `python tests/bench_sr3.py [--device cuda]`.

For a 128x128 input the seconds of 0 and 4 steps and of Real-ESRGAN with PyTorch and with ncnn (taking turns, medians),
floating-point operations per output pixel, and the share of the machine's peak: the fastest of a few convolutions of
this network's sizes, measured here in the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sr3.peers import PeerError, from_network, realesrgan_ncnn, realesrgan_network
from sr3.pipeline import load, resolve_device

SIDE = 128


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - started


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second: the best of convolutions 3x3 of 48 to 256 channels on 128x128 and 64x64; on
    an accelerator of 16 pictures, many at a time, so that it is not the time of a launch."""
    best = 0.0
    pictures, times = (1, 1) if device.type == "cpu" else (16, 50)
    for channels in (48, 64, 96, 144, 256):
        for side in (128, 64):
            x = torch.randn(pictures, channels, side, side, device=device, dtype=dtype)
            x = x.to(memory_format=torch.channels_last)
            weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
            weight = weight.to(memory_format=torch.channels_last)
            work = 2 * 9 * channels**2 * side**2 * pictures * times

            def call(x: torch.Tensor = x, weight: torch.Tensor = weight) -> None:
                for _ in range(times):
                    F.conv2d(x, weight, padding=1)

            with torch.inference_mode():
                took = [seconds(call, device) for _ in range(12)]
            best = max(best, work / min(took[2:]))
    return best


def realesrgan(dtype: torch.dtype, device: torch.device, low_res: np.ndarray) -> Callable[[], object]:
    network = realesrgan_network().to(device, dtype).to(memory_format=torch.channels_last)
    run = from_network(lambda x: network(x.to(dtype)).float(), device, "realesrgan")
    return lambda: run(low_res)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = resolve_device(options.device)
    pipeline = load(device=str(device), dtype=options.dtype)
    pipeline.set_progress_bar_config(disable=True)
    low_res = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    own = pipeline.unet.dtype
    calls: dict[str, Callable[[], object]] = {
        f"sr3, {n} steps": lambda n=n: pipeline(low_res, n, torch.Generator().manual_seed(0)) for n in (0, 1, 4)
    }
    numbers = dict.fromkeys(calls, own)  # what each computes in
    try:
        for dtype in dict.fromkeys((torch.float32, own)):
            calls[f"realesrgan, torch, {dtype}"] = realesrgan(dtype, device, low_res)
            numbers[f"realesrgan, torch, {dtype}"] = dtype
        if device.type == "cpu":
            through_ncnn = realesrgan_ncnn()
            calls["realesrgan, ncnn"] = lambda: through_ncnn(low_res)
    except PeerError as error:
        print(error)
    flops = {}
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        flops[name] = counter.get_total_flops()
    took: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[torch.dtype, list[float]] = {dtype: [] for dtype in numbers.values()}
    for _ in range(options.rounds):
        for dtype, each in peaks.items():
            each.append(peak(device, dtype))
        for name, call in calls.items():
            took[name].append(seconds(call, device))
    highest = {dtype: statistics.median(each) for dtype, each in peaks.items()}
    print(f"{device}, {own}, {torch.get_num_threads()} threads")
    for dtype, each in highest.items():
        print(f"convolution peak in {dtype}: {each / 1e9:.1f} GFLOP/s")
    print("| | seconds | MP/s | kFLOP per output pixel | share of peak | times as fast as Real-ESRGAN in float32 |")
    print("|---|---|---|---|---|---|")
    pixels = (4 * SIDE) ** 2
    plain = "realesrgan, torch, torch.float32"
    reference = statistics.median(took[plain]) if plain in took else float("nan")
    for name, values in took.items():
        middle = statistics.median(values)
        work = flops[name] or flops.get(plain, 0)
        peak_share = f"{work / middle / highest[numbers[name]]:.0%}" if name in numbers else "–"  # ncnn mixes formats
        share = f"{work / pixels / 1e3:.1f} | {peak_share}"
        print(f"| {name} | {middle:.3f} | {pixels / middle / 1e6:.2f} | {share} | {reference / middle:.1f} |")


if __name__ == "__main__":
    main()

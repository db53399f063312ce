"""SR3 as published against SR3 as it is here, at equal compute: `python -m tests.bench_paper --data CROPS --held-out
FOLDER --out RUN`.

The paper's network with 6.8 million parameters and that of the bundled preset are trained from nothing on plain bicubic
pairs through the same trainer, each for half an hour of one core's processor time, and measured on the same held-out
pictures.
"""

import argparse
import time
from pathlib import Path

from sr3.data import Mix
from sr3.evaluate import EvaluateConfig, evaluate
from sr3.loop import LoopConfig
from sr3.presets import PRESETS, Preset
from sr3.report import table
from sr3.train import TrainConfig, train

PRESETS["paper"] = Preset(3, 0, 1, 40, (1, 2, 3, 4), 1, (3,), 0.0, paper=True)
ITERATIONS = {"paper": 470, "bundled": 2500}  # of equal processor time; what they took is printed
STEPS = {"paper": (25, 100), "bundled": (0, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    for preset, iterations in ITERATIONS.items():
        settings = LoopConfig(steps=iterations, warmup=50, batch_size=8, ema=0.99, save_every=100)
        config = TrainConfig(given.data, given.out / preset, preset=preset, mix=Mix(1, 0, 0, 0, 0), loop=settings)
        started = time.process_time()
        trained = train(config)
        size = sum(p.numel() for n in (trained.encoder, trained.unet) for p in n.parameters())
        minutes = (time.process_time() - started) / 60
        print(f"\n{preset}: {size / 1e6:.1f} M parameters, {minutes:.1f} minutes of processor time", flush=True)
        for folder in sorted(given.held_out.iterdir()):
            asked = EvaluateConfig(
                folder, steps=STEPS[preset], model=given.out / preset / "pipeline", limit=4, max_side=256, consistency=0
            )
            print(f"\n{folder.name}\n{table(evaluate(asked)[0])}", flush=True)


if __name__ == "__main__":
    main()

"""The judge of `ldm.evaluate`: a small network that names a drawing, trained on real renderings only.

`python -m ldm.train classifier --pack drawings.safetensors --out run/classifier`; again goes on. Its accuracy on the
renderings that were kept out is printed: no generator can be seen to do better than that.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.captions import Drawing
from ldm.data import PLAIN, load_pack, place, sample_placement
from ldm.loading import resolve_device
from sr3.loop import digest, fit, mixed, own_device
from sr3.mistakes import first_line
from sr3.saving import open_to_others

if TYPE_CHECKING:
    from ldm.train import ClassifierConfig

FILE = "classifier.safetensors"
FEATURES = 256


class Block(nn.Module):
    """A residual block of two 3×3 convolutions, normalised over groups: the same in training and out of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Classifier(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] to features (N, FEATURES) and scores of the names (N, names)."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, 96, 3, padding=1),  # (N, 96, H/4, W/4)
            nn.SiLU(),
            nn.Conv2d(96, 128, 3, stride=2, padding=1),  # (N, 128, H/8, W/8)
            Block(128),
            nn.Conv2d(128, FEATURES, 3, stride=2, padding=1),  # (N, FEATURES, H/16, W/16)
            Block(FEATURES),
            nn.GroupNorm(8, FEATURES),
            nn.SiLU(),
        )
        self.head = nn.Linear(FEATURES, names)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(self.features(images), 0.3, self.training))


@dataclass(frozen=True)
class Judge:
    """A trained classifier with the names of its classes, and the side of the pictures that it reads."""

    model: Classifier
    names: tuple[str, ...]
    size: int

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
        """uint8 RGB (N, H, W, 3) to float32 features (N, FEATURES) and scores (N, names)."""
        features, scores = [], []
        for start in range(0, len(pictures), batch):
            images = to_images(pictures[start : start + batch], self.size)
            features.append(self.model.features(images))
            scores.append(self.model.head(features[-1]))
        return torch.cat(features).numpy(), torch.cat(scores).numpy()


def to_images(pictures: np.ndarray, size: int) -> Tensor:
    """uint8 RGB (N, H, W, 3) to float32 (N, 3, size, size) in [-1, 1], reduced by area where they are larger."""
    if pictures.shape[1:3] != (size, size):
        pictures = np.stack([cv2.resize(p, (size, size), interpolation=cv2.INTER_AREA) for p in pictures])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def augmented(rng: np.random.Generator, picture: np.ndarray, record: Drawing) -> np.ndarray:
    """A drawing as a model may draw it: on a ground, in its own or a stated colour, moved a little, sometimes soft,
    so that the judge looks at what is drawn and not at how sharply. uint8 RGB (S, S, 3)."""
    placed = place(picture, record, sample_placement(rng, record))
    angle, size, (right, down) = rng.uniform(-12, 12), rng.uniform(0.85, 1.1), rng.uniform(-0.06, 0.06, 2)
    side = placed.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), angle, size)
    matrix[:, 2] += side * np.array([right, down])
    ground = [int(v) for v in placed[0, 0]]
    moved = cv2.warpAffine(placed, matrix, (side, side), borderMode=cv2.BORDER_CONSTANT, borderValue=ground)
    return cv2.GaussianBlur(moved, (0, 0), rng.uniform(0.3, 1.2)) if rng.random() < 0.5 else moved


def top_shares(scores: np.ndarray, answers: np.ndarray, ranks: tuple[int, ...] = (1, 5)) -> tuple[float, ...]:
    """Shares of the rows of `scores` (N, names) whose answer (N,) is among the first so many."""
    rank = (scores > np.take_along_axis(scores, answers[:, None], 1)).sum(1)
    return tuple(float((rank < k).mean()) for k in ranks)


def train_classifier(config: "ClassifierConfig") -> None:
    """Train, and write OUT/classifier.safetensors with the names in its metadata. Raises ValueError where the pack has
    no drawings to train on."""
    pictures, records, _ = load_pack(config.pack)
    names = tuple(sorted({r.label for r in records if r.everyday or not config.everyday_only}))
    answer_of = {name: i for i, name in enumerate(names)}
    seen = [i for i, r in enumerate(records) if not r.held_out and r.label in answer_of]
    kept = [i for i, r in enumerate(records) if r.held_out and r.label in answer_of]
    if not seen:
        raise ValueError(f"{config.pack} has no drawings {'of everyday names ' * config.everyday_only}to train on")
    device = resolve_device(own_device(config.loop.device))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = Classifier(len(names)).to(device)
    size = pictures.shape[1]

    def loss(run: nn.Module, step: int, rows: slice) -> tuple[Tensor, dict[str, float]]:
        batch, answers = [], []
        for position in range(step * config.loop.batch_size, (step + 1) * config.loop.batch_size)[rows]:
            epoch, index = divmod(position, len(seen))
            chosen = seen[int(np.random.default_rng([config.seed, epoch]).permutation(len(seen))[index])]
            batch.append(
                augmented(np.random.default_rng([config.seed, epoch, index]), pictures[chosen], records[chosen])
            )
            answers.append(answer_of[records[chosen].label])
        images, target = to_images(np.stack(batch), size).to(device), torch.tensor(answers, device=device)
        with mixed(device), torch.random.fork_rng():
            torch.manual_seed(step)  # dropout's
            scores = run(images)
        value = F.cross_entropy(scores.float(), target, label_smoothing=0.1)
        return value, {"loss": float(value.detach()), "top1": float((scores.argmax(1) == target).float().mean())}

    def on_save(step: int) -> dict[str, Tensor]:
        config.out.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.cpu().contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, config.out / FILE, metadata={"names": json.dumps(names), "size": str(size)})
        open_to_others(config.out / FILE)
        judge = load_judge(config.out)
        for what, chosen in (("seen", seen[:: max(len(seen) // 500, 1)]), ("held-out", kept)):
            if chosen:
                plain = np.stack([place(pictures[i], records[i], PLAIN) for i in chosen])
                first, five = top_shares(judge(plain)[1], np.array([answer_of[records[i].label] for i in chosen]))
                print(
                    f"\nstep {step}: {what} renderings ({len(chosen)}) top-1 {first:.3f}, top-5 {five:.3f}", flush=True
                )
        return {}

    fit(model, loss, config, on_save, contents=digest(config.pack))


def load_judge(folder: Path) -> Judge:
    """What `train_classifier` wrote into a folder, on the CPU. Raises ValueError where it is something else."""
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}; python -m ldm.train classifier makes one")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = tuple(json.loads(metadata["names"]))
        model = Classifier(len(names))
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is no classifier of drawings: {first_line(error)}") from None
    return Judge(model.eval(), names, int(metadata["size"]))

"""Train the networks of the pipeline ``digits`` from scratch: about a quarter of an hour on one core.

    pip install scikit-learn==1.9.1
    python stages/scripts/train_digits.py

The data are scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, enlarged. Nobody wrote captions for them,
so they are made here: what digit it is, from its label; ``thin`` or ``bold``, from its ink; ``leaning left`` or
``leaning right``, from its slant. Thin is the lightest third of the pictures of a digit, and so on.

First an autoencoder learns to turn pictures into latents and back; only its decoder is kept. Then a text encoder
and a denoiser learn together to take noise out of latents, told by a caption, or by nothing one time in eight,
what they show.

Everything is seeded. The same torch on the same kind of processor gives the same bytes again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from weights import Trainer, option_parser, write_papers

from orchestrator_stages.demos.digits.nets import (
    LATENT,
    SIDE,
    DigitDenoiser,
    LatentDecoder,
    PromptEncoder,
    Residual,
    activated_convolution,
)
from orchestrator_stages.demos.digits.noise import SCHEDULE
from orchestrator_stages.demos.digits.trained import FOLDER
from orchestrator_stages.demos.digits.words import NUMBERS, encode

NOTICE = """\
text.safetensors, denoiser.safetensors and decoder.safetensors were trained by stages/scripts/train_digits.py of
Stage Orchestrator and come under its licence, Apache-2.0.

They were trained on the data set "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998),
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0, as distributed in
scikit-learn. No picture of it is part of this package.
"""

LIGHT, MIDDLE, STRONG = 0, 1, 2
"""A third of the pictures of a digit: with the least ink or slant, with some, and with the most."""


@dataclass(frozen=True)
class Digits:
    """Pictures with what is known of them; thirds are those of the same digit.

    Attributes:
        pictures: ``[n, 1, SIDE, SIDE]``, 0 (black) to 1.
        labels: The digit, 0 to 9.
        inks: The third by ink.
        slants: The third by slant: ``LIGHT`` leans left.
    """

    pictures: Tensor
    labels: list[int]
    inks: list[int]
    slants: list[int]


def measure_ink(pictures: Tensor) -> Tensor:
    """Returns how bright each of ``pictures`` ``[n, 1, h, w]`` is: ``[n]``, 0 to 1."""
    return pictures.mean((1, 2, 3))


def measure_slant(pictures: Tensor) -> Tensor:
    """Returns by how many pixels to the right the strokes go for each pixel up: ``[n]``."""
    ink = pictures[:, 0] / pictures.sum((1, 2, 3))[:, None, None]
    height, width = ink.shape[1:]
    y, x = torch.meshgrid(torch.arange(height) + 0.0, torch.arange(width) + 0.0, indexing="ij")
    up = (ink * y).sum((1, 2))[:, None, None] - y
    right = x - (ink * x).sum((1, 2))[:, None, None]
    return (ink * up * right).sum((1, 2)) / (ink * up * up).sum((1, 2))


def thirds(measured: Tensor, labels: Tensor) -> list[int]:
    """Returns in which third of its digit's pictures each picture is."""
    found = torch.zeros_like(labels)
    for label in labels.unique():
        of_label = labels == label
        borders = torch.quantile(measured[of_label], torch.tensor([1 / 3, 2 / 3], dtype=measured.dtype))
        found[of_label] = torch.bucketize(measured[of_label], borders)
    return [int(third) for third in found]


def read_digits() -> Digits:
    """Returns scikit-learn's digits."""
    raw = load_digits()
    small = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(raw.target)
    large = functional.interpolate(small, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
    inks, slants = (thirds(measure(small), labels) for measure in (measure_ink, measure_slant))
    return Digits(large, labels.tolist(), inks, slants)


def caption(digits: Digits, index: int, chance: random.Random) -> str:
    """Returns a caption of one picture: always its digit, the rest by chance."""
    article = chance.choice(["", "a", "the"])
    ink = {LIGHT: "thin", MIDDLE: "", STRONG: "bold"}[digits.inks[index]] if chance.random() < 0.6 else ""
    noun = "digit" if chance.random() < 0.25 else ""
    number = NUMBERS[digits.labels[index]]
    slant = {LIGHT: "leaning left", MIDDLE: "", STRONG: "leaning right"}[digits.slants[index]]
    parts = [ink, f"{noun} {number}", slant if chance.random() < 0.6 else ""]
    if chance.random() < 0.15:
        chance.shuffle(parts)
    return " ".join([article, *parts])


def augment(pictures: Tensor) -> Tensor:
    """Returns the pictures moved, stretched and slanted a little, each in its own way."""
    count = len(pictures)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = 1 + 0.1 * (torch.rand(count) - 0.5)
    affine[:, 0, 1] = 0.2 * (torch.rand(count) - 0.5)
    affine[:, :, 2] = 0.12 * (torch.rand(count, 2) - 0.5)
    grid = functional.affine_grid(affine, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, align_corners=False)


class Encoder(nn.Module):
    """The other half of the autoencoder: pictures to the mean and the log variance of their latents."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(16, 48, 3, padding=1),
            Residual(48),
            nn.Conv2d(48, 64, 4, stride=2, padding=1),
            Residual(64),
            *activated_convolution(64, 2 * LATENT[0], kernel=1),
        )

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Returns two ``[n, *LATENT]`` for ``pictures`` ``[n, 1, SIDE, SIDE]``."""
        mean, spread = self.layers(pictures).chunk(2, dim=1)
        return mean, spread.clamp(-8, 4)


def train_autoencoder(digits: Digits, steps: int, batch: int = 64) -> tuple[Encoder, LatentDecoder]:
    """Returns an encoder and a decoder whose latents have a mean of 0 and a deviation of 1."""
    encoder, decoder = Encoder(), LatentDecoder()
    trainer = Trainer("autoencoder", (encoder, decoder), 2e-3, steps, warm_up=0.3, weight_decay=0.01)
    for _ in range(steps):
        pictures = augment(digits.pictures[torch.randint(len(digits.pictures), (batch,))])
        mean, spread = encoder(pictures)
        again = decoder(mean + torch.randn_like(mean) * (spread / 2).exp())
        error = functional.mse_loss(again, pictures, reduction="sum")
        sharpness = functional.l1_loss(again, pictures, reduction="sum")
        divergence = -0.5 * (1 + spread - mean**2 - spread.exp()).sum()
        trainer.step((error + 0.2 * sharpness + 0.01 * divergence) / batch)
    with torch.no_grad():
        latents = encoder(digits.pictures)[0]
        decoder.mean.copy_(latents.mean((0, 2, 3))[:, None, None])
        decoder.deviation.copy_(latents.std((0, 2, 3))[:, None, None])
    return encoder.requires_grad_(False), decoder


class Average:
    """A moving average of parameters, which draws better than the parameters themselves."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [parameter.detach().clone() for parameter in parameters]

    def update(self, step: int) -> None:
        """Moves the average towards the parameters: by less, the more steps it has seen."""
        share = 1 - min(0.998, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self.parameters], share)

    def apply(self) -> None:
        """Sets the parameters to their average."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.copy_(value)


def train_denoiser(
    digits: Digits, encoder: Encoder, decoder: LatentDecoder, steps: int, batch: int = 128
) -> tuple[PromptEncoder, DigitDenoiser]:
    """Returns a text encoder and a denoiser for the latents of the autoencoder."""
    reader, denoiser = PromptEncoder(), DigitDenoiser()
    trainer = Trainer("denoiser", (reader, denoiser), 1.5e-3, steps, warm_up=0.05, weight_decay=0.01)
    average = Average(trainer.parameters)
    chance = random.Random(0)
    shares = SCHEDULE.shares()
    for step in range(steps):
        chosen = torch.randint(len(digits.pictures), (batch,))
        clean = (encoder(augment(digits.pictures[chosen]))[0] - decoder.mean) / decoder.deviation
        told = [caption(digits, index, chance) if chance.random() > 0.12 else "" for index in chosen.tolist()]
        times = torch.randint(len(shares), (batch,))
        noise = torch.randn_like(clean)
        alpha, sigma = (part[times].sqrt()[:, None, None, None] for part in (shares, 1 - shares))
        read = reader(torch.tensor([encode(prompt) for prompt in told]))
        velocity = denoiser(alpha * clean + sigma * noise, times, read["text"], read["mask"])
        trainer.step(functional.mse_loss(velocity, alpha * noise - sigma * clean))
        average.update(step)
    average.apply()
    return reader, denoiser


def write(nets: dict[str, nn.Module], folder: Path) -> None:
    """Writes the weights as float16, with their papers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, net in nets.items():
        content = save({key: value.half().contiguous() for key, value in net.state_dict().items()})
        (folder / f"{name}.safetensors").write_bytes(content)
    write_papers(folder, NOTICE, *(f"{name}.safetensors" for name in nets))


def main() -> None:
    """Train all networks and write them."""
    arguments = option_parser(__doc__, FOLDER, autoencoder=1500, denoiser=4500).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = read_digits()
    encoder, decoder = train_autoencoder(digits, arguments.autoencoder_steps)
    reader, denoiser = train_denoiser(digits, encoder, decoder, arguments.denoiser_steps)
    write({"text": reader, "denoiser": denoiser, "decoder": decoder}, arguments.out)


if __name__ == "__main__":
    main()

"""The three networks that make a picture of a digit from a text.

    ``PromptEncoder``   a prompt's tokens to one vector for each word
    ``DigitDenoiser``   noisy latents, a time and those vectors to the *velocity*, which says where the noise lies
    ``LatentDecoder``   clean latents to a picture

``GuidedDenoiser`` and ``Painter`` are the last two as a pipeline uses them: with guidance, and in bytes.

A *latent* is a small picture, ``[4, 4, 4]``, that stands for one of 32 by 32 pixels; the noise is taken out of it,
since that costs less than to take it out of pixels. The denoiser is a transformer over its 16 cells whose layers
are scaled and shifted by the time (Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023) and look
at the words. The modules know nothing of files; ``orchestrator_stages.demos.digits.trained`` fills them, and
``stages/scripts/train_digits.py`` trains them.

Shapes below: ``n`` prompts or pictures, ``l`` words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator_stages.demos.digits.words import LENGTH, PAD, VOCABULARY
from orchestrator_stages.diffusion.guidance import Guide, Twice

SIDE = 32
"""Pixels along the side of a picture."""

LATENT = (4, 4, 4)
"""Channels, rows and columns of a latent."""

TEXT = 64
"""Length of the vector of a word."""


class Attention(nn.Module):
    """Each row of ``queries`` takes a mixture of the rows of ``source``.

    Args:
        width: Length of a row of the queries, and of the result.
        source: Length of a row of the source.
        heads: How many mixtures are taken side by side.
    """

    def __init__(self, width: int, source: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source, width)
        self.value = nn.Linear(source, width)
        self.out = nn.Linear(width, width)

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(*rows.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, queries: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns ``[n, q, width]``; of ``source`` ``[n, l, source]`` those rows count where ``mask`` is true."""
        mixtures = functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(source)),
            self._split(self.value(source)),
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        result: Tensor = self.out(mixtures.transpose(1, 2).flatten(2))
        return result


def _feed_forward(width: int, factor: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, factor * width), nn.GELU(), nn.Linear(factor * width, width))


class TextBlock(nn.Module):
    """A layer of the text encoder: words look at one another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, width)
        self.before_feed = nn.LayerNorm(width)
        self.feed = _feed_forward(width, 2)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """Returns ``[n, l, width]`` for ``rows`` of that shape."""
        looking = self.before_attention(rows)
        rows = rows + self.attention(looking, looking, mask)
        result: Tensor = rows + self.feed(self.before_feed(rows))
        return result


class PromptEncoder(nn.Module):
    """Reads prompts: ``tokens`` ``[..., l]`` int64 to ``text`` ``[..., l, TEXT]`` and ``mask`` ``[..., l]``.

    The mask is true where there is a word.

    Args:
        layers: Number of layers.
    """

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, TEXT, padding_idx=PAD)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, TEXT))
        self.blocks = nn.ModuleList(TextBlock(TEXT) for _ in range(layers))
        self.norm = nn.LayerNorm(TEXT)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Reads a batch of prompts."""
        prompts = tokens.flatten(0, -2)
        rows = self.embedding(prompts) + self.position
        for block in self.blocks:
            rows = block(rows, prompts != PAD)
        return {"text": self.norm(rows).unflatten(0, tokens.shape[:-1]), "mask": tokens != PAD}


class DenoiserBlock(nn.Module):
    """A layer of the denoiser: cells look at one another and then at the words.

    What it does is scaled, shifted and gated by six vectors that depend on the time.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(0.02 * torch.randn(6, width))
        self.before_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, width)
        self.before_words = nn.LayerNorm(width)
        self.words = Attention(width, TEXT)
        self.before_feed = nn.LayerNorm(width, elementwise_affine=False)
        self.feed = _feed_forward(width, 3)
        nn.init.zeros_(self.words.out.weight)
        nn.init.zeros_(self.words.out.bias)

    def forward(self, cells: Tensor, text: Tensor, mask: Tensor, time: Tensor) -> Tensor:
        """Returns ``[n, cells, width]``; ``time`` is ``[n or 1, 6, width]``."""
        modulation = (time + self.modulation)[:, :, None]
        shift, scale, gate, feed_shift, feed_scale, feed_gate = modulation.unbind(1)
        looking = self.before_attention(cells) * (1 + scale) + shift
        cells = cells + gate * self.attention(looking, looking)
        cells = cells + self.words(self.before_words(cells), text, mask)
        feed_input = self.before_feed(cells) * (1 + feed_scale) + feed_shift
        result: Tensor = cells + feed_gate * self.feed(feed_input)
        return result


class TimeEmbedding(nn.Module):
    """A time as waves of many lengths: ``[n]`` to ``[n, width]``, half of it cosines and half sines."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        steps = torch.arange(width // 2, dtype=torch.float32) / (width // 2)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * steps), persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        """Returns the waves at each time."""
        angles = time[:, None].to(torch.float32) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class DigitDenoiser(nn.Module):
    """Predicts the velocity of noisy latents.

    Latents at a time are ``alpha * clean + sigma * noise``; their velocity is ``alpha * noise - sigma * clean``
    (Salimans and Ho, "Progressive Distillation", 2022), diffusers' ``v_prediction``.

    Args:
        width: Length of the vector of a cell.
        layers: Number of layers.
    """

    def __init__(self, width: int = 96, layers: int = 4) -> None:
        super().__init__()
        channels, rows, columns = LATENT
        self.enter = nn.Linear(channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(rows * columns, width))
        self.time = nn.Sequential(
            TimeEmbedding(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(DenoiserBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, latents: Tensor, time: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Returns the velocity ``[n, *LATENT]`` of ``latents`` of that shape.

        Args:
            latents: Noisy latents.
            time: ``[n]``, or ``[1]`` for all: from 0, hardly any noise, to 999, hardly anything else.
            text: ``[n, l, TEXT]``, as the text encoder gives it.
            mask: ``[n, l]``, likewise.
        """
        cells = self.enter(latents.flatten(2).transpose(1, 2)) + self.position
        modulation = self.modulation(self.time(time)).unflatten(1, (6, -1))
        for block in self.blocks:
            cells = block(cells, text, mask, modulation)
        velocity: Tensor = self.leave(self.norm(cells)).transpose(1, 2).unflatten(2, LATENT[1:])
        return velocity


class Residual(nn.Module):
    """Two convolutions whose result is added to what they read."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*activated_convolution(channels), *activated_convolution(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Returns maps of the same shape."""
        result: Tensor = maps + self.body(maps)
        return result


def activated_convolution(channels: int, out: int | None = None, kernel: int = 3) -> list[nn.Module]:
    """Returns a normalisation, an activation and a convolution to ``out`` channels (default: as many)."""
    convolution = nn.Conv2d(channels, channels if out is None else out, kernel, padding=kernel // 2)
    return [nn.GroupNorm(8, channels), nn.SiLU(), convolution]


class LatentDecoder(nn.Module):
    """Draws latents: ``latents`` ``[n, *LATENT]`` to ``pictures`` ``[n, 1, SIDE, SIDE]``, 0 (black) to 1.

    The latents that it takes have a mean of 0 and a deviation of 1 in each channel, as the noise has;
    ``mean`` and ``deviation`` lead to those that its layers were trained on.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The buffers are part of the weights: the latents of training are brought to the scale of the noise by them.
        channels = LATENT[0]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 3, padding=1),
            Residual(64),
            nn.Upsample(scale_factor=2, mode="nearest"),
            nn.Conv2d(64, 48, 3, padding=1),
            Residual(48),
            *activated_convolution(48, 4 * 16),
            nn.PixelShuffle(4),
            nn.SiLU(),
            nn.Conv2d(4, 1, 3, padding=1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Draws a batch of latents."""
        pictures: Tensor = self.layers(latents * self.deviation + self.mean)
        return pictures.sigmoid()


class GuidedDenoiser(nn.Module):
    """Asks the denoiser twice about the same latents, with the prompt and without it, in one batch.

    The two answers are drawn apart by classifier-free guidance, so that the picture follows the prompt.
    """

    def __init__(self) -> None:
        super().__init__()
        self.twice = Twice()
        self.denoiser = DigitDenoiser()
        self.guide = Guide()

    def forward(self, latents: Tensor, time: Tensor, text: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        """Returns the velocity ``[n, *LATENT]`` of ``latents`` of that shape.

        Args:
            latents: Noisy latents.
            time: ``[]``, int64, the same for all.
            text: ``[n, 2, l, TEXT]``: no prompt and the prompt, as the text encoder gives them.
            mask: ``[n, 2, l]``, likewise.
            scale: ``[]``: 1 follows the prompt as it is, more exaggerates it.
        """
        conditions = (part.transpose(0, 1).flatten(0, 1) for part in (text, mask))
        velocity: Tensor = self.guide(self.denoiser(self.twice(latents), time[None], *conditions), scale)
        return velocity


class Painter(nn.Module):
    """Paints latents: ``latents`` ``[n, *LATENT]`` to grey ``pictures`` ``[n, SIDE, SIDE]`` uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = LatentDecoder()

    def forward(self, latents: Tensor) -> Tensor:
        """Paints a batch of latents."""
        pictures: Tensor = self.decoder(latents)[:, 0]
        return (255 * pictures).round().to(torch.uint8)

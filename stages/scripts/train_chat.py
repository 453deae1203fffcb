"""Train the vision-text model of the pipeline ``chat`` from scratch: about ten minutes on one core.

    pip install 'stage-orchestrator-stages[transformers]'
    python stages/scripts/train_chat.py

Nobody's data are needed: pictures, questions and answers are made by chance, and no picture is seen twice.

First the vision tower and the projector learn to see: a head that is thrown away afterwards tells of each patch where
it is, and which shape it shows, if any. Then the text model learns to answer questions about what they see.

Everything is seeded. The same torch and transformers on the same kind of processor give the same bytes again.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from argparse import ArgumentParser
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from orchestrator_stages.demos.chat.model import FOLDER, PATCH, SIDE, WIDTH, make_config, make_processor
from orchestrator_stages.demos.chat.questions import random_question
from orchestrator_stages.demos.chat.scenes import COLOURS, GROUNDS, KINDS, SIZES, Scene, draw, random_scene

NOTICE = """\
model.safetensors was trained by stages/scripts/train_chat.py of Stage Orchestrator and comes under its licence,
Apache-2.0. It was trained on pictures, questions and answers that the script makes itself, and on nothing else.
"""

IGNORED = -100
"""The label of a token that is not learned."""


def random_pictures(scenes: list[Scene]) -> Tensor:
    """Returns pictures of scenes as the model takes them, each a little darker or brighter, with a little noise."""
    pictures = draw(scenes, SIDE)
    brightness = 0.9 + 0.2 * torch.rand(len(scenes), 1, 1, 1)
    return (pictures * brightness + 0.02 * torch.randn_like(pictures)).clamp(0, 1) * 2 - 1


class Trainer:
    """AdamW with a learning rate that rises and falls once, and a word on stderr now and then.

    Args:
        name: What is learned.
        modules: What is trained.
        rate: The highest learning rate.
        steps: How often :meth:`step` will be called.
    """

    def __init__(self, name: str, modules: list[nn.Module], rate: float, steps: int) -> None:
        self.name = name
        self.steps = steps
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, rate, betas=(0.9, 0.99), weight_decay=0.02)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, steps, pct_start=0.06)
        self.begun = time.monotonic()
        self.losses: list[float] = []

    def step(self, loss: Tensor) -> None:
        """Moves the parameters against the slope of the loss."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) % 100 == 0 or len(self.losses) == self.steps:
            mean = sum(self.losses[-100:]) / len(self.losses[-100:])
            passed = time.monotonic() - self.begun
            sys.stderr.write(
                f"{self.name}: step {len(self.losses)} of {self.steps}, loss {mean:.4f}, {passed:.0f} s\n"
            )


ACROSS = SIDE // PATCH
"""Patches in a row, and rows."""

TRAITS = {
    "kind": 1 + len(KINDS),
    "colour": 1 + len(COLOURS),
    "size": 1 + len(SIZES),
    "ground": len(GROUNDS),
    "column": ACROSS,
    "row": ACROSS,
}
"""What the head tells of a patch, and how many there are of each: those of its shape begin with none."""


def traits_of(scenes: list[Scene]) -> Tensor:
    """Returns the number of each of ``TRAITS`` for each patch, ``[n, patches, traits]``."""
    traits = torch.zeros(len(scenes), ACROSS, ACROSS, len(TRAITS), dtype=torch.int64)
    traits[..., 4] = torch.arange(ACROSS)
    traits[..., 5] = torch.arange(ACROSS)[:, None]
    for number, scene in enumerate(scenes):
        traits[number, ..., 3] = tuple(GROUNDS).index(scene.ground)
        for shape in scene.shapes:
            column, row = (int(place * ACROSS) for place in shape.place)
            names = ((KINDS, shape.kind), (tuple(COLOURS), shape.colour), (tuple(SIZES), shape.size))
            traits[number, row, column, :3] = torch.tensor([1 + every.index(name) for every, name in names])
    return traits.flatten(1, 2)


def train_sight(model: LlavaForConditionalGeneration, steps: int, batch: int) -> None:
    """Trains the vision tower and the projector to tell what each patch shows and where it is."""
    chance = random.Random(1)
    head = nn.Linear(WIDTH, sum(TRAITS.values()))
    trainer = Trainer(
        "sight", [model.model.vision_tower, model.model.multi_modal_projector, head], 2e-3, steps
    )
    for _ in range(steps):
        scenes = [random_scene(chance) for _ in range(batch)]
        features = torch.stack(
            list(model.get_image_features(pixel_values=random_pictures(scenes)).pooler_output)
        )
        # The text model normalises what it reads, so the head does; sizes about one keep both kinds of tokens alike.
        scores = head(functional.rms_norm(features, (WIDTH,))).split(list(TRAITS.values()), -1)
        losses = [
            functional.cross_entropy(of_trait.flatten(0, 1), traits.flatten())
            for of_trait, traits in zip(scores, traits_of(scenes).unbind(-1), strict=True)
        ]
        trainer.step(torch.stack(losses).sum() + (features.square().mean() - 1).square())


class Conversations:
    """Makes questions about pictures by chance, with their answers; the picture comes after the question.

    So what the text model knows of each part of the picture may depend on what is asked.

    Args:
        tokenizer: Of the words they are made of.
        patches: How many tokens a picture takes.
        seed: The same one gives the same conversations.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, patches: int, seed: int) -> None:
        self.chance = random.Random(seed)
        self.encode = cache(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        self.picture = "<image>" * patches
        self.pad: int = tokenizer.pad_token_id

    def batch(self, size: int) -> dict[str, Tensor]:
        """Returns ``pixel_values`` ``[size, 3, SIDE, SIDE]``, and ``input_ids`` and ``labels`` ``[size, length]``."""
        scenes = [random_scene(self.chance) for _ in range(size)]
        rows = [self.row(scene) for scene in scenes]
        length = max(len(ids) for ids, _ in rows)
        return {
            "pixel_values": random_pictures(scenes),
            "input_ids": torch.tensor([ids + [self.pad] * (length - len(ids)) for ids, _ in rows]),
            "labels": torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in rows]),
        }

    def row(self, scene: Scene) -> tuple[list[int], list[int]]:
        """Returns the tokens of a conversation about a scene, and their labels."""
        question, answer = random_question(scene, self.chance)
        prompt = self.encode(f"<bos><user>{question}{self.picture}<assistant>")
        reply = self.encode(f"{answer}<eos>")
        return [*prompt, *reply], [*[IGNORED] * len(prompt), *reply]


def train_speech(
    model: LlavaForConditionalGeneration, conversations: Conversations, steps: int, batch: int
) -> None:
    """Trains the text model to answer; what sees stays as it is."""
    trainer = Trainer("speech", [model.model.language_model], 2e-3, steps)
    for _ in range(steps):
        data = conversations.batch(batch)
        logits = model(input_ids=data["input_ids"], pixel_values=data["pixel_values"], use_cache=False).logits
        trainer.step(
            functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), data["labels"][:, 1:].flatten(), ignore_index=IGNORED
            )
        )


def write(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Writes a checkpoint in float16, with a ``NOTICE`` and a ``SHA256SUMS``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
    (folder / "SHA256SUMS").write_text(
        f"{hashlib.sha256(content).hexdigest()}  model.safetensors\n", encoding="utf-8"
    )


def main() -> None:
    """Train the model and write it."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder to write to (default: the package's)"
    )
    parser.add_argument("--sight-steps", type=int, default=300)
    parser.add_argument("--speech-steps", type=int, default=1600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processor = make_processor()
    config = make_config(processor.tokenizer)
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # on one core, faster than the fused one at these sizes
    train_sight(model, arguments.sight_steps, batch=48)
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    torch.manual_seed(0)  # so that it can be repeated from what the model sees, without learning that again
    conversations = Conversations(processor.tokenizer, config.image_seq_length, seed=0)
    train_speech(model, conversations, arguments.speech_steps, batch=32)
    write(model, processor, arguments.out)


if __name__ == "__main__":
    main()

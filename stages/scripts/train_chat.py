"""Train the vision-text model of the pipeline ``chat`` from scratch: about a quarter of an hour on one core.

    pip install 'stage-orchestrator-stages[transformers]'
    python stages/scripts/train_chat.py

Nobody's data are needed: pictures, questions and answers are made by chance, and no picture is seen twice.

First the vision tower and the projector learn to see: a head that is thrown away afterwards tells of each patch where
it is, and which shape it shows, if any. Then the text model learns to answer questions about what they see.

Everything is seeded. The same torch and transformers on the same kind of processor give the same bytes again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast
from weights import Trainer, option_parser, write_papers

from orchestrator_stages.demos.chat.model import FOLDER, PATCH, SIDE, WIDTH, make_config, make_processor
from orchestrator_stages.demos.chat.questions import random_question
from orchestrator_stages.demos.chat.scenes import COLOURS, GROUNDS, KINDS, SIZES, Scene, draw, random_scene

NOTICE = """\
model.safetensors was trained by stages/scripts/train_chat.py of Stage Orchestrator and comes under its licence,
Apache-2.0. It was trained on pictures, questions and answers that the script makes itself, and on nothing else.
"""

NO_LABEL = -100
"""The label of a token that is not learned."""


def random_pictures(scenes: list[Scene]) -> Tensor:
    """Returns pictures of scenes as the model takes them, each a little darker or brighter, with a little noise."""
    pictures = draw(scenes, SIDE)
    brightness = 0.9 + 0.2 * torch.rand(len(scenes), 1, 1, 1)
    return (pictures * brightness + 0.02 * torch.randn_like(pictures)).clamp(0, 1) * 2 - 1


RATE = 2e-3
"""The highest learning rate, of the sight and of the speech alike."""

OPTIONS = {"warm_up": 0.06, "weight_decay": 0.02, "fused": True}
"""Of how both are learned."""


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
    modules = [model.model.vision_tower, model.model.multi_modal_projector, head]
    trainer = Trainer("sight", modules, RATE, steps, **OPTIONS)
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


TRAINING_SHARES = {
    "colour": 10,
    "number": 14,
    "side": 40,
    "which": 12,
    "presence": 12,
    "size": 4,
    "ground": 1,
    "all": 7,
}
"""How often each sort of question is asked in training: what is harder to learn more often."""


@dataclass(frozen=True)
class Rows:
    """Conversations of about the same length.

    Attributes:
        pictures: Which picture of the batch each is about, ``[n]``.
        input_ids: ``[n, length]``.
        labels: Likewise: the token itself where it is to be learned, ``NO_LABEL`` elsewhere.
    """

    pictures: Tensor
    input_ids: Tensor
    labels: Tensor


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

    def batch(self, pictures: int, questions: int, groups: int) -> tuple[Tensor, list[Rows]]:
        """Returns pictures ``[pictures, 3, SIDE, SIDE]`` and conversations, so many questions about each of them.

        Those of about the same length are together, in ``groups`` of the same number: so there is little padding.
        """
        scenes = [random_scene(self.chance) for _ in range(pictures)]
        rows = [(place, *self.row(scene)) for place, scene in enumerate(scenes) for _ in range(questions)]
        rows.sort(key=lambda row: len(row[1]))
        size = len(rows) // groups
        return random_pictures(scenes), [self.pack(rows[at : at + size]) for at in range(0, len(rows), size)]

    def pack(self, rows: list[tuple[int, list[int], list[int]]]) -> Rows:
        """Returns conversations as tensors, padded on the right."""
        length = max(len(ids) for _, ids, _ in rows)
        return Rows(
            torch.tensor([picture for picture, _, _ in rows]),
            torch.tensor([ids + [self.pad] * (length - len(ids)) for _, ids, _ in rows]),
            torch.tensor([labels + [NO_LABEL] * (length - len(labels)) for _, _, labels in rows]),
        )

    def row(self, scene: Scene) -> tuple[list[int], list[int]]:
        """Returns the tokens of a conversation about a scene, and their labels."""
        question, answer = random_question(scene, self.chance, TRAINING_SHARES)
        prompt = self.encode(f"<bos><user>{question}{self.picture}<assistant>")
        reply = self.encode(f"{answer}<eos>")
        return [*prompt, *reply], [*[NO_LABEL] * len(prompt), *reply]


def answer_losses(model: LlavaForConditionalGeneration, features: Tensor, rows: Rows) -> Tensor:
    """Returns the loss of each token of the answers, ``[tokens]``.

    Args:
        model: Whose text model answers.
        features: What the projector made of the pictures, ``[pictures, patches, WIDTH]``.
        rows: The conversations.
    """
    # As LlavaModel merges them, but a picture is seen once for all questions about it, and only answers are scored.
    embeddings = model.get_input_embeddings()(rows.input_ids)
    is_picture = (rows.input_ids == model.config.image_token_id)[..., None]
    embeddings = embeddings.masked_scatter(is_picture, features[rows.pictures])
    states = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    is_learned = rows.labels[:, 1:] != NO_LABEL
    logits = model.lm_head(states[:, :-1][is_learned])
    return functional.cross_entropy(logits, rows.labels[:, 1:][is_learned], reduction="none")


def train_speech(model: LlavaForConditionalGeneration, conversations: Conversations, steps: int) -> None:
    """Trains the text model to answer; what sees stays as it is.

    Learning on, it makes its features so large that the text model can no longer add to them what is asked.
    """
    trainer = Trainer("speech", [model.model.language_model], RATE, steps, **OPTIONS)
    for _ in range(steps):
        pictures, groups = conversations.batch(pictures=16, questions=4, groups=2)
        with torch.no_grad():
            features = torch.stack(list(model.get_image_features(pixel_values=pictures).pooler_output))
        trainer.step(torch.cat([answer_losses(model, features, rows) for rows in groups]).mean())


def write(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Writes a checkpoint in float16, with its papers."""
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    write_papers(folder, NOTICE, "model.safetensors")


def main() -> None:
    """Train the model and write it."""
    arguments = option_parser(__doc__, FOLDER, sight=300, speech=5500).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processor = make_processor()
    config = make_config(processor.tokenizer)
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation("eager")  # on one core, faster than the fused one at these sizes
    train_sight(model, arguments.sight_steps, batch=48)
    torch.manual_seed(0)  # so that it can be repeated from what the model sees, without learning that again
    conversations = Conversations(processor.tokenizer, config.image_seq_length, seed=0)
    train_speech(model, conversations, arguments.speech_steps)
    write(model, processor, arguments.out)


if __name__ == "__main__":
    main()

"""Ready stages and pipelines for Stage Orchestrator.

In ``demos`` lies one module or package for each ready pipeline:

    vision-text   an image encoder feeds a fusion model: the smallest pipeline worth planning
    model5        five models that show fan-out, fan-in and inputs from the host
    faces         a photo in, the faces it shows out
    digits        a prompt in, a picture of a handwritten digit out
    speech        a recording in, what is said in it out
    chat          a picture of shapes and a question in, the answer in words out
    translate     a text in, its translation out
    scene-text    a photo in, the words it shows out
    sign          a photo of a sign in, what it says in another language out

They are plugins like any other: the hooks below name them by import path, so that registering them imports
neither torch nor the pipelines.

In ``diffusion``, ``generation`` and ``seq2seq`` lie the importers, which are imported when they are first used:

    from_diffusers      a loaded text-to-image pipeline of diffusers as a pipeline of stages
    from_transformers   a loaded model of transformers that generates as a pipeline of stages
    register_family     how models of a type are followed, where that differs from all others
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import hookimpl
from orchestrator.lazy import lazy_names

if TYPE_CHECKING:
    from orchestrator.registry import PipelineRegistry, StageRegistry
    from orchestrator_stages.diffusion.convert import from_diffusers
    from orchestrator_stages.generation.build import from_transformers
    from orchestrator_stages.generation.families import Family, register_family

__all__ = [
    "Family",
    "from_diffusers",
    "from_transformers",
    "orchestrator_register_pipelines",
    "orchestrator_register_stages",
    "register_family",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Family": ".generation.families",
        "from_diffusers": ".diffusion.convert",
        "from_transformers": ".generation.build",
        "register_family": ".generation.families",
    },
)

STAGES = {
    "vision-text.vision": ("vision_text:VisionStage", "an image to a feature vector"),
    "vision-text.fusion": ("vision_text:FusionStage", "image features and a text vector to logits"),
    "faces.letterbox": ("faces.letterbox:Letterbox", "host: a photo of any size into a square"),
    "faces.pyramid": ("faces.pyramid:Pyramid", "a square picture in several sizes"),
    "faces.pnet": ("faces.trained:pnet", "how likely each window of a picture shows a face"),
    "faces.propose": ("faces.propose:Propose", "host: likely windows to crops of 24 pixels"),
    "faces.rnet": ("faces.trained:rnet", "how likely each crop of 24 pixels shows a face"),
    "faces.refine": ("faces.refine:Refine", "host: likely crops to crops of 48 pixels"),
    "faces.onet": ("faces.trained:onet", "faces and their landmarks in crops of 48 pixels"),
    "faces.finish": ("faces.finish:Finish", "host: judged crops to boxes and landmarks in the photo"),
    "faces.annotate": ("faces.annotate:AnnotateFaces", "host: draw the faces into the photo"),
    "digits.prompts": ("digits.prompts:Prompts", "host: a text, one prompt a line, to tokens"),
    "digits.noise": ("digits.noise:Noise", "host: a seed to the noise that each picture begins as"),
    "digits.text": ("digits.trained:text", "tokens to a vector for each word"),
    "digits.denoiser": ("digits.trained:denoiser", "where the noise in latents lies, guided by a prompt"),
    "digits.painter": ("digits.trained:painter", "latents to pictures"),
    "digits.sheet": ("digits.sheets:Sheet", "host: pictures side by side"),
    "digits.strip": ("digits.sheets:Strip", "host: how pictures came to be, step by step"),
    "chat.ask": ("chat.ask:AskQuestion", "host: a picture and a question to what a vision-text model takes"),
    "chat.answer": ("chat.ask:Answer", "host: the tokens of an answer to words"),
    "translate.tokenize": ("translate.tokens:Tokenize", "host: a text to the token ids of its sentences"),
    "translate.encode": ("translate.trained:encode", "sentences to what their translations look up"),
    "translate.begin": ("translate.student:Begin", "what the first token of a translation starts from"),
    "translate.decode": ("translate.trained:decode", "one more token of each translation"),
    "translate.detokenize": ("translate.tokens:Detokenize", "host: the tokens of translations to a text"),
    "scene-text.fit": ("scene_text.fit:Fit", "host: a photo of any size, small enough for the detector"),
    "scene-text.detector": ("scene_text.trained:detector", "how likely each place of a photo shows a letter"),
    "scene-text.words": ("scene_text.words:Words", "host: likely places to boxes and crops of words"),
    "scene-text.reader": ("scene_text.trained:reader", "the letters that crops of words show"),
    "scene-text.spell": ("scene_text.spell:Spell", "host: letters to words, words to lines"),
    "scene-text.annotate": (
        "scene_text.annotate:AnnotateWords",
        "host: draw the words' boxes into the photo",
    ),
    "speech.cut": ("speech.cut:Cut", "host: a recording to spectrograms of at most 30 s"),
}

PIPELINES = {
    "vision-text": ("vision_text:vision_text", "an image and a text vector to logits"),
    "model5": ("model5:model5", "five small models: fan-out, fan-in, inputs from the host"),
    "faces": ("faces.pipeline:faces", "a photo to an annotated photo and its faces"),
    "digits": ("digits.pipeline:digits", "a prompt to a picture of a handwritten digit"),
    "speech": ("speech.pipeline:speech", "a recording to what is said in it"),
    "chat": ("chat.pipeline:chat", "a picture of shapes and a question to the answer in words"),
    "translate": ("translate.pipeline:translate", "a text to its translation, English and Portuguese"),
    "scene-text": ("scene_text.pipeline:scene_text", "a photo to the words and lines it shows"),
    "sign": ("sign:sign", "a photo of an English sign to what it says in Portuguese"),
}


@hookimpl
def orchestrator_register_stages(registry: StageRegistry) -> None:
    """Names the stages."""
    for name, (path, summary) in STAGES.items():
        registry.add(name, f"{__name__}.demos.{path}", summary=summary)


@hookimpl
def orchestrator_register_pipelines(registry: PipelineRegistry) -> None:
    """Names the pipelines."""
    for name, (path, summary) in PIPELINES.items():
        registry.add(name, f"{__name__}.demos.{path}", summary=summary)

"""The parts of the pipeline `digits`, one by one: words, seeds, networks and sheets."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from orchestrator_stages.demos.digits.nets import DigitDenoiser, LatentDecoder, Painter, PromptEncoder
from orchestrator_stages.demos.digits.noise import SCHEDULE, Noise
from orchestrator_stages.demos.digits.prompts import Prompts
from orchestrator_stages.demos.digits.sheets import Sheet, Strip, enlarge
from orchestrator_stages.demos.digits.trained import FOLDER, denoiser, painter, text
from orchestrator_stages.demos.digits.words import LENGTH, NULL, PAD, VOCABULARY, WORDS, encode
from orchestrator_stages.demos.shipped import fill

NETS = {
    "text": (PromptEncoder, 68_864),
    "denoiser": (DigitDenoiser, 576_292),
    "decoder": (LatentDecoder, 173_781),
}


def test_a_digit_has_two_spellings():
    assert encode("The BOLD digit 7, leaning right.") == encode("the bold digit seven leaning right")


def test_every_word_has_a_token_of_its_own():
    tokens = [encode(word)[0] for word in WORDS]
    assert sorted([PAD, NULL, *tokens]) == list(range(VOCABULARY))


@pytest.mark.parametrize("blank", ["", "  ", ",."])
def test_a_blank_prompt_is_no_prompt(blank):
    assert encode(blank) == [NULL] + [PAD] * (LENGTH - 1)


def test_an_unknown_word_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"'bald', which is not known\. Did you mean 'bold'\?"):
        encode("the bald 7")


def test_a_long_prompt_is_refused():
    assert encode("a " * LENGTH).count(PAD) == 0
    with pytest.raises(ValueError, match=r"at most 8 words, but .* has 9"):
        encode("a " * (LENGTH + 1))


def test_each_line_is_a_prompt():
    tokens = Prompts()("bold 7\n\nthin 3")
    assert tokens.shape == (3, 2, LENGTH)
    assert tokens[:, 1].tolist() == [encode("bold 7"), encode(""), encode("thin 3")]
    assert all(row == encode("") for row in tokens[:, 0].tolist())
    assert Prompts()("").shape == (1, 2, LENGTH)


def test_the_noise_of_a_picture_depends_on_its_own_seed_only():
    noise = Noise()
    before = torch.get_rng_state()
    drawn = noise(torch.zeros(3, 2, LENGTH), 5)
    assert torch.get_rng_state().equal(before)
    for place in range(3):
        assert drawn[place].equal(noise(torch.zeros(1, 2, LENGTH), 5 + place)[0])
    assert not drawn[0].equal(drawn[1])


def test_files_match_their_checksums_and_are_small():
    listed = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert listed.keys() == {f"{name}.safetensors" for name in NETS}
    contents = {name: (FOLDER / name).read_bytes() for name in listed}
    assert listed == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert sum(map(len, contents.values())) < 2_000_000
    assert "CC BY 4.0" in (FOLDER / "NOTICE").read_text()


@pytest.mark.parametrize("name", NETS)
def test_number_of_parameters(name):
    net, expected = NETS[name]
    assert sum(parameter.numel() for parameter in net().parameters()) == expected


def test_a_fake_network_reads_no_file(tmp_path):
    with FakeTensorMode():
        net = Painter()
        fill(net.decoder, tmp_path / "decoder.safetensors")
        assert isinstance(net(torch.empty(1, 4, 4, 4)), FakeTensor)


def test_empty_places_of_a_prompt_do_not_matter():
    encoder, net = text().model, denoiser().model.denoiser
    read = encoder(torch.tensor([encode("bold 7")]))
    assert read["mask"].sum() == 2
    other = read["text"].clone()
    other[:, 2:] = 100.0
    latents, time = torch.randn(1, 4, 4, 4), torch.tensor([500])
    assert net(latents, time, read["text"], read["mask"]).equal(net(latents, time, other, read["mask"]))


def test_guidance_asks_with_and_without_the_prompt():
    encoder, net = text().model, denoiser().model
    read = encoder(Prompts()("bold 7\nthin 3"))
    latents, time = torch.randn(2, 4, 4, 4), torch.tensor(500)
    without, prompted = (
        net.denoiser(latents, time[None], read["text"][:, place], read["mask"][:, place]) for place in (0, 1)
    )
    for scale in (0.0, 1.0, 2.5):
        found = net(latents, time, read["text"], read["mask"], torch.tensor(scale))
        torch.testing.assert_close(found, without + scale * (prompted - without))


def test_the_schedule_ends_with_a_clean_picture():
    rows = SCHEDULE.table(10).rows
    assert rows[-1, 2:].tolist() == [1.0, 0.0]
    assert rows[0, 1] < 1e-4


def test_pictures_are_bytes():
    pictures = painter().model(torch.randn(3, 4, 4, 4))
    assert pictures.shape == (3, 32, 32)
    assert pictures.dtype == torch.uint8


def test_enlarging_keeps_what_is_seen():
    pictures = torch.randint(0, 256, (2, 32, 32), dtype=torch.uint8)
    assert enlarge(pictures, 1, 0).equal(pictures)
    assert enlarge(pictures, 1, 2)[:, 2:-2, 2:-2].equal(pictures)
    assert enlarge(torch.full_like(pictures, 77), 4, 0).equal(
        torch.full((2, 128, 128), 77, dtype=torch.uint8)
    )
    assert not enlarge(torch.full_like(pictures, 77), 4, 4)[:, :8].any()


@pytest.mark.parametrize(("count", "shape"), [(1, (32, 32)), (3, (32, 96)), (4, (64, 96)), (7, (96, 96))])
def test_a_sheet_shows_pictures_in_reading_order(count, shape):
    pictures = torch.arange(1, count + 1, dtype=torch.uint8)[:, None, None].expand(count, 32, 32)
    sheet = Sheet(columns=3, scale=1, margin=0)(pictures)
    assert sheet.shape == shape
    seen = sheet[::32, ::32].flatten().tolist()
    assert seen == [*range(1, count + 1), *[0] * (len(seen) - count)]


@pytest.mark.parametrize(("steps", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (9, [0, 4, 8])])
def test_a_strip_shows_the_first_and_the_last_step(steps, shown):
    previews = torch.arange(steps, dtype=torch.uint8)[:, None, None, None].expand(steps, 2, 32, 32)
    strip = Strip(columns=3, scale=1, margin=0)(previews)
    assert strip[::32, ::32].tolist() == [shown, shown]


@pytest.mark.parametrize("stage", [Sheet, Strip])
@pytest.mark.parametrize(("option", "value"), [("columns", 0), ("scale", 0), ("scale", 1.5), ("margin", -1)])
def test_sheets_refuse_sizes_that_are_none(stage, option, value):
    with pytest.raises(ValueError, match=f"{option} is an int of at least"):
        stage(**{option: value})

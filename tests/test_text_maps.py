"""`explain` on the text side: words with their values, in an explanation, a picture and a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from captum_clip import (
    DirectContribution,
    TextSimilarity,
    explain,
    load_clip,
    targets,
    visualization,
)
from captum_clip.cli import main
from captum_clip.demo.scenes import draw_scene
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.explaining.explanation import Explanation
from captum_clip.explaining.request import Sign
from captum_clip.targets import word_tokens
from captum_clip.visualization import grid
from tests import builders

TEXTS = ["a horse and a dog", "a dog."]
IMAGE = draw_scene(0, objects=["horse"]).image


@pytest.fixture(scope="module")
def clip() -> Any:
    return load_clip("demo/vit")


def spell_bytes(clip: Any, ids: list[int]) -> str:
    from tokenizers.decoders import ByteLevel

    return str(ByteLevel().decode(clip.tokenizer.convert_ids_to_tokens(ids)))


def spell_open_clip(clip: Any, ids: list[int]) -> str:
    return str(clip.tokenizer.decode(ids)).replace(" ", "")  # one after every piece of a word


@pytest.mark.parametrize("white", [" ", "\n\n"])
@pytest.mark.parametrize(
    ("builder", "spell"),
    [
        (builders.open_clip_vit, spell_open_clip),
        (builders.hf_vit, spell_bytes),
        (builders.siglip, spell_bytes),
        (builders.BUILDERS["altclip"], spell_bytes),
    ],
)
def test_the_tokens_of_a_word_spell_it(builder: Any, spell: Any, white: str) -> None:
    """Whether a word is one token, several sub-words or a token a byte, whatever stands between."""
    clip = builder().load()
    words = ["an", "unbelievably", "horselike", "creature,", "isn't", "it?"]
    text = white + white.join(words) + white
    ids = clip.text_inputs(text)[0][0].tolist()
    found = word_tokens(clip, text)
    assert [word for word, _ in found] == words
    assert [spell(clip, ids[span.start : span.stop]).strip() for _, span in found] == words
    assert any(len(span) > 1 for _, span in found)


def test_a_text_that_is_not_cut_at_its_white_space_is_refused() -> None:
    """OpenCLIP's tokenizer drops a separator that Python takes as white space."""
    clip = builders.open_clip_vit().load()
    with pytest.raises(
        InputError, match=r"does not split .* write the text with plain spaces, or sum"
    ):
        word_tokens(clip, "a\x1chorse")


def test_words_have_the_values_of_their_tokens(clip: Any) -> None:
    found = explain(IMAGE, TEXTS, model=clip, side="text", method="direct")
    pixels = clip.preprocess(IMAGE)
    forward = TextSimilarity(clip, targets.image(clip, pixels))
    ids, mask = clip.text_inputs(TEXTS)
    values = DirectContribution(forward).attribute(ids, additional_forward_args=mask)[:, 0]
    assert found.maps == {}
    words, by_word = zip(*found.text_maps[0], strict=True)
    assert list(words) == TEXTS[0].split()
    assert list(by_word) == pytest.approx(values[0, 1:6].tolist(), abs=1e-8)
    assert found.text_maps[1][1][1] == pytest.approx(values[1, 2].item())
    torch.testing.assert_close(found.scores, forward(ids, mask).T.detach())


def test_sub_words_are_summed() -> None:
    small = builders.hf_vit().load()
    image, text = torch.randn(1, 3, 32, 32), "a  horse"
    (words,) = explain(image, text, model=small, side="text", method="direct").text_maps
    forward = TextSimilarity(small, targets.image(small, image))
    ids, mask = small.text_inputs(text)
    values = DirectContribution(forward).attribute(ids, additional_forward_args=mask)[0, 0]
    assert [value for _, value in words] == pytest.approx(
        [values[1].item(), values[2:9].sum().item()], abs=1e-6
    )


def test_both_sides_are_those_of_each_alone(clip: Any) -> None:
    both = explain(IMAGE, TEXTS, model=clip, side="both")
    alone, words = (
        explain(IMAGE, TEXTS, model=clip),
        explain(IMAGE, TEXTS, model=clip, side="text"),
    )
    assert torch.equal(both.maps["positive"], alone.maps["positive"])
    assert both.text_maps == words.text_maps
    assert (alone.text_maps, both.method) == ((), "direct, words conservative")
    torch.testing.assert_close(both.scores, words.scores)
    assert explain(IMAGE, TEXTS, model=clip, side="both", method="direct").method == "direct"


def test_signs_of_a_method_without_signs(clip: Any) -> None:
    """For, against, and the difference of the two."""
    signs: tuple[Sign, ...] = ("positive", "negative", "both")
    found = [
        explain(IMAGE, TEXTS, model=clip, side="text", method="all-grad", sign=s) for s in signs
    ]
    assert torch.equal(found[0].scores, found[1].scores)
    by_sign = [[value for _, value in each.text_maps[0]] for each in found]
    positive, negative, both = map(torch.tensor, by_sign)
    assert (positive >= 0).all()
    assert (negative <= 0).all()
    torch.testing.assert_close(both, positive + negative)


def test_an_explanation_of_words_is_saved_and_drawn(clip: Any, tmp_path: Path) -> None:
    found = explain(IMAGE, TEXTS, model=clip, side="both")
    read = Explanation.load(found.save(tmp_path / "words.npz"))
    assert (read.text_maps, read.names) == (found.text_maps, found.names)
    for shown in (found, explain(IMAGE, TEXTS, model=clip, side="text")):
        figure = shown.plot()
        for axes, text in zip(figure.axes[1::2], TEXTS, strict=True):
            assert [drawn.get_text() for drawn in axes.texts[::2]] == text.split()
        grid.save_figure(figure, tmp_path / "words.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "words"}, "a side of image, text, both, pairs, got 'words'"),
        (
            {"side": "text", "words": True},
            "whole texts word by word; leave `words=True` out",
        ),
        ({"side": "text", "method": "direct", "per": "head"}, "leave `per` out"),
        (
            {"side": "text", "method": "rollout", "sign": "negative"},
            "does not depend on the target",
        ),
    ],
)
def test_what_makes_no_sense_on_the_text_side_is_refused(
    clip: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explain(IMAGE, TEXTS[0], model=clip, **options)


def test_targets_several_images_and_methods_with_a_grid_are_refused(clip: Any) -> None:
    with pytest.raises(InputError, match="pass texts instead of a Target"):
        explain(IMAGE, targets.text(clip, TEXTS), model=clip, side="text")
    with pytest.raises(InputError, match="one image at a time, got 2"):
        explain([IMAGE, IMAGE], TEXTS, model=clip, side="text")
    with pytest.raises(UnsupportedModelError, match="this is a text tower"):
        explain(IMAGE, TEXTS, model="demo/resnet", side="text", method="grad-cam")


def test_pictures_without_words_or_with_nan_are_refused() -> None:
    image = torch.rand(1, 3, 8, 8)
    nothing: list[Any] = [[], [[]]]
    for texts in nothing:
        with pytest.raises(InputError, match="expected one image and texts with words"):
            visualization.sentences(image, texts)
    with pytest.raises(InputError, match="hold NaN or infinity"):
        visualization.sentences(image, [[("a", float("nan"))]])


def test_the_command_prints_the_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("photo.png")
    arguments = ["explain", "photo.png", TEXTS[0], "--model", "demo/vit", "--side", "text"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "(demo/vit, conservative):" in printed
    assert "horse +0.2" in printed
    [figure] = tmp_path.glob("photo-explained-*.png")
    assert figure.stat().st_size > 1000
    assert main([*arguments, "--words"]) == 2
    assert (
        "--side text explains whole texts word by word; leave --words out."
        in capsys.readouterr().err
    )

"""The tokenizer of the demo models refuses what it would have to change."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from captum_clip import demo
from captum_clip.demo.catalog import (
    CONTEXT_LENGTH,
    END,
    PAD,
    START,
    WORDS,
    DemoTokenizer,
)
from captum_clip.errors import TargetError

TEXTS = ["A horse, and (a Dog).", "there is a red heart on the grass!", ""]


def test_tokens_are_start_words_end_padding() -> None:
    tokens = DemoTokenizer()(TEXTS)
    assert tokens.shape == (3, CONTEXT_LENGTH)
    assert tokens.dtype == torch.int64
    words = [WORDS[i - 1] for i in tokens[0, 1:6].tolist()]
    assert words == ["a", "horse", "and", "a", "dog"]
    assert tokens[0, 0] == START
    assert tokens[0, 6:].tolist() == [END] + [PAD] * 9
    assert tokens[2].tolist() == [START, END] + [PAD] * 14


def test_an_emoji_is_not_dropped() -> None:
    with pytest.raises(TargetError, match="do not know '\U0001f434'"):
        DemoTokenizer()(["a \U0001f434"])


def test_all_unknown_words_are_named() -> None:
    with pytest.raises(TargetError, match=r"'purring', 'lion'.*captum-clip models --vocabulary"):
        DemoTokenizer()(["a horse", "a purring lion and a lion"])


def test_long_text_is_refused_but_counted() -> None:
    longest = " ".join(["horse"] * (CONTEXT_LENGTH - 2))
    assert DemoTokenizer()(longest)[0, -1] == END
    with pytest.raises(TargetError, match=f"up to {CONTEXT_LENGTH} tokens"):
        DemoTokenizer()(f"{longest} dog")
    assert DemoTokenizer().count(f"{longest} dog") == CONTEXT_LENGTH + 1


def test_tokenizer_of_the_models_folder_agrees() -> None:
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(demo.MODELS["demo/vit"])
    encoded = written(TEXTS, padding="max_length", return_tensors="pt")
    assert set(encoded) == {"input_ids", "attention_mask"}
    found = encoded["input_ids"]
    assert torch.equal(found, DemoTokenizer()(TEXTS))
    with pytest.raises(Exception, match="Missing"):
        written("a lion")


def test_package_module_itself_loads_no_library() -> None:
    code = (
        f"import runpy, sys; names = runpy.run_path({demo.__file__!r}); "
        "assert list(names['MODELS']) == ['demo/vit', 'demo/resnet', 'demo/siglip']; "
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

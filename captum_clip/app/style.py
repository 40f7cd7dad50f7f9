"""How the page looks and what it says of itself; fonts are those of the reader's machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

INTRODUCTION: Final = """
<h1>Why does this image fit this text?</h1>
<p>CLIP scores the match as a cosine; a map shows which regions of the image a method credits for
it. Click a word to see what it adds to its text.</p>
"""

ABOUT: Final = """
<p><b>What a map means.</b> Bright regions raise (or, &ldquo;against&rdquo;, lower) the cosine
according to this method; every map has a scale of its own, from its lowest to its highest value,
and the two signs of a text share one. The map of a word shows what its text would lose without it,
dimmed by how much that is: its norm. <b>What it does not mean.</b> It is no outline of an object
and no proof of what the model understands; methods disagree, and some are wrong on some images. The
embedded models know drawn scenes only: what they do says nothing about photographs.</p>
"""

SCRIPTS: Final = {
    # Gradio leaves a list open when Tab moves on from it; Escape closes it.
    "keys": """() => {
        document.addEventListener('keydown', event => {
            if (event.key === 'Enter' && (event.ctrlKey || event.metaKey))
                document.querySelector('#show').click();
        });
        document.addEventListener('focusout', event => {
            if (event.target.matches('[role=combobox]')) event.target.dispatchEvent(
                new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}));
        });
    }""",
    "word": """
        element.addEventListener('click', event => {
            const word = event.target.closest('button.word');
            if (word) trigger('click', {text: word.dataset.text, word: word.dataset.word});
        });
    """,
    "opacity": "(opacity) => { document.body.style.setProperty('--opacity', opacity); }",
    "scroll": """() => {
        const answer = document.querySelector('#answer');
        if (answer.getBoundingClientRect().top > innerHeight / 2) answer.scrollIntoView();
    }""",
    "save": """(file) => {
        if (!file) return;
        const link = document.createElement('a');
        link.href = file;
        link.download = 'captum-clip-maps.ENDING';
        link.click();
    }""",
}
"""What the browser does by itself."""

CSS: Final = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def theme() -> Any:
    """Gradio's plainest theme without the fonts that it would fetch."""
    import gradio as gr

    dark, darker = "#a63a00", "#8a3000"
    return gr.themes.Base(
        primary_hue="orange",
        neutral_hue="stone",
        spacing_size="sm",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill=dark,
        button_primary_background_fill_dark=dark,
        button_primary_background_fill_hover=darker,
        button_primary_background_fill_hover_dark=darker,
        button_primary_text_color="white",
        slider_color=dark,
        checkbox_background_color_selected=dark,
        checkbox_border_color_selected=dark,
    )

"""How the page looks and what it says of itself; fonts are those of the reader's machine."""

from __future__ import annotations

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

CSS: Final = """
.gradio-container { max-width: 1400px !important; margin: 0 auto; --accent: #a63a00;
    --bright: #a63a00; --faint: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.dark .gradio-container { --bright: #fdba74; }
.gradio-container :focus-visible, .gradio-container label:has(input[type=radio]:focus-visible),
#question input[type=number]:focus-visible {
    outline: 3px solid var(--bright) !important; outline-offset: 2px; }
.gradio-container button, #model input, #method input, #opacity input {
    min-height: 24px; min-width: 24px; }
button[role=tab][aria-selected=true] { color: var(--bright) !important; }
.gradio-container .block, .gradio-container .form { box-shadow: none; }
#introduction h1 { font-size: 1.5rem; margin: 0 0 .1rem; }
#introduction p { margin: 0; color: var(--faint); }
#problem:not(:has(p)) { display: none; }
#about p { font-size: .82rem; line-height: 1.4; margin: .2rem 0 0; color: var(--faint); }
#model input, #method input { font-size: .86rem; padding-right: 1.3rem; text-overflow: ellipsis; }
.tight { align-items: end; gap: .6rem; }
.hint { color: var(--faint); font-size: .85rem; line-height: 1.4; margin: 0 0 .4rem; }
.problem { margin: 0 0 .3rem; padding: .6rem .8rem; border-radius: 8px; background: #fff3e6;
    color: #7a2e00; border-left: 4px solid #b03a00; }
.cards { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); }
.card { margin: 0; max-width: 260px; display: flex; flex-direction: column; justify-content: end; }
.card.wide { grid-column: span 2; max-width: 520px; }
.card .title { margin-bottom: .25rem; font-size: .92rem; line-height: 1.6; }
.card figcaption { font-size: .82rem; color: var(--faint); font-variant-numeric: tabular-nums; }
.layers { display: grid; gap: .5rem; margin-bottom: .5rem;  /* a max-width would not wrap */
    grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); }
#layers h2 { margin: .2rem 0; font-size: 1rem; }
.sentence { display: flex; flex-wrap: wrap; gap: 1rem; }
.sentence .card { flex: 1 0 160px; }
.sentence p { flex: 3 1 240px; margin: 0; }
.sentence span:not(.picture, .sign) { display: inline-flex; flex-direction: column;
    align-items: center; margin: 0 .4rem .6rem 0; font-size: .78rem; color: var(--faint); }
.sentence b { padding: 0 .35rem; border-radius: 6px; font-size: 1rem; font-weight: 400;
    color: #222; }
.pictures { display: flex; gap: 6px; }
.picture { flex: 1; position: relative; aspect-ratio: var(--shape); overflow: hidden;
    border-radius: 6px; background: var(--photo) center / 100% 100%; }
.picture img { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; }
.picture i { position: absolute; outline: 2px solid #fff; box-shadow: 0 0 0 999px #0009; }
.picture .sign { position: absolute; left: 4px; top: 4px; padding: 0 .35rem; font-size: .76rem;
    border-radius: 4px; background: #fffd; color: #222; }
.picture img.map { opacity: var(--opacity, .9); }
button.word { border: 1px solid transparent; border-radius: 6px; padding: 0 .28rem;
    background: none; color: inherit; cursor: pointer; font: inherit;
    text-decoration: underline dotted; text-underline-offset: 3px; }
button.word.whole { font-size: .76rem; color: var(--faint); text-decoration: none;
    border-color: var(--border-color-primary); margin-right: .2rem; }
button.word:hover, button.word:focus-visible { border-color: var(--accent); }
button.word[aria-pressed=true] { background: var(--accent); color: white; text-decoration: none; }
button.word.whole[aria-pressed=true] { background: var(--border-color-primary); color: inherit; }
.foot { margin: .5rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .82rem;
    color: var(--faint); }
.legend i { display: inline-block; width: 70px; height: 9px; border-radius: 3px;
    margin-right: .4rem; }
.source { margin-left: auto; }
@media (max-width: 560px) {
    .cards { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
    .layers { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)); }
    button[role=tab] { font-size: .82rem !important; padding: 0 .35rem !important; }
}
"""


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

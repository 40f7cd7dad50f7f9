"""Who a model is: the same wherever it computes the same, another with each setting that counts."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_clip import ClipSimilarity, attr, load_clip, targets
from tests import builders
from tests.attr import cases
from tests.models.checkpoints import save_transformers


def fingerprint_of(model: nn.Module, processor: Any = None) -> str:
    return load_clip(model, processor=processor).fingerprint


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_resnet"])
def test_fingerprint_is_that_of_the_weights(name: str) -> None:
    first, second = builders.BUILDERS[name](), builders.BUILDERS[name]()
    clip = first.load()
    fingerprint = clip.fingerprint
    assert fingerprint == second.load().fingerprint
    assert fingerprint == clip.fingerprint
    with torch.no_grad():
        next(first.model.parameters()).view(-1)[0] += 1e-3
    assert clip.fingerprint != fingerprint
    assert builders.BUILDERS[name](seed=1).load().fingerprint != fingerprint
    assert second._replace(model=second.model.half()).load().fingerprint != fingerprint


def test_fingerprint_is_that_of_the_preprocessing() -> None:
    from transformers import CLIPImageProcessor

    built = builders.hf_vit()
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processors = [
        *(None, builders.hf_processor(), builders.hf_processor(48)),
        *(CLIPImageProcessor(**sizes, **one) for one in ({"resample": 2}, {"do_rescale": False})),
        *(builders.open_clip_vit(image_size=size).processor for size in (32, 48)),
    ]
    found = [built.load(processor=processor).fingerprint for processor in processors]
    assert len(set(found)) == len(processors)
    again = builders.open_clip_vit().processor
    assert built.load(processor=again).fingerprint == found[-2]


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit", "open_clip_resnet", "eva02"])
def test_fingerprint_stays_where_the_model_computes_the_same(name: str) -> None:
    """In a copy, in training mode, without gradients, for the hooks of a recording, once used."""
    built = cases.BUILDERS[name]()
    clip = built.load()
    fingerprint, within = clip.fingerprint, []
    assert fingerprint_of(copy.deepcopy(built.model), built.processor) == fingerprint
    similarity = ClipSimilarity(clip, targets.embedding(torch.ones(1, 24)))

    def own(images: Tensor) -> Tensor:
        within.append(clip.fingerprint)
        return similarity(images)

    method = attr.AllGradAttention if clip.kind == "vit" else attr.ClipGradCam
    method(own, built.model).attribute(built.images(), target=0)
    assert {*within, clip.fingerprint} == {fingerprint}
    seen: list[int] = []
    clip.vision.register_forward_hook(lambda *call: seen.append(1))
    watched = clip.fingerprint
    clip.image_features(built.images())
    assert seen
    built.model.train().requires_grad_(False)
    assert clip.fingerprint == watched != fingerprint


def test_fingerprint_stays_after_a_reload_from_another_place(tmp_path: Any) -> None:
    built = builders.hf_vit()
    fingerprint = built.load().fingerprint
    for folder in (tmp_path / "a", tmp_path / "b"):
        save_transformers(built, folder)
        assert load_clip(folder, device="cpu").fingerprint == fingerprint
    built.model.config._name_or_path = "elsewhere"
    built.model(  # after which hooks of transformers stay
        pixel_values=built.images(), input_ids=torch.tensor([[257, 5, 258]]), output_attentions=True
    )
    assert built.load().fingerprint == fingerprint


def double(module: nn.Module, args: Any, output: Any, factor: float = 2) -> Any:
    return tuple(factor * part for part in output)


def changed_transformers() -> dict[str, nn.Module]:
    """The same weights, and one setting changed in each."""
    made = {
        "hidden_act": builders.hf_vit(hidden_act="relu").model,
        "heads": builders.hf_vit(num_attention_heads=2).model,
        "layer_norm_eps": builders.hf_vit(layer_norm_eps=1e-3).model,
        **{
            name: builders.hf_vit().model for name in ("eager", "scale", "hook", "patched", "other")
        },
    }
    made["eager"].set_attn_implementation("eager")
    attention = made["scale"].vision_model.encoder.layers[0].self_attn
    attention.scale /= 2
    for name in ("hook", "other"):
        block = made[name].vision_model.encoder.layers[0].self_attn
        block.register_forward_hook(partial(double, factor=2 if name == "hook" else 3))
    block = made["patched"].vision_model.encoder.layers[0]
    block.forward = partial(type(block).forward, block)
    return made


def changed_open_clip() -> dict[str, nn.Module]:
    """As `changed_transformers`; the first is as another that OpenCLIP lists next to it."""
    from open_clip import CLIP

    base, vision = builders.open_clip_vit().model, builders.VIT_CONFIG
    quick = CLIP(24, vision, builders.TEXT_CONFIG, quick_gelu=True)
    quick.load_state_dict(base.state_dict())
    made = {name: copy.deepcopy(base) for name in ("pool_type", "norm", "mask", "size", "text")}
    made["pool_type"].visual.pool_type = "avg"
    made["norm"].visual.final_ln_after_pool = True
    made["mask"].attn_mask = torch.zeros_like(base.attn_mask)  # causal no more, in no state dict
    made["size"].visual.image_size = (32, 40)
    made["text"].text_pool_type = "last"
    return {"quick_gelu": quick.eval(), **made}


@pytest.mark.parametrize(
    ("base", "changed"),
    [(builders.hf_vit, changed_transformers), (builders.open_clip_vit, changed_open_clip)],
)
def test_fingerprint_changes_with_every_setting_alone(base: Any, changed: Any) -> None:
    models = {"as it was": base().model, **changed()}
    states: list[dict[str, Tensor]] = [model.state_dict() for model in models.values()]
    assert all(torch.equal(s[key], states[0][key]) for s in states for key in states[0])
    found = {name: fingerprint_of(model) for name, model in models.items()}
    assert len(set(found.values())) == len(models), found


def test_fingerprint_changes_with_a_method_patched_on_a_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = builders.hf_vit().model
    fingerprint = fingerprint_of(model)
    kind = type(model.vision_model.encoder.layers[0])
    features = type(model).get_image_features
    monkeypatch.setattr(kind, "forward", lambda block, hidden, *_: hidden)
    found = [fingerprint, fingerprint_of(model)]
    for factor in (2, 3):

        def scaled(self: Any, *args: Any, factor: float = factor, **kwargs: Any) -> Any:
            return factor * features(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "get_image_features", scaled)
        found.append(fingerprint_of(model))
    assert len(set(found)) == len(found)


def test_text_fingerprint_is_that_of_the_tokenizer_too() -> None:
    built = builders.hf_vit()
    tokenizers = [
        None,
        built.tokenizer,
        lambda texts: built.tokenizer([t.lower() for t in texts], return_tensors="pt"),
    ]
    clips = [built._replace(tokenizer=tokenizer).load() for tokenizer in tokenizers]
    assert len({clip.fingerprint for clip in clips}) == 1
    assert len({clip.text_fingerprint for clip in clips}) == len(clips)
    assert built.load().text_fingerprint == clips[1].text_fingerprint
    half = built._replace(model=copy.deepcopy(built.model).half()).load()
    assert half.text_fingerprint != clips[1].text_fingerprint

"""What others put around a model is looked through; what they put into it is honored or not."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore

from captum_clip import ClipSimilarity, attr, load_clip, targets
from captum_clip.errors import InputError, UnsupportedModelError
from captum_clip.models import tower_of
from captum_clip.recording.hooks import uncompiled
from tests import builders
from tests.attr import cases

IMAGES = builders.hf_vit().images()
ROWS = torch.randn(2, 24, generator=torch.Generator().manual_seed(3))


class PeftModel(nn.Module):
    """With the parts that peft's has: a tuner, `base_model`, and in it the model."""

    __module__ = "peft.peft_model"

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model: Any = nn.Module()
        self.base_model.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model.model(*args, **kwargs)


class LoraLinear(nn.Module):
    """With the parts that a linear map of peft's LoRA has; merged, it is its base layer."""

    __module__ = "peft.tuners.lora.layer"

    def __init__(self, base: Any, scale: float) -> None:
        super().__init__()
        self.base_layer: Any = base
        self.scaling, self.lora = {"default": scale}, copy.deepcopy(base)
        self.merged = self.disable_adapters = False

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base_layer(x)
        return result if self.merged else result + self.scaling["default"] * self.lora(x)


@pytest.fixture
def one_process() -> Iterator[None]:
    """A group of processes that is this one alone."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(module: Any) -> Any:
    return torch.compile(module, backend="eager")


WRAPPERS = {
    "compile": compiled,
    "parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "peft": PeftModel,
    "several": lambda model: compiled(nn.DataParallel(PeftModel(model))),
}


def scores_of(model: Any, images: Tensor) -> Tensor:
    """Through the call of the model itself."""
    tokens = torch.tensor([[257, 5, 258]])
    features: Tensor = model(pixel_values=images, input_ids=tokens).image_embeds
    return features @ ROWS.T


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_is_around_a_model_is_looked_through(wrapper: str) -> None:
    """By `load_clip` and as `layer`, while the callable runs what it ran before."""
    model = builders.hf_vit().model
    wrapped = WRAPPERS[wrapper](model)
    clip = load_clip(wrapped)
    assert clip.model is model
    assert clip.name == "CLIPModel"
    assert tower_of(wrapped).module is model.vision_model
    for method in (attr.AllGradAttention, attr.DirectContribution):
        expected = method(lambda x: scores_of(model, x), model).attribute(IMAGES, target=0)
        found = method(lambda x: scores_of(wrapped, x), wrapped).attribute(IMAGES, target=0)
        torch.testing.assert_close(found, expected)


def test_the_clip_in_a_detector_or_a_segmenter_is_taken() -> None:
    for name, kind, part in (
        ("owlvit", "OwlViTForObjectDetection", "owlvit"),
        ("owlv2", "Owlv2ForObjectDetection", "owlv2"),
        ("clipseg", "CLIPSegForImageSegmentation", "clip"),
    ):
        config = builders.BUILDERS[name]().model.config
        config.extract_layers, config.reduce_dim, config.decoder_num_attention_heads = [0, 1], 8, 2
        model = getattr(transformers, kind)(config).eval()
        clip = getattr(model, part)
        assert load_clip(model).model is clip
        assert tower_of(model).module is tower_of(clip).module


def test_a_compiled_function_is_explained_as_it_was_written() -> None:
    """What was compiled without hooks passes them by; afterwards all is compiled again."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def fails(images: Tensor) -> Tensor:
        raise InputError("mine")

    model = builders.hf_vit().model
    function = torch.compile(lambda images: scores_of(model, images), backend=backend)
    function(IMAGES)
    before = len(graphs)
    for method in (attr.AllGradAttention, attr.DirectContribution, attr.ConservativePropagation):
        expected = method(lambda x: scores_of(model, x), model).attribute(IMAGES, target=0)
        with uncompiled:  # as in another thread
            found = method(function, model).attribute(IMAGES, target=0)
            function(IMAGES[:1])
        torch.testing.assert_close(found, expected)
        with pytest.raises(InputError, match="mine"):
            method(fails, model).attribute(IMAGES, target=0)
    assert len(graphs) == before
    torch.compile(lambda images: images + 1, backend=backend)(IMAGES)
    assert len(graphs) == before + 1


def with_lora(path: str, scale: float = 0.5) -> PeftModel:
    model = builders.hf_vit().model
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, name, LoraLinear(getattr(module, name), scale))
    return PeftModel(model)


QUERY = "vision_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("path", ["text_model.encoder.layers.0.self_attn.q_proj", QUERY])
@pytest.mark.parametrize("merged", [False, True])
def test_adapters_are_honored(path: str, merged: bool) -> None:
    adapted = with_lora(path)
    layer: Any = adapted.get_submodule(f"base_model.model.{path}")
    layer.merged = merged
    similarity = ClipSimilarity(load_clip(adapted), targets.embedding(ROWS))
    same = builders.hf_vit()
    if not merged:  # the adapter is half of the map itself
        for parameter in same.model.get_submodule(path).parameters():
            parameter.data *= 1.5
    plain = ClipSimilarity(same.load(), targets.embedding(ROWS))
    methods = [m for name, m in cases.OWN.items() if "vit" in m.towers and name != "cam"]
    for method in methods:
        maps = [method(each).attribute(IMAGES, target=0) for each in (similarity, plain)]
        torch.testing.assert_close(*maps, rtol=1e-4, atol=1e-6)


def test_the_scale_of_an_adapter_is_in_the_identity() -> None:
    path = "vision_model.encoder.layers.0.mlp.fc1"
    found = [load_clip(with_lora(path, scale)).identity() for scale in (0.5, 0.5, 0.25)]
    assert found[0] == found[1] != found[2]


def test_prompts_of_peft_are_refused() -> None:
    """They act in the forward of the wrapper alone, whose `base_model` is the model."""
    wrapped = PeftModel(builders.hf_vit().model)
    wrapped.base_model = wrapped.base_model.model
    with pytest.raises(UnsupportedModelError, match=r"a module of the PeftModel"):
        load_clip(wrapped)


@pytest.mark.parametrize("way", ["int8", "dynamic"])
def test_a_quantized_tower_is_refused(way: str) -> None:
    model = builders.open_clip_vit().model
    if way == "int8":
        weight = model.visual.transformer.resblocks[0].mlp.c_fc.weight
        whole = nn.Parameter(weight.to(torch.int8), requires_grad=False)
        model.visual.transformer.resblocks[0].mlp.c_fc.weight = whole
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    # of OpenCLIP 4 the output map of an attention is quantized as well
    message = r"(Linear transformer\.resblocks\.0\..* quantized.*in float32|Linear as out_proj, )"
    with pytest.raises(UnsupportedModelError, match=message):
        load_clip(model)
    plain = builders.open_clip_vit().model
    plain.transformer.resblocks[1] = model.visual.transformer.resblocks[
        1 if way == "dynamic" else 0
    ]
    with pytest.raises(UnsupportedModelError, match=r"resblocks\.1\..* quantized|as out_proj"):
        assert load_clip(plain).text_tower


@pytest.mark.parametrize("name", ["hf_vit", "open_clip_vit"])
def test_a_compiled_tower_in_a_model_is_looked_through(name: str) -> None:
    model = builders.BUILDERS[name]().model
    part = "vision_model" if name == "hf_vit" else "visual"
    target = targets.embedding(ROWS)
    method = attr.LastGradAttention
    expected = method(ClipSimilarity(load_clip(model), target)).attribute(IMAGES, target=0)
    tower = getattr(model, part)
    setattr(model, part, compiled(tower))
    assert tower_of(model).module is tower
    similarity = ClipSimilarity(load_clip(model), target)
    similarity(IMAGES)  # now it is compiled, without hooks
    torch.testing.assert_close(method(similarity).attribute(IMAGES, target=0), expected)

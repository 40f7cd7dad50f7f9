"""What is refused is refused for its true reason, and what only seemed so runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captum_clip import attr
from captum_clip.errors import CaptureError, InputError, UnsupportedModelError
from tests.attr import cases

METHODS = ["conservative", "direct", "last-grad", "removal"]
RECOMPUTING = ["direct", "removal"]


def own_model() -> Any:
    """A copy, which a test may change."""
    return copy.deepcopy(cases.built("hf_vit").model)


def cosines(model: Any, images: Tensor) -> Tensor:
    """The scores of a forward function of somebody's own."""
    features = model.get_image_features(images).pooler_output
    return F.normalize(features, dim=-1) @ cases.embeddings().to(features).T


@pytest.mark.parametrize("method", METHODS)
def test_texts_encoded_in_half_precision_score_a_float32_tower(method: str) -> None:
    """Scores that are cast afterwards hide that a gradient passes a type of small range."""
    model, texts = cases.built("hf_vit").model, cases.embeddings().half()

    def forward(images: Tensor) -> Tensor:
        features = F.normalize(model.get_image_features(images).pooler_output, dim=-1)
        return (features.half() @ texts.T).float()

    images = cases.images("hf_vit")
    maps = attr.METHODS[method](forward, model).attribute_targets(images)
    plain = attr.METHODS[method](lambda x: cosines(model, x), model).attribute_targets(images)
    torch.testing.assert_close(maps, plain, rtol=0.05, atol=0.02 * float(plain.abs().max()))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """A mesh of this one process."""
    from torch import distributed

    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", store, rank=0, world_size=1)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["fully_shard", "distribute_module"])
def test_weights_spread_over_processes_are_not_called_quantized(how: str, mesh: Any) -> None:
    """As FSDP2 and tensor parallelism keep them."""
    model = own_model()
    if how == "fully_shard":
        from torch.distributed import fsdp

        fsdp.fully_shard(model.vision_model, mesh=mesh)
    else:
        from torch.distributed import tensor as tensors

        tensors.distribute_module(model.vision_model, mesh)
    with pytest.raises(UnsupportedModelError, match=r"in a DTensor, spread over.*full_state_dict"):
        attr.DirectContribution(lambda x: cosines(model, x), model)


@pytest.mark.parametrize("training", [True, False])
def test_a_tower_prepared_for_quantization_is_not_called_quantized(training: bool) -> None:
    """Neither for training with fake quantization, nor with observers alone."""
    from torch.ao import quantization

    model = own_model().train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves this to a package of its own
        if training:
            model.vision_model.encoder.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            model = quantization.prepare_qat(model).eval()
        else:
            model.vision_model.encoder.qconfig = quantization.get_default_qconfig("fbgemm")
            model = quantization.prepare(model)
    with pytest.raises(UnsupportedModelError, match=r"prepared for quantization.*observes"):
        attr.DirectContribution(lambda x: cosines(model, x), model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["k_proj", "fc1"]])
def test_an_adapter_switched_off_in_the_forward_is_no_top_k_attention(targets: list[str]) -> None:
    """Removal runs the blocks again, where it is on."""
    import peft

    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(own_model(), config).eval()

    def forward(images: Tensor) -> Tensor:
        with model.disable_adapter():
            return cosines(model.base_model.model, images)

    images = cases.images("hf_vit")
    with pytest.raises(CaptureError, match=r"other weights or adapters.*disable_adapter\(\)"):
        attr.ReaderRemoval(forward, model).attribute_targets(images)
    # as the message says
    with model.disable_adapter():
        explainer = attr.ReaderRemoval(lambda x: cosines(model.base_model.model, x), model)
        maps = explainer.attribute_targets(images)
    base = cases.built("hf_vit").model
    plain = attr.ReaderRemoval(lambda x: cosines(base, x), base)
    torch.testing.assert_close(maps, plain.attribute_targets(images), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_other_weights_of_a_functional_call_are_named_or_explained(method: str) -> None:
    """What is read where it ran needs no weights afterwards; what is computed again does."""
    model = own_model()
    others = {name: weight.detach() * 1.1 for name, weight in model.named_parameters()}

    class Scorer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return cosines(self.model, images)

    scorer, images = Scorer(), cases.images("hf_vit")
    weights = {f"model.{name}": weight for name, weight in others.items()}
    explainer = attr.METHODS[method](
        lambda x: torch.func.functional_call(scorer, weights, (x,)), model
    )
    if method in RECOMPUTING:
        with pytest.raises(CaptureError, match=r"other weights or adapters.*functional_call"):
            explainer.attribute_targets(images)
        return
    loaded = own_model()
    loaded.load_state_dict(others)
    expected = attr.METHODS[method](lambda x: cosines(loaded, x), loaded).attribute_targets(images)
    found = explainer.attribute_targets(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("encoder.layers.1.self_attn.q_proj", "direct"),
        ("encoder.layers.1.self_attn.q_proj", "rollout"),
        ("post_layernorm", "last-grad"),  # which attention alone does not read
    ],
)
def test_weights_that_are_nan_are_named(path: str, method: str) -> None:
    """As after a training that diverged."""
    model = own_model()
    with torch.no_grad():
        model.vision_model.get_submodule(path).weight.view(-1)[0] = torch.nan
    explainer = attr.METHODS[method](lambda x: cosines(model, x), model)
    with pytest.raises(InputError, match=rf"weight .*{path}\.weight of a tower holds NaN"):
        explainer.attribute_targets(cases.images("hf_vit"))

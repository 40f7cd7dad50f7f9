"""Class activation maps, and methods that score each layer or patch by itself."""

import inspect
from collections.abc import Callable
from operator import itemgetter
from types import MappingProxyType
from typing import Any, Literal, cast, final

import torch
from captum.attr import LayerGradCam
from captum.log import log_usage
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from ..checks import check_choice, check_flag, expect, is_integer
from ..errors import InputError, UnsupportedModelError, naming, public
from ..maps import autocast_disabled, to_float32
from ..models import find_tower
from ..models.attentions import PoolingHead
from ..models.steps import run_steps
from ..models.towers import ResNetTower, ViTTower
from ..recording.graph import detached, no_graph
from ..recording.observe import Kernels, LastFeatures, Outputs, Probes, Sums, observe
from ..recording.passes import read_pool
from ..targets.similarity import ClipSimilarity
from . import _attention as mha
from ._base import ClipAttribution, ResNetAttribution, TensorOrTuple, ViTAttribution
from ._call import (
    Call,
    Computed,
    PooledEmbedding,
    batched,
    detach_inference,
    embedded_scores,
    observed,
    pooled_embedding,
    refuse_checkpointing,
    together,
    with_token,
)

PoolWeights = Literal["free", "detached"]
"""Whether the gradient goes through an attention pool's softmax, or its weights are constants."""


@final
class ClipGradCam(ResNetAttribution, LayerGradCam):  # type: ignore[misc]
    r"""Grad-CAM for convolutional towers (equations 1, 2 of Mamooler), a Captum `LayerGradCam`.

    .. math:: \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial y}{\partial A^k_{ij}}, \quad
              L = \sum_k \alpha_k A^k

    with A the output of the last stage, (B, C, h, w), and y the cosine similarity. As in Captum L
    keeps its sign by default: its ReLU (``relu_attributions=True``) is the positive map, the ReLU
    of its negative the negative map.

    The gradient through the softmax of an attention pool may outweigh the one through its values
    and point at other objects. ``attention="detached"`` takes the weights of the pool as constants:

    .. math:: \alpha_k = \frac{1}{hw} (W_V^T W_C^T \nabla_e y)_k

    so that what each position would give the pool is compared with the target, as in MaskCLIP. On a
    network that ends in average pooling there is nothing to detach, and both are the same.

    With the last stage as its layer, only what follows it has a graph: the attention pool, as its
    single mean query, or what follows the average (ConvNeXt, FastViT). The gradient enters as one
    shift of all positions. Any other layer, and ``attribute_to_layer_input``,
    ``attr_dim_summation=False`` and ``grad_kwargs``, go to Captum's `LayerGradCam` as they are,
    which returns maps that may carry a graph.

    Args:
        forward_func: a :class:`captum_clip.ClipSimilarity`, or a callable
            images -> (B,) or (B, K) that runs the tower exactly once.
        layer: the model or its convolutional tower mean the last stage, which is the default with a
            `ClipSimilarity`; or any other module that gives (B, C, h, w), as in Captum.

    Raises:
        UnsupportedModelError: the tower is a vision transformer, the layer returns no
            (B, C, h, w), or, with a detached pool, the score reads more than the pool's output.
        InputError: a callable without a layer.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391); CLIP Explainability (Mamooler, EPFL);
    detached: ours. On a raw dot product its map is that of Zhou et al. 2022 (arXiv:2112.01071) but
    for lengths; a cosine's gradient lacks the part along the embedding.

    Example:
        >>> from captum_clip import ClipGradCam, ClipSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/resnet")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> ClipGradCam(forward).attribute(images, target=0).shape
        torch.Size([1, 1, 7, 7])
    """

    name = "grad-cam"
    signed = True
    _laws = ()
    paper_options = MappingProxyType({"relu_attributions": True})  # equation 2

    layer: nn.Module
    _tower: ResNetTower | None  # type: ignore[assignment]  # None: any other layer, which is left to Captum

    def __init__(self, forward_func: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        tower = forward_func.clip.tower if isinstance(forward_func, ClipSimilarity) else None
        if isinstance(tower, ResNetTower) and layer is tower.stage:
            layer = None
        with naming("ClipGradCam"):
            expect(layer is None or isinstance(layer, nn.Module), "a module as `layer`", layer)
        if layer is not None and find_tower(layer) is None:
            LayerGradCam.__init__(self, forward_func, layer)
            self._tower = self._model = None
        else:
            super().__init__(forward_func, layer)

    @classmethod
    def properties(cls, *, relu_attributions: bool = False, **options: Any) -> dict[str, bool]:
        return {"signed": not relu_attributions}

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    @public("attribute")
    def attribute(
        self,
        inputs: TensorOrTuple,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
        *,
        attention: PoolWeights = "free",
    ) -> TensorOrTuple:
        """Maps (B, 1, h, w) of one target per image; arguments as in Captum's `LayerGradCam`."""
        if self._tower is None or attribute_to_layer_input or not attr_dim_summation or grad_kwargs:
            last = "attention='free' with another layer, or with options of Captum's LayerGradCam"
            expect(attention == "free", last, attention, "leave one of the two out")
            if self._tower is not None:
                self._check_tower()
            captum: Any = LayerGradCam.attribute.__wrapped__
            call = (attribute_to_layer_input, relu_attributions, attr_dim_summation, grad_kwargs)
            # Captum takes a gradient, which inference mode forbids even where it is enabled
            with torch.inference_mode(False):
                try:
                    maps = captum(
                        self, detach_inference(inputs), target, additional_forward_args, *call
                    )
                except AssertionError:  # of Captum's, over a layer that returns no tensor
                    maps = None
            if maps is None or (attr_dim_summation and isinstance(maps, Tensor) and maps.ndim < 4):
                raise UnsupportedModelError(
                    f"the {type(self.layer).__name__} given as `layer` does not "
                    "return (B, C, h, w); pass a convolutional stage of the network as `layer`."
                )
            return cast("TensorOrTuple", maps)
        options = {"relu_attributions": relu_attributions, "attention": attention}
        maps = super().attribute(inputs, target, additional_forward_args, **options)
        return cast("TensorOrTuple", maps)

    def _run(self, *call: Any) -> Computed:
        if self._tower is None:
            raise UnsupportedModelError(
                "attribute_targets needs the last stage of the tower; for another "
                "layer, call attribute once per target."
            )
        return super()._run(*call)

    def _compute(
        self, call: Call, *, relu_attributions: bool = False, attention: PoolWeights = "free"
    ) -> Computed:
        assert self._tower is not None
        constant = attention == "detached" and self._tower.pooling != "mean"
        run, gradient = mha.resnet_gradient(self._tower, call, detached=constant)
        features = run.record.features
        with autocast_disabled(features):
            features = to_float32(features)
            weights = to_float32(gradient) / (features.shape[-2] * features.shape[-1])
            maps = torch.einsum("kbc,bchw->kbhw", weights, features)
        return run.computed(maps.clamp(min=0) if relu_attributions else maps)


@final
class LeGrad(ViTAttribution):
    r"""Gradient of each layer's attention, for a score read at that layer (Bousselham et al.).

    .. math:: s_l = \cos\bigl(t, \; P \, \mathrm{LN}(\tfrac{1}{s} \sum_i z_{l,i})\bigr), \quad
              E_l = \frac{1}{H s} \sum_h \sum_i
              \Bigl(\frac{\partial s_l}{\partial A_{l,h}[i, \cdot]}\Bigr)^+, \quad
              L = \sum_l E_l[patches]

    with :math:`z_l` all s tokens after block l, through the tower's own norm and projection, and l
    the last layers. A layer's score is not the model's: it is the cosine if the image were pooled
    there. The map does not multiply with the attention itself.

    In a tower with a pooling head (SigLIP, PE-Core) the head pools each layer's tokens, and its
    attention is differentiated in the place of the layer's. The authors' code leaves the
    final norm out there, and blanks cells where the map of an empty prompt exceeds .8; here the
    norm stays and nothing is blanked. With a forward function of your own, t is the direction of
    the score at the embedding, less its constant, and `layer` matters, as for
    :class:`DirectContribution`.

    One forward, and for each layer a backward through its MLP and no further, for all targets
    together. The map is non-negative; the negative map is the map of ``-target``.

    Option, keyword-only: ``layers``, the number of last layers, 2 as in the authors'
    code, or "all".

    Source: Bousselham et al. 2024 (arXiv:2404.03214).
    """

    name = "legrad"
    reads_projection = True
    _laws = ("blocks", "embedding")
    _cuts_graph = True  # the residual stream below its layers is a constant

    def _compute(self, call: Call, *, layers: int | Literal["all"] = 2) -> Computed:
        tower, count = self._tower, len(self._tower.layers)
        expected = f"layers of how many of the tower's {count} last take part, or 'all'"
        fits = layers == "all" or (is_integer(layers, least=1) and layers <= count)
        expect(fits, expected, layers)
        chosen = range(0 if layers == "all" else count - layers, count)
        refuse_checkpointing(tower)
        if tower.pooling == "attention":  # it is differentiated itself, so no graph comes before it
            pool = Kernels([len(tower.layers)])
            run, below = observed(tower, call, Outputs(chosen), pool, leaf=True), None
        else:
            # below the block that leads into the graph, a probe sees what scores read
            probes = [] if call.is_cosine else [Probes(range(chosen[0] - 1))]
            kernels = Kernels([chosen[0]], leaf=True), Kernels(chosen[1:])
            run = observed(tower, call, Outputs(chosen), *kernels, *probes)
            below = run.record.reads[chosen[0]].out
        embedded = with_token(tower, embedded_scores(tower, run, below))
        maps = torch.stack([self._of_layer(embedded, index) for index in chosen])
        return run.computed(maps.sum(0))

    def _of_layer(self, embedded: PooledEmbedding, index: int) -> Tensor:
        """E_l (K', B, s)."""
        record, head = embedded.run.record, self._tower.pooling_head
        output = record.outputs[index]  # (B, s, D)
        if head is None:
            read = record.reads[index]
            gradients = self._gradients(embedded, to_float32(output).mean(1), read.out)
            numbers = read.value.shape[2] * gradients[0].numel() // gradients.shape[-1]
            chunks = torch.split(gradients, together(numbers))
            matrices = (mha.matrix_gradient(read, chunk) for chunk in chunks)
            return torch.cat([matrix.clamp(min=0).mean((2, 3)) for matrix in matrices])
        read = read_pool(record, output.detach())
        heads = read.select(read.out.detach()).flatten(1).requires_grad_()
        merged = to_float32(mha.merged(head, heads))
        if index == len(self._tower.layers) - 1:  # which ran
            ran = record.reads[index + 1]
            record.compare(read.name, read.row().flatten(1), ran.row().flatten(1))
            record.compare(read.name, merged, record.pool)
        gradients = self._gradients(embedded, merged, heads)
        return mha.row_gradient(read, gradients).clamp(min=0).mean(2)

    def _gradients(self, embedded: PooledEmbedding, token: Tensor, leaf: Tensor) -> Tensor:
        """The gradients of a layer's scores, (K', *leaf.shape), from its pooled token (B, D)."""
        with autocast_disabled(token):
            embedding = F.normalize(run_steps(embedded.head(self._tower), token), dim=-1)
            # images do not mix, so one number for a target has the gradient of every image
            scores = torch.einsum("kbe,be->k", embedded.direction.rows, embedding)
        ones = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)

        def gradients(row: Tensor, **more: bool) -> tuple[Tensor, ...]:
            (gradient,) = grad(scores, leaf, row, retain_graph=True, allow_unused=True, **more)
            # None where a hook wiped it
            return (leaf.new_zeros(*row.shape[:-1], *leaf.shape) if gradient is None else gradient,)

        return batched(gradients, ones, leaf)


Mixing = Literal["identity", "qq", "kk"]


@final
class PatchSimilarity(ViTAttribution):
    r"""Similarity of each patch to the text, not the model's score (ClearCLIP, MaskCLIP, NACLIP).

    .. math:: L_p = \cos\bigl(t, \; P \, \mathrm{LN}(W_O S V + b)_p\bigr)

    V are the values of the last attention. S is the identity, or, head by head,
    :math:`\mathrm{softmax}(q q^T / \sqrt{d})` or :math:`\mathrm{softmax}(k k^T / \sqrt{d})`. The
    residual and the MLP of the block are left out; the tower's norm and projection P follow. This
    is a dense similarity for segmentation and **not the model's score**. The model does not read
    the patches like this: a position may be similar to a text and still have no effect on the
    score.

    With ``residual=True`` the block keeps both. With x for what enters it,

    .. math:: z = x + W_O S V + b, \quad
              L_p = \cos\bigl(t, \; P \, \mathrm{LN}(z + \mathrm{MLP}(z))_p\bigr)

    Without the residual, "identity" is ClearCLIP's form of MaskCLIP, "qq" is ClearCLIP, and "kk" is
    NACLIP without its window. With it, "identity" is MaskCLIP on a ViT.

    NACLIP adds a Gaussian window around each patch to the logits, which is not done here.

    In a tower with a pooling head (SigLIP, PE-Core) the last attention is the head's. With the
    identity, a patch's value is the cosine of the image if the head attended to that patch alone,
    its MLP included. With a forward function of your own, t is the direction of the
    score at the embedding, less its constant, and `layer` matters, as for
    :class:`DirectContribution`.

    The map is signed and costs one forward, without a gradient, for any number of texts.

    Options, keyword-only:

    - ``attention``: "identity", "qq" or "kk" for S.
    - ``residual``: keep the residual and the MLP of the last block.

    Raises:
        UnsupportedModelError: "qq" or a residual in a tower with a pooling head, whose patches have
            no queries and around which no residual runs.

    Source: Lan et al. 2024 (arXiv:2407.12442), ClearCLIP; Zhou et al. 2022 (arXiv:2112.01071),
    MaskCLIP; Hajimiri et al. 2025 (arXiv:2404.08181), NACLIP.
    """

    name = "patches"
    signed = differentiable = reads_projection = True
    _laws = ("blocks", "merge", "embedding")  # every token passes the output map

    def _compute(
        self, call: Call, *, attention: Mixing = "identity", residual: bool = False
    ) -> Computed:
        tower, last = self._tower, len(self._tower.attentions) - 1
        module = tower.attentions[last]
        check_flag("residual", residual)
        if residual and (isinstance(module, PoolingHead) or last == 0):
            raise UnsupportedModelError(
                "residual=True adds what enters the last block, but no residual runs around a "
                "pooling head, and a tower of a single block has none below it; leave it out."
            )
        if isinstance(module, PoolingHead) and attention == "qq":
            raise UnsupportedModelError(
                "attention='qq' needs a query for every patch, but this tower's "
                "last attention is a pooling head with a single query; use 'kk' "
                "or 'identity'."
            )
        blocks = Sums(range(last, len(tower.layers)), copies=call.copies)
        below = [Outputs([last - 1])] if residual else []
        embedded = pooled_embedding(tower, call, Kernels([last]), blocks, *below)
        record = embedded.run.record
        read = record.reads[last]
        with no_graph(), autocast_disabled(embedded.token):
            merged = mha.merged(module, read.select(detached(read.out)).flatten(1))
            returned = record.pool if read.attention.is_pool else record.rows[last][1]
            record.compare(read.name, to_float32(merged), returned)
            if record.rows:
                record.compare_sums()
            mixed = to_float32(read.value)  # (B, H, s, d)
            heads = {"identity": mixed, "qq": read.query, "kk": read.key}[attention]
            if heads is None:
                raise UnsupportedModelError(
                    f"attention={attention!r} needs queries and keys, but {read.name} shows none; "
                    "use 'identity'."
                )
            if attention != "identity":
                heads = to_float32(heads)
                factor = heads.shape[-1] ** -0.5 if read.scale is None else read.scale
                mixed = ((heads * factor) @ heads.mT).softmax(-1) @ mixed
            batch, _, count, _ = mixed.shape
            flat = mixed.transpose(1, 2).flatten(2).flatten(0, 1)  # (B s, D)
            flat = run_steps((*module.merge_steps(), *module.branch()), flat)
            if residual:
                rest_of_block = tower.layers[last].after_attention()
                entered, attended, _, left = record.rows[last]
                stream = entered + run_steps(module.branch(), attended)
                record.compare(f"layer {last}", run_steps(rest_of_block, stream), left)
                entered = to_float32(detached(record.outputs[last - 1]))  # (B, s, D)
                flat = run_steps(rest_of_block, entered.flatten(0, 1) + flat)
            # the pooled token goes along, since a hook may tell tokens from each other
            tokens = torch.cat([flat, embedded.token.flatten(0, -2)[:batch]])
            flat = run_steps(embedded.head(tower), tokens)
            if tower.pooling != "mean":
                returned = embedded.embedding.to(embedded.dtype)
                record.compare("the embedding", flat[-batch:], returned)
            patches = F.normalize(flat[:-batch], dim=-1).view(batch, count, -1)  # (B, s, E)
            rows: Tensor = embedded.direction.rows.expand(-1, batch, -1)
            maps = torch.einsum("kbe,bse->kbs", rows, patches)
        return embedded.run.computed(maps)


_WHOLE_NETWORK = ("FullGrad", "ShapleyCAM")  # they differentiate more than one layer
_WITHOUT_TARGET = ("EigenCAM", "KPCA_CAM", "FEM")
_MANY_FORWARDS = ("ScoreCAM", "AblationCAM")  # one a channel
_NOT_ON_TOKENS = {
    "AblationCAM": "it replaces a channel by a value far below all others, which presumes "
    "features that are never negative",
    "HiResCAM": "gradient times feature, summed over channels, is zero before a layer norm",
}
_OURS = ("self", "model", "target_layers", "reshape_transform", "ablation_layer")


@final
class CamFamily(ClipAttribution):
    """A class of pytorch-grad-cam on the last features, as ``cam:variant=LayerCAM``.

    Its own formula runs on the features (B, C, h, w) of a convolutional tower's last stage. For a
    vision transformer it runs on the patches that enter the last block, laid out on their grid;
    with a pooling head or a mean of patches, on those that leave it. The map is what that formula
    gives, negative values set to zero as there, but neither resized nor scaled. The library's own
    examples for vision transformers read the last block's first norm instead, whose maps differ.
    The model is never handed to the library, which would set it to eval mode, hook it and fill its
    parameters' gradients.

    The map is non-negative; the negative map is the map of ``-target``. Score-CAM and Ablation-CAM
    take a forward for each channel, the others one forward, and a backward per target.

    Options, keyword-only:

    - ``variant``: the class, "GradCAM" if none is named.
    - ``eigen_smooth``: the first principal component of the weighted features, where it has that.
    - whatever else its constructor takes: ``cam:variant=AblationCAM,ratio_channels_to_ablate=0.5``.

    Raises:
        InputError: pytorch-grad-cam is not installed (``pip install grad-cam``), or has
            no such class or option.
        UnsupportedModelError: Ablation-CAM or HiResCAM on a vision transformer, where they mean
            nothing.

    Source: github.com/jacobgil/pytorch-grad-cam, which names the paper of each class.
    """

    name = "cam"
    towers = ("vit", "resnet")
    listed = False  # a family, of which one is named
    _tower: ViTTower | ResNetTower

    @classmethod
    def properties(cls, *, variant: str = "GradCAM", **options: Any) -> dict[str, bool]:
        return {"needs_target": variant not in _WITHOUT_TARGET, "costly": variant in _MANY_FORWARDS}

    @classmethod
    def check_options(cls, *, variant: str = "GradCAM", **options: Any) -> None:
        parameters = inspect.signature(_class_of(variant).__init__).parameters
        names = ["eigen_smooth", *(name for name in parameters if name not in _OURS)]
        for option in options:
            check_choice(option, names, name=f"an option for cam:variant={variant}")

    def _compute(self, call: Call, *, variant: str = "GradCAM", **options: Any) -> Computed:
        tower = self._tower
        if isinstance(tower, ViTTower) and variant in _NOT_ON_TOKENS:
            raise UnsupportedModelError(
                f"cam:variant={variant} is meaningless on a vision transformer: "
                f"{_NOT_ON_TOKENS[variant]}; use LayerCAM or GradCAM."
            )
        smooth = {"eigen_smooth": bool(options.pop("eigen_smooth", False))}
        run = call.run(observe(tower, LastFeatures()))
        leaf = run.record.features
        network = _Network(call, tower, leaf.device)
        cam = _class_of(variant)(model=network, target_layers=[network.features], **options)
        # the gradients are taken here; its hooks would fill those of the user's parameters
        cam.activations_and_grads.release()
        features, images = to_float32(leaf.detach()).cpu().numpy(), call.images[0]
        maps = []
        for columns, (gradients,) in zip(run.columns, run.gradients(leaf), strict=True):
            targets = [itemgetter(int(column)) for column in columns]
            slope = to_float32(gradients[0]).cpu().numpy()
            drawn = cam.get_cam_image(images, network.features, targets, features, slope, **smooth)
            maps.append(torch.from_numpy(drawn).clamp(min=0).to(leaf.device))
        return run.computed(torch.stack(maps).to(to_float32(leaf).dtype))

    def _on_grid(self, record: Any, values: Tensor) -> Tensor:
        return values.transpose(0, 1)


class _Network(nn.Module):
    """The model as the library sees it: the forward function, and the layer to look at."""

    def __init__(self, call: Call, tower: ViTTower | ResNetTower, device: torch.device) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.anchor = nn.Parameter(torch.zeros((), device=device))  # where the library finds it
        self._call, self._tower = (call,), tower  # no submodule, so no flag of it is touched

    def forward(self, images: Tensor) -> Tensor:
        """Scores, with the features sent through the layer."""
        call = self._call[0]
        with observe(self._tower, LastFeatures(through=lambda x: self.features(x))):
            scores: Tensor = call.forward(images, *call.extra)
        return scores[:, None] if scores.ndim == 1 else scores


def _class_of(variant: str) -> Any:
    try:
        import pytorch_grad_cam as library
        from pytorch_grad_cam.base_cam import BaseCAM
    except ImportError as error:
        raise InputError("cam needs pytorch-grad-cam: pip install grad-cam.") from error
    refused = (*_WHOLE_NETWORK, "RandomCAM", "BaseCAM")  # RandomCAM draws from a global generator
    names = [
        name
        for name, kind in vars(library).items()
        if isinstance(kind, type) and issubclass(kind, BaseCAM) and name not in refused
    ]
    check_choice(variant, sorted(names), name="a class for cam")
    return getattr(library, variant)

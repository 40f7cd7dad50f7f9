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
from ..recording.observe import (
    Kernels,
    LastFeatures,
    Observer,
    Outputs,
    Probes,
    Sums,
    observe,
)
from ..recording.passes import read_pool
from ..recording.reads import AttentionRead
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
    rows_at_once,
    with_token,
)

PoolWeights = Literal["free", "detached"]
"""Whether the gradient goes through an attention pool's softmax, or its weights are constants."""


@final
class ClipGradCam(ResNetAttribution, LayerGradCam):  # type: ignore[misc]
    r"""Grad-CAM for convolutional towers (equations 1, 2 of Mamooler), a Captum `LayerGradCam`.

    .. math:: \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial y}{\partial A^k_{ij}}, \quad
              L = \sum_k \alpha_k A^k

    with A the output of the last stage, (B, C, h, w), and y the cosine similarity. As in Captum, L
    keeps its sign by default. Its ReLU (``relu_attributions=True``) is the positive map, and the
    ReLU of its negative is the negative map.

    The gradient through the softmax of an attention pool may outweigh the one through its values
    and point at other objects. ``attention="detached"`` takes the weights of the pool as constants:

    .. math:: \alpha_k = \frac{1}{hw} (W_V^T W_C^T \nabla_e y)_k

    so that the value that each position has for the pool is compared with the target, as in
    MaskCLIP. On a network that ends in average pooling there is nothing to detach, and both are the
    same.

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

    Keyword Args:
        relu_attributions (bool): set negative values to zero, False by default.
        attention (str): "free", the default, takes the gradient through an attention pool's
            softmax, and "detached" takes its weights as constants.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets`, which needs the last stage,
        maps (B, K, h, w).

    Raises:
        UnsupportedModelError: the tower is a vision transformer, the layer returns no
            (B, C, h, w), or, with a detached pool, the score reads more than the pool's output.
        InputError: a callable without a layer.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391); CLIP Explainability (Mamooler, EPFL);
    detached: ours. On a raw dot product its map is that of Zhou et al. 2022 (arXiv:2112.01071) up
    to lengths; a cosine's gradient lacks the part along the embedding.

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
    _instead = "attention-grad-cam, cam:variant=GradCAM or direct (DirectContribution)"
    _laws = ()
    paper_options = MappingProxyType({"relu_attributions": True})  # equation 2

    layer: nn.Module
    # None stands for a layer that is left to Captum.
    _tower: ResNetTower | None  # type: ignore[assignment]

    def __init__(self, forward_func: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        # The last stage itself means the same as no layer, so it needs no help from Captum.
        if isinstance(forward_func, ClipSimilarity):
            tower = forward_func.clip.tower
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
        """Maps (B, 1, h, w) of one target per image, raw, on the grid of the layer.

        Args:
            inputs: preprocessed images (B, 3, H, W), or what the forward function takes first.
            target: index of a score, or one index per image; None where there is only one score.
            additional_forward_args: further arguments of the forward function.
            attribute_to_layer_input: explain the input of the layer, by Captum's `LayerGradCam`.
            relu_attributions: set negative values to zero.
            attr_dim_summation: sum over the channels. False gives (B, C, h, w), by Captum's
                `LayerGradCam`.
            grad_kwargs: arguments of the gradient, by Captum's `LayerGradCam`.
            attention: "free" or "detached", as for the class.

        Raises:
            TargetError: the target is missing, out of range, or not one per image.
            InputError: invalid images, or options that exclude each other.
            UnsupportedModelError: the layer does not return (B, C, h, w).
        """
        options: dict[str, Any] = {"relu_attributions": relu_attributions}
        asks_captum = attribute_to_layer_input or not attr_dim_summation or grad_kwargs
        if self._tower is None or asks_captum:
            last = "attention='free' with another layer, or with options of Captum's LayerGradCam"
            expect(attention == "free", last, attention, "leave one of the two out")
            options["attribute_to_layer_input"] = attribute_to_layer_input
            options["attr_dim_summation"] = attr_dim_summation
            options["grad_kwargs"] = grad_kwargs
            maps = self._by_captum(inputs, target, additional_forward_args, options)
        else:
            options["attention"] = attention
            maps = super().attribute(inputs, target, additional_forward_args, **options)
        return cast("TensorOrTuple", maps)

    def _by_captum(self, inputs: Any, target: Any, extra: Any, options: dict[str, Any]) -> Any:
        """The maps of Captum's own `LayerGradCam`."""
        if self._tower is not None:
            self._check_tower()
        # Captum's log of usage has this call already, from our own `attribute`.
        attribute: Any = LayerGradCam.attribute.__wrapped__
        # Captum takes a gradient, which inference mode forbids even where it is enabled.
        with torch.inference_mode(False):
            try:
                maps = attribute(self, detach_inference(inputs), target, extra, **options)
            except AssertionError:
                # Captum asserts that the layer returns a tensor.
                maps = None
        has_no_grid = isinstance(maps, Tensor) and maps.ndim < 4
        if maps is None or (options["attr_dim_summation"] and has_no_grid):
            raise UnsupportedModelError(
                f"the {type(self.layer).__name__} given as `layer` does not "
                "return (B, C, h, w); pass a convolutional stage of the network as `layer`."
            )
        return maps

    def _run(self, *arguments: Any) -> Computed:
        if self._tower is None:
            raise UnsupportedModelError(
                "attribute_targets needs the last stage of the tower; for another "
                "layer, call attribute once per target."
            )
        return super()._run(*arguments)

    def _compute(
        self, call: Call, *, relu_attributions: bool = False, attention: PoolWeights = "free"
    ) -> Computed:
        assert self._tower is not None
        # An average has no weights to detach.
        detached_pool = attention == "detached" and self._tower.pooling != "mean"
        run, gradient = mha.resnet_gradient(self._tower, call, detached=detached_pool)
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
    there. The gradient is not multiplied with the attention itself.

    In a tower with a pooling head (SigLIP, PE-Core) the head pools each layer's tokens, and its
    attention is differentiated in the place of the layer's. The authors' code leaves the
    final norm out there, and blanks cells where the map of an empty prompt exceeds .8; here the
    norm stays and nothing is blanked. With a forward function of your own, t is the direction of
    the score at the embedding, less its constant, and `layer` matters, as for
    :class:`DirectContribution`.

    One forward, and for each layer a backward through its MLP and no further, for all targets
    together. The map is non-negative; the negative map is the map of ``-target``.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`.
        layer: the model, with a forward function of your own.

    Keyword Args:
        layers (int or str): the number of last layers that take part, or "all". The default is 2,
            as in the authors' code.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w).

    Raises:
        InputError: `layers` is neither "all" nor a number of layers that the tower has.
        UnsupportedModelError: the tower is no vision transformer, or checkpoints its activations.
        CaptureError: the score reads more than the embedding, or no gradient leads back from it.

    Source: Bousselham et al. 2024 (arXiv:2404.03214).

    Example:
        >>> from captum_clip import ClipSimilarity, LeGrad, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> LeGrad(forward).attribute_targets(images, layers="all").shape
        torch.Size([1, 2, 7, 7])
    """

    name = "legrad"
    reads_projection = True
    _laws = ("blocks", "embedding")
    _cuts_graph = True  # The residual stream below its layers is a constant.

    def _compute(self, call: Call, *, layers: int | Literal["all"] = 2) -> Computed:
        tower = self._tower
        count = len(tower.layers)
        expected = f"layers of how many of the tower's {count} last take part, or 'all'"
        fits = layers == "all" or (is_integer(layers, least=1) and layers <= count)
        expect(fits, expected, layers)
        first = 0 if layers == "all" else count - layers
        chosen = range(first, count)
        refuse_checkpointing(tower)
        if tower.pooling == "attention":
            # Only the pooling head is differentiated, so the graph may begin at the embedding.
            pool = Kernels([count])
            run = observed(tower, call, Outputs(chosen), pool, leaf=True)
            below = None
        else:
            # Each chosen layer's attention is differentiated, so the graph begins at the first one.
            first_kernel = Kernels([first], leaf=True)
            other_kernels = Kernels(chosen[1:])
            observers = [Outputs(chosen), first_kernel, other_kernels]
            if not call.is_cosine:
                # Scores may read layers below the graph, which only a probe can show. The layer
                # just below gets none: its tokens are on the stream, so a gradient always reaches
                # them.
                observers.append(Probes(range(first - 1)))
            run = observed(tower, call, *observers)
            below = run.record.reads[first].out
        embedded = with_token(tower, embedded_scores(tower, run, below))
        maps = torch.stack([self._of_layer(embedded, index) for index in chosen])
        return run.computed(maps.sum(0))

    def _of_layer(self, embedded: PooledEmbedding, index: int) -> Tensor:
        """Compute E_l (K', B, s)."""
        if self._tower.pooling_head is not None:
            return self._of_layer_in_pool(embedded, index)
        record = embedded.run.record
        read = record.reads[index]
        mean_token = to_float32(record.outputs[index]).mean(1)  # (B, D)
        gradients = self._gradients(embedded, mean_token, read.out)  # (K', B, H, s, d)
        # The gradient at the attention has s keys in the place of d channels.
        key_count = read.value.shape[2]
        numbers = gradients[0].numel() // gradients.shape[-1] * key_count
        maps = []
        for chunk in torch.split(gradients, rows_at_once(numbers)):
            matrix = mha.matrix_gradient(read, chunk)  # (k, B, H, s, s)
            maps.append(matrix.clamp(min=0).mean((2, 3)))
        return torch.cat(maps)

    def _of_layer_in_pool(self, embedded: PooledEmbedding, index: int) -> Tensor:
        """Compute E_l (K', B, s) of the pooling head's attention to a layer's tokens."""
        record = embedded.run.record
        head = self._tower.pooling_head
        assert head is not None
        read = read_pool(record, record.outputs[index].detach())
        heads = read.select(read.out.detach()).flatten(1).requires_grad_()
        merged = to_float32(mha.merged(head, heads))
        if index == len(self._tower.layers) - 1:
            # The head itself ran on the last layer's tokens, so both can be compared.
            ran = record.reads[index + 1]
            record.compare(read.name, read.row().flatten(1), ran.row().flatten(1))
            record.compare(read.name, merged, record.pool)
        gradients = self._gradients(embedded, merged, heads)
        return mha.row_gradient(read, gradients).clamp(min=0).mean(2)

    def _gradients(self, embedded: PooledEmbedding, token: Tensor, leaf: Tensor) -> Tensor:
        """The gradients of a layer's scores, (K', *leaf.shape), from its pooled token (B, D)."""
        with autocast_disabled(token):
            embedding = F.normalize(run_steps(embedded.head(self._tower), token), dim=-1)
            # Images do not mix, so the sum of their scores has the gradient of each image.
            scores = torch.einsum("kbe,be->k", embedded.direction.rows, embedding)
        ones = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)

        # `batched` calls this with one row (K',), or with several at once.
        def gradients(row: Tensor, *, is_grads_batched: bool = False) -> tuple[Tensor, ...]:
            options: Any = {"retain_graph": True, "is_grads_batched": is_grads_batched}
            gradient: Any
            (gradient,) = grad(scores, leaf, row, allow_unused=True, **options)
            if gradient is None:
                # Somebody's hook cut the gradient off.
                gradient = leaf.new_zeros(*row.shape[:-1], *leaf.shape)
            return (gradient,)

        return batched(gradients, ones, leaf)


Mixing = Literal["identity", "qq", "kk"]


@final
class PatchSimilarity(ViTAttribution):
    r"""Similarity of each patch to the text, not the model's score (ClearCLIP, MaskCLIP, NACLIP).

    .. math:: L_p = \cos\bigl(t, \; P \, \mathrm{LN}(W_O S V + b)_p\bigr)

    V are the values of the last attention. S is the identity or, head by head,
    :math:`\mathrm{softmax}(q q^T / \sqrt{d})` or :math:`\mathrm{softmax}(k k^T / \sqrt{d})`. The
    residual and the MLP of the block are left out; the tower's norm and projection P follow. This
    is a dense similarity for segmentation and **not the model's score**. The model does not read
    the patches like this: a position may be similar to a text and still have no effect on the
    score.

    With ``residual=True`` the block keeps both. If x enters the block,

    .. math:: z = x + W_O S V + b, \quad
              L_p = \cos\bigl(t, \; P \, \mathrm{LN}(z + \mathrm{MLP}(z))_p\bigr)

    Without the residual, "identity" is ClearCLIP's form of MaskCLIP, "qq" is ClearCLIP, and "kk" is
    NACLIP without its window. With it, "identity" is MaskCLIP on a ViT.

    NACLIP adds a Gaussian window around each patch to the logits, which is left out here.

    In a tower with a pooling head (SigLIP, PE-Core) the last attention is the head's. With the
    identity, a patch's value is the cosine of the image if the head attended to that patch alone,
    its MLP included. With a forward function of your own, t is the direction of the
    score at the embedding, less its constant, and `layer` matters, as for
    :class:`DirectContribution`.

    The map is signed and costs one forward, without a gradient, for any number of texts.

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`.
        layer: the model, with a forward function of your own.

    Keyword Args:
        attention (str): S: "identity", the default, "qq" or "kk".
        residual (bool): keep the residual and the MLP of the last block, False by default.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w).

    Raises:
        UnsupportedModelError: the tower is no vision transformer. It is also raised for "qq" or a
            residual with a pooling head, whose patches have no queries and around which no
            residual runs. "qq" and "kk" need an attention that shows its queries and keys.

    Source: Lan et al. 2024 (arXiv:2407.12442), ClearCLIP; Zhou et al. 2022 (arXiv:2112.01071),
    MaskCLIP; Hajimiri et al. 2025 (arXiv:2404.08181), NACLIP.

    Example:
        >>> from captum_clip import ClipSimilarity, PatchSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, "a horse"))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> maps = PatchSimilarity(forward).attribute(images, attention="kk")
        >>> maps.shape, bool(maps.abs().max() < 1)
        (torch.Size([1, 1, 7, 7]), True)
    """

    name = "patches"
    signed = True
    differentiable = True
    reads_projection = True
    _laws = ("blocks", "merge", "embedding")  # Every token passes the output map.

    def _compute(
        self, call: Call, *, attention: Mixing = "identity", residual: bool = False
    ) -> Computed:
        tower = self._tower
        last = len(tower.attentions) - 1
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
        observers: list[Observer] = [
            Kernels([last]),
            Sums(range(last, len(tower.layers)), copies=call.copies),
        ]
        if residual:
            observers.append(Outputs([last - 1]))
        embedded = pooled_embedding(tower, call, *observers)
        record = embedded.run.record
        read = record.reads[last]
        with no_graph(), autocast_disabled(embedded.token):
            merged = mha.merged(module, read.select(detached(read.out)).flatten(1))
            if read.attention.is_pool:
                returned = record.pool
            else:
                _, returned, _, _ = record.rows[last]
            record.compare(read.name, to_float32(merged), returned)
            if record.rows:
                record.compare_sums()
            head_outputs = _similar_values(read, attention)
            batch, _, count, _ = head_outputs.shape
            tokens = head_outputs.transpose(1, 2).flatten(2).flatten(0, 1)  # (B s, D)
            tokens = run_steps((*module.merge_steps(), *module.branch()), tokens)
            if residual:
                rest_of_block = tower.layers[last].after_attention()
                entered, attended, _, left = record.rows[last]
                stream = entered + run_steps(module.branch(), attended)
                record.compare(f"layer {last}", run_steps(rest_of_block, stream), left)
                all_entered = to_float32(detached(record.outputs[last - 1]))  # (B, s, D)
                tokens = run_steps(rest_of_block, all_entered.flatten(0, 1) + tokens)
            # The pooled token passes the head along with the patches, since somebody's hook may
            # tell tokens from each other. What the head makes of it is the embedding. In a mean of
            # tokens these rows are merely some of them, and are not compared.
            pooled = embedded.token.flatten(0, -2)[:batch]
            projected = run_steps(embedded.head(tower), torch.cat([tokens, pooled]))
            if tower.pooling != "mean":
                returned = embedded.embedding.to(embedded.dtype)
                record.compare("the embedding", projected[-batch:], returned)
            patches = F.normalize(projected[:-batch], dim=-1).view(batch, count, -1)  # (B, s, E)
            rows: Tensor = embedded.direction.rows.expand(-1, batch, -1)
            maps = torch.einsum("kbe,bse->kbs", rows, patches)
        return embedded.run.computed(maps)


def _similar_values(read: AttentionRead, attention: Mixing) -> Tensor:
    """Compute S V (B, H, s, d)."""
    value = to_float32(read.value)
    if attention == "identity":
        return value
    vectors = read.query if attention == "qq" else read.key
    if vectors is None:
        raise UnsupportedModelError(
            f"attention={attention!r} needs queries and keys, but {read.name} shows none; "
            "use 'identity'."
        )
    vectors = to_float32(vectors)
    scale = vectors.shape[-1] ** -0.5 if read.scale is None else read.scale
    logits = (vectors * scale) @ vectors.mT
    return logits.softmax(-1) @ value


# These differentiate more than one layer.
_WHOLE_NETWORK = ("FullGrad", "ShapleyCAM")
_WITHOUT_TARGET = ("EigenCAM", "KPCA_CAM", "FEM")
# These take a forward for each channel.
_MANY_FORWARDS = ("ScoreCAM", "AblationCAM")
_NOT_ON_TOKENS = {
    "AblationCAM": "it replaces a channel by a value far below all others, which presumes "
    "features that are never negative",
    "HiResCAM": "gradient times feature, summed over channels, is zero before a layer norm",
}
# These arguments of a class's constructor are given here, and are no options.
_GIVEN = ("self", "model", "target_layers", "reshape_transform", "ablation_layer")


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

    Args:
        forward_func: the scores, as for :class:`ViTAttribution`.
        layer: the model, with a forward function of your own.

    Keyword Args:
        variant (str): the name of the class, "GradCAM" by default.
        eigen_smooth (bool): take the first principal component of the weighted features, False by
            default, where the class offers that.
        **options: what else the class's constructor takes, as in
            ``cam:variant=AblationCAM,ratio_channels_to_ablate=0.5``.

    Returns:
        `attribute` returns maps (B, 1, h, w), and `attribute_targets` maps (B, K, h, w).

    Raises:
        InputError: pytorch-grad-cam is not installed (``pip install grad-cam``), or has
            no such class or option.
        UnsupportedModelError: Ablation-CAM or HiResCAM on a vision transformer, where they mean
            nothing.

    Source: github.com/jacobgil/pytorch-grad-cam, which names the paper of each class.

    Example:
        >>> from captum_clip import ClipSimilarity, load_clip, targets
        >>> from captum_clip.attr import CamFamily
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> CamFamily(forward).attribute_targets(images, variant="LayerCAM").shape
        torch.Size([1, 2, 7, 7])
    """

    name = "cam"
    towers = ("vit", "resnet")
    listed = False  # It is a family, and a name needs the variant.
    _tower: ViTTower | ResNetTower

    @classmethod
    def properties(cls, *, variant: str = "GradCAM", **options: Any) -> dict[str, bool]:
        return {"needs_target": variant not in _WITHOUT_TARGET, "costly": variant in _MANY_FORWARDS}

    @classmethod
    def check_options(cls, *, variant: str = "GradCAM", **options: Any) -> None:
        parameters = inspect.signature(_class_of(variant).__init__).parameters
        names = ["eigen_smooth"]
        names += [name for name in parameters if name not in _GIVEN]
        for option in options:
            check_choice(option, names, name=f"an option for cam:variant={variant}")

    def _compute(self, call: Call, *, variant: str = "GradCAM", **options: Any) -> Computed:
        tower = self._tower
        if isinstance(tower, ViTTower) and variant in _NOT_ON_TOKENS:
            raise UnsupportedModelError(
                f"cam:variant={variant} is meaningless on a vision transformer: "
                f"{_NOT_ON_TOKENS[variant]}; use LayerCAM or GradCAM."
            )
        eigen_smooth = bool(options.pop("eigen_smooth", False))
        run = call.run(observe(tower, LastFeatures()))
        leaf = run.record.features
        network = _Network(call, tower, leaf.device)
        cam = _class_of(variant)(model=network, target_layers=[network.features], **options)
        # The gradients are taken here, since the library's hooks would fill those of the user's
        # parameters.
        cam.activations_and_grads.release()
        features = to_float32(leaf.detach())
        feature_array = features.cpu().numpy()
        maps = []
        # Each step has one column of all images, and gradients (1, B, C, h, w).
        for columns, (gradients,) in zip(run.columns, run.gradients(leaf), strict=True):
            drawn = cam.get_cam_image(
                call.images[0],
                network.features,
                # The library takes a target as a function of the scores (K,) of its image.
                [itemgetter(int(column)) for column in columns],
                feature_array,
                to_float32(gradients[0]).cpu().numpy(),
                eigen_smooth=eigen_smooth,
            )
            maps.append(torch.from_numpy(drawn).clamp(min=0).to(leaf.device))
        return run.computed(torch.stack(maps).to(features.dtype))

    def _on_grid(self, record: Any, values: Tensor) -> Tensor:
        return values.transpose(0, 1)


class _Network(nn.Module):
    """The model as the library sees it: the forward function, and the layer to look at."""

    def __init__(self, call: Call, tower: ViTTower | ResNetTower, device: torch.device) -> None:
        super().__init__()
        self.features = nn.Identity()
        # The library asks the first parameter for the device.
        self.anchor = nn.Parameter(torch.zeros((), device=device))
        # The model is no submodule, so the library cannot set it to eval mode.
        self._call = call
        self._tower = tower

    def forward(self, images: Tensor) -> Tensor:
        """Scores, with the features sent through the layer."""
        with observe(self._tower, LastFeatures(through=lambda x: self.features(x))):
            scores: Tensor = self._call.forward(images, *self._call.extra)
        return scores[:, None] if scores.ndim == 1 else scores


def _class_of(variant: str) -> Any:
    """The class of pytorch-grad-cam with a name; InputError if there is none."""
    try:
        import pytorch_grad_cam as library
        from pytorch_grad_cam.base_cam import BaseCAM
    except ImportError as error:
        raise InputError("cam needs pytorch-grad-cam: pip install grad-cam.") from error
    # RandomCAM draws from a global generator.
    refused = (*_WHOLE_NETWORK, "RandomCAM", "BaseCAM")
    names = []
    for name, value in vars(library).items():
        is_cam = isinstance(value, type) and issubclass(value, BaseCAM)
        if is_cam and name not in refused:
            names.append(name)
    check_choice(variant, sorted(names), name="a class for cam")
    return getattr(library, variant)

"""The forward functions that Captum calls: images, texts or pairs -> CLIP cosines."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_choice, excerpt, expect
from ..errors import InputError, TargetError, naming, public
from ..maps import check_shape, to_float32
from ..models import ClipAdapter
from ..models.towers import TextTower, Tower, check_ids
from . import Target


class Similarity(nn.Module):
    """Base of the forward functions with a target: its embeddings, and the cosine with them."""

    embeddings: Tensor
    _example: str

    def __init__(self, clip: ClipAdapter, target: Target) -> None:
        super().__init__()
        name = type(self).__name__
        with naming(name):
            adapter = f"pass {name}(load_clip(model), target)"
            expect(isinstance(clip, ClipAdapter), "an adapter from load_clip(...)", clip, adapter)
            advice = f"make one with captum_clip.targets, for example {self._example}"
            expect(isinstance(target, Target), "a Target", target, advice, error=TargetError)
            width = target.embeddings.shape[1]
            if clip.embedding_dim not in (None, width):
                # The configuration may be wrong about a model that was changed, so it is run.
                check_dimension(target.embeddings, clip.measured_dim(), clip)
            if target.maker is not None:
                target.maker.check(clip, target.source)
        self.clip = clip
        self.target = target
        self.model = clip.model
        self.tower: Tower = clip.tower  # A text similarity has its text tower here.
        # The embeddings are a buffer: as additional forward arguments, Captum would repeat them
        # along the batch. They are made outside of inference mode, since a tensor made in it can
        # never take part in a gradient.
        with torch.inference_mode(False):
            self.register_buffer("embeddings", target.embeddings.to(clip.device), persistent=False)
        # The embedding that is scored passes through here, so that a recording sees it.
        self.readout = nn.Identity()
        # A new module is in training mode, where the model may not be.
        self.training = clip.model.training

    def __repr__(self) -> str:
        # That of nn.Module would list the whole model.
        return f"{type(self).__name__}({self.clip.name}, {excerpt(str(self.target.names), 100)})"

    def score(self, embedding: Tensor) -> Tensor:
        """Cosine similarities (..., K) of embeddings (..., E) of any length."""
        check_shape("embeddings", embedding, "(..., E)")
        check_dimension(self.embeddings, embedding.shape[-1], self.clip)
        embedding = to_float32(embedding)
        return F.normalize(embedding, dim=-1) @ self.embeddings.to(embedding.dtype).T


def check_dimension(embeddings: Tensor, dimension: int, clip: ClipAdapter) -> None:
    """Raise TargetError unless embeddings (K, E) have the size of a model's."""
    width = embeddings.shape[1]
    expected = f"a target of {dimension} numbers, as embeddings of {clip.name} have"
    advice = "make it with this model"
    expect(width == dimension, expected, width, advice, error=TargetError)


class ClipSimilarity(Similarity):
    r"""Images (B, 3, H, W) -> cosine similarities (B, K) to the K embeddings of a target.

    .. math:: y_k = \frac{e \cdot t_k}{|e|}, \quad e = \text{image embedding}, \; |t_k| = 1

    Differentiable in the images, so any Captum method takes it as its forward function. Captum's
    ``target`` picks the embedding. Half-precision towers give float32 similarities.

    Args:
        clip: an adapter from :func:`captum_clip.load_clip`; its model is used as it is.
        target: K directions of the model's embedding size.

    Raises:
        InputError: images of the wrong shape, type, size or device, or with NaN or infinity.
        TargetError: the target was made with another model, or has another embedding size.

    Example:
        >>> from captum_clip import ClipSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> forward = ClipSimilarity(clip, targets.text(clip, ["a horse", "a dog"]))
        >>> forward(clip.preprocess(draw_scene(0).image)).shape
        torch.Size([1, 2])
    """

    _example = "targets.text(clip, 'a horse')"

    @public("ClipSimilarity")
    def forward(self, images: Tensor, *more: Any) -> Tensor:
        """Cosine similarities (B, K) of preprocessed images (B, 3, H, W)."""
        # Captum passes each entry of a tuple of inputs, and then the additional arguments.
        if more:
            raise InputError(
                f"expected one tensor of images alone, got {len(more)} more "
                "arguments; pass one tensor as inputs, and no additional_forward_args."
            )
        self.clip.check_images(images)
        embedding = to_float32(self.clip.image_features(images))
        return self.score(self.readout(embedding))


class TextSimilarity(Similarity):
    r"""Token ids (B, T) -> cosine similarities (B, K) to the K images of a target.

    .. math:: y_k = \frac{e \cdot t_k}{|e|}, \quad e = \text{text embedding}, \; |t_k| = 1

    The forward function of the text tower: methods that need no grid, such as
    :class:`captum_clip.DirectContribution`, give maps (B, 1, T) on it, one value per token, and
    Captum's ``LayerIntegratedGradients`` works on the token embeddings. Padding is 0 in the
    attention mask, which is passed to Captum and to the methods as ``additional_forward_args``.
    Texts are padded as in the training of the model, so take ids and mask from
    ``clip.text_inputs``.

    Args:
        clip: an adapter from :func:`captum_clip.load_clip`; its model is used as it is.
        target: K embeddings of images, from ``targets.image`` or your own (``targets.embedding``).

    Raises:
        UnsupportedModelError: a text tower that cannot be explained.
        InputError: token ids of the wrong shape, type or device, too many, or unknown ones.
        TargetError: a target of texts, of another model, or of another embedding size.

    Example:
        >>> from captum_clip import DirectContribution, TextSimilarity, load_clip, targets
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> scene = draw_scene(0, objects=["horse"])
        >>> forward = TextSimilarity(clip, targets.image(clip, scene.image))
        >>> ids, mask = clip.text_inputs("a horse and a dog")
        >>> values = DirectContribution(forward).attribute(ids, additional_forward_args=mask)
        >>> values.shape  # start, five words, end, padding
        torch.Size([1, 1, 16])
    """

    _example = "targets.image(clip, image)"
    tower: TextTower

    @public("TextSimilarity")
    def __init__(self, clip: ClipAdapter, target: Target) -> None:
        super().__init__(clip, target)
        if target.source == "text":
            raise TargetError(
                "the target holds texts, but a text must be compared with images; "
                "make the target with targets.image(clip, images)."
            )
        self.tower = clip.text_tower

    @public("TextSimilarity")
    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Cosine similarities (B, K) of texts as token ids (B, T); padding is 0 in the mask."""
        embedding = to_float32(self.features(ids, attention_mask))
        return self.score(self.readout(embedding))

    @public("TextSimilarity")
    def features(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The library's own text embeddings (B, E)."""
        check_ids(ids, attention_mask, self.tower, self.clip.name, self.clip.device)
        return self.clip.text_features(ids, attention_mask)


class ClipPairSimilarity(nn.Module):
    r"""Images (B, 3, H, W) and as many texts or images -> the cosine (B,) of each pair.

    .. math:: y_b = \frac{e_b \cdot t_b}{|e_b| \, |t_b|}

    Differentiable in both, so Captum's methods take a tuple of inputs on it, and
    :class:`captum_clip.DirectInteraction` takes the score apart by pairs of positions. Texts are
    token ids (B, T), with the attention mask as ``additional_forward_args``; Captum's gradients of
    texts are those of the token embeddings, as for :class:`TextSimilarity`.

    Args:
        clip: an adapter from :func:`captum_clip.load_clip`; its model is used as it is.
        side: "text" or "image", the kind of input that the images are compared with.

    Raises:
        UnsupportedModelError: a text tower that cannot be explained.
        InputError: inputs of the wrong shape, type, size or device, or not as many of each.

    Example:
        >>> from captum_clip import ClipPairSimilarity, load_clip
        >>> from captum_clip.demo.scenes import draw_scene
        >>> clip = load_clip("demo/vit")
        >>> images = clip.preprocess(draw_scene(0).image)
        >>> ClipPairSimilarity(clip)(images, *clip.text_inputs("a horse")).shape
        torch.Size([1])
    """

    @public("ClipPairSimilarity")
    def __init__(self, clip: ClipAdapter, side: Literal["text", "image"] = "text") -> None:
        super().__init__()
        adapter = "pass ClipPairSimilarity(load_clip(model))"
        expect(isinstance(clip, ClipAdapter), "an adapter from load_clip(...)", clip, adapter)
        check_choice(side, ("text", "image"), name="a side")
        self.clip = clip
        self.side = side
        self.model = clip.model
        self.text_tower = clip.text_tower if side == "text" else None
        # A new module is in training mode, where the model may not be.
        self.training = clip.model.training

    @public("ClipPairSimilarity")
    def forward(
        self, images: Tensor, others: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Cosines (B,) of preprocessed images with token ids (B, T), or with images."""
        self.check(images, others, attention_mask)
        embedding = self.clip.image_features(images)
        if self.side == "text":
            other = self.clip.text_features(others, attention_mask)
        else:
            other = self.clip.image_features(others)
        return F.cosine_similarity(to_float32(embedding), to_float32(other), dim=-1)

    @public("ClipPairSimilarity")
    def check(
        self, images: Any, others: Any, attention_mask: Any = None, *, pairs: bool = True
    ) -> None:
        """Raise InputError for inputs that cannot be compared; `pairs` asks for as many of each."""
        clip = self.clip
        clip.check_images(images)
        if self.text_tower is not None:
            check_ids(others, attention_mask, self.text_tower, clip.name, clip.device)
        elif attention_mask is not None:
            raise InputError("an attention_mask belongs to texts, and side is 'image'.")
        else:
            clip.check_images(others)
        nouns = "texts" if self.side == "text" else "reference images"
        advice = "DirectInteraction.attribute_pairs takes all with all"
        fits = not pairs or len(images) == len(others)
        expect(fits, f"as many {nouns} as images, {len(images)}", len(others), advice)

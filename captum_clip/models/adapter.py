"""The adapter: one face for every CLIP model, whichever library it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .. import checks
from ..errors import InputError, TargetError, UnsupportedModelError, argument, public
from ..files import as_pil, quiet
from .identity import FIXED_TEXTS, fixed_images, reproducible, summary, weights_digest
from .images import ChannelStats, check_images, image_processor, is_preprocessed, pixels_of, process
from .library import expect_library_parts, refuse_quantized
from .towers import Kind, TextTower, Tower

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class Family(NamedTuple):
    """Classes of a library whose vision towers are built alike."""

    library: str  # the module or package that defines them
    tower_of: Callable[[Any], Tower | None]  # finds the vision tower in an object of such a class
    adapter: "Callable[..., ClipAdapter] | None" = None  # for the classes of whole models
    models: Collection[str] = ()  # names of whole models' classes; transformers also loads by them
    towers: Collection[str] = ()  # names of the classes of vision towers alone

    def holds(self, module: nn.Module) -> bool:
        """Whether a module is of such a class, or of one derived from it."""
        names = (*self.models, *self.towers)
        for base in type(module).__mro__:
            is_inside = f"{base.__module__}.".startswith(f"{self.library}.")
            if is_inside and base.__name__ in names:
                return True
        return False


_inspected: WeakKeyDictionary[nn.Module, dict[type, set[Any]]] = WeakKeyDictionary()
"""The set `inspected` that all adapters of one class share for a model, as long as it lives."""


class ClipAdapter(ABC):
    """A CLIP model with its preprocessing and its tokenizer.

    :func:`captum_clip.load_clip` makes it. The model is used as it is: never copied, patched or
    switched to another mode. `processor` and `tokenizer` may be missing until an image that is not
    a preprocessed tensor, or a text, needs them.
    """

    def __init__(
        self, model: Any, tower: Tower, *, name: str, processor: Any = None, tokenizer: Any = None
    ) -> None:
        self.model = model
        self.tower = tower
        self.name = name
        self.processor = processor
        self.tokenizer = tokenizer
        # A method inspects the model once for each kind of inputs, and notes the kind here.
        self.inspected = set[Any]()
        if isinstance(model, nn.Module):
            adapters = _inspected.setdefault(model, {})
            self.inspected = adapters.setdefault(type(self), self.inspected)
        self.failures: Mapping[str, str] = {}
        """Why the "processor" or "tokenizer" did not load, for the error once one is needed."""

    pads_to_longest = False
    """Whether tokenizers of transformers pad to the longest text, and not to the context."""

    # Each family has its own form of these methods.

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """The library's own image embeddings (B, E) of preprocessed images."""

    @abstractmethod
    def text_features(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The library's own text embeddings (N, E) of token ids (N, T); differentiable."""

    def _process(self, images: list[Image.Image]) -> Tensor:
        """Images -> (B, 3, H, W), float32 on the CPU."""
        return process(self._require("processor"), images)

    def _tokenize(self, texts: list[str]) -> Any:
        """Texts -> token ids, or what a tokenizer of transformers returns, on the CPU."""
        tokenizer = self._require("tokenizer")
        if is_transformers_tokenizer(tokenizer):
            # Without this None, transformers warns of a length to which it does not pad.
            options: dict[str, Any] = {"padding": True, "max_length": None}
            if not self.pads_to_longest and self.context_length is not None:
                options = {"padding": "max_length", "max_length": self.context_length}
            return self._call_tokenizer(tokenizer, texts, return_tensors="pt", **options)
        if hasattr(tokenizer, "clean_fn"):
            # A tokenizer of OpenCLIP may be made for another context.
            return self._call_tokenizer(tokenizer, texts, context_length=self.context_length)
        return tokenizer(texts)

    def _call_tokenizer(self, tokenizer: Any, texts: Any, **options: Any) -> Any:
        """Call a library's tokenizer; TargetError where it cannot read the texts."""
        expected = f"what the tokenizer of {self.name} can read"
        with checks.expecting(expected, texts, error=TargetError):
            return tokenizer(texts, **options)

    def _statistics(self) -> ChannelStats:
        """Mean and standard deviation of the channels; InputError where none are written down."""
        # OpenCLIP keeps them on its vision tower as well.
        inner = image_processor(self.processor or self.tower.module)
        # torchvision's Compose has them in its last steps.
        for step in reversed(getattr(inner, "transforms", [])):
            if hasattr(step, "mean") and hasattr(step, "std"):
                return step.mean, step.std
        mean = getattr(inner, "image_mean", None)
        std = getattr(inner, "image_std", None)
        if not getattr(inner, "do_normalize", True):
            mean = (0.0, 0.0, 0.0)
            std = (1.0, 1.0, 1.0)
        if mean is None or std is None:
            raise InputError(
                "no processor gives the mean and standard deviation of the images; pass the "
                f"{argument('processor')} of {self.name} with the model."
            )
        # A color in [0, 1] becomes (scale * color - offset - mean) / (std * divisor). Without
        # rescaling, a processor leaves 255 for white.
        scale = 255.0
        if getattr(inner, "do_rescale", True):
            scale *= getattr(inner, "rescale_factor", 1 / 255)
        # EfficientNet's processor (ALIGN's) may map to [-1, 1] first.
        offset = 1 if getattr(inner, "rescale_offset", False) else 0
        # It also divides by the deviation twice with this option.
        divisors = std if getattr(inner, "include_top", False) else (1.0, 1.0, 1.0)
        with checks.expecting("a mean and a standard deviation of each channel", (mean, std)):
            means = [(channel + offset) / scale for channel in mean]
            deviations = [
                channel * divisor / scale for channel, divisor in zip(std, divisors, strict=True)
            ]
        return means, deviations

    def _known_statistics(self) -> ChannelStats | None:
        with suppress(InputError):
            return self._statistics()
        return None

    @property
    def text_tower(self) -> TextTower:
        """The text tower as the methods see it.

        Raises:
            UnsupportedModelError: its family does not describe its text tower.
        """
        with expect_library_parts(self.model):
            tower = self._text_tower()
        if tower is None:
            raise UnsupportedModelError(
                f"the text tower of {self.name} cannot be explained; supported are those of "
                "CLIP's relatives, SigLIP, AltCLIP, ChineseCLIP, OpenCLIP's TextTransformer, and "
                "BERT and RoBERTa in a VisionTextDualEncoder and in OpenCLIP's HFTextEncoder."
            )
        refuse_quantized(tower.module)
        return tower

    def _text_tower(self) -> TextTower | None:
        return None

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """The longest text in tokens, start and end included; None if it is not bounded."""

    @property
    def vocabulary_size(self) -> int | None:
        """The number of tokens that the text tower knows, if it is known."""
        return None

    # The properties and methods below describe the model.

    @property
    def vision(self) -> Any:
        """The vision tower, the module to pass as `layer` in other code."""
        return self.tower.module

    @property
    def kind(self) -> Kind:
        """The kind of vision tower: "vit", or "resnet" for every convolutional one."""
        return self.tower.kind

    @property
    def device(self) -> torch.device:
        """The device of the vision tower's parameters."""
        return torch.device(next(self.tower.module.parameters()).device)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the vision tower's parameters."""
        dtype: torch.dtype = next(self.tower.module.parameters()).dtype
        return dtype

    @property
    def embedding_dim(self) -> int | None:
        """Length of the tower's embeddings; None where only a forward shows it."""
        return self.tower.embedding_dim

    def measured_dim(self) -> int:
        """Length of the embeddings as one forward shows it."""
        blank = torch.zeros(1, 3, *self.tower.native, device=self.device)
        with torch.no_grad():
            return self.image_features(blank).shape[-1]

    @public("grid")
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a map for images of this size in pixels.

        Raises:
            InputError: no whole numbers, or a size that the tower cannot take.
        """
        for side in (height, width):
            checks.check_integer("a side in pixels", side, least=0)
        return self.tower.grid(height, width)

    def identity(self, *, texts: bool = True, images: bool = True) -> dict[str, str]:
        """Identify the model, for a comparison by :func:`captum_clip.models.differing_parts`.

        The result has a SHA-256 of the weights, and numbers of the embeddings of fixed images,
        through the preprocessing, and of those fixed texts that the tokenizer reads. Device, mode,
        process and release of the library do not change it.

        It is computed anew each time, since anything else may change it. That takes about a second
        per gigabyte, and six forwards in eval mode and float32, which hooks of the user see.
        Without `images` it has the texts alone, and reads neither weights nor image tower.
        """
        parts = {}
        if images:
            parts["weights"] = weights_digest(self.model.state_dict().values())
        # Weights alone do not suffice: a hook, a patch or another processor changes what runs.
        with reproducible(self.model):
            return parts | self.fixed_embeddings(texts=texts, images=images)

    @torch.no_grad()
    def fixed_embeddings(self, *, texts: bool = True, images: bool = True) -> dict[str, str]:
        """The numbers of :meth:`identity` for the model in its present mode and precision."""
        numbers = {}
        if images:
            image_rows = []
            # Without a processor, the images have to be preprocessed ones.
            size = self.tower.native if self.processor is None else None
            for image in fixed_images(size):
                image_rows.append(self.encode_image(self.preprocess(image)))
            numbers["image_embeddings"] = summary(image_rows)
        if texts:
            text_rows = []
            for text in FIXED_TEXTS:
                try:
                    inputs = self.text_inputs(text)
                except Exception:
                    # There may be no tokenizer, or it may not know a word.
                    continue
                text_rows.append(F.normalize(self.text_features(*inputs), dim=-1))
            numbers["text_embeddings"] = summary(text_rows)
        return numbers

    # The methods below take images.

    @public("preprocess")
    def preprocess(self, images: ImageLike | Sequence[ImageLike] | Mapping[str, Any]) -> Tensor:
        """Images as the model takes them: (B, 3, H, W), normalized, on its device.

        Args:
            images: one or several of: path, PIL image, array or uint8 tensor (H, W), (H, W, C) or
                (C, H, W). The processor makes RGB of them in its own way; gray of 16 bits becomes
                gray of eight before. A float tensor (3, H, W) or (B, 3, H, W) counts as
                preprocessed and is only batched. So is the result of ``processor(images=...)`` of
                transformers. If all of its values lie in [0, 1], as pixels do, there is a warning.

        Raises:
            InputError: an image cannot be read or has no sensible shape, there is no processor, or
                the values of a float tensor are not what preprocessing makes.
        """
        images = pixels_of(images)
        if is_preprocessed(images):
            tensors = [images] if isinstance(images, Tensor) else list(images)
            with checks.expecting("preprocessed tensors (3, H, W) of one size", tensors):
                batches = [tensor if tensor.ndim == 4 else tensor[None] for tensor in tensors]
                batch = torch.cat(batches)
            check_images(batch, self._known_statistics(), tolerance=0.01)
            return batch.to(self.device)
        with quiet():
            pixels = self._process(as_pil(images, keep_mode=True))
        # The model's own processor makes no size that its tower cannot take.
        processor = argument("processor")
        wrong = f"the processor is not that of {self.name}; pass its own {processor} with the model"
        with checks.error_context(wrong):
            self.tower.grid(*pixels.shape[-2:])
        return pixels.to(self.device)

    @public("denormalize")
    def denormalize(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, H, W) -> colors in [0, 1], float32.

        Raises:
            InputError: images of the wrong shape or type, or with NaN or infinity.
        """
        check_images(images)
        mean, std = self._channel_statistics(images.device)
        return (images.detach().float() * std + mean).clamp(0, 1)

    @public("color")
    def color(self, rgb: Sequence[float]) -> Tensor:
        """A constant color, rgb in [0, 1], as a normalized tensor (1, 3, 1, 1)."""
        expected = "three numbers in [0, 1]"
        is_triple = isinstance(rgb, (Sequence, np.ndarray)) and len(rgb) == 3
        checks.expect(is_triple, expected, rgb)
        for channel in rgb:
            checks.expect(checks.is_number(channel) and 0 <= channel <= 1, expected, rgb)
        mean, std = self._channel_statistics(self.device)
        value = torch.tensor(rgb, device=self.device).view(1, 3, 1, 1)
        return ((value - mean) / std).to(self.dtype)

    def _channel_statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation as tensors (1, 3, 1, 1)."""
        means, deviations = self._statistics()
        mean = torch.tensor(list(means), device=device)
        std = torch.tensor(list(deviations), device=device)
        return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)

    def check_images(self, images: Any) -> None:
        """Raise InputError unless images are preprocessed, on its device, of a size it takes.

        Values that no preprocessing makes are refused, and pixels in [0, 1] get a warning.
        """
        # More is tolerated than in `preprocess`, since Captum's NoiseTunnel adds noise.
        check_images(images, self._known_statistics(), tolerance=0.1)
        is_here = images.device == self.device
        checks.expect(is_here, f"images on {self.device}", images, "pass images.to(clip.device)")
        self.tower.grid(images.shape[-2], images.shape[-1])

    @public("encode_image")
    @checks.torch_failures()
    def encode_image(self, images: Tensor) -> Tensor:
        """Unit image embeddings (B, E) of preprocessed images (B, 3, H, W); differentiable.

        Raises:
            InputError: images of the wrong shape, type, size or device, or with NaN or infinity.
        """
        self.check_images(images)
        return F.normalize(self.image_features(images), dim=-1)

    # The methods below take texts.

    def is_blank(self, text: str) -> bool:
        """Whether the tokenizer leaves nothing of a text, as it may of punctuation or an emoji."""
        count = self.count_tokens(text)
        empty_count = self.count_tokens("")
        return count is not None and empty_count is not None and count <= empty_count

    @public("tokenize")
    def tokenize(self, texts: str | Sequence[str]) -> Any:
        """Texts as the text tower takes them, on the model's device.

        Raises:
            TargetError: a text is longer than the context, which would cut it without a word.
            InputError: there is no tokenizer.
        """
        texts = checks.check_texts(texts)
        # OpenCLIP's tokenizers cut a text without a warning, so its tokens are counted first.
        for text in texts:
            count = self.count_tokens(text)
            longest = self.context_length
            if count is not None and longest is not None and count > longest:
                raise TargetError(
                    f"the text has {count} tokens with start and end, {self.name} takes "
                    f"{longest}; shorten it: {text[:60]!r}..."
                )
        tokens = self._tokenize(texts)
        form = "a tensor (N, T), or what a tokenizer of transformers returns, from the tokenizer"
        checks.expect(hasattr(tokens, "to"), form, tokens)
        ids = tokens if isinstance(tokens, Tensor) else tokens["input_ids"]
        largest = int(ids.max())
        size = self.vocabulary_size
        expected = f"tokens below {size}, which {self.name} knows"
        # Ids beyond the table come from another model's tokenizer.
        advice = f"pass its own {argument('tokenizer')} with the model"
        checks.expect(size is None or largest < size, expected, largest, advice, error=TargetError)
        return tokens.to(self.device)

    @public("encode_text")
    @checks.torch_failures()
    def encode_text(self, texts: str | Sequence[str]) -> Tensor:
        """Unit text embeddings (N, E)."""
        return F.normalize(self.text_features(*self.text_inputs(texts)), dim=-1)

    def count_tokens(self, text: str) -> int | None:
        """Count the tokens of an uncut text with start and end; None if the tokenizer cannot."""
        tokenizer = self._require("tokenizer")
        # With `verbose`, transformers warns of long texts, for which there is an error.
        if is_transformers_tokenizer(tokenizer):
            return len(self._call_tokenizer(tokenizer, text, verbose=False)["input_ids"])
        # The tokenizer of the embedded models counts by itself.
        if hasattr(tokenizer, "count"):
            return int(tokenizer.count(text))
        clean = getattr(tokenizer, "clean_fn", None)
        if clean is None:
            return None
        is_hf_tokenizer = hasattr(tokenizer, "tokenizer")
        if is_hf_tokenizer and getattr(tokenizer, "tokenizer_mode", "") == "clips":
            # In this mode, that of CLIPS models, OpenCLIP's HFTokenizer adds start, end and class.
            tokens = self._call_tokenizer(
                tokenizer.tokenizer, clean(text), add_special_tokens=False, verbose=False
            )
            return 3 + len(tokens["input_ids"])
        if is_hf_tokenizer:
            tokens = self._call_tokenizer(tokenizer.tokenizer, clean(text), verbose=False)
            return len(tokens["input_ids"])
        # OpenCLIP's SimpleTokenizer adds start and end.
        if hasattr(tokenizer, "encode"):
            return 2 + len(tokenizer.encode(text))
        return None

    def text_inputs(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token ids (N, T) and attention mask, padded as in the model's training.

        The mask, 0 at padding, is None where the text tower takes none. Errors are those of
        :meth:`tokenize`.
        """
        tokens = self.tokenize(texts)
        if isinstance(tokens, Tensor):
            return tokens, None
        return tokens["input_ids"], tokens.get("attention_mask")

    def _require(self, tool: Literal["processor", "tokenizer"]) -> Any:
        """The processor or the tokenizer; InputError if there is none."""
        # A CLIPProcessor of transformers holds a tokenizer as well.
        tokenizer = self.tokenizer or getattr(self.processor, "tokenizer", None)
        tools = {"processor": self.processor, "tokenizer": tokenizer}
        if tools[tool] is not None:
            return tools[tool]
        missing = [name for name in tools if tools[name] is None]
        lacks = []
        for name in missing:
            reason = self.failures.get(name)
            note = "" if reason is None else f" (its {name} could not be loaded: {reason})"
            lacks.append(f"no {name}{note}")
        purposes = {
            "processor": "is needed for an image that is not a preprocessed tensor",
            "tokenizer": "is needed for a text",
        }
        purpose = "images and texts need" if len(missing) > 1 else purposes[tool]
        options = ", ".join(f"{name}={name}" for name in missing)
        raise InputError(
            f"{self.name} has {' and '.join(lacks)}, which {purpose}; pass "
            f"{' and '.join(map(argument, missing))} with the model, as in "
            f"load_clip(model, {options}) or explain(..., model=model, {options})."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, kind={self.kind!r})"


def is_transformers_tokenizer(tokenizer: Any) -> bool:
    """Whether an object has the attributes of the tokenizers of transformers."""
    return hasattr(tokenizer, "pad_token_id") and hasattr(tokenizer, "model_max_length")


def is_tokenizer(candidate: Any) -> bool:
    """Whether an object is known as a tokenizer of transformers, OpenCLIP or OpenAI."""
    is_clip_tokenize = getattr(candidate, "__name__", "") == "tokenize"
    has_clean = hasattr(candidate, "clean_fn")
    return is_clip_tokenize or has_clean or is_transformers_tokenizer(candidate)

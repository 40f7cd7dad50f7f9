"""The models with short names: the embedded ones and those of the report. Loads no torch."""

from dataclasses import dataclass
from typing import Literal

Library = Literal["transformers", "open_clip"]


@dataclass(frozen=True)
class AvailableModel:
    """A model that can be loaded by a short name.

    Attributes:
        name: for `load_clip`.
        aliases: other spellings of it.
        kind: "vit" or "resnet".
        library: what loads it.
        checkpoint: where its weights come from: a repository on the Hugging Face hub, or OpenCLIP's
            architecture (tag `openai`); "embedded" in the package, so that no network is needed.
    """

    name: str
    aliases: tuple[str, ...]
    kind: Literal["vit", "resnet"]
    library: Library
    checkpoint: str


def _resnet(suffix: str) -> AvailableModel:
    # Without QuickGELU in the name, OpenCLIP runs these weights with GELU.
    architecture = f"RN{suffix}-quickgelu"
    aliases = (f"ResNet{suffix}", f"{architecture}/openai")
    return AvailableModel(f"RN{suffix}", aliases, "resnet", "open_clip", architecture)


def _vit(name: str, checkpoint: str, *aliases: str) -> AvailableModel:
    return AvailableModel(name, aliases, "vit", "transformers", f"openai/clip-vit-{checkpoint}")


_EMBEDDED = (
    AvailableModel("demo/vit", (), "vit", "transformers", "embedded"),
    AvailableModel("demo/resnet", (), "resnet", "open_clip", "embedded"),
    AvailableModel("demo/siglip", (), "vit", "transformers", "embedded"),
)
# These are the nine CLIPs of Mamooler's report, by OpenAI's names.
_PUBLISHED = (
    *map(_resnet, ("50", "101", "50x4", "50x16", "50x64")),
    _vit("ViT-B/32", "base-patch32"),
    _vit("ViT-B/16", "base-patch16"),
    _vit("ViT-L/14", "large-patch14"),
    _vit("ViT-L/14@336px", "large-patch14-336", "ViT-L/14-336px"),
)
_BY_SPELLING = {name.casefold(): row for row in _PUBLISHED for name in (row.name, *row.aliases)}


def named_model(name: str) -> AvailableModel | None:
    """The model of a name of the report in any of its spellings; None for other names.

    Example:
        >>> named_model("ResNet50x4").checkpoint
        'RN50x4-quickgelu'
    """
    return _BY_SPELLING.get(name.casefold())


def openai_architecture(row: AvailableModel) -> str:
    """OpenCLIP's architecture for the weights of a published model in OpenAI's own layout."""
    if row.library == "open_clip":
        return row.checkpoint
    return row.name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"


def available() -> list[AvailableModel]:
    """The models with short names: the embedded ones, then the report's.

    Example:
        >>> [model.name for model in available()][:3]
        ['demo/vit', 'demo/resnet', 'demo/siglip']
    """
    return [*_EMBEDDED, *_PUBLISHED]

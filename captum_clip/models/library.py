"""Modules as their libraries build them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..errors import InputError, UnsupportedModelError

AnyHook = TypeVar("AnyHook", bound=Callable[..., Any])

_OWN_HOOK = "_captum_clip_recording"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def mark_own_hook(hook: AnyHook) -> AnyHook:
    """Mark a hook of a recording, which does not change what other code computes."""
    setattr(hook, _OWN_HOOK, True)
    return hook


def has_no_foreign_hooks(module: nn.Module) -> bool:
    """Whether a module has neither a hook nor an attribute in place of a method."""
    for name in _HOOKS:
        # A copy is read, since another thread's recording may add hooks of ours meanwhile.
        for hook in tuple(getattr(module, name).values()):
            if not hasattr(hook, _OWN_HOOK):
                return False
    for name, value in vars(module).items():
        # What torch.compile puts there computes the same.
        if name != "_compiled_call_impl" and callable(value) and hasattr(type(module), name):
            return False
    return True


_LIBRARIES = ("torch.", "peft.", "sentence_transformers.", "transformers.")
_INNER = {
    "OptimizedModule": "_orig_mod",  # torch.compile makes it.
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    # With adapters `base_model` is a tuner around the model. With prompts it is the model itself.
    "PeftModel": "base_model.model",
    "SentenceTransformer": "0.model",
    "Owlv2ForObjectDetection": "owlv2",
    "OwlViTForObjectDetection": "owlvit",
    "CLIPSegForImageSegmentation": "clip",
}


def unwrapped(module: Any) -> Any:
    """The module inside what these libraries put around it, or itself.

    In a `Sequential` it is the first module; what follows is the tail of a forward function.
    """
    if type(module) is nn.Sequential and len(module):
        return unwrapped(module[0])
    # Classes are compared by name, since none of the libraries should be imported for this.
    for kind in type(module).__mro__:
        path = _INNER.get(kind.__name__)
        if path and kind.__module__.startswith(_LIBRARIES):
            with expect_library_parts(module):
                return unwrapped(attrgetter(path)(module))
    return module


def name_of(model: nn.Module) -> str:
    """The class of a model object, with its library or what it was loaded from where that is known.

    OpenCLIP's class is a plain "CLIP", and keeps no name; transformers' configurations do.
    """
    name = type(model).__name__
    if type(model).__module__.startswith("open_clip."):
        return f"OpenCLIP's {name}"
    source = getattr(getattr(model, "config", None), "_name_or_path", None) or ""
    if Path(source).is_absolute():
        source = Path(source).name
    return f"{name} {source}".strip()


# Attributes of modules with the rate of something random -> its name; "" is that of the class.
_RATES = {
    "p": "dropout",
    "prob": "patch dropout",
    "drop_prob": "",  # DropPath is no Dropout.
    "attention_dropout": "attention dropout",  # This one is often no module.
    "dropout": "attention dropout",
}


def modules_of(module: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, several times as fast as `nn.Module.modules`."""
    modules = [module]
    seen = {module}
    # The list grows while it is read.
    for parent in modules:
        for child in parent._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                modules.append(child)
    return modules


# Modules of torch.ao that compute with floating-point weights, and fake or observe quantization.
_PREPARED = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.")


def _path_of(layer: nn.Module, module: nn.Module) -> str:
    """The name of a module below another one."""
    return str(next(name for name, inner in module.named_modules() if inner is layer))


def refuse_quantized(module: nn.Module) -> None:
    """Raise UnsupportedModelError where a weight of a tower is no plain floating-point number."""
    for layer in modules_of(module):
        library = type(layer).__module__
        if library.startswith(_PREPARED):
            raise UnsupportedModelError(
                f"the {type(layer).__name__} {_path_of(layer, module)} of a tower is prepared for "
                "quantization: its forward rounds weights or activations and observes their "
                "range, so what runs is not what the weights say. Explain the model before "
                "torch.ao.quantization prepares it, with the trained weights loaded."
            )
        # torch.ao packs the weights of its modules away from their parameters.
        plain = not library.startswith("torch.ao.")
        for weight in layer._parameters.values():
            if weight is None:
                continue
            if weight.is_meta and getattr(layer, "_hf_hook", None) is not None:
                raise UnsupportedModelError(
                    "the weights of a tower exist only while its modules run (accelerate's "
                    "cpu_offload), so they cannot be read; load the whole model into memory."
                )
            if type(weight).__module__.startswith("torch.distributed."):
                raise UnsupportedModelError(
                    f"the {type(layer).__name__} {_path_of(layer, module)} of a tower has its "
                    f"weights in a {type(weight).__name__}, spread over processes as FSDP2 or "
                    "tensor parallelism do, so no map can be made of one process's part. Gather "
                    "them with torch.distributed.checkpoint.state_dict.get_model_state_dict and "
                    "StateDictOptions(full_state_dict=True), and load them into a plain model."
                )
            plain &= type(weight) is nn.Parameter and weight.is_floating_point()
        if not plain:
            raise UnsupportedModelError(
                f"the {type(layer).__name__} {_path_of(layer, module)} of a tower is quantized, so "
                "gradients do not pass it, and its result may depend on the batch; load the model "
                "in float32, float16 or bfloat16."
            )


def refuse_not_finite(module: nn.Module) -> None:
    """Raise InputError where a weight of a tower is NaN or infinite."""
    for name, weight in module.named_parameters():
        if not weight.isfinite().all():
            raise InputError(
                f"the weight {name} of a tower holds NaN or infinity, so its scores do, too; "
                "expected finite weights. Load a checkpoint from before its training diverged."
            )


def running_state(module: nn.Module) -> list[Any]:
    """What a forward function may exchange for its own forward alone, in order.

    That is the parameters, by torch.func.functional_call, and the switch of peft's adapters.
    """
    state: list[Any] = []
    for layer in modules_of(module):
        state += layer._parameters.values()
        state.append(vars(layer).get("_disable_adapters"))
    return state


def refuse_meta(module: nn.Module) -> None:
    """Raise UnsupportedModelError where a weight of a tower has no value."""
    for layer in modules_of(module):
        for name, weight in layer._parameters.items():
            if weight is not None and weight.is_meta:
                raise UnsupportedModelError(
                    f"the {name} of the {type(layer).__name__} of a tower is on the meta device, "
                    "so it has no values; expected weights on the CPU or an accelerator. Load them "
                    "first, such as with model.load_state_dict(weights, assign=True)."
                )


@contextmanager
def expect_library_parts(owner: object) -> Iterator[None]:
    """Raise UnsupportedModelError for a module that is not what its library puts there."""
    try:
        yield
    except AttributeError as error:
        raise UnsupportedModelError(
            f"a module of the {type(owner).__name__} is not the library's own ({error}); put the "
            "library's module back, and watch it by a forward hook instead of a wrapper."
        ) from error


def nondeterminism(module: nn.Module) -> str | None:
    """What makes two forwards differ, or changes a buffer, in training mode, if anything."""
    for layer in filter(attrgetter("training"), modules_of(module)):
        if isinstance(layer, _BatchNorm):
            return "BatchNorm"
        for name, noun in _RATES.items():
            rate = getattr(layer, name, None)
            # Elsewhere `p` is another number, such as the power of a pool.
            if name == "p" and not isinstance(layer, _DropoutNd):
                continue
            if isinstance(rate, (int, float)) and not isinstance(rate, bool) and rate > 0:
                return f"{noun or type(layer).__name__} {rate:g}"
    return None


def checkpoints(module: nn.Module) -> bool:
    """Whether blocks are run again in the backward, where no hook would be left to see them."""
    for layer in module.modules():
        # OpenCLIP and timm do it in any mode, transformers in training alone.
        if getattr(layer, "grad_checkpointing", False):
            return True
        if getattr(layer, "gradient_checkpointing", False) and layer.training:
            return True
    return False

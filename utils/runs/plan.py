"""What makes two runs the same: everything that the training depends on, as text in plan.json."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.data import ImageData
from utils.recipes import Recipe, plain_number
from utils.source import (
    code_digest,
    digest_of,
    is_plain,
    source_pieces,
    text_of,
    underlying,
)

Plan = dict[str, dict[str, Any]]

# What an optimizer's group holds besides its settings: the weights, what the schedule sets, and by
# which kernels PyTorch computes the step.
NO_SETTINGS = ("params", "lr", "initial_lr", "max_lr", "min_lr")
HOW_COMPUTED = ("fused", "foreach", "capturable", "differentiable")

# What a schedule holds besides its settings: its optimizer, its rates once more, and its progress.
PROGRESS = (
    "optimizer",
    "base_lrs",
    "last_epoch",
    "verbose",
    "_last_lr",
    "_step_count",
    "_get_lr_called_within_step",
    "_is_initial",
)


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """A network's class, what it was called with, and its code when the network is built."""

    name: str  # "models.model9.TransformerModel"
    arguments: dict[str, Any] | None  # None: some of them are no plain values
    described_arguments: Any  # as in the plan, also those that are no plain values
    source: str
    code_digest: str  # of what the source does

    @classmethod
    def of(cls, network: Callable[[], nn.Module]) -> "NetworkInfo":
        """Raises TrainingError: the network's file has changed since it was imported."""
        thing = underlying(network)
        name = f"{thing.__module__}.{thing.__qualname__}"
        arguments = arguments_of(network)
        described: Any = arguments
        if arguments is None and isinstance(network, partial):
            described = describe([network.args, network.keywords])
        pieces = source_pieces(network)
        code = digest_of(pieces, network)
        return cls(name, arguments, described, text_of(pieces), code)

    @property
    def title(self) -> str:
        """The network as one would write it: "TransformerModel(a=8)"."""
        arguments = self.arguments or {}
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"{self.name.split('.')[-1]}({written})"


def arguments_of(network: Callable) -> dict[str, Any] | None:
    """The arguments of a ``functools.partial`` by their names.

    None: some are no plain values or have no names, so that a file cannot hold them.
    """
    if not isinstance(network, partial):
        return {}
    try:
        signature = inspect.signature(network.func)
        bound = signature.bind_partial(*network.args)
    except (TypeError, ValueError):
        return None
    kinds = {signature.parameters[name].kind for name in bound.arguments}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
        return None
    given = bound.arguments | network.keywords
    arguments = {name: plain_number(value) for name, value in given.items()}
    if all(is_plain(value) for value in arguments.values()):
        return arguments
    return None


def plan_of_search(
    network: NetworkInfo,
    optimizer: Optimizer,
    recipe: Recipe,
    data: ImageData,
    train_loader: DataLoader,
) -> Plan:
    """What the LR range test depends on."""
    transform = getattr(train_loader.dataset, "transform", None)
    return {
        "network": {
            "class": network.name,
            "arguments": network.described_arguments,
            "code": network.code_digest,
        },
        "optimizer": describe_optimizer(optimizer),
        "transform": describe_object(transform),
        "images": {
            "name": data.name,
            "digest": data.digest[:16],
            "batch size": train_loader.batch_size,
        },
        "recipe": {"seed": recipe.seed, "precision": recipe.precision},
    }


def plan_of_training(
    search_plan: Plan, criterion: Callable, scheduler: LRScheduler, recipe: Recipe
) -> Plan:
    """What the whole training depends on, the LR range test included."""
    settings = dataclasses.asdict(recipe)
    settings.pop("compile")  # it changes nothing but the time
    return search_plan | {
        "criterion": describe_object(criterion),
        "schedule": describe_schedule(scheduler),
        "recipe": settings,
    }


def as_json_reads(plan: Plan) -> Plan:
    """The plan as it is read from its file: with lists for tuples, for example."""
    return json.loads(json.dumps(plan))


def describe_object(thing: Any) -> dict[str, Any]:
    """An object's class, code and attributes, or a function and its code and arguments."""
    described = describe(thing)
    return described if isinstance(described, dict) else {"value": described}


def describe(value: Any, depth: int = 8) -> Any:
    """A value as JSON can hold it, the same for equal objects in any process.

    Tensors and arrays become digests, functions and classes their names and code. Private
    attributes of an object are left out, and what is nested deeper than ``depth``.
    """
    if isinstance(value, (Tensor, np.ndarray)):
        return shape_and_digest(value)
    value = plain_number(value)
    if is_plain(value):
        return value
    if depth == 0 or isinstance(value, Optimizer):
        return type(value).__qualname__
    if isinstance(value, (list, tuple)):
        return [describe(part, depth - 1) for part in value]
    if isinstance(value, dict):
        return {str(name): describe(part, depth - 1) for name, part in value.items()}
    description: dict[str, Any] = class_and_code(value)
    if isinstance(value, partial):
        arguments = [value.args, value.keywords]
        return description | {"arguments": describe(arguments, depth - 1)}
    if inspect.isclass(value) or inspect.isroutine(value):
        return description
    return description | {
        name: describe(part, depth - 1) for name, part in public_attributes(value).items()
    }


def shape_and_digest(values: Tensor | np.ndarray) -> dict[str, Any]:
    """The shape of a tensor or an array, and a digest of its content."""
    shape = list(values.shape)
    if isinstance(values, Tensor):
        values = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return {"shape": shape, "digest": hashlib.sha256(values.tobytes()).hexdigest()[:16]}


def class_and_code(thing: Any) -> dict[str, Any]:
    """The name of a class or function and, unless it is PyTorch's, a digest of its code."""
    named = underlying(thing)
    description = {"class": named.__qualname__}
    if (named.__module__ or "").partition(".")[0] != "torch":
        description["code"] = code_digest(thing)
    return description


def public_attributes(thing: Any) -> dict[str, Any]:
    """The attributes of an object without private ones; of a module also its tensors and layers."""
    attributes = {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if not name.startswith("_")
    }
    if isinstance(thing, nn.Module):
        attributes |= dict(thing.named_buffers(recurse=False))
        attributes |= dict(thing.named_parameters(recurse=False))
        attributes |= dict(thing.named_children())
    return attributes


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's class, and the settings and number of weights of each parameter group."""
    description: dict[str, Any] = class_and_code(optimizer)
    for number, group in enumerate(optimizer.param_groups):
        settings = {
            name: describe(value)
            for name, value in group.items()
            if name not in NO_SETTINGS and name not in HOW_COMPUTED
        }
        settings["weights"] = sum(parameter.numel() for parameter in group["params"])
        description[f"group {number}"] = settings
    return description


def describe_schedule(scheduler: LRScheduler) -> dict[str, Any]:
    """A schedule's class, the learning rates of each parameter group, and its settings."""
    groups = scheduler.optimizer.param_groups
    rates = {
        name: [float(group[name]) for group in groups]
        for name in ("max_lr", "initial_lr", "min_lr", "lr")
        if all(name in group for group in groups)
    }
    settings = {
        name: describe(value) for name, value in vars(scheduler).items() if name not in PROGRESS
    }
    return class_and_code(scheduler) | rates | settings


def differences(earlier: Plan, now: Plan) -> list[str]:
    """What differs between two plans, in words: "recipe epochs (24, now 12)"."""
    lines = []
    for section in {**now, **earlier}:
        before = flatten(earlier.get(section, {}))
        after = flatten(now.get(section, {}))
        for name in {**after, **before}:
            if before.get(name) == after.get(name):
                continue
            if name in ("code", "digest"):
                lines.append(f"the {section}'s {name} has changed")
            else:
                lines.append(f"{section} {name} ({before.get(name)}, now {after.get(name)})")
    return lines


def flatten(section: dict[str, Any]) -> dict[str, Any]:
    """Nested settings under their joined names; lists as they are."""
    flat = {}
    for name, value in section.items():
        if isinstance(value, dict):
            for inner, setting in flatten(value).items():
                flat[f"{name} {inner}"] = setting
        else:
            flat[name] = value
    return flat

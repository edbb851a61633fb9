"""What makes two runs the same: everything that the training depends on, as text in plan.json."""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from utils.data import ImageData
from utils.recipes import Recipe, plain_number
from utils.source import code_digest, is_plain, source_text, underlying

Plan = dict[str, dict[str, Any]]

# What an optimizer's group holds besides its settings: the weights, what the schedule sets, and how
# PyTorch computes the step on this device.
NO_SETTINGS = ("params", "lr", "initial_lr", "max_lr", "min_lr")
HOW_COMPUTED = ("fused", "foreach", "capturable", "differentiable", "maximize")


@dataclasses.dataclass(frozen=True)
class NetworkInfo:
    """A network's class, what it was called with, and its code when the network is built."""

    name: str  # "models.model9.TransformerModel"
    arguments: dict[str, Any] | None  # None: some of them are no plain values
    source: str
    code: str  # a digest of what the source does

    @classmethod
    def of(cls, network: Callable[[], nn.Module]) -> "NetworkInfo":
        """Raises TrainingError: the network's file has changed since it was imported."""
        thing = underlying(network)
        name = f"{thing.__module__}.{thing.__qualname__}"
        return cls(name, arguments_of(network), source_text(network), code_digest(network))

    @property
    def title(self) -> str:
        """The network as one would write it: "TransformerModel(a=8)"."""
        arguments = self.arguments or {}
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        return f"{self.name.split('.')[-1]}({written})"


def arguments_of(network: Callable) -> dict[str, Any] | None:
    """The arguments of a ``functools.partial`` by their names; None if they are no plain values."""
    if not isinstance(network, partial):
        return {}
    try:
        bound = inspect.signature(network.func).bind_partial(*network.args, **network.keywords)
    except (TypeError, ValueError):
        return None
    arguments = {name: plain_number(value) for name, value in bound.arguments.items()}
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
            "arguments": "unknown" if network.arguments is None else network.arguments,
            "code": network.code,
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
    before: Plan, criterion: Callable, scheduler: LRScheduler, recipe: Recipe
) -> Plan:
    """What the whole training depends on; ``before`` is the plan of the LR range test."""
    settings = dataclasses.asdict(recipe)
    settings.pop("compile")  # it changes nothing but the time
    return before | {
        "criterion": describe_object(criterion),
        "schedule": describe_schedule(scheduler),
        "recipe": settings,
    }


def describe_object(thing: Any) -> dict[str, Any]:
    """An object's class and its plain attributes, or a function and its code."""
    description: dict[str, Any] = {"class": underlying(thing).__qualname__}
    if inspect.isfunction(thing) or isinstance(thing, partial):
        description["arguments"] = arguments_of(thing)
        description["code"] = code_digest(thing)
    elif dataclasses.is_dataclass(thing):
        description["settings"] = str(thing)
    else:
        description["settings"] = plain_attributes(getattr(thing, "__dict__", {}))
        description["code"] = code_digest(thing)
    return description


def plain_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes that are plain values, and the code of those that are functions."""
    plain = {}
    for name, value in attributes.items():
        functions = value if isinstance(value, (list, tuple)) and value else [value]
        if all(inspect.isfunction(function) for function in functions):
            plain[name] = [code_digest(function) for function in functions]
        elif is_plain(value):
            plain[name] = value
    return plain


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's class, and the settings and number of weights of each parameter group."""
    description: dict[str, Any] = {"class": type(optimizer).__qualname__}
    for number, group in enumerate(optimizer.param_groups):
        settings = {
            name: plain_number(value)
            for name, value in group.items()
            if name not in NO_SETTINGS and name not in HOW_COMPUTED
        }
        settings["weights"] = sum(parameter.numel() for parameter in group["params"])
        description[f"group {number}"] = settings
    return description


def describe_schedule(scheduler: LRScheduler) -> dict[str, Any]:
    """A schedule's class, its settings, and the learning rates of each parameter group."""
    groups = scheduler.optimizer.param_groups
    rates = {
        name: [float(group[name]) for group in groups]
        for name in ("max_lr", "initial_lr", "min_lr", "lr")
        if all(name in group for group in groups)
    }
    settings = plain_attributes(vars(scheduler) | scheduler.state_dict())
    for name in ("base_lrs", "_last_lr"):  # the rates once more
        settings.pop(name, None)
    return {"class": type(scheduler).__qualname__} | rates | settings


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

"""Which tensors of a checkpoint make which parameters of a model.

Names on disk differ from names in the model: old prefixes, experts saved one by one and used as one block, heads that
exist under another name or not at all because they are the embedding. transformers knows all of this; its converter is
used here one parameter at a time (internal API of transformers 5, which is why pyproject.toml bounds the version).

The plan is made from headers alone, by converting tensors on the meta device: no weight is read before everything is
known to fit. This file knows nothing of layers, memory or devices.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from engine.errors import ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.models.checkpoint import Checkpoint

_SHOWN = 4  # names in an error message before "and N more"


@dataclass(frozen=True)
class Recipe:
    """How one or several parameters are made.

    Attributes:
        targets: names in ``model.state_dict()``.
        sources: names in the checkpoint, in the order in which the converter wants them.
        patterns: for each source the converter's pattern that it matched; empty without a converter.
        converter: what makes targets of sources; None where the one source is the one target.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    converter: WeightConverter | None = None

    def convert(self, model: PreTrainedModel, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Make the targets, reading one source at a time.

        Args:
            model: transformers' operations look at its config.
            read: gives the tensor of a source's name, in the dtype and on the device that the targets shall have.
        """
        if self.converter is None:
            return {self.targets[0]: read(self.sources[0])}
        converter = copy.deepcopy(self.converter)
        first = self.targets[0]
        for source, pattern in zip(self.sources, self.patterns, strict=True):
            converter.add_tensor(first, source, pattern, lambda source=source: read(source))
        made = converter.convert(first, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True)
class WeightPlan:
    """Every parameter of a model and how it is made.

    Attributes:
        recipes: by target; a recipe with several targets stands under each of them.
        tied: parameters that are not in the checkpoint, and the parameter they are the same as.
        dtypes: by target, what the parameter has to be in memory.
        ignored: names in the checkpoint that the model has no use for.
        used: transformers' renamings and converters that a name in the checkpoint matched; saving undoes them.
    """

    recipes: dict[str, Recipe]
    tied: dict[str, str]
    dtypes: dict[str, torch.dtype]
    ignored: tuple[str, ...]
    used: tuple[Any, ...] = ()


def plan_weights(model: PreTrainedModel, checkpoint: Checkpoint, dtype: torch.dtype) -> WeightPlan:
    """Find a recipe for every parameter and persistent buffer of a model on the meta device.

    Raises:
        ModelError: a parameter has no source, or one of another shape; the message names it.
    """
    wanted = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}

    gathered: dict[str, list[tuple[str, str | None]]] = {}
    ignored = []
    for source in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern = rename_source_key(source, renamings, converters, model.base_model_prefix, wanted)
        if target not in wanted and source in wanted:
            target, pattern = source, None
        if target in wanted:
            gathered.setdefault(target, []).append((source, pattern))
        else:
            ignored.append(source)

    dtypes = _dtypes(model, wanted, dtype)
    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for target, sources in gathered.items():
        recipe, shapes = _recipe(model, checkpoint, target, sources, by_pattern)
        for name, shape in shapes.items():
            if name in wanted and shape != tuple(wanted[name].shape):
                problems.append(f"{name} is {shape} in the files and {tuple(wanted[name].shape)} in the model")
            recipes[name] = recipe
    tied = _tied(model, recipes, wanted)
    problems += [f"{name} is in no file" for name in wanted if name not in recipes and name not in tied]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ModelError(
            f"The weights in {checkpoint.folder} do not fit the model: {'; '.join(problems[:_SHOWN])}{more}.",
            _longer_name([name for name in wanted if name not in recipes], ignored)
            or "Missing weights would be randomly initialised.",
            "Check that config.json and the weights belong together, or fetch the model again.",
        )
    used = tuple(transform for transform in transforms if transform.was_used())
    return WeightPlan(recipes, tied, dtypes, tuple(ignored), used)


def _longer_name(missing: Sequence[str], ignored: Sequence[str]) -> str:
    """A sentence for weights that are there under a longer name; empty where the first one is not."""
    for name in missing[:1]:
        longer = [other for other in ignored if other.endswith(f".{name}")]
        if longer:
            return f"They may be there under longer names: {longer[0]} for {name}."
    return ""


def _recipe(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    target: str,
    sources: list[tuple[str, str | None]],
    by_pattern: dict[str, WeightConverter],
) -> tuple[Recipe, dict[str, tuple[int, ...]]]:
    """The recipe for a target, and the shapes it will make, found out on the meta device."""
    first_source, first_pattern = sources[0]
    if first_pattern is None:
        # Two names that become one (an old and a new spelling in the same file): the last one wins, as in transformers.
        source = sources[-1][0]
        return Recipe((target,), (source,)), {target: checkpoint.tensors[source].shape}
    draft = Recipe(
        (target,),
        tuple(source for source, _ in sources),
        tuple(pattern or "" for _, pattern in sources),
        by_pattern[first_pattern],
    )

    def on_meta(source: str) -> Tensor:
        return torch.empty(checkpoint.tensors[source].shape, dtype=checkpoint.dtype(source), device="meta")

    try:
        made = draft.convert(model, on_meta)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"{first_source} and the tensors beside it cannot be made into {target}: {error}",
            "transformers' converter for this architecture does not accept them.",
            "Fetch the model again, or leave out --layer_by_layer.",
        ) from error
    recipe = Recipe(
        (target, *(name for name in made if name != target)), draft.sources, draft.patterns, draft.converter
    )
    return recipe, {name: tuple(value.shape) for name, value in made.items()}


def _dtypes(model: PreTrainedModel, wanted: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.dtype]:
    """What ``from_pretrained`` would cast each tensor to: parts of some models stay in fp32."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(dtype)
    if not plan:
        return {name: tensor.dtype for name, tensor in wanted.items()}
    from transformers.core_model_loading import build_glob_alternation

    pattern, by_group, _ = build_glob_alternation(list(plan))
    dtypes = {}
    for name, tensor in wanted.items():
        match = pattern.search(name)
        dtypes[name] = plan[by_group[match.lastgroup]] if match else tensor.dtype
    return dtypes


def _tied(model: PreTrainedModel, recipes: dict[str, Recipe], wanted: dict[str, Any]) -> dict[str, str]:
    """Parameters without a source that are the same as one with a source, whichever of the two the file has."""
    tied = {}
    groups: dict[str, set[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        groups.setdefault(source, {source}).add(target)
    for group in groups.values():
        present = sorted(name for name in group if name in recipes)
        if present:
            tied.update({name: present[0] for name in group if name not in recipes and name in wanted})
    return tied

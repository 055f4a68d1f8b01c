"""What a model and an adapter can take: so many positions, tokens of its own table, its own settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graft.core.method import Method
from graft.core.positions import context_length
from graft.core.registry import described
from graft.core.site import Site
from graft.errors import ModelError, UsageError, notice
from graft.models.files import find
from graft.models.tokenizer import has_tokenizer, tokenizer_in
from graft.planning.sketch import sketch, unreal
from graft.recipe import Recipe
from graft.stages.stage import stage_of, task_of

PLACES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")  # where a method goes
RESERVING = ("prompt", "kv")  # kinds of sites at which an insert can take positions of the context


def fitting(recipe: Recipe, config: Any, taken: int) -> Recipe:
    """Return the recipe with a data.max_length that the model's positions allow; a notice says if it changed.

    config: transformers' of the base.  taken: positions that virtual tokens take.
    """
    limit = context_length(config)
    wanted = recipe.data.max_length
    if limit is None or limit < 1 or wanted <= limit - taken:
        return recipe
    room = limit - taken
    virtual = f", of which virtual tokens take {taken}" if taken else ""
    notice(f"data.max_length is {room} here, not {wanted}: the model has {limit} positions{virtual}")
    data = recipe.data.model_copy(update={"max_length": room})
    return recipe.model_copy(update={"data": data})


def of_adapter(recipe: Recipe, methods: Sequence[Method], sites: Sequence[Site]) -> Recipe:
    """Return a recipe that goes on from a saved adapter, with the adapter's methods.

    methods: those of the adapter.  sites: of the base: two ways to name the same of them are equal.
    Raises UsageError where the recipe writes other settings than theirs.
    """
    own: list[dict[str, Any]] = [{"name": m.name(), **json.loads(json.dumps(m.config()))} for m in methods]
    differ = []
    for wanted in recipe.methods:
        found = next((method for method in own if method["name"] == wanted["name"]), None)
        if found is None:
            differ.append(f"method.name={wanted['name']} (it is {' + '.join(m['name'] for m in own)})")
        else:
            differ += [
                f"method.{key}={value} (it has {found.get(key)})"
                for key, value in wanted.items()
                if found.get(key) != value and not (key in PLACES and _same_places(found, wanted, sites))
            ]
    if differ:
        raise UsageError(
            f"{', '.join(differ)} for the adapter {recipe.adapter}",
            "the settings with which the adapter was made",
            "leave them out to go on with it as it is, or leave adapter out to train a new one",
        )
    return recipe.model_copy(update={"method": own if len(own) > 1 else own[0]})


def _same_places(found: Mapping[str, Any], wanted: Mapping[str, Any], sites: Sequence[Site]) -> bool:
    """Return whether a method goes to the same sites by the settings of a file and by those of a recipe."""
    renamed = {**found, **{key: wanted[key] for key in PLACES if key in wanted}}
    return described(renamed).targets(sites) == described(dict(found)).targets(sites)


def positions_taken(recipe: Recipe, config: Any) -> int:
    """Return how many positions of the context the recipe's methods take, on a base of this config."""
    methods = [described(settings) for settings in recipe.methods]
    if not any(kind in RESERVING for method in methods for kind in method.kinds):
        return 0
    with unreal():  # the new adapter's values are not drawn here
        base = sketch(config, task=task_of(recipe, config))
        base.attach("virtual", stage_of(recipe).methods(methods, ["0", "1"], tagged=False))
        return base.positions(["virtual"])


def require_tokenizer(tokenizer: Any, model: str, rows: int | None) -> None:
    """Raise ModelError for a model without a tokenizer; say by a notice if it has more tokens than the model.

    rows: tokens that the model has an embedding for; None if its config does not tell.
    """
    if tokenizer is None:
        raise ModelError(
            f"{model} has no tokenizer",
            "tokenizer.json, or the vocabulary files of a tokenizer, in the model's folder",
            "copy these files from where the model came",
        )
    if rows is not None and len(tokenizer) > rows:
        notice(
            f"the tokenizer of {model} has {len(tokenizer)} tokens, the model {rows}: "
            "rows and prompts with one of the others cannot be used"
        )


def check_tokenizer(recipe: Recipe, config: Any) -> None:
    """Do `require_tokenizer` before a weight is read.

    A model of the hub is checked once it is here, a folder without weights can be planned only, and a new
    tokenizer is made as large as the model.
    """
    if not isinstance(recipe.model, str) or not _is_here(recipe.model):
        return
    folder = find(recipe.model)
    if folder.is_file() or any(folder.glob("*.safetensors")):
        tokenizer = tokenizer_of_folder(folder)
        require_tokenizer(tokenizer, recipe.model, getattr(config.get_text_config(), "vocab_size", None))


def _is_here(model: str) -> bool:
    return model == "seedling" or Path(model).expanduser().exists()


def tokenizer_of_folder(folder: Path) -> Any:
    """Return the tokenizer of a model's folder or file; None if there is none."""
    return tokenizer_in(folder) if has_tokenizer(folder) else None

"""Makes the JSON schema of a search's YAML, with which editors complete fields and mark mistakes.

The result is kept in `search.schema.json` beside this file; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from dpo_train.config_fields import literals
from dpo_train.scoring.metrics import objectives
from tune.config.schema import SearchConfig
from tune.config.searchable import searchable_fields
from tune.config.space import Axis

FILE = Path(__file__).with_name("search.schema.json")
"""The file that the line `# yaml-language-server: $schema=…` names."""
_NUMBER: JsonSchemaValue = {"type": "number"}
_WHOLE: JsonSchemaValue = {"type": "integer"}
_KINDS = {"log_uniform": _NUMBER, "uniform": _NUMBER, "log_int": _WHOLE, "int": _WHOLE}
_TWO: JsonSchemaValue = {"minItems": 2, "maxItems": 2}
_REFERENCE = "#/$defs/{model}"


class _WithoutTitles(GenerateJsonSchema):
    """Makes a schema without titles, which would only repeat the fields' names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Return False: no field has a title."""
        return False


def as_text() -> str:
    """Return the schema as the file holds it."""
    return json.dumps(search_schema(), indent=1, ensure_ascii=False) + "\n"


def search_schema() -> JsonSchemaValue:
    """Return Pydantic's schema of the configuration, with what Pydantic does not know added: the
    paths that `space` may hold, the kinds of axes, the metrics, the two forms of `points`."""
    schema = SearchConfig.model_json_schema(
        by_alias=True, ref_template=_REFERENCE, schema_generator=_WithoutTitles
    )
    definitions, fields = schema["$defs"], schema["properties"]

    # --- the head ---
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A search of dpo-tune"
    schema["required"] = ["space"]

    # --- space and points ---
    axes = dict(searchable_fields())
    definitions |= {path: _value(field) for path, field in axes.items()}
    definitions |= {f"axis_{kind}": _kind(kind, number) for kind, number in _KINDS.items()}
    definitions["when"] = {"type": "object", "description": _about("when")}
    fields["space"] = {
        "description": fields["space"]["description"],
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {path: _axis(path, field) for path, field in axes.items()},
    }
    fields["points"] = _points(fields["points"]["description"], list(axes))

    # --- fields that name metrics ---
    metric = {"type": "string", "enum": list(objectives())}
    definitions["Metric"] = metric
    either = [_ref("Metric"), {"type": "array", "items": _ref("Metric"), "minItems": 2,
                               "maxItems": 2, "uniqueItems": True}]  # fmt: skip
    fields["objective"] = {"description": fields["objective"]["description"], "anyOf": either,
                           "default": SearchConfig.model_fields["objective"].default}  # fmt: skip
    fields["constraints"]["propertyNames"] = _ref("Metric")
    watched = definitions["StoppingConfig"]["properties"]["metric"]
    definitions["StoppingConfig"]["properties"]["metric"] = {
        **{name: watched[name] for name in ("description", "default")}, "allOf": [_ref("Metric")],
    }  # fmt: skip

    for unused in ("Axis", "EarlierPoints"):
        definitions.pop(unused, None)
    return schema


def _axis(path: str, field: FieldInfo) -> JsonSchemaValue:
    """Return the schema of an axis over a field: exactly one of the kinds that suit its values."""
    annotations = {field.annotation, *get_args(field.annotation)}
    kinds = list(_KINDS) if float in annotations else ["log_int", "int"] * (int in annotations)
    ranges = [_ref(f"axis_{kind}") for kind in kinds]
    choice = _kind("choice", _ref(path), {"minItems": 1})
    return {"description": field.description, "oneOf": [choice, *ranges]}


def _kind(kind: str, item: JsonSchemaValue, size: JsonSchemaValue = _TWO) -> JsonSchemaValue:
    form = {"description": _about(kind), "type": "array", "items": item, **size}
    return {
        "type": "object",
        "required": [kind],
        "additionalProperties": False,
        "properties": {kind: form, "when": _ref("when")},
    }


def _about(name: str) -> str:
    field = Axis.model_fields["int_" if name == "int" else name]
    return str(field.description)


def _value(field: FieldInfo) -> JsonSchemaValue:
    """Return the schema of a field's values. The definitions that it names are in the whole one."""
    kinds = get_args(field.annotation)
    names = literals(field.annotation)
    if names and not any(get_origin(kind) is list for kind in kinds):
        return {"enum": [*names, *([None] if type(None) in kinds else [])]}
    made = TypeAdapter(field.rebuild_annotation()).json_schema(
        ref_template=_REFERENCE, schema_generator=_WithoutTitles
    )
    made.pop("$defs", None)
    return made


def _points(description: str, paths: list[str]) -> JsonSchemaValue:
    values = {path: _ref(path) for path in paths}
    point = {"type": "object", "additionalProperties": False, "properties": values}
    earlier = {
        "type": "object",
        "required": ["from"],
        "additionalProperties": False,
        "properties": {
            "from": {"type": "string", "description": "The earlier run's folder, name or URL."},
            "best": {"type": "integer", "minimum": 1, "default": 5,
                     "description": "The most points to take from it."},
        },
    }  # fmt: skip
    listed = {"type": "array", "items": point}
    return {"description": description, "default": [], "anyOf": [listed, earlier]}


def _ref(name: str) -> JsonSchemaValue:
    return {"$ref": _REFERENCE.format(model=name)}

"""The JSON schema of a search's YAML: editors complete the fields by it and mark what is wrong.

`search.schema.json` beside this file holds it; a test compares the two.
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
"""What `# yaml-language-server: $schema=…` names."""
_NUMBER: JsonSchemaValue = {"type": "number"}
_WHOLE: JsonSchemaValue = {"type": "integer"}
_KINDS = {"log_uniform": _NUMBER, "uniform": _NUMBER, "log_int": _WHOLE, "int": _WHOLE}
_TWO: JsonSchemaValue = {"minItems": 2, "maxItems": 2}
_REFERENCE = "#/$defs/{model}"


class _WithoutTitles(GenerateJsonSchema):
    """A title would be the field's name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def as_text() -> str:
    """The content of the file."""
    return json.dumps(search_schema(), indent=1, ensure_ascii=False) + "\n"


def search_schema() -> JsonSchemaValue:
    """What Pydantic makes of the configuration, and what it can't know: the paths that `space` may
    hold, the kinds of an axis, names of metrics, the two forms of `points`."""
    schema = SearchConfig.model_json_schema(
        by_alias=True, ref_template=_REFERENCE, schema_generator=_WithoutTitles
    )
    definitions, fields = schema["$defs"], schema["properties"]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A search of dpo-tune"
    schema["required"] = ["space"]
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
    """An axis over a field: exactly one kind, of those that suit its values."""
    annotations = {field.annotation, *get_args(field.annotation)}
    suit = list(_KINDS) if float in annotations else ["log_int", "int"] * (int in annotations)
    ranges = [_ref(f"axis_{kind}") for kind in suit]
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
    """What a field may be. The parts that it names are among the definitions of the whole."""
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
            "from": {"type": "string", "description": "An earlier run's folder, name or URL."},
            "best": {"type": "integer", "minimum": 1, "default": 5,
                     "description": "How many of its points at most."},
        },
    }  # fmt: skip
    listed = {"type": "array", "items": point}
    return {"description": description, "default": [], "anyOf": [listed, earlier]}


def _ref(name: str) -> JsonSchemaValue:
    return {"$ref": _REFERENCE.format(model=name)}

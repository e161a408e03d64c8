"""What is wrong with a request, in our words."""

from typing import Any

HALF = "holds half a character (a lone surrogate)"
# What pydantic finds.
WORDS = {
    "missing": "is missing",
    "string_type": "must be a text",
    "string_unicode": HALF,
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "too_short": "is empty: give at least one",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
    "string_pattern_mismatch": "must be 1 to 128 letters, digits or . _ : -",
    "extra_forbidden": "this server does not know it",
}


def in_words(error: dict[str, Any]) -> tuple[str, str | None]:
    """What pydantic found wrong with a request: a sentence, and the field that it is about."""
    kind, place = error["type"], [str(part) for part in error["loc"][1:] if part != "[key]"]
    if kind == "json_invalid":
        return f"the body is no JSON: {error.get('ctx', {}).get('error', 'it cannot be read')}", None
    param = ".".join(place)
    if kind == "invalid_value":
        text = str(error["msg"])
    else:
        text = WORDS.get(kind, "cannot be used").format_map(error.get("ctx") or {})
    return (f"{param}: {text}", param) if param else (f"the body {text}", None)

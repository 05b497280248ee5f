"""What may stand in a line of a prompt file, checked where the file is read. Errors name file, line and key.

Metadata is in GenEval's form (arXiv 2310.11513): `include` and `exclude` list objects by `class` (text), `count` (whole number
from 1), `color` (text) and `position` ([relation, number of an earlier item]). Other keys of metadata are free, those of an
object are not. A whole number may be written 4.0, as pandas and Arrow do.
"""

import json
from typing import Any

from star.errors import InputError
from star.prompts.text import readable

_OF_AN_OBJECT = ("class", "count", "color", "position")
KINDS = ("object", "attribute", "count", "relation", "text")


def parsed(text: str, where: str, expected: str) -> Any:
    """JSON of somebody else's. Raises InputError: not `expected`."""
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise InputError(f"{where}: not {expected} ({_short(error)})") from None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key `{next(key for key in keys if keys.count(key) > 1)}` stands twice")
    return found


def line(row: Any, where: str) -> dict[str, Any]:
    """A line with whole numbers as such. Raises InputError, naming `where` and the key, for what does not fit."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: no prompt; a line is an object with a key `prompt`")
    _check_prompt(row, where)
    for key in ("id", "task", "tag", "file"):
        if key in row:
            _check_name(row[key], f"{where}: `{key}`")
    row = row | {"metadata": metadata(row["metadata"], where)} if "metadata" in row else _whole(row, where, "")
    if "core" in row:
        row["core"] = _core(row, where)
    _check_writable(row, where)
    return row


def metadata(value: Any, where: str) -> dict[str, Any]:
    """A line's metadata. Raises InputError as `line`."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: `metadata` is {_short(value)}, not an object; correct the line")
    if "tag" in value:
        _check_name(value["tag"], f"{where}: `metadata.tag`")
    if not isinstance(value.get("prompt", ""), str):
        raise InputError(f"{where}: `metadata.prompt` is {_short(value['prompt'])}, not text; correct the line")
    return _whole(value, where, "metadata.")


def _check_prompt(row: dict, where: str) -> None:
    prompt = row.get("prompt")
    if prompt is None or (isinstance(prompt, str) and not readable(prompt).strip()):
        raise InputError(f"{where}: no prompt; every line needs one")
    if not isinstance(prompt, str):
        raise InputError(f"{where}: `prompt` is {_short(prompt)}, not text; correct the line")


def _check_name(value: Any, key: str) -> None:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise InputError(f"{key} is {_short(value)}, not text; correct the line")


def _check_writable(row: dict, where: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:  # half a character (\ud800), NaN, 1e999
        raise InputError(f"{where}: holds what no file can keep ({_short(error)}); correct the line") from None


def _whole(described: dict, where: str, above: str) -> dict[str, Any]:
    """A description in GenEval's form, its numbers whole. `above` is the key that holds it, with a dot."""
    described = dict(described)
    for key in ("text", "carrier"):
        if key in described and not isinstance(described[key], str):
            raise InputError(f"{where}: `{above}{key}` is {_short(described[key])}, not text; correct the line")
    for key in ("include", "exclude"):
        if key not in described:
            continue
        items = described[key]
        if not isinstance(items, list):
            raise InputError(f"{where}: `{above}{key}` is {_short(items)}, not a list of objects; correct the line")
        described[key] = [_item(item, f"{where}: `{above}{key}[{i}]") for i, item in enumerate(items)]
    return described


def _item(item: Any, key: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InputError(f"{key}` is {_short(item)}, not an object with class and count; correct the line")
    if "class" not in item or "count" not in item:
        raise InputError(f"{key}` has no `{'class' if 'class' not in item else 'count'}`; every object needs class and count")
    if unknown := item.keys() - set(_OF_AN_OBJECT):
        raise InputError(f"{key}` has the key {min(unknown)!r}, which nothing would judge; give {', '.join(_OF_AN_OBJECT)}")
    for name in ("class", "color"):
        if name in item:
            _check_name(item[name], f"{key}.{name}`")
    item = item | {"count": _number(item["count"], 1, f"{key}.count`")}
    if "position" in item:
        position = item["position"]
        if not isinstance(position, list) or len(position) != 2:
            raise InputError(f"{key}.position` is {_short(position)}, not [relation, number of an earlier item]")
        _check_name(position[0], f"{key}.position[0]`")
        item["position"] = [position[0], _number(position[1], 0, f"{key}.position[1]`")]
    return item


def _number(value: Any, least: int, key: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < least:
        raise InputError(f"{key} is {_short(value)}, not a whole number from {least}; correct the line")
    return int(value)


def _core(row: dict, where: str) -> list[dict[str, Any]]:
    """Core spans in order, each in its place."""
    spans, end, prompt = [], 0, row["prompt"]
    if not isinstance(row["core"], list):
        raise InputError(f"{where}: `core` is {_short(row['core'])}, not a list of spans (text, start, end, kind)")
    for i, span in enumerate(row["core"]):
        key = f"{where}: `core[{i}]"
        if not isinstance(span, dict) or span.keys() != {"text", "start", "end", "kind"}:
            raise InputError(f"{key}` is {_short(span)}, not a span with text, start, end, kind")
        if span["kind"] not in KINDS:
            raise InputError(f"{key}.kind` is {_short(span['kind'])}; choose one of {', '.join(KINDS)}")
        span = span | {name: _number(span[name], 0, f"{key}.{name}`") for name in ("start", "end")}
        if not end <= span["start"] < span["end"] <= len(prompt):
            raise InputError(
                f"{key}` is {span['start']} to {span['end']} of {len(prompt)} characters; "
                "spans lie in the prompt, in order and apart"
            )
        if span["text"] != prompt[span["start"] : span["end"]]:
            raise InputError(
                f"{key}.text` is {_short(span['text'])}, but the prompt has {_short(prompt[span['start'] : span['end']])} there"
            )
        spans.append(span)
        end = span["end"]
    return spans


def _short(value: Any) -> str:
    """A value or a reason on one line, cut."""
    text = " ".join(str(value).split()) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

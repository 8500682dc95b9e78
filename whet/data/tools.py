"""Tool descriptions and tool calls, from the shapes files have to one.

    {"type": "function", "function": {"name": "add", "arguments": "{...}"}}  ->  {"name": "add", "arguments": {...}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from whet.data.row import Row, kind_of_value


def read_calls(row: Row, content: Any, field: str) -> tuple[Mapping[str, Any], ...]:
    """The calls a `function_call` turn holds: one JSON object, or a list of them."""
    opened = row.opened(content, field)
    calls = opened if isinstance(opened, list) else [opened]
    if not all(isinstance(call, Mapping) for call in calls) or not calls:
        raise row.error("is not a call", field=field, found=content, fix='write {"name": ..., "arguments": {...}}')
    return parse_calls(row, calls, field)


def parse_calls(row: Row, calls: Any, field: str) -> tuple[Mapping[str, Any], ...]:
    if not calls:
        return ()
    calls = row.opened(calls, field)
    if not isinstance(calls, list):
        raise row.error(f"is {kind_of_value(calls)}, not a list of calls", field=field, found=calls)
    return _writable(row, tuple(_call(row, call, f"{field}[{index}]") for index, call in enumerate(calls)), field)


def _call(row: Row, call: Any, field: str) -> Mapping[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise row.error(
            "a call without the name of its function",
            field=field,
            found=call,
            fix='write {"name": ..., "arguments": {...}}',
        )
    arguments = inner.get("arguments", inner.get("parameters"))
    arguments = row.opened(arguments, f"{field}.arguments") if arguments not in (None, "") else {}
    if not isinstance(arguments, Mapping):
        raise row.error(f"is {kind_of_value(arguments)}, not an object", field=f"{field}.arguments", found=arguments)
    return {"name": inner["name"], "arguments": dict(arguments)}


def _writable(row: Row, objects: tuple[Mapping[str, Any], ...], field: str) -> tuple[Mapping[str, Any], ...]:
    """The same. Raises DataError for what no template could write: half a character in it, or no end of nesting."""
    try:
        text = json.dumps(objects, ensure_ascii=False, default=str)
    except RecursionError:
        raise row.error("is nested too deep", field=field) from None
    row.as_text(text, field)
    return objects


def read_tools(row: Row) -> tuple[Mapping[str, Any], ...]:
    """The row's tool descriptions, each as `{"type": "function", "function": {...}}`."""
    value = row.maybe("tools")
    value = row.opened(value, "tools")
    if value in (None, "", [], {}):
        return ()
    tools = value if isinstance(value, list) else [value]
    read = (_tool(row, row.opened(tool, f"tools[{index}]"), f"tools[{index}]") for index, tool in enumerate(tools))
    return _writable(row, tuple(read), "tools")


def _tool(row: Row, tool: Any, field: str) -> Mapping[str, Any]:
    match tool:
        case {"function": {"name": str()}}:
            return dict(tool)
        case {"name": str()}:
            return {"type": "function", "function": tool}
        case _:
            raise row.error(
                "a tool without a name",
                field=field,
                found=tool,
                fix='write {"name": ..., "description": ..., "parameters": {...}}',
            )

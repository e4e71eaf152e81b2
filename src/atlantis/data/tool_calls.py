"""Functions that an assistant may call, and its calls, in the one form that templates expect."""

from collections.abc import Mapping
from typing import Any

from atlantis.data import files
from atlantis.data.files import JsonObject
from atlantis.errors import DataError


def read_tools(value: object, where: str) -> tuple[Mapping[str, Any], ...]:
    """JSON schemas of functions, from a list or from a JSON string that holds one.

    A schema that is not yet inside ``{"type": "function", "function": ...}`` is put there.

    Raises:
        DataError: It is no list of functions with names.
    """
    if isinstance(value, str):
        value = files.parse_json(value, where) if value.strip() else []
    tools = files.as_list([] if value is None else value, where)
    return tuple(_tool(tool, f"{where}[{number}]") for number, tool in enumerate(tools))


def _tool(value: object, where: str) -> JsonObject:
    tool = files.as_object(value, where)
    if "function" not in tool:
        files.text_column(tool, "name", where)
        schema = {name: part for name, part in tool.items() if name != "type"}
        return {"type": "function", "function": schema}
    inside = f"{where}.function"
    files.text_column(files.as_object(tool["function"], inside), "name", inside)
    return tool


def read_calls(value: object, where: str) -> list[JsonObject]:
    """The calls of one turn, as ``{"type": "function", "function": {"name", "arguments"}}``.

    Bare ``{"name", "arguments"}`` is put into that form, and ``arguments`` that are a JSON string
    become the object, which is what chat templates write out.

    Raises:
        DataError: It is no list of calls with a name and arguments.
    """
    calls = files.as_list(value, where)
    return [_call(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def _call(value: object, where: str) -> JsonObject:
    call = files.as_object(value, where)
    if call.get("type", "function") != "function":
        raise DataError(f"{where}: type {files.shorten(call['type'])}: only function is known")
    if "function" in call:
        function = files.as_object(call["function"], f"{where}.function")
        rest = {name: part for name, part in call.items() if name not in ("type", "function")}
    else:
        function = {name: call[name] for name in ("name", "arguments") if name in call}
        rest = {name: part for name, part in call.items() if name not in ("type", *function)}
    name = files.text_column(function, "name", where)
    arguments = _arguments(files.column(function, "arguments", where), f"{where}: arguments")
    return {"type": "function", **rest, "function": {**function, "name": name} | arguments}


def _arguments(value: object, where: str) -> JsonObject:
    if isinstance(value, str):
        value = files.parse_json(value, where)
    return {"arguments": files.as_object(value, where)}

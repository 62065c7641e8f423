"""JSON documents that follow a JSON Schema shipped with this package."""

from __future__ import annotations

import json
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn


def read_document(path: Path, package: str, schema: str) -> dict[str, Any]:
    """Read a JSON file and check it against `schema`, a file inside `package`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, holds NaN or infinity, or breaks the schema (the message says where).
    """
    try:
        document = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(document, package, schema)
    return document


def encode_document(document: dict[str, Any], package: str, schema: str) -> bytes:
    """The bytes of a JSON file, checked against `schema`, a file inside `package`.

    What is checked is what a reader will see: tuples have become arrays, keys have become strings.

    Raises:
        ValueError: the document holds something that JSON cannot (NaN and NumPy scalars among it), or breaks
            the schema (the message says where).
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError as error:
        raise ValueError(str(error)) from error
    _check(json.loads(text), package, schema)
    return text.encode("utf-8")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _check(document: object, package: str, schema: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    rules = json.loads(files(package).joinpath(schema).read_text("utf-8"))
    fault = best_match(Draft202012Validator(rules).iter_errors(document))
    if fault is not None:
        where = "/".join(map(str, fault.absolute_path)) or "top level"
        raise ValueError(f"{where}: {textwrap.shorten(fault.message, 200)}")

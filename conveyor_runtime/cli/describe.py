"""What `describe` prints for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from conveyor_runtime.cli.noun import find_noun
from conveyor_runtime.cli.output import age, between, clean, print_table, status_colour
from conveyor_runtime.cli.schema import FIELD_COLUMNS, fields_of
from conveyor_runtime.cli.watch import STEP_COLUMNS

__all__ = ["print_description"]

_WIDTH = 14


def print_description(row: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """One thing in full; `runs` are the latest of a resource."""
    if "run_id" in row:
        _print_run(row)
        return
    for key, value in row.items():
        if value in (None, "", [], {}):
            continue
        if key.endswith("_at"):
            _field(key, f"{value} ({age(value)} ago)")
        elif key == "schema" and (fields := fields_of(value)):
            print("\nspec (-o yaml shows its JSON Schema)")
            print_table(FIELD_COLUMNS, fields)
            print()
        elif isinstance(value, dict | list):
            _field(key, "")
            _tree(value, 2)
        else:
            _field(key, str(value))
    if runs:
        print("\nlatest runs")
        print_table(find_noun("runs").columns, runs)


def _print_run(run: dict[str, Any]) -> None:
    resource = run["resource"]
    _field("run", run["run_id"])
    _field("resource", f"{resource['resource']}/{resource['name']} (generation {resource['generation']})")
    _field("event", run["event"])
    _field("pipeline", run["pipeline"] or "none: each driver of this type by itself")
    if run["priority"]:
        _field("priority", str(run["priority"]))
    _field("status", status_colour(run["status"], sys.stdout))
    if run["reason"]:
        _field("reason", run["reason"])
    _field("created", f"{run['created_at']} ({age(run['created_at'])} ago)")
    _field("duration", between(run["started_at"], run["finished_at"]))
    print()
    print_table(STEP_COLUMNS, run["steps"])
    for step in run["steps"]:
        if step.get("data") not in (None, {}, ""):
            print(f"\ndata of {step['id']}")
            _tree(step["data"], 2)


def _field(name: str, value: str) -> None:
    label = f"{name.replace('_', ' ')}:"
    print(f"{label:<{_WIDTH}} {clean(value, keep_colour=True)}".rstrip())


def _tree(value: Any, indent: int) -> None:
    """Nested data, one member a line."""
    members: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        members = ((f"{key}:", item) for key, item in value.items())
    elif isinstance(value, list):
        members = (("-", item) for item in value)
    else:
        members = (("", value),)
    for label, item in members:
        start = f"{' ' * indent}{clean(label)}"
        if isinstance(item, dict | list) and item:
            print(start)
            _tree(item, indent + 2)
            continue
        text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        if "\n" in text:
            print(start)
            for line in text.splitlines():
                print(f"{' ' * (indent + 2)}{clean(line)}")
        else:
            print(f"{start} {clean(text)}")

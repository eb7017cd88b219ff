"""The names users import."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import conveyor_runtime


@pytest.mark.parametrize("name", conveyor_runtime.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(conveyor_runtime, name)
    assert value.__doc__ and name in dir(conveyor_runtime)
    home = importlib.import_module(f"conveyor_runtime.{conveyor_runtime._HOMES[name]}")
    assert getattr(home, name) is value


def test_the_lists_agree_and_are_sorted() -> None:
    assert conveyor_runtime.__all__ == sorted(conveyor_runtime.__all__) and set(conveyor_runtime._HOMES) == set(
        conveyor_runtime.__all__
    )


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = conveyor_runtime.nothing


@pytest.mark.parametrize("room", ["errors", "models", "store", "engine", "reconcile"])
def test_what_a_room_says_it_offers_is_there(room: str) -> None:
    module = importlib.import_module(f"conveyor_runtime.{room}")
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def test_importing_the_package_costs_nothing() -> None:
    heavy = "{'pydantic', 'nats', 'docker', 'fastapi', 'asyncio'} & set(sys.modules)"
    code = f"import sys, conveyor_runtime; print({heavy})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"

"""What a resource of the shipped types may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from conveyor_runtime.models import Duration, Model, Resource
from conveyor_runtime.orchestra import Limits

__all__ = [
    "TYPES",
    "BuildLimits",
    "BuildSpec",
    "Env",
    "Seconds",
    "Text",
    "backend_of",
    "closed",
    "parse_cpu",
    "parse_env",
    "parse_memory",
]

TYPES = ("ci-build", "flutter-builder")

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_CPU_PATTERN = r"^\d+(\.\d+)?m?$"
_MEMORY_PATTERN = r"^\d+(\.\d+)?([KMGT]i?)?$"
_DURATION_PATTERN = r"^\s*(?=\S)(\d+(\.\d+)?|(\d+(\.\d+)?h)?(\d+(\.\d+)?m)?(\d+(\.\d+)?s)?)\s*$"
_ENV_NAME = r"^[^=\u0000]+$"


def parse_cpu(value: Any) -> int:
    """Thousandths of a CPU of `2`, `0.5`, `"1.5"` or `"500m"`; ValueError if it is none of these."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        milli = value * 1000
    elif isinstance(value, str) and re.fullmatch(_CPU_PATTERN, value):
        milli = float(value[:-1]) if value.endswith("m") else float(value) * 1000
    else:
        raise ValueError("cpu is a number of cores or thousandths like 500m")
    if not 1 <= milli <= 1_000_000:
        raise ValueError("cpu must be from 1m to 1000 cores")
    return round(milli)


def parse_memory(value: Any) -> int:
    """Bytes of `536870912`, `"512Mi"`, `"1.5G"`; ValueError if it is none of these."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = float(value)
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]i?)?", value)):
        size = float(match[1]) * _UNITS[match[2] or ""]
    else:
        raise ValueError("a size is a number of bytes or one like 512Mi or 2G")
    if not 1 <= size <= 2**50:
        raise ValueError("a size must be from 1 byte to 1 PiB")
    return int(size)


def parse_env(value: Any) -> Any:
    """A map of names to texts, from such a map or from a list of `{name, value}`; numbers and booleans become text."""
    if isinstance(value, list):
        pairs = []
        for entry in value:
            if not isinstance(entry, Mapping) or "name" not in entry or set(entry) - {"name", "value"}:
                raise ValueError("each entry of env is an object with name and value")
            pairs.append((entry["name"], entry.get("value", "")))
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        raise ValueError("env is a list of {name, value}, or a map of names to values")
    return {name: _as_text(name, text) for name, text in pairs}


def _as_text(name: Any, value: Any) -> str:
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be the name of an environment variable")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError(f"the value of {name} must be a text, a number or a boolean")
    text = str(value)
    if "\0" in text:
        raise ValueError(f"the value of {name} holds a NUL")
    return text


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not hold a NUL")
    return text


Text = Annotated[str, AfterValidator(_no_nul)]
_Scalar = {"type": ["string", "number", "boolean"]}
Env = Annotated[
    dict[str, str],
    BeforeValidator(parse_env),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string", "pattern": _ENV_NAME}, "value": _Scalar},
                        "additionalProperties": False,
                    },
                },
                {"type": "object", "propertyNames": {"pattern": _ENV_NAME}, "additionalProperties": _Scalar},
            ]
        }
    ),
]
_Cpu = Annotated[
    int,
    BeforeValidator(parse_cpu),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": _CPU_PATTERN}]}),
]
_Memory = Annotated[
    int,
    BeforeValidator(parse_memory),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _MEMORY_PATTERN}]}),
]
Seconds = Annotated[
    Duration,
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": _DURATION_PATTERN}]}
    ),
]


class BuildLimits(Model):
    """Ceilings of the whole build. What is left out is unlimited."""

    model_config = ConfigDict(extra="forbid")

    cpu: _Cpu | None = None
    memory: _Memory | None = None
    disk: _Memory | None = Field(
        default=None, description="Room on its node's disk that a run waits for, such as 20Gi: set aside, not enforced."
    )
    pids: int | None = Field(default=None, ge=1)

    def as_limits(self) -> Limits:
        """In the units of the backends."""
        return Limits(cpu_milli=self.cpu or 0, memory_bytes=self.memory or 0, pids=self.pids or 0)

    def as_use(self) -> Limits:
        """What is held of the node. Disk is only here: it is the workspace that fills it, which no backend limits."""
        return replace(self.as_limits(), disk_bytes=self.disk or 0)


def closed(schema: dict[str, Any]) -> None:
    """The definition of the type takes no fields but ours, so that a misspelt one is noticed when it is posted. Our
    drivers leave alone what another definition allows."""
    schema["additionalProperties"] = False


def _closed_with_branch(schema: dict[str, Any]) -> None:
    closed(schema)
    schema["properties"]["branch"] = {"type": "string", "description": "Another spelling of ref."}


class BuildSpec(Model):
    """Clone a repository and run commands in it.

    `branch` is another spelling of `ref`.
    """

    model_config = ConfigDict(extra="allow", json_schema_extra=_closed_with_branch)

    repository: Text = Field(min_length=1, max_length=4096, description="What git can clone from.")
    ref: Text | None = Field(default=None, description="Branch, tag or commit; default: the repository's own.")
    image: Text | None = Field(default=None, description="Image the commands run in; native has none.")
    env: Env = Field(default_factory=dict, description="Environment of the commands.")
    commands: list[Annotated[Text, Field(min_length=1)]] = Field(
        default_factory=list, description="Each is run by sh -c; the first one that fails ends the build."
    )
    workdir: Text = Field(default="", description="Where the commands run, relative to the repository's root.")
    limits: BuildLimits = Field(default_factory=BuildLimits)
    timeout: Seconds | None = Field(default=None, description="For all commands together: seconds, or 90s, 5m, 1h30m.")
    backend: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="docker, native, ...")
    submodules: bool = False
    depth: int = Field(default=1, ge=0, description="Commits of history to fetch; 0 = all.")
    pull: Literal["if-not-present", "always", "never"] = "if-not-present"
    warm: bool | None = Field(
        default=None,
        description="true: have a sandbox of this image ready for the next run; false: take none that stood ready.",
    )

    @model_validator(mode="before")
    @classmethod
    def _branch_is_ref(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("branch") is None:
            return value
        if value.get("ref") not in (None, value["branch"]):
            raise ValueError("ref and branch are two spellings of one thing; give one of them")
        return {**value, "ref": value["branch"]}


def backend_of(resource: Resource[Any]) -> str | None:
    """The backend a resource asks for, whether its spec is decoded or not; None = any."""
    spec = resource.spec
    found = spec.get("backend") if isinstance(spec, Mapping) else getattr(spec, "backend", None)
    return found if isinstance(found, str) and found else None

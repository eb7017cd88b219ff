"""Names of images: fn's 19 rows, what fn got wrong, and what is no name."""

from __future__ import annotations

import pytest

from conveyor_runtime.errors import TerminalError
from conveyor_runtime.orchestra.reference import parse_reference

D = "sha256:066978f9d271cfde1586ee5c6a3904a683a228252d6bc831e9c64a6fb823bc10"
LONG = "localhost.localdomain:5000"


@pytest.mark.parametrize(
    ("image", "registry", "repository", "version"),
    [
        ("fnproject/fn-test-utils", "", "fnproject/fn-test-utils", "latest"),
        ("fnproject/fn-test-utils:v1", "", "fnproject/fn-test-utils", "v1"),
        ("my.registry/fn-test-utils", "my.registry", "fn-test-utils", "latest"),
        ("my.registry/fn-test-utils:v1", "my.registry", "fn-test-utils", "v1"),
        ("mongo", "", "library/mongo", "latest"),
        ("mongo:v1", "", "library/mongo", "v1"),
        ("quay.com/fnproject/fn-test-utils", "quay.com", "fnproject/fn-test-utils", "latest"),
        ("quay.com:8080/fnproject/fn-test-utils:v2", "quay.com:8080", "fnproject/fn-test-utils", "v2"),
        (f"{LONG}/samalba/hipache:latest", LONG, "samalba/hipache", "latest"),
        (f"{LONG}/samalba/hipache/deeper:latest", LONG, "samalba/hipache/deeper", "latest"),
        (f"fnproject/fn-test-utils@{D}", "", "fnproject/fn-test-utils", D),
        (f"fnproject/fn-test-utils:v1@{D}", "", "fnproject/fn-test-utils", D),
        (f"my.registry/fn-test-utils@{D}", "my.registry", "fn-test-utils", D),
        (f"mongo@{D}", "", "library/mongo", D),
        (f"mongo:v1@{D}", "", "library/mongo", D),
        (f"quay.com/fnproject/fn-test-utils@{D}", "quay.com", "fnproject/fn-test-utils", D),
        (f"quay.com:8080/fnproject/fn-test-utils:v2@{D}", "quay.com:8080", "fnproject/fn-test-utils", D),
        (f"{LONG}/samalba/hipache:latest@{D}", LONG, "samalba/hipache", D),
        (f"{LONG}/samalba/hipache/deeper:latest@{D}", LONG, "samalba/hipache/deeper", D),
        # What fn got wrong, or did not look at.
        (f"localhost:5000/img@{D}", "localhost:5000", "img", D),
        ("localhost:5000/img", "localhost:5000", "img", "latest"),
        ("localhost/img:1", "localhost", "img", "1"),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest"),
        ("[::1]:5000/a/b:c", "[::1]:5000", "a/b", "c"),
        ("a__b/c.d-e_f", "", "a__b/c.d-e_f", "latest"),
        ("localhost:5000", "", "library/localhost", "5000"),
    ],
)
def test_taken_apart(image: str, registry: str, repository: str, version: str) -> None:
    found = parse_reference(image)
    assert (found.registry, found.repository, found.version) == (registry, repository, version)


@pytest.mark.parametrize(
    "image",
    ["", ":v1", "@" + D, f"a@{D}@{D}", "a@sha256:abc", "a@", "a:", "Upper/case", "a b", "a//b", "/a", "a/", "-a/b",
     "a:-tag", "a:" + "t" * 129, "my.registry:port/a", "a.b/", "x" * 256, "a\nb", "mongo:v1:v2", "a..b"],
)  # fmt: skip
def test_what_is_no_name(image: str) -> None:
    with pytest.raises(TerminalError, match="does not name an image"):
        parse_reference(image)


def test_the_same_image_has_one_text() -> None:
    same = [
        "busybox",
        "busybox:latest",
        "library/busybox",
        "docker.io/busybox",
        "index.docker.io/library/busybox:latest",
    ]
    assert {str(parse_reference(image)) for image in same} == {"docker.io/library/busybox:latest"}
    assert str(parse_reference(f"q.io/a:1@{D}")) == str(parse_reference(f"q.io/a:2@{D}")) == f"q.io/a@{D}"
    assert parse_reference("busybox").host == "docker.io"
    assert parse_reference("q.io:1/a").host == "q.io:1"

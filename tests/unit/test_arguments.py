"""frontend.arguments: locations, VM paths, numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onestor_lib.agent.errors import InvalidInput
from onestor_lib.frontend import arguments

DIR = "/var/lib/one//datastores/100/7"
# Text that comes near to what oned writes, so that it gets past the first check.
PIECES = st.sampled_from(
    ["host", ":", ":/", "/", "//", "..", ".", "7", "100", "disk.0", "disk.", "kernel", "-o", "[",
     "\n", "\x7f", " ", "$(x)", "%", "é", "\u0667", "\udcff"],
)  # fmt: skip
NEARLY = st.one_of(st.text(), st.lists(PIECES, max_size=9).map("".join))


def is_clean(path: str) -> bool:
    return (
        path.startswith("/")
        and "//" not in path
        and ".." not in path.split("/")
        and not any(ord(c) < 32 or ord(c) == 127 for c in path)
    )


@given(NEARLY)
def test_J4_a_location_is_clean_or_refused(word: str) -> None:
    try:
        found = arguments.location(word)
    except InvalidInput:
        return
    assert is_clean(found.path)
    assert found.host and not found.host.startswith("-")


@given(NEARLY, st.integers(0, 200))
def test_J4_a_vm_path_is_in_the_directory_of_its_vm_or_refused(word: str, vm_id: int) -> None:
    try:
        found = arguments.vm_path(word, vm_id)
    except InvalidInput:
        return
    assert is_clean(found.path)
    assert found.path == f"{found.datastore}/{vm_id}" + (f"/{found.name}" if found.name else "")
    assert found.name in ("", "kernel", "initrd") or found.name == f"disk.{found.disk_id}"


@given(NEARLY)
def test_numbers_are_decimal_or_refused(word: str) -> None:
    try:
        assert arguments.number(word, "the id") == int(word) >= 0
    except InvalidInput as error:
        assert "the id is" in error.cause


@pytest.mark.parametrize(
    ("word", "host", "path"),
    [
        (f"host01:{DIR}/disk.0", "host01", "/var/lib/one/datastores/100/7/disk.0"),
        ("fe.example.org:/a b/*[?]", "fe.example.org", "/a b/*[?]"),
        ("[fe80::1%eth0]:/a", "fe80::1%eth0", "/a"),
        ("[::1]:/a", "::1", "/a"),
        ("host:/a/", "host", "/a/"),
    ],
)
def test_trap11_locations(word: str, host: str, path: str) -> None:
    found = arguments.location(word)
    assert (found.host, found.path) == (host, path)


@pytest.mark.parametrize(
    "word",
    ["", "/a", ":/a", "host:a", "host", "-oProxyCommand=x:/a", "h o:/a", "h;x:/a", "h:/../a",
     "h:/a/..", "h:/a\nb", "h:/a\0"],
)  # fmt: skip
def test_J4_words_that_are_no_location(word: str) -> None:
    with pytest.raises(InvalidInput):
        arguments.location(word)


@pytest.mark.parametrize(
    ("word", "name", "disk_id"),
    [
        (f"h:{DIR}", "", None), (f"h:{DIR}/", "", None), (f"h:{DIR}/disk.12", "disk.12", 12),
        (f"h:{DIR}/kernel", "kernel", None), (f"h:{DIR}//initrd", "initrd", None),
    ],
)  # fmt: skip
def test_trap12_vm_paths(word: str, name: str, disk_id: int | None) -> None:
    found = arguments.vm_path(word, 7)
    assert (found.host, found.vm_id, found.name, found.disk_id) == ("h", 7, name, disk_id)
    assert found.datastore == "/var/lib/one/datastores/100"


@pytest.mark.parametrize(
    "path",
    ["/var/lib/one/datastores/100/8", "/var/lib/one/datastores/100", "/7", "/", "/7/disk.0",
     "/home/7", f"{DIR}/disk.0/x", f"{DIR}/disk", f"{DIR}/disk.0.snap", f"{DIR}/.record",
     f"{DIR}/vm.xml", f"{DIR}/.", f"{DIR}/disk.0\n"],
)  # fmt: skip
def test_a_wrong_path_is_refused_before_anything_is_removed(path: str) -> None:
    with pytest.raises(InvalidInput):
        arguments.vm_path(f"h:{path}", 7)


def test_words_are_counted() -> None:
    assert arguments.words(["a", "b"], "host:DIR vmid") == ["a", "b"]
    for argv in ([], ["a"], ["a", "b", "c"]):
        with pytest.raises(InvalidInput, match=f"expected host:DIR vmid, got {len(argv)} words"):
            arguments.words(argv, "host:DIR vmid")

"""The model of a soak, and how its steps are planned."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from tests.oned.objects import Disk, Image
from tests.soaking.kinds import noise
from tests.soaking.model import DiskModel, ImageModel, Model, difference
from tests.soaking.plan import Claims, NotNow, Plan


def disk(content: bytes, **attributes: str) -> DiskModel:
    image = ImageModel(1, Image(0, "image0", 101, "os_images"), content)
    return DiskModel(Disk({"DISK_ID": "0", **attributes}), image, content)


def test_what_is_written_is_what_is_there() -> None:
    one = disk(b"abcdef")
    one.write(2, b"XY")
    assert one.now == b"abXYef"
    assert one.may_be_copied_as() == [b"abXYef", b"abcdef"]


def test_a_disk_that_grows_has_zeros_at_its_end() -> None:
    one = disk(b"abc")
    one.grow(5)
    assert one.now == b"abc\0\0"


def test_a_disk_that_is_made_anew_is_its_image_or_its_copy() -> None:
    one = disk(b"abc")
    one.snapshots[0] = b"abc"
    one.write(0, b"x")
    one.grow(4)
    one.start_over()
    assert (one.now, one.snapshots) == (b"abc\0", {})
    one.copied = b"xbc"
    one.start_over()
    assert one.now == b"xbc\0"


def test_a_difference_in_words() -> None:
    assert difference(b"a", b"ab") == "1 bytes instead of 2"
    right = bytes(512) + b"x" * 512
    assert difference(bytes(1024), right) == "1 sectors, the first at 512, the last at 512, 1 zeros"


@pytest.fixture
def plan() -> Plan:
    return Plan(SimpleNamespace(model=Model()), 1, random.Random(1), Claims(), faulty=False)  # type: ignore[arg-type]


def test_what_one_step_has_alone_no_other_gets(plan: Plan) -> None:
    plan.take(("vm", 1))
    for claim in (plan.take, plan.share):
        with pytest.raises(NotNow):
            claim(("vm", 1))


def test_what_is_shared_nobody_gets_alone(plan: Plan) -> None:
    plan.share(("host", "host01"))
    plan.share(("host", "host01"))
    with pytest.raises(NotNow):
        plan.take(("host", "host01"))


def test_a_step_that_is_given_up_has_claimed_nothing(plan: Plan) -> None:
    tried = plan.claims.copy()
    tried.alone.add(("vm", 1))
    tried.shared["host", "host01"] += 1
    plan.take(("vm", 1), ("host", "host01"))


def test_what_only_this_step_shares_it_can_take_over(plan: Plan) -> None:
    plan.share(("host", "host01"))
    plan.take_over(("host", "host01"))
    with pytest.raises(NotNow):
        plan.share(("host", "host01"))


def test_the_same_seed_makes_the_same_noise() -> None:
    assert noise(random.Random(3), 1) == noise(random.Random(3), 1) != noise(random.Random(4), 1)

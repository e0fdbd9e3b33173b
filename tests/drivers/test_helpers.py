"""The counterparts of OpenNebula's shell functions, in drivers of somebody else."""

from __future__ import annotations

import pytest

from tests.testbed import AGENT, REMOTES, Testbed

pytestmark = pytest.mark.cluster

SCRIPT = """#!/usr/bin/env python3
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path[0] = str(Path(__file__).resolve().parents[2])

from onestor_lib.frontend import boundary
from onestor_lib.frontend.services.helpers import *


def work(request):
{body}


if __name__ == "__main__":
    boundary.leave(boundary.run("{kind}", "try", sys.argv[1:], work))
"""


def run(bed: Testbed, body: str, kind: str = "tm") -> tuple[int, str, str]:
    path = f"{REMOTES}/{kind}/mine/try"
    text = SCRIPT.format(kind=kind, body="".join(f"    {line}\n" for line in body.splitlines()))
    bed.use_version("7.4.1")
    bed.frontend.write(path, text, mode=0o755)
    try:
        done = bed.frontend.run([path, "host01:/a//b"], env=AGENT, check=False)
    finally:
        bed.frontend.run(["rm", "-r", f"{REMOTES}/{kind}/mine"])
    return done.returncode, done.stdout, done.stderr


def test_log_and_arguments(bed: Testbed) -> None:
    body = "word = request.argv[0]\nlog(request, f'{arg_host(word)} has {arg_path(word)}')"
    assert run(bed, body) == (0, "", "INFO: try: host01 has /a/b\n")


def test_error_message(bed: Testbed) -> None:
    status, out, err = run(bed, "error_message(request, 'there is\\nno disk')")
    assert (status, out, err) == (1, "", "try: there is no disk\n")


@pytest.mark.parametrize("kind", ["tm", "datastore"])
def test_commands_get_their_arguments_literally(bed: Testbed, kind: str) -> None:
    odd = 'it\'s $(id) `id`; \\"*\\" -n'
    body = f"""odd = "{odd}"
here = exec_and_log(request, ["printf", "%s", odd])
there = ssh_exec_and_log(request, "host01", ["printf", "%s", odd], "print")
assert here == there == odd, (here, there)
return ssh_exec_and_log(request, "host01", ["hostname"], "ask").strip()"""
    assert run(bed, body, kind) == (0, "host01\n", "")


def test_a_failing_command_ends_the_action_with_its_step(bed: Testbed) -> None:
    status, _, err = run(bed, "exec_and_log(request, ['ls', '/nowhere'], 'look')\nassert False")
    assert status == 6
    assert err.startswith("look: ls: ")
    assert "No such file" in err
    status, _, err = run(
        bed, "ssh_exec_and_log(request, 'host01', ['false'], 'try there')\nassert False"
    )
    assert (status, err) == (6, "try there host01: false: exit status 1\n")


def test_K7_a_command_ends_at_its_deadline(bed: Testbed) -> None:
    status, _, err = run(bed, "timeout_exec_and_log(request, 0.2, ['sleep', '60'], 'wait')")
    assert status == 6
    assert "timed out" in err
    body = "ssh_exec_and_log(request, 'host01', ['sleep', '61'], 'wait', seconds=0.2)"
    assert "timed out" in run(bed, body)[2]
    assert not [argv for _, argv in bed.hosts[0].processes() if argv[-1] == "61"]

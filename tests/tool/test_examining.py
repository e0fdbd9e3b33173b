"""What hosts say of themselves and of each other, by real programs."""

from __future__ import annotations

from onestor_lib.agent.client import AgentClient


def test_why_a_host_gets_to_no_other(agent: AgentClient) -> None:
    """Among the reasons: there is no OpenSSH client."""
    peers = {
        "host01": ["true"],
        "host02": ["sh", "-c", "echo Permission denied >&2; exit 255"],
        "host03": ["onestor-no-such-ssh", "host03", "true"],
    }
    found = agent.call("host.reach", peers=peers, timeout=20.0)
    assert list(found) == list(peers)
    assert found["host01"] == ""
    assert found["host02"] == "sh: Permission denied (exit status 255)"
    assert found["host03"].startswith("onestor-no-such-ssh is not installed")

"""oned's XML-RPC API, answered from files: `python3 -m tests.oned.server --root DIR`.

The files below DIR are the whole state and are read again for every call (contract section 5);
one.datastore.update is the only one that changes them:

    vm/<id>.xml  datastore/<id>.xml  host/<id>.xml  image/<id>.xml  cluster/<id>.xml
    version      what one.system.version answers
    auth         the session that is accepted, user:password
    calls.log    written: one JSON object a line for each call: method, id, time
    tm_mads      if present, the names of the TM_MAD_CONFs of oned.conf, a word each
    delay        if present, seconds to wait before each answer
    refuse       if present, connections are closed without an answer (and nothing is logged)

Pools hold their members in full; the real ones abbreviate some. The Python package needs nothing
but the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socketserver
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import Fault
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

AUTHENTICATION = 0x0100
NO_EXISTS = 0x0400
XML_RPC_API = 0x1000
INTERNAL = 0x2000

OBJECTS = {
    "vm": "virtual machine",
    "datastore": "datastore",
    "host": "host",
    "image": "image",
    "cluster": "cluster",
}

DONE = "6"
SYSTEM_DATASTORE = "1"

ATTRIBUTE = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s"\[]+))')
# What a TM_MAD_CONF puts into a datastore's template: those of ssh and onestor do the same.
OF_SYSTEM = {"SHARED": "NO", "DS_MIGRATE": "YES", "ALLOW_ORPHANS": "YES"}
OF_IMAGES = {"LN_TARGET": "SYSTEM", "CLONE_TARGET": "SYSTEM", "ALLOW_ORPHANS": "YES"}


class Refused(Exception):
    """A request that oned answers with an error: message and code."""


class Member(NamedTuple):
    """An object of a pool: as it is filtered, and as it is answered."""

    tree: ElementTree.Element
    xml: str


class State:
    """The answers, from the files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._log_lock = threading.Lock()

    def dispatch(self, method: str, params: Sequence[Any]) -> list[Any]:
        """Answer one call: [True, answer, 0], or [False, message, code, id]."""
        answer = self._method(method)
        if answer is None:
            raise Fault(-506, f"Method '{method}' not defined")
        arguments = list(params[1:])
        self._log(method, arguments)
        self._delay()
        if not params or params[0] != self._read("auth"):
            message = f"[{method}] User couldn't be authenticated, aborting call."
            return [False, message, AUTHENTICATION, -1]
        try:
            return [True, answer(arguments), 0]
        except FileNotFoundError:
            kind = OBJECTS[method.split(".")[1]]
            message = f"[{method}] Error getting {kind} [{arguments[0]}]."
            return [False, message, NO_EXISTS, arguments[0]]
        except Refused as refused:
            message, code = refused.args
            return [False, f"[{method}] {message}", code, arguments[0]]

    def _method(self, method: str) -> Callable[[list[Any]], str | int] | None:
        if method == "one.system.version":
            return lambda arguments: self._read("version")
        if method == "one.zone.raftstatus":
            return lambda arguments: self._raft()
        if method in ("one.vmpool.info", "one.vmpool.infoextended"):
            return self._vm_pool
        if method == "one.datastore.update":
            return self._update_datastore
        for kind in OBJECTS:
            if method == f"one.{kind}.info":
                return lambda arguments: self._object(kind, int(arguments[0]))
            if method == f"one.{kind}pool.info":
                return lambda arguments: pool(kind, (member.xml for member in self._members(kind)))
        return None

    def _raft(self) -> str:
        """The state of this server: alone, unless the file "raft" says otherwise."""
        state = self._read("raft") if (self.root / "raft").exists() else "0"
        return f"<RAFT><SERVER_ID>-1</SERVER_ID><STATE>{state}</STATE><TERM>0</TERM></RAFT>"

    def _object(self, kind: str, number: int) -> str:
        return (self.root / kind / f"{number}.xml").read_text(encoding="utf-8")

    def _members(self, kind: str) -> Iterable[Member]:
        """The objects of one kind by id; one deleted meanwhile is no member any more."""
        files = (self.root / kind).glob("*.xml")
        for number in sorted(int(file.stem) for file in files if file.stem.isdigit()):
            with contextlib.suppress(FileNotFoundError):
                xml = self._object(kind, number)
                yield Member(ElementTree.fromstring(xml), xml)

    def _vm_pool(self, arguments: list[Any]) -> str:
        """The VMs chosen by filter, start, end, state and, where given, KEY=VALUE.

        The filter is -4 to -1 (whose: here everybody's) or a user's id; start and end are ids, or
        an offset and a negative page size; the state is -2 all, -1 all but DONE, or one state.
        """
        whose, start, end, state, *rest = (arguments + [-2, -1, -1, -1][len(arguments) :])[:5]
        key_value = rest[0] if rest else ""
        members = [
            member
            for member in self._members("vm")
            if (whose < 0 or member.tree.findtext("UID") == str(whose))
            and _in_state(member.tree, state)
            and _has(member.tree, key_value)
        ]
        if end < -1:
            members = members[max(start, 0) : max(start, 0) - end]
        else:
            members = [member for member in members if _in_range(member.tree, start, end)]
        return pool("vm", (member.xml for member in members))

    def _update_datastore(self, arguments: list[Any]) -> int:
        """Replace the template (0), or merge another one into it (1), and what follows from it."""
        number, text, kind, *_ = [*arguments, 0]
        tree = ElementTree.fromstring(self._object("datastore", int(number)))
        if kind not in (0, 1):
            raise Refused("Wrong update type", XML_RPC_API)
        template = tree.find("TEMPLATE")
        assert template is not None
        old = {element.tag: element.text or "" for element in template}
        new = {**(old if kind else {}), **_parsed(text)}
        driver = new.setdefault("TM_MAD", tree.findtext("TM_MAD", ""))
        with contextlib.suppress(FileNotFoundError):
            if driver not in self._read("tm_mads").split():
                cause = f'TM_MAD named "{driver}" is not defined in oned.conf'
                raise Refused(f"Cannot update template. {cause}", INTERNAL)
        if tree.findtext("TYPE") == SYSTEM_DATASTORE:
            new = {**new, **OF_SYSTEM, "TYPE": "SYSTEM_DS"}
            for name in ("DS_MAD", "LN_TARGET", "CLONE_TARGET"):
                new.pop(name, None)
            if driver != tree.findtext("TM_MAD"):
                _set(tree, TOTAL_MB="0", FREE_MB="0", USED_MB="0")
        else:
            new = {**new, **OF_IMAGES}
            _set(tree, DS_MAD=new.setdefault("DS_MAD", tree.findtext("DS_MAD", "")))
        _set(tree, TM_MAD=driver)
        template.clear()
        for name in sorted(new):
            ElementTree.SubElement(template, name).text = new[name]
        xml = ElementTree.tostring(tree, encoding="unicode")
        file = self.root / "datastore" / f"{number}.xml"
        temporary = file.with_name(f".{file.name}.{threading.get_ident()}.tmp")
        temporary.write_text(xml, encoding="utf-8")
        temporary.replace(file)
        return int(number)

    def _read(self, name: str) -> str:
        return (self.root / name).read_text(encoding="utf-8").strip()

    def _log(self, method: str, arguments: list[Any]) -> None:
        number = arguments[0] if arguments and method.endswith(".info") else None
        line = json.dumps({"method": method, "id": number, "time": time.time()})
        with self._log_lock, (self.root / "calls.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _delay(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            time.sleep(float(self._read("delay")))


def _parsed(text: str) -> dict[str, str]:
    """A template in oned's own syntax, without vectors."""
    found, at = {}, 0
    while text[at:].strip():
        match = ATTRIBUTE.match(text, at)
        if not match:
            raise Refused("Cannot parse template", INTERNAL)
        found[match[1].upper()] = match[2] if match[3] is None else match[3]
        at = match.end()
    return found


def _set(tree: ElementTree.Element, **texts: str) -> None:
    for name, text in texts.items():
        element = tree.find(name)
        assert element is not None
        element.text = text


def pool(kind: str, members: Iterable[str]) -> str:
    """A pool of one kind: <VM_POOL>...</VM_POOL>."""
    name = f"{kind.upper()}_POOL"
    return f"<{name}>{''.join(members)}</{name}>"


def _in_state(tree: ElementTree.Element, state: int) -> bool:
    actual = tree.findtext("STATE")
    return state == -2 or actual == str(state) or (state == -1 and actual != DONE)


def _in_range(tree: ElementTree.Element, start: int, end: int) -> bool:
    number = int(tree.findtext("ID", "-1"))
    return number >= start and (end < 0 or number <= end)


def _has(tree: ElementTree.Element, key_value: str) -> bool:
    """Tell whether any element KEY has the text VALUE; nothing asked is found everywhere."""
    key, _, value = key_value.partition("=")
    return not key or any(element.text == value for element in tree.iter(key))


class Handler(SimpleXMLRPCRequestHandler):
    """A connection; it ends without an answer while the file `refuse` exists."""

    server: Server

    def do_POST(self) -> None:
        if (self.server.state.root / "refuse").exists():
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.close_connection = True
            return
        super().do_POST()


class Server(socketserver.ThreadingMixIn, SimpleXMLRPCServer):
    """A server for many callers at a time; port 0 takes any free one."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, bind: str = "127.0.0.1", port: int = 2633) -> None:
        self.state = State(root)
        super().__init__((bind, port), Handler, logRequests=False)

    def _dispatch(self, method: str, params: Iterable[Any]) -> list[Any]:
        return self.state.dispatch(method, list(params))


def main() -> None:
    """Serve until killed; the first line of output tells that calls are answered now, and where."""
    parser = argparse.ArgumentParser(prog="tests.oned.server")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=2633)
    parser.add_argument("--bind", default="127.0.0.1")
    options = parser.parse_args()
    with Server(options.root, options.bind, options.port) as server:
        host, port = server.server_address[:2]
        print(f"pid {os.getpid()} answers on http://{host!s}:{port}/RPC2", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

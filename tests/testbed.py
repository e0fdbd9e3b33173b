"""A cluster with onestor on it, installed as an administrator does, and oned to drive it.

What the tests, the demo and the benchmarks run on: the test cluster's front-end gets a stock
`remotes` directory, `install.sh` puts the drivers there, the hosts get their copy by the rsync
that OpenNebula's `onehost sync` makes, and the stand-in for oned calls the drivers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onestor_lib.agent import companions, crashpoints
from onestor_lib.agent.origin import Origin
from onestor_lib.agent.publish import is_temporary
from onestor_lib.agent.transfer import digests_of
from onestor_lib.frontend import bundle
from tests.cluster import Cluster, Node, NodeProcess
from tests.oned.cloud import Cloud
from tests.oned.mads import SSH_AUTH_SOCK
from tests.oned.objects import DATASTORES as OPENNEBULAS_DATASTORES
from tests.oned.objects import Datastore, Disk, Image, Vm
from tests.oned.oned import Oned
from tests.waiting import wait_until

REMOTES = "/var/lib/one/remotes"
DATASTORES = "/var/lib/one/datastores"
MB = 1 << 20
STATE = "/var/lib/one/oned"
SESSION = "oneadmin:opennebula"
LOG = "/var/log/one/onestor.log"
NOTES = "/var/lib/one/.onestor"  # what the front-end keeps between actions

# The exchange of keys that OpenSSH 9 likes best takes the client a tenth of a second of processor
# time at each connection, to be safe from listeners of later decades.
QUICK_KEYS = {"KexAlgorithms": "-sntrup761*"}

AGENT = {"SSH_AUTH_SOCK": SSH_AUTH_SOCK}


class Testbed:
    """A running cloud; use :func:`running_testbed`."""

    __test__ = False  # pytest: a helper, not a test class

    def __init__(self, cluster: Cluster, version: str) -> None:
        self.cluster = cluster
        self.frontend = cluster.frontend
        self.hosts = cluster.hosts
        root = self.frontend.path(STATE)
        self.cloud = Cloud(root, version, SESSION)
        self.oned = Oned(self.cloud, self.frontend, hosts={node.name: node for node in self.hosts})
        for node in self.hosts:
            self.cloud.add_host(node.name)
        self.images = self.cloud.add_image_datastore(id=101)
        self.system = self.cloud.add_system_datastore(id=102)
        self.file_images = self.cloud.add_file_datastore(id=103)
        self._extra: tuple[str, ...] = ()
        self._templates = {
            datastore.id: dict(datastore.template) for datastore in self.cloud.datastores.values()
        }

    def import_image(
        self, path: str, datastore: Datastore | None = None, **options: object
    ) -> Image:
        """Register a file of the front-end as an image; it must become READY."""
        where = datastore or self.images
        image = self.oned.create_image(path, where, **options)  # type: ignore[arg-type]
        assert image.source, image.template.get("ERROR")
        return image

    def image(self, path: str, datastore: Datastore | None = None, **options: Any) -> Image:
        """An image with the content of a file, as if it had been imported.

        Most tests are about what comes behind that, and three actions less are a second less.
        """
        where = datastore or self.images
        if where.template.get("BRIDGE_LIST"):
            return self.import_image(path, where, **options)
        name = uuid.uuid4().hex
        source = f"{OPENNEBULAS_DATASTORES}/{where.id}/{name}"
        size, image_format = self._plant(path, source.replace("//", "/"))
        fields = {key: options.pop(key) for key in ("type", "persistent", "id") if key in options}
        template = {"DEV_PREFIX": "vd", **options}
        return self.cloud.add_image(
            where, path=path, source=source, size=size, format=image_format, template=template,
            **fields,
        )  # fmt: skip

    def _plant(self, path: str, target: str) -> tuple[int, str]:
        """Copy a file of the front-end into a datastore; its size for a guest in MB, its format."""
        self.frontend.run(["mkdir", "-p", os.path.dirname(target)])
        self.frontend.run(["cp", "--sparse=always", path, target])
        file = self.frontend.path(target)
        file.chmod(0o660)
        with file.open("rb") as opened:
            head = opened.read(32)
            manifest = digests_of(opened.fileno(), file.stat().st_size)
        Origin(file).keep(manifest)
        owner = file.stat()
        os.chown(companions.manifest(file), owner.st_uid, owner.st_gid)
        is_qcow2 = head.startswith(b"QFI\xfb")
        size = int.from_bytes(head[24:32], "big") if is_qcow2 else owner.st_size
        return (size + MB - 1) // MB, "qcow2" if is_qcow2 else "raw"

    def vm(self, *images: Image | Disk, **options: object) -> Vm:
        """A pending VM with a disk of each image, and these disks."""
        disks = [
            self.cloud.image_disk(each) if isinstance(each, Image) else each for each in images
        ]
        return self.cloud.add_vm(disks=disks, **options)  # type: ignore[arg-type]

    def disk_path(self, vm: Vm, disk: int = 0, datastore: Datastore | None = None) -> str:
        """Where a VM's disk lies on its host."""
        return f"{DATASTORES}/{(datastore or self.system).id}/{vm.id}/disk.{disk}"

    def log(self) -> str:
        """onestor's log on the front-end."""
        return self.frontend.read(LOG).decode() if self.frontend.exists(LOG) else ""

    def use_version(self, version: str) -> None:
        """Be another version of OpenNebula from now on."""
        self.cloud.version = version
        for mad in (self.oned.datastore_mad, self.oned.transfer_mad, self.oned.vmm):
            mad.version = version
        self.frontend.write(f"{REMOTES}/VERSION", version + "\n")

    def environment(self, **variables: str) -> None:
        """Give the drivers these variables in addition; without any, none in addition."""
        for mad in (self.oned.datastore_mad, self.oned.transfer_mad, self.oned.vmm):
            for name in self._extra:
                mad.environment.pop(name, None)
            mad.environment.update(variables)
        self._extra = tuple(variables)

    def configure(self, text: str = "", file: str = "tm/onestor/onestorrc") -> None:
        """Append to a configuration file; "" restores it as it was installed."""
        source = self.frontend.read(f"/src/remotes/etc/{file}").decode()
        self.frontend.write(f"{REMOTES}/etc/{file}", source + text)

    @contextlib.contextmanager
    def changed_source(
        self, file: str, *changes: tuple[str, str], prepare: bool = False
    ) -> Iterator[None]:
        """What is installed of ``file`` of onestor_lib is changed for the block.

        Of each of the changes, the first text becomes the second one. On the front-end at once;
        hosts get it with their next agent. To ``prepare`` its code as install.sh does pays from
        two actions on, as each would do it for itself otherwise.
        """
        path, made = (f"{REMOTES}/onestor_lib/{name}" for name in (file, bundle.PREBUILT))
        before, facts = self.frontend.read(path).decode(), self.frontend.path(path).stat()
        made_before = self.frontend.read(made)
        after = before
        for old, new in changes:
            if before.count(old) != 1:
                raise LookupError(f"{file} has changed: where is {old!r}?")
            after = after.replace(old, new)
        try:
            self.frontend.write(path, after)
            if prepare:
                library = self.frontend.path(f"{REMOTES}/onestor_lib")
                self.frontend.write(made, bundle.prebuild(library))
            yield
        finally:
            self.frontend.write(path, before)
            self.frontend.write(made, made_before)
            # With its old time it fits again to what was made of it at the installation.
            times = (facts.st_atime_ns, facts.st_mtime_ns)
            os.utime(self.frontend.path(path), ns=times)

    def clean(self) -> None:
        """Remove all VMs and images and what tests have changed, whatever state they are in."""
        self.environment()
        self.configure()
        self.configure(file="datastore/onestor/onestor.conf")
        for node in self.cluster.nodes:
            for path in node.path(DATASTORES).iterdir():
                _remove(path)
        for vm in list(self.cloud.vms.values()):
            self.cloud.delete(vm)
        for image in list(self.cloud.images.values()):
            self.cloud.delete(image)
        for datastore, template in self._templates.items():
            thing = self.cloud.datastores[datastore]
            thing.template, thing.images = dict(template), []
            self.cloud.save(thing)
        self.frontend.write(LOG, "")
        _remove(self.frontend.path(NOTES))
        self.forget(str(crashpoints.NOTE))

    def crashed_at(self) -> list[str]:
        """The crash points at which processes have died, on any machine."""
        return self.noted(str(crashpoints.NOTE))

    def noted(self, path: str) -> list[str]:
        """The words in a file that each machine may have."""
        words = []
        for node in self.cluster.nodes:
            if node.exists(path):
                words += node.read(path).decode().split()
        return words

    def forget(self, path: str) -> None:
        """Remove a file from each machine that has it."""
        for node in self.cluster.nodes:
            node.path(path).unlink(missing_ok=True)

    def sync(self) -> None:
        """Copy the remotes to every host, as `onehost sync` does (contract section 4.4)."""
        for node in self.hosts:
            target = f"{node.name}:/var/tmp/one"
            argv = ["rsync", "-LRaz", "--delete", ".", target]
            self.frontend.run(argv, cwd=REMOTES, env={**AGENT, "SSH_OPT_CONTROL_MASTER": "no"})

    def files(self, node: Node, below: str = DATASTORES) -> dict[str, int]:
        """Every file below a directory of a node, dot files included, with its size in bytes."""
        root = node.path(below)
        found = {}
        for directory, below_it, names in os.walk(root):  # passes over what vanishes meanwhile
            links = [name for name in below_it if os.path.islink(f"{directory}/{name}")]
            for path in [Path(directory, name) for name in (*names, *links)]:
                with contextlib.suppress(FileNotFoundError):  # a running action has removed it
                    found[str(path.relative_to(root))] = path.lstat().st_size
        return dict(sorted(found.items()))

    def leftovers(self) -> list[str]:
        """Temporaries anywhere, and processes of onestor that have no business any more."""
        found = [
            f"{node.name}:{name}"
            for node in self.cluster.nodes
            for name in self.files(node)
            if any(is_temporary(part) for part in name.split("/"))
        ]
        for node in self.cluster.nodes:
            found += [
                f"{node.name}: {' '.join(argv)[:120]}"
                for _, argv in node.processes()
                if any("onestor_bootstrap" in word for word in argv)
            ]
        return found

    def assert_at_rest(self) -> None:
        """Nothing is left over, once agents have noticed that their front-end has ended."""
        try:
            wait_until(lambda: self.leftovers() == [], "nothing is left")
        except TimeoutError:
            left = self.leftovers()
            assert not left, left


def _remove(path: Path) -> None:
    """Remove a file or directory, with no process of the node's: this is done before each test."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def running_testbed(
    *,
    hosts: int = 2,
    version: str = "6.10.0.1",
    binds: Mapping[str, str] | None = None,
    install_env: Mapping[str, str] | None = None,
    install_options: tuple[str, ...] = (),
    sshd_options: Mapping[str, str] = QUICK_KEYS,
) -> Iterator[Testbed]:
    """Bring up a cluster, install onestor, start oned; everything is gone behind the block."""
    with Cluster(hosts=hosts, binds=dict(binds or {}), sshd_options=sshd_options) as cluster:
        frontend = cluster.frontend
        prepare_frontend(frontend, version)
        argv = ["/src/install.sh", *install_options]
        frontend.run(argv, user="root", env=dict(install_env or {}), timeout=300)
        cluster.fill_known_hosts()
        bed = Testbed(cluster, version)
        bed.sync()
        with oned_server(frontend):
            yield bed


def prepare_frontend(frontend: Node, version: str) -> None:
    """Put what OpenNebula's packages install and onestor relies on onto a front-end."""
    for name in ("tm/ssh", "datastore/fs", "etc/tm/ssh", "etc/datastore/fs", "im", "vmm"):
        frontend.run(["mkdir", "-p", f"{REMOTES}/{name}"])
    frontend.write(f"{REMOTES}/VERSION", version + "\n")
    frontend.write("/var/lib/one/.one/one_auth", SESSION + "\n", mode=0o600)
    frontend.run(["mkdir", "-p", STATE])


def register(frontend: Node, oned_conf: str, execrc: str) -> None:
    """Have OpenNebula's configuration files, with onestor registered in them."""
    for name, text in (("oned.conf", oned_conf), ("vmm_exec/vmm_execrc", execrc)):
        frontend.write(f"/etc/one/{name}", text, owner="root")
    frontend.run(["/src/install.sh", "--configure"], user="root")


@contextlib.contextmanager
def oned_server(frontend: Node) -> Iterator[NodeProcess]:
    """The XML-RPC API on the front-end."""
    argv = ["/usr/bin/python3", "-B", "-m", "tests.oned.server", "--root", STATE]
    with frontend.popen(argv, cwd="/src") as process:
        try:
            wait_until(lambda: _listening(frontend), "oned answers")
            yield process
        finally:
            process.kill_tree()


def _listening(frontend: Node) -> bool:
    port = ":" + format(2633, "04X")
    return port in Path(f"/proc/{frontend.pid}/net/tcp").read_text(encoding="ascii")

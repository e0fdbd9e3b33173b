"""The command ``onestor``: what administrators and timers ask of the drivers."""

from __future__ import annotations

import click

import onestor_lib
from onestor_lib.frontend import openssh
from onestor_lib.frontend.commands.cache import cache
from onestor_lib.frontend.commands.doctor import doctor
from onestor_lib.frontend.commands.metrics import metrics
from onestor_lib.frontend.commands.recovery import recovery
from onestor_lib.frontend.commands.vm import flatten, thin, vm


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(onestor_lib.__version__, prog_name="onestor")
def main() -> None:
    """Storage drivers for OpenNebula: images cached near the hosts, disks on the hosts' own."""
    openssh.find_agent()


for command in (cache, doctor, flatten, metrics, recovery, thin, vm):
    main.add_command(command)


if __name__ == "__main__":
    main()

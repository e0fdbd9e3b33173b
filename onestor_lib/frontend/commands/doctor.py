"""onestor doctor: whether the front-end and all hosts are as the drivers need them."""

from __future__ import annotations

import click

from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.commands import output, running
from onestor_lib.frontend.commands.running import Report

_COLUMNS = ("LEVEL", "HOST", "CHECK", "FINDING")


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Show what is well, too.")
@output.json_option
def doctor(everything: bool, as_json: bool) -> None:
    """Look at the front-end and at every host; the exit status is 1 if there are errors."""

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services.doctor import examination
        from onestor_lib.frontend.services.doctor.findings import ERROR, OK, WARNING, counted

        found = examination.run(request)
        is_good = all(each.level != ERROR for each in found)
        if as_json:
            return Report(output.lines(each._asdict() for each in found), is_good)
        shown = [each for each in found if everything or each.level != OK]
        cells = [
            [
                each.level,
                each.host,
                each.check,
                f"{each.text} -> {each.mend}" if each.mend else each.text,
            ]
            for each in shown
        ]
        levels = [each.level for each in found]
        warnings = counted(levels.count(WARNING), "warning")
        errors = counted(levels.count(ERROR), "error")
        verdict = f"{levels.count(OK)} ok, {warnings}, {errors}"
        if not shown:
            return Report(verdict, is_good)
        table = output.table(_COLUMNS, cells, levels=[each.level for each in shown])
        return Report(f"{table}\n{verdict}", is_good)

    running.run("doctor", work)

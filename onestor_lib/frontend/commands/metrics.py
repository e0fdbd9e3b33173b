"""onestor metrics: figures for monitoring."""

from __future__ import annotations

from pathlib import Path

import click

from onestor_lib.agent import publish
from onestor_lib.frontend.boundary import Request
from onestor_lib.frontend.commands import output, running
from onestor_lib.frontend.commands.running import Report


@click.command()
@click.option(
    "--output",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write them to this file, whole at any time, as node_exporter's textfile collector asks.",
)
@output.json_option
def metrics(file: Path | None, as_json: bool) -> None:
    """Show figures in the text format of Prometheus."""

    def work(request: Request) -> Report:
        from onestor_lib.frontend.services import metrics as service

        figures, is_all = service.figures(request)
        text = output.lines([figures]) if as_json else service.text(figures)
        if file is None:
            return Report(text, is_all)
        publish.write_file(file, f"{text}\n".encode())
        return Report("", is_all)

    running.run("metrics", work)

"""`nemo-trt doctor`."""

import json
from dataclasses import asdict

import click


@click.command(epilog="Example: nemo-trt doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show what this machine can run, and what to install for the rest."""
    from nemo_trt.engines.machine import examine

    machine = examine()
    if as_json:
        click.echo(json.dumps(asdict(machine), indent=2))
        return
    import rich.table

    from .console import OUT, escaped, mark

    for title, findings in (
        ("This machine", machine.system),
        ("Packages", machine.packages),
        ("It can", machine.can),
    ):
        table = rich.table.Table(title=title, title_justify="left", box=None, show_header=False)
        for finding in findings:
            words = (finding.name, finding.value, finding.remedy)
            name, value, remedy = (escaped(word) for word in words)
            table.add_row(mark(finding.present), name, value, f"[dim]{remedy}[/]")
        OUT.print(table)
        OUT.print()

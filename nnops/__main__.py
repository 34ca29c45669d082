"""`python -m nnops <verb>`."""

from __future__ import annotations

import sys

try:
    import typer

    from nnops.cli.bench import ManyValues, bench, bench_compare, bench_report
    from nnops.cli.info import info
    from nnops.cli.partition import partition
    from nnops.cli.verify import verify
except ModuleNotFoundError as error:
    if error.name not in {"typer", "rich"}:
        raise
    sys.exit("python -m nnops needs typer and rich: pip install typer rich")

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def main() -> None:
    """nnops on the command line."""


app.command()(info)
app.command(cls=ManyValues)(bench)
app.command(cls=ManyValues)(partition)
app.command(cls=ManyValues)(verify)
app.command()(bench_report)
app.command()(bench_compare)

if __name__ == "__main__":
    app(prog_name="python -m nnops")

"""Commands about schedules. A schedule is named by its name or its id."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from api.cli import output
from api.cli.context import client_of
from api.cli.jobs import AsJson, Priority, pairs
from api.cli.sources import source_of
from api.client import Client, Schedule, ScheduleRun

app = typer.Typer(help="Jobs that repeat.", no_args_is_help=True)

Named = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its name, or its id.")]


class Overlap(StrEnum):
    """When the run before has not ended."""

    SKIP = "skip"
    ALLOW = "allow"
    CANCEL_PREVIOUS = "cancel_previous"


class CatchUp(StrEnum):
    """Which times missed in an outage are made up for."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Yours; unique among your schedules.")],
    cron: Annotated[str, typer.Argument(help="minute hour day month weekday, such as '30 2 * * *'.")],
    kind: Annotated[str, typer.Argument(help="What is asked: see `batchsight kinds`.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE…", help="As for `submit`; {date}, {yesterday}, {date:%Y/%m} are filled in."),
    ] = None,
    *,
    timezone: Annotated[str, typer.Option(help="An IANA time zone, such as Europe/Berlin.")] = "UTC",
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter; JSON, else text.")
    ] = None,
    manifest: Annotated[bool, typer.Option("--manifest", help="SOURCE is a list of media (.jsonl or .csv).")] = False,
    overlap: Annotated[Overlap, typer.Option(help="When the run before has not ended.")] = Overlap.SKIP,
    catch_up: Annotated[CatchUp, typer.Option(help="Which times missed in an outage are made up for.")] = CatchUp.LAST,
    misfire_grace: Annotated[float, typer.Option(min=0, help="Seconds after which a time was missed.")] = 300,
    everything: Annotated[bool, typer.Option("--all", help="All objects each time, not only new ones.")] = False,
    paused: Annotated[bool, typer.Option("--paused", help="Fire only after `resume`.")] = False,
    priority: Annotated[Priority, typer.Option(help="How urgent.")] = Priority.BULK,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Of each job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a schedule."""
    with client_of(context) as client:

        def upload(path: Path) -> str:
            output.messages.print(f"uploading {path}", soft_wrap=True)
            return client.files.upload(path).id

        made = client.schedules.create(
            name,
            cron,
            job={
                "kind": kind,
                "source": source_of(sources or [], manifest=manifest, upload=upload),
                "parameters": pairs(param, "--param"),
                "priority": priority.value,
                "metadata": pairs(metadata, "--metadata"),
            },
            timezone=timezone,
            overlap=overlap.value,
            catch_up=catch_up.value,
            misfire_grace_seconds=misfire_grace,
            only_new=False if everything else None,
            paused=paused,
        )
        if as_json:
            output.write_json(made)
        else:
            output.write_text(made.id)


@app.command("list")
def list_schedules(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List schedules, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "name", "cron", "zone", "kind", "next", "last run")
        for found in client.schedules.list():
            if as_json:
                output.write_json(found)
                continue
            last = "" if found.last_run is None else _outcome(found.last_run)
            rows.add_row(found.id, found.name, found.cron, found.timezone, found.job["kind"], _next(found), last)
        if not as_json:
            output.data.print(rows)


@app.command()
def show(context: typer.Context, schedule: Named, *, as_json: AsJson = False) -> None:
    """Show a schedule with its next times and its last run."""
    with client_of(context) as client:
        _show(client.schedules.get(_id(client, schedule)), as_json=as_json)


@app.command()
def pause(context: typer.Context, schedule: Named, *, as_json: AsJson = False) -> None:
    """Fire no more until `resume`."""
    with client_of(context) as client:
        _show(client.schedules.pause(_id(client, schedule)), as_json=as_json)


@app.command()
def resume(context: typer.Context, schedule: Named, *, as_json: AsJson = False) -> None:
    """Fire again from the next time on."""
    with client_of(context) as client:
        _show(client.schedules.resume(_id(client, schedule)), as_json=as_json)


@app.command()
def run(
    context: typer.Context,
    schedule: Named,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All objects this once, not only new ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run it now, beside its cron; the job's id is written."""
    with client_of(context) as client:
        made = client.schedules.run(_id(client, schedule), only_new=False if everything else None)
        if as_json:
            output.write_json(made)
        else:
            output.write_text(made.job_id or "")


@app.command()
def history(
    context: typer.Context,
    schedule: Named,
    *,
    state: Annotated[str | None, typer.Option(help="Only runs in this state: fired, skipped, missed, failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the times that were due, newest first, and what became of them."""
    with client_of(context) as client:
        rows = output.table("due", "fired", "by", "run", "job", "why")
        for number, found in enumerate(client.schedules.runs(_id(client, schedule), state=state)):
            if number == limit:
                break
            if as_json:
                output.write_json(found)
                continue
            why = found.reason or ("" if found.error is None else f"{found.error.code}: {found.error.message}")
            times = (_time(found.scheduled_at), _time(found.fired_at))
            rows.add_row(*times, found.trigger, _outcome(found), found.job_id or "", why)
        if not as_json:
            output.data.print(rows)


@app.command()
def delete(context: typer.Context, schedule: Named) -> None:
    """Delete it; its jobs stay."""
    with client_of(context) as client:
        client.schedules.delete(_id(client, schedule))


def _id(client: Client, word: str) -> str:
    try:
        return str(uuid.UUID(word))
    except ValueError:
        found = next((each for each in client.schedules.list() if each.name == word), None)
    if found is None:
        raise typer.BadParameter(f"there is no schedule named {word!r}; see `batchsight schedule list`")
    return found.id


def _show(found: Schedule, *, as_json: bool) -> None:
    if as_json:
        output.write_json(found)
        return
    lines = [
        f"schedule  {found.id}",
        f"name      {found.name}",
        f"when      {found.cron} in {found.timezone}",
        f"job       {found.job['kind']} over {found.job['source'].get('url', found.job['source']['type'])}",
        f"policies  overlap {found.overlap}, catch up {found.catch_up}" + (", only new" if found.only_new else ""),
        f"next      {_next(found)}",
    ]
    lines += [f"          {_time(time)}" for time in found.next_runs[1:]]
    if found.last_run is not None:
        lines.append(f"last      {_time(found.last_run.scheduled_at)}  {_outcome(found.last_run)}")
    output.write_text("\n".join(lines))


def _next(found: Schedule) -> str:
    if found.paused:
        return "paused"
    return _time(found.next_runs[0]) if found.next_runs else "never"


def _outcome(found: ScheduleRun) -> str:
    """What became of the job, where there is one."""
    return found.job_state or ("job forgotten" if found.job_id else found.state)


def _time(time: datetime) -> str:
    """With its own offset, so that a change of the clock is seen."""
    return time.strftime("%Y-%m-%d %H:%M%z")

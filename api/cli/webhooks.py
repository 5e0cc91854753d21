"""Commands about webhooks: endpoints, their secrets, what became of each event."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from api.cli import output
from api.cli.context import client_of
from api.cli.exits import ExitCode
from api.cli.jobs import AsJson
from api.client import WebhookEndpoint

app = typer.Typer(help="Who is told when a job ends.", no_args_is_help=True)

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id.")]
_TIMES = ["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"]


@app.command()
def create(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Where events are sent: https.")],
    *,
    name: Annotated[str, typer.Option(help="To know it by.")] = "",
    event: Annotated[list[str] | None, typer.Option(help="Such as job.failed; repeatable. Default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create an endpoint; its secret is written this once."""
    with client_of(context) as client:
        made = client.webhooks.create(url, name=name, event_types=event or ["*"])
    _write_secret(made, as_json=as_json)


@app.command("list")
def list_endpoints(context: typer.Context, *, as_json: AsJson = False) -> None:
    """List endpoints, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "name", "url", "events", "state")
        for found in client.webhooks.list():
            if as_json:
                output.write_json(found)
                continue
            state = "enabled" if found.enabled else f"disabled: {found.disabled_reason}"
            rows.add_row(found.id, found.name, found.url, " ".join(found.event_types), state)
        if not as_json:
            output.data.print(rows)


@app.command()
def rotate(
    context: typer.Context,
    endpoint_id: EndpointId,
    *,
    grace: Annotated[int, typer.Option(min=0, help="Seconds for which the old secret still signs.")] = 86_400,
    as_json: AsJson = False,
) -> None:
    """Make a new secret; it is written this once."""
    with client_of(context) as client:
        rotated = client.webhooks.rotate(endpoint_id, grace_seconds=grace)
    _write_secret(rotated, as_json=as_json)


@app.command("test")
def send_test(
    context: typer.Context,
    endpoint_id: EndpointId,
    *,
    event: Annotated[str, typer.Option(help="Which event the sample looks like.")] = "webhook.test",
    as_json: AsJson = False,
) -> None:
    """Send a sample event once and write what the receiver says; exit code 1 where that is not a success."""
    with client_of(context) as client:
        result = client.webhooks.test(endpoint_id, event_type=event)
    if as_json:
        output.write_json(result)
    else:
        output.write_text(f"{result.event_type}: {result.status_code or 'no answer'}")
    if not result.success:
        output.messages.print(f"error: {result.error}", soft_wrap=True)
        raise typer.Exit(ExitCode.ERROR)


@app.command()
def deliveries(
    context: typer.Context,
    endpoint_id: EndpointId,
    *,
    state: Annotated[str | None, typer.Option(help="pending, sending, succeeded or failed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what was sent, newest first."""
    with client_of(context) as client:
        rows = output.table("id", "event", "job", "state", "attempts", "status", "error", "created")
        for found in client.webhooks.deliveries(endpoint_id, state=state):
            if as_json:
                output.write_json(found)
                continue
            rows.add_row(
                found.id,
                found.event_type,
                found.job_id or "",
                found.state,
                str(len(found.attempts)),
                str(found.last_status_code or ""),
                output.shortened(found.last_error),
                found.created_at.strftime("%Y-%m-%d %H:%M"),
            )
        if not as_json:
            output.data.print(rows)


@app.command()
def replay(
    context: typer.Context,
    endpoint_id: EndpointId,
    delivery_id: Annotated[str | None, typer.Argument(metavar="[DELIVERY]", help="One delivery.")] = None,
    *,
    since: Annotated[datetime | None, typer.Option(formats=_TIMES, help="All that failed since then.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send one delivery's event again, or everything that failed since a time."""
    if (delivery_id is None) == (since is None):
        raise typer.BadParameter("name a delivery, or give --since")
    with client_of(context) as client:
        if delivery_id is not None:
            again = client.webhooks.replay(endpoint_id, delivery_id)
            if as_json:
                output.write_json(again)
            else:
                output.write_text(again.id)
        elif since is not None:
            count = client.webhooks.replay_failed(endpoint_id, since=since.astimezone())
            if as_json:
                output.write_json({"replayed": count})
            else:
                output.write_text(str(count))


@app.command()
def enable(context: typer.Context, endpoint_id: EndpointId, *, as_json: AsJson = False) -> None:
    """Send to a disabled endpoint again, from the next event on."""
    with client_of(context) as client:
        enabled = client.webhooks.update(endpoint_id, enabled=True)
    if as_json:
        output.write_json(enabled)


@app.command()
def delete(context: typer.Context, endpoint_id: EndpointId) -> None:
    """Delete an endpoint."""
    with client_of(context) as client:
        client.webhooks.delete(endpoint_id)


def _write_secret(endpoint: WebhookEndpoint, *, as_json: bool) -> None:
    if as_json:
        output.write_json(endpoint)
        return
    output.messages.print(f"endpoint {endpoint.id}; its secret is not shown again:", soft_wrap=True)
    output.write_text(endpoint.secret or "")

"""Which addresses an endpoint may have, and what a receiver's answer means."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest

from pipelines.control.courier import Answer, address_policy
from pipelines.control.notify import decide
from pipelines.control.webhooks import check_url
from pipelines.jobs.errors import ConfigurationError, InvalidParameter
from pipelines.media.ssrf import AddressPolicy

REFUSED = """
http://example.com/hook ftp://example.com/hook example.com/hook https:///hook https://user@example.com/hook
https://user:word@example.com/hook https://example.com/hook#part https://127.0.0.1/hook https://[::1]/hook
https://10.0.0.8/hook https://169.254.169.254/latest https://[::ffff:10.0.0.1]/hook https://localhost/hook
https://a.localhost/hook https://2130706433/hook https://0x7f.1/hook https://127.1/hook https://0177.0.0.1/hook
https://LOCALHOST/hook https://[fd00::1]:8443/hook
"""


@pytest.mark.parametrize("url", REFUSED.split())
def test_an_address_that_is_never_sent_to_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidParameter) as found:
        check_url(url, AddressPolicy())
    assert found.value.param == "url"


@pytest.mark.parametrize("url", ["https://example.com/hook?a=b", "https://example.com:8443", "https://93.184.215.14/"])
def test_public_https_addresses_are_taken(url: str) -> None:
    check_url(url, AddressPolicy())


def test_development_may_open_a_network_and_plain_http() -> None:
    policy = address_policy(plain_http=True, networks=["127.0.0.0/8"])
    assert policy == AddressPolicy(allow_http=True, networks=(ip_network("127.0.0.0/8"),))
    check_url("http://127.0.0.1:8000/hook", policy)
    check_url("http://localhost:8000/hook", policy)
    with pytest.raises(InvalidParameter):
        check_url("http://10.0.0.1/hook", policy)
    with pytest.raises(ConfigurationError):
        address_policy(plain_http=True, networks=["everything"])


@pytest.mark.parametrize(
    ("answer", "attempt", "once", "state"),
    [
        (Answer(status=200), 1, False, "succeeded"),
        (Answer(status=299), 10, True, "succeeded"),
        (Answer(status=500, error="no"), 9, False, "pending"),
        (Answer(status=500, error="no"), 10, False, "failed"),
        (Answer(status=500, error="no"), 12, False, "failed"),
        (Answer(error="no"), 1, True, "failed"),
        (Answer(status=410, error="gone"), 1, False, "failed"),
    ],
)
def test_what_an_answer_means(answer: Answer, attempt: int, once: bool, state: str) -> None:
    decision = decide(answer, attempt=attempt, once=once, uniform=random.uniform)
    assert decision.state == state
    assert decision.disable == (answer.status == 410)

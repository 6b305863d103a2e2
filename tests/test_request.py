"""Laws of what a request for `broker` says and what its answer tells, without any gateway."""

from dataclasses import replace

import pytest

from router import DialError
from router.portfolio.prices import PriceTable
from router.request import RequestDials, needed_capabilities, read_dials, request_prompt, response_headers

OFFER = 'model = "m", provider = "p", region = "r", context_window = 9, usd_per_mtok_input = 1, usd_per_mtok_output = 1'


@pytest.mark.parametrize(
    ("model", "metadata", "expected"),
    [
        ("broker", None, RequestDials()),
        ("broker/quality=0.9,worth=0.002", None, RequestDials(quality=0.9, worth_usd=0.002)),
        ("broker/critical", {"critical": False, "worth_usd": 1}, RequestDials(worth_usd=1)),
        ("broker/class=a", None, RequestDials(request_class="a")),
        ("broker/class=a,quality=0.9", {"class": "b"}, RequestDials(quality=0.9, request_class="b")),
    ],
)
def test_metadata_wins_over_the_name(model, metadata, expected):
    assert read_dials(model, metadata) == expected


@pytest.mark.parametrize(
    ("model", "metadata"),
    [
        ("broker/cheap", None),
        ("broker/critical,critical", None),
        ("broker", "x"),
        ("broker", {"quality": "high"}),
        ("broker/class=", None),
        ("broker/class=a,class=b", None),
        ("broker", {"class": 1}),
        ("broker", {"class": None}),
    ],  # fmt: skip
)
def test_what_is_no_dial_is_refused_with_what_was_expected(model, metadata):
    with pytest.raises(DialError, match="expected"):
        read_dials(model, metadata)


@pytest.mark.parametrize(("stated", "needed"), [("", set()), (', capabilities = ["tools"]', {"tools"})])
def test_tools_are_needed_where_the_request_has_some_and_the_table_speaks_of_them(stated, needed):
    prices = PriceTable.parse(f'[[tiers]]\nname = "t"\noffers = [{{ {OFFER}{stated} }}]')
    assert needed_capabilities({"tools": [{}]}, prices) == needed
    assert needed_capabilities({}, prices) == set()


@pytest.mark.parametrize(
    ("stated", "kind", "needed"),
    [
        ("[]", "image_url", set()),
        ('["Vision"]', "image_url", {"vision"}),
        ('["vision"]', "input_audio", {"vision"}),
        ('["vision", "audio"]', "input_audio", {"audio"}),
        ('["vision", "audio"]', "text", set()),
    ],
)
def test_what_is_not_text_needs_a_capability_that_the_table_speaks_of(stated, kind, needed):
    prices = PriceTable.parse(f'[[tiers]]\nname = "t"\noffers = [{{ {OFFER}, capabilities = {stated} }}]')
    messages = [{"role": "user", "content": [{"type": kind, "text": "Hi"}]}]
    assert needed_capabilities({"messages": messages}, prices) == needed


def test_several_prompts_of_a_text_completion_are_one_text():
    assert request_prompt({"prompt": ["a", "b"]}) == "a\n\nb" and request_prompt({"messages": []}) is None


def test_headers_are_printable_ascii_whatever_the_tiers_are_called(router):
    name = "pr\u00e9mium \u4e2d\r\nx-injected: 1"
    headers = response_headers(replace(router.route("Hello!"), tier=name, reason=name, cost_usd={name: 1.5e-7}))
    assert all(value.isascii() and value.isprintable() for value in headers.values()), headers
    assert float(headers["x-broker-expected-cost-usd"]) == 1.5e-7
    assert "x-broker-expected-cost-usd" not in response_headers(router.route(None))

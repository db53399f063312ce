"""How a picture was made, in XMP: written, read, and refused."""

import pytest

from sr3.xmp import NAMESPACE, packet, properties

MADE = {"parameters": 'a <cat> & "dog"\nSteps: 4, 雪花 😀', "Software": "sr3-cascade", "empty": ""}


def test_what_is_written_is_read() -> None:
    written = packet(MADE)
    assert properties(written) == properties(written.decode()) == {k: v for k, v in MADE.items() if v}


@pytest.mark.parametrize("other", [None, b"", b"no XML", NAMESPACE, packet(MADE)[:-80], b"<x>a</x>"])
def test_what_is_no_packet_of_ours_has_no_properties(other: object) -> None:
    assert properties(other) == {}


def test_properties_of_others_are_left_out() -> None:
    given = packet({"seed": "7"}).replace(b"<sr3:", b'<o:seed xmlns:o="https://example.org/">8</o:seed><sr3:', 1)
    assert properties(given) == {"seed": "7"}


def test_entities_are_not_expanded() -> None:
    declared = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    assert properties(f'{declared}<x><s:parameters xmlns:s="{NAMESPACE}">&a;</s:parameters></x>') == {}

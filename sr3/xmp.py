"""How a picture was made, as an XMP packet (ISO 16684-1) in its file."""

from collections.abc import Mapping
from xml.parsers.expat import ExpatError, ParserCreate
from xml.sax.saxutils import escape

NAMESPACE = "https://ns.sr3-cascade.invalid/1.0/"


def packet(text: Mapping[str, str]) -> bytes:
    """The entries as properties of NAMESPACE; keys are names of XML."""
    entries = "".join(f"<sr3:{key}>{escape(value)}</sr3:{key}>" for key, value in text.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:sr3="{NAMESPACE}">{entries}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def properties(given: object) -> dict[str, str]:
    """The properties of NAMESPACE in a packet; none where it is no XMP."""
    if not isinstance(given, bytes | str) or NAMESPACE.encode() not in (
        given if isinstance(given, bytes) else given.encode()
    ):
        return {}
    found: dict[str, str] = {}
    inside: list[str] = []

    def begin(name: str, attributes: Mapping[str, str]) -> None:
        inside.append(name)

    def end(name: str) -> None:
        inside.pop()

    def characters(more: str) -> None:
        if inside and inside[-1].startswith(f"{NAMESPACE} "):
            key = inside[-1].removeprefix(f"{NAMESPACE} ")
            found[key] = found.get(key, "") + more

    parser = ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = _no_entities
    try:
        parser.Parse(given, True)
    except (ExpatError, ValueError):
        return {}
    return found


def _no_entities(*declaration: object) -> None:
    raise ValueError("entities are not expanded")

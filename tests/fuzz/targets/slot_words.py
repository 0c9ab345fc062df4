"""What daemon, router and worker say to each other about a slot: assignments, reports, notes."""

from collections.abc import Iterator

from bedsit.ipc.errors import CODES, WorkerFailed
from bedsit.ipc.slot import (
    Assignment,
    ModelToLoad,
    Note,
    Report,
    Word,
    decode_assignment,
    decode_note,
    decode_report,
    encode_assignment,
    encode_note,
    encode_report,
)
from bedsit.supervisor.reports import clean_text, read_failure
from tests.fuzz.draw import Draw, pack, tell_lies
from tests.fuzz.oracle import attempt, check_refusal, same

_GOOD = ["acme", 2, [[1, "gate", 1, 4096], [2, "other", 3, 1 << 40]]]
_FAULTS = ("bundle.invalid", *(code for code, kind in CODES.items() if kind is WorkerFailed))


def seeds() -> Iterator[bytes]:
    """One of each."""
    yield b"\x00" + encode_assignment(Assignment("acme", 2, (ModelToLoad(1, "gate", 1, 4096),)))
    yield b"\x00" + encode_note(Note(Word.GIVE, 1, 1 << 20))
    yield b"\x00" + encode_report(Report.FAILED, 1, "bundle.invalid\nno \u202e way\n\x1b[31m".encode())
    yield b"\x00" + encode_report(Report.PROGRESS, 0, b"load \xff\xfe")
    yield bytes([1, 3, 2, 5, 0, 1])
    yield b"\x02" + bytes(range(20))


def TestOneInput(data: bytes) -> None:  # noqa: N802 - the name that fuzzers look for
    """Nothing but an assignment or a refusal; reports and notes are read whatever they are; their text is harmless."""
    draw = Draw(data)
    kind = draw.byte() % 3
    body = draw.rest() if kind == 0 else pack(draw.twist(_GOOD)) if kind == 1 else tell_lies(draw)
    assignment = attempt(lambda: decode_assignment(body), "wire.malformed", size=len(body))
    if assignment is not None:
        assert all(isinstance(model, ModelToLoad) for model in assignment.models)
        if kind == 0:
            assert same(decode_assignment(encode_assignment(assignment)), assignment)
    note = decode_note(body)
    assert (note == Note(0)) or encode_note(note)[:1] == body[:1]
    word, index, text = decode_report(body)
    assert len(text) <= len(body)
    assert (word, index) == (0, 0) or len(text) == len(body) - 3
    line = clean_text(text)
    assert line.isprintable()
    assert len(line) <= 2048
    failure = read_failure(text)
    check_refusal(failure, _FAULTS)
    assert failure.message.isprintable()

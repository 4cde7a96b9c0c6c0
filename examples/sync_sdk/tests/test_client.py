"""Each test runs twice: for `Client`, and for `AsyncClient`."""

import itertools

import pytest
from notes_sdk import Note, NotFoundError


def test_a_note_that_was_added_is_there(client):
    note = client.add("milk")

    assert note == Note(0, "milk")
    assert client.get(0) == note


def test_a_note_that_is_not_there_is_an_error(client):
    with pytest.raises(NotFoundError):
        client.get(3)


def test_pages_are_fetched_when_they_are_needed(client, service):
    for number in range(9):
        client.add(f"note {number}")

    first = list(itertools.islice(client.notes(page_size=4), 3))

    assert [note.number for note in first] == [0, 1, 2]
    assert service.requests == ["/notes?start=0&count=4"]
    assert len(list(client.notes(page_size=4))) == 9


def test_notes_are_streamed(client):
    client.add("milk")
    client.add("bread")

    with client.export() as lines:
        assert list(lines) == [b"milk\n", b"bread\n"]

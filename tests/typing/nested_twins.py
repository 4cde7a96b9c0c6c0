# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What a type checker sees of what comes out of a twin, and of `Self`. Checked by mypy and pyright, both strict; never run."""

from typing import assert_type

from sdk.groups import Box, Root, Special
from sdk.groups_aio import AsyncResponse, AsyncRoot, Chunk, Completion

root = Root("key")
assert_type(root.chat.completions.create("q"), Completion)
assert_type(root.beta.chat.completions.create("q", stream=False), Completion)
for chunk in root.chat.completions.create("q", stream=True):
    assert_type(chunk, Chunk)
with root.chat.completions.create("q", stream=True) as stream:
    assert_type(next(stream), Chunk)
    assert_type(stream.response.read(), bytes)
    stream.close()
assert_type(root.completion, Completion)
assert_type(root.files.get("name"), bytes)
assert_type(root.files.get.options(timeout=3)("name"), bytes)
for completion in root.chat.completions.list():
    assert_type(completion, Completion)
assert_type(root.chat.completions.list().wait().get_next_page().data, list[Completion])
assert_type(root.cursor.fetch(), tuple[int, str])
for response in root.all():
    assert_type(response.read(), bytes)
    assert_type(response.json(), object)
    assert_type(response.status, int)
    # The twin goes in, and so does an original.
    assert_type(root.files.send(response).read(), bytes)
    root.files.send(AsyncResponse(), again=response)
root.chat.completions.create(3)  # type: ignore[call-overload]
root.files.gat("name")  # type: ignore[attr-defined]

# --- `Self`, through all the ways to write it ------------------------------------------------------------------------

assert_type(root.copy(), Root)
assert_type(root.with_options(), Root)
assert_type(Root.create("x"), Root)
assert_type(Root.create.options(timeout=3)("x"), Root)
assert_type(root.create("x"), Root)
assert_type(Root.old_style("x"), Root)
assert_type(Root.in_quotes("x"), Root)
assert_type(Root.pair(), tuple[Root, Completion])
for each in Root.each():
    assert_type(each, Root)
with Root.session("x") as session:
    assert_type(session, Root)
with root.locked() as locked:
    assert_type(locked, Root)
assert_type(Root.several("1"), Root)
assert_type(Root.several(2), list[Root])


async def callback(original: AsyncRoot) -> int:
    return 1


assert_type(root.tap(callback), Root)
assert_type(root.call(len, "abc"), tuple[Root, int])

special = Special("key")
assert_type(special.more(), int)
assert_type(special.copy(), Special)
assert_type(Special.create("x"), Special)
assert_type(Special.old_style("x"), Special)
assert_type(special.chat.completions.create("q"), Completion)
with Special.session("x") as session_of_special:
    assert_type(session_of_special, Special)

box = Box(3)
assert_type(box.get(), int)
assert_type(box.both(special), tuple[int, Special])
assert_type(box.copy(), Box[int])
assert_type(box.load(), int)
assert_type(box.load(special), int | Special)


async def main() -> None:
    assert_type(await Root.create.aio("x"), Root)
    assert_type(await Special.old_style.aio("x"), Special)
    assert_type(await root.chat.completions.create.aio("q"), Completion)
    assert_type(await root.copy.aio(), Root)
    assert_type(await box.load.aio(), int)
    async with Root.session.aio("x") as opened:
        assert_type(opened, Root)

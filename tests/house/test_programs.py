"""`run_child` runs functions of a test as programs: with what they name, and as if they had been written at the top level."""

import asyncio
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from children import run_child
from programs import source_of

GREETING = "hello"


def greets(name):
    return f"{GREETING} {name}"


def is_even(number):
    return number == 0 or is_odd(number - 1)


def is_odd(number):
    return number != 0 and is_even(number - 1)


def registers_itself():
    sys.registered = ["omniloop" in sys.modules]


def test_a_program_brings_what_it_names_and_nothing_else():
    def program():
        async def work():
            return greets("you")

        print(asyncio.run(work()), is_even(10), "omniloop" in sys.modules)

    result = run_child(program)

    assert result == ("hello you True False\n", "", 0, result.seconds)
    assert "pytest" not in source_of(program)


def test_its_body_is_the_top_level_so_that_its_names_are_globals_which_outlive_its_last_line():
    def program():
        count = 0

        def more():
            nonlocal count
            count += 1

        class Held:
            def __del__(self):
                print("dropped after the last line")

        held = Held()
        more()
        print(count, globals()["count"], "held" in globals())

    assert run_child(program).stdout == "1 1 True\ndropped after the last line\n"


@pytest.mark.parametrize("word", ["one", 'with "quotes"\n'])
def test_it_takes_the_values_and_functions_of_the_test_around_it(word):
    numbers = {"a": [1, 2.5, None]}

    def twice(text):
        return text * 2

    def program():
        print(repr(twice(word)), numbers)

    assert run_child(program).stdout == f"{word * 2!r} {numbers}\n"


@pytest.mark.parametrize("ask", [is_even, is_odd])
def test_a_function_may_be_a_parameter_of_the_test(ask):
    def program():
        print(ask(3))

    assert run_child(program).stdout == f"{ask is is_odd}\n"


def test_a_value_that_cannot_be_written_down_is_refused_by_its_name():
    path = Path("x")

    def program():
        print(path)

    with pytest.raises(TypeError, match=r"^path = .*Path\('x'\) can't be written into a program: hand over text"):
        source_of(program)


def test_programs_follow_one_another_and_each_brings_only_what_is_not_there_yet():
    def program():
        import omniloop

        print(sys.registered, omniloop.run(asyncio.sleep(0, GREETING)))

    assert source_of(registers_itself, program).count("import sys\n") == 1
    assert run_child(registers_itself, program).stdout == "[False] hello\n"


def test_text_of_several_lines_stays_as_it_is():
    def program():
        print("""first
    second
third""")

    assert run_child(program).stdout == "first\n    second\nthird\n"


def test_its_first_statement_may_be_decorated():
    def program():
        @staticmethod
        def says():
            print("said")

        says()

    assert run_child(program).stdout == "said\n"


def test_what_threads_and_processes_print_is_not_mixed_within_a_line():
    """Parent and child printed into each other, once in some hundred runs."""

    def program():
        def prints(who):
            for number in range(300):
                print(who, "says", number, sep="-")

        pid = os.fork()
        threads = [threading.Thread(target=prints, args=(f"{os.getpid()}.{n}",)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if pid:
            os.waitpid(pid, 0)

    result = run_child(program)

    lines = result.stdout.splitlines()
    assert (len(lines), result.stderr, result.code) == (1200, "", 0)
    assert [line for line in lines if not re.fullmatch(r"\d+\.\d-says-\d+", line)] == []

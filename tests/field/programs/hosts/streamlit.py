# /// script
# requires-python = "==3.14.*"
# dependencies = ["streamlit==1.67.0"]
# ///
"""
`AppTest`: a script that calls `run` and `go`, run again at each click, with a session state that keeps a handle.
"""

from streamlit.testing.v1 import AppTest

from ending import right


def script():
    import asyncio

    import streamlit as st

    import omniloop

    async def double(number):
        await asyncio.sleep(0.01)
        return number * 2

    st.text(omniloop.run(double(21), timeout=20))
    if "handle" not in st.session_state:
        st.session_state.handle = omniloop.go(double(4))
    st.text(st.session_state.handle.result(timeout=20))
    if st.button("again"):
        st.text(omniloop.run(double(5), timeout=20))


app = AppTest.from_function(script, default_timeout=60).run()
assert not app.exception, app.exception
assert [text.value for text in app.text] == ["42", "8"]
app.button[0].click().run()
assert [text.value for text in app.text] == ["42", "8", "10"]
right("`run` in each run of the script; a handle that the session state keeps from one to the next.")

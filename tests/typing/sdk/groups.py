"""The sync faces: of what comes out of them nothing is said."""

from omniloop import blocking

from .groups_aio import AsyncBox, AsyncRoot, AsyncSpecial

Root = blocking(AsyncRoot)
Special = blocking(AsyncSpecial)
Box = blocking(AsyncBox)

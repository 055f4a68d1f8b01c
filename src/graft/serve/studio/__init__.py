"""The studio: pages of the server for runs, answers side by side, blind votes and what is learnt from them.

Each page is one router of JSON (`/studio/api/...`), in a file of this package, and one module of JavaScript
in `web/`. Pages need no other host and no build step. What stands in them came from models and strangers'
files: it is written as text nodes, never as HTML.
"""

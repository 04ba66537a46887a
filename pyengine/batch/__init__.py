"""Batch files: thousands of requests from one file through one engine, without a server.

``lines`` reads requests and finds out which are already answered, ``answers`` knows the endpoints, ``pipeline`` keeps
the engine busy, ``__main__`` is the program. Bodies, checks and answers are those of the HTTP API, of which nothing but
the shapes is used.
"""

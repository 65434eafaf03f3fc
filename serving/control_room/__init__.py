"""The control room: one picture a second of a whole system, for whoever looks, and the page that draws it.

It owns what a picture is, who is told it, and the HTTP of it. What a system says comes from outside, through
``picture.Look``: this package knows no part, no log and no training.
"""

"""The control room: a live picture of a whole system once a second, its HTTP app, and the page that draws it.

The system's data come in through ``picture.SystemSource``: this package knows no part, no log and no
training.
"""

"""Makes kafka-python's table of response classes safe for clients that start at once in threads.

kafka-python makes the class of a response's version when the first such response comes, and registers it by a
weak reference. If two threads make one at the same time, that which is registered may be the one that nobody
keeps: from then on each such response ends its connection, in all clients of the process (ReferenceError).
"""

from typing import Any

from kafka.protocol.api_header import ResponseClassRegistry


def keep_response_classes() -> None:
    """Lets the table hold the classes themselves. Called once, before the first client is made."""
    table = ResponseClassRegistry._response_class_registry
    table.update({key: _class_of(registered) for key, registered in table.items()})
    ResponseClassRegistry.register_response_class = _register


def _register(response_class: Any) -> None:
    registry = ResponseClassRegistry._response_class_registry
    registry[response_class.API_KEY] = _class_of(response_class)


def _class_of(reference: Any) -> type:
    """The class that a weak proxy stands for."""
    return reference.mro()[0]  # type: ignore[no-any-return]

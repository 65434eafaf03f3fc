"""How a configured value is refused: by name, with what was expected and where to change it."""


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}; set it in the configuration")

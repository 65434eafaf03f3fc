"""YAML with line numbers, so that an error in a configuration file can name its line."""

from typing import Any

import yaml


class YamlError(ValueError):
    """An error in a YAML text, with its line."""

    def __init__(self, file: object, line: int, reason: str) -> None:
        self.file, self.line, self.reason = str(file), line, reason
        super().__init__(f"{file}:{line}: {reason}")


class YamlWithLines:
    """A YAML text as plain values, with the line of each: ``line("layers", 0, "arms")``."""

    def __init__(self, text: str, file: object = "<text>") -> None:
        self.file = str(file)
        self._lines: dict[tuple[str | int, ...], int] = {(): 1}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self.value: Any = yaml.safe_load(text)
            if node is not None:
                self._mark(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            reason = error.problem or "not YAML"
            raise YamlError(file, mark.line + 1 if mark else 1, reason) from error
        except yaml.YAMLError as error:
            raise YamlError(file, 1, str(error).partition("\n")[0]) from error
        except RecursionError as error:
            raise YamlError(file, 1, "an alias within itself, or hundreds of levels") from error

    def line(self, *path: str | int) -> int:
        """The line of a value, or of the nearest enclosing one."""
        while path not in self._lines:
            path = path[:-1]
        return self._lines[path]

    def error(self, reason: str, *path: str | int) -> YamlError:
        """An error about the value at ``path``."""
        return YamlError(self.file, self.line(*path), reason)

    def mapping(self, keys: set[str], *path: str | int) -> dict[str, Any]:
        """The mapping at ``path``; raises YamlError for another type or an unknown key."""
        value = self.value
        for part in path:
            value = value[part]
        if not isinstance(value, dict):
            raise self.error(f"expected a mapping, found {value!r}", *path)
        for key in value:
            if key not in keys:
                names = ", ".join(sorted(keys))
                raise self.error(f"unknown key {key!r}; there are {names}", *path, key)
        return value

    def _mark(self, node: yaml.Node, path: tuple[str | int, ...]) -> None:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*path, str(key.value))
                if inner in self._lines:
                    reason = f"the key {key.value!r} is repeated"
                    raise YamlError(self.file, key.start_mark.line + 1, reason)
                self._lines[inner] = key.start_mark.line + 1
                self._mark(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._mark(value, (*path, i))

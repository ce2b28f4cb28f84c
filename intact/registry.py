"""Registries of the names that schemes and saved models use."""

from typing import Generic, TypeVar

from intact.errors import IntactError

T = TypeVar("T")


class Registry(dict[str, T], Generic[T]):
    """Objects of one kind by their names.

    A user's own objects join intact's, and replace one only with `replace=True`.

    Args:
        kind: What they are, for errors, such as "quantizer".
        remedy: What to do about an unknown name, for errors.

    Example:

    >>> widths = Registry("width", "Pass one of these.")
    >>> widths.add("int8", 8)
    >>> widths.find("int8")
    8
    """

    def __init__(self, kind: str, remedy: str) -> None:
        super().__init__()
        self.kind = kind
        self.remedy = remedy

    def add(self, name: str, item: T, replace: bool = False) -> None:
        """Register something.

        Args:
            name: Its name.
            item: The object.
            replace: Whether it may replace another one.

        Raises:
            IntactError: Another object has the name already.
        """
        known = self.get(name)
        if known is not None and not replace and not is_same(item, known):
            raise IntactError(
                f"{_name_of(item)} cannot be registered as {self.kind} {name!r}: that is the name "
                f"of {_name_of(known)}. Give it another name, or pass `replace=True`."
            )
        self[name] = item

    def find(self, name: object) -> T:
        """Look something up.

        Args:
            name: Its name.

        Raises:
            IntactError: There is none of that name.
        """
        if not isinstance(name, str) or name not in self:
            known = ", ".join(sorted(name for name in self if not name.startswith("_")))
            raise IntactError(f"There is no {self.kind} {name!r}. Known: {known}. {self.remedy}")
        return self[name]


def is_same(item: object, other: object) -> bool:
    """Whether a class is a new definition of another one, as when a notebook's cell runs again."""
    return _path_of(item) == _path_of(other)


def _path_of(item: object) -> tuple[object, object]:
    return getattr(item, "__module__", None), getattr(item, "__qualname__", item)


def _name_of(item: object) -> str:
    return str(getattr(item, "__name__", item))

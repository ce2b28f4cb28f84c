"""Names by which schemes and saved models call things, of ours and of a user's own."""

from typing import Generic, TypeVar

from intact.errors import IntactError

T = TypeVar("T")


class Registry(dict[str, T], Generic[T]):
    """Things of one kind by their names.

    A user's own stands beside ours, and takes the place of another only where that is asked for.

    Args:
        kind: What they are, for errors: "quantizer".
        remedy: What to do about a name that is unknown, for errors.

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
            item: The thing.
            replace: Whether it may take the place of another.

        Raises:
            IntactError: Another has the name already.
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
            raise IntactError(
                f"There is no {self.kind} {name!r}. Known: {', '.join(sorted(self))}. {self.remedy}"
            )
        return self[name]


def is_same(item: object, other: object) -> bool:
    """Whether a class is another one that is defined anew, as when a notebook's cell runs again."""
    return _path_of(item) == _path_of(other)


def _path_of(item: object) -> tuple[object, object]:
    return getattr(item, "__module__", None), getattr(item, "__qualname__", item)


def _name_of(item: object) -> str:
    return str(getattr(item, "__name__", item))

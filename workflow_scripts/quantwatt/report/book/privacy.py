"""Keep what names a person or a machine out of a bundle: absolute paths, users, hosts and credentials.

Paths are shortened to their last part wherever they stand. The names of this user and this host are replaced in
reasons, which quote error messages; anywhere else they are refused, because a name that others refer to cannot be
changed here.
"""

import contextlib
import getpass
import os
import platform
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from quantwatt.artifacts.errors import DataError
from quantwatt.artifacts.manifest import PROJECT, without_credentials

LONGEST = 1_000  # characters of a reason that are packed: some libraries' messages are pages long
SHORTEST = 4  # characters of a name that is looked for: shorter ones are parts of ordinary words
# Names that half of all machines have, and that tell nothing.
ORDINARY = frozenset(
    "admin administrator debian docker fedora home host localhost nobody root runner runneradmin test ubuntu user "
    "username worker".split()
)
QUOTING = ("reason", "source", "why")  # keys, or their last word, of texts that quote error messages
OF_THE_SYSTEM = ("/sys/", "/proc/", "/dev/")  # paths that every machine has
_PATH = re.compile(
    r"""file:/+[^\s'"<>|]+                       # an address of a file
    |(?<![\w./:~\\-])[A-Za-z]:\\[^\s'"<>|]+      # of Windows
    |(?<![\w.:~/…-])~?/[\w.@+-][^\s'"<>|,;()]*   # of Unix""",
    re.VERBOSE,
)


class Privacy:
    """What must not be in a bundle, as found on this machine.

    Args:
        home: folder of this user; users, hosts: their names.
        keep: names that may stand, because they are ordinary words.
    """

    def __init__(
        self, home: Path | None, users: Iterable[str], hosts: Iterable[str], keep: Collection[str] = ()
    ) -> None:
        self._home = str(home)
        kept = {word.lower() for word in keep} | ORDINARY
        self._names: dict[str, str] = {}
        for what, names in (("host", hosts), ("user", users)):
            self._names |= {name: what for name in names if len(name) >= SHORTEST and name.lower() not in kept}
        longest = sorted(self._names, key=len, reverse=True)
        self._word = re.compile("|".join(rf"(?<![^\W_]){re.escape(n)}(?![^\W_])" for n in longest) or "(?!)", re.I)

    @classmethod
    def of_this_machine(cls, keep: Collection[str] = ()) -> "Privacy":
        """The home folder, and all names that the system gives for this user and this host."""
        home = Path("~").expanduser()
        hosts = {platform.node(), os.environ.get("HOSTNAME", "")}
        users = {home.name, *(os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER"))}
        with contextlib.suppress(KeyError, OSError):  # no such user, as in a container
            users.add(getpass.getuser())
        return cls(home, users - {""}, {part for host in hosts for part in (host, host.partition(".")[0])} - {""}, keep)

    def cleaned(self, value: Any, file: str, entry: str = "", key: str = "") -> Any:
        """A copy of JSON's values without paths and credentials, and in reasons without names.

        Args:
            file: for messages; entry: the keys on the way to `value`, key: the last of them that is a name.
        Raises:
            DataError: a name of this user or host is left.
        """
        if isinstance(value, Mapping):
            for name in value:
                self._refuse(name, file, _below(entry, name))
            return {name: self.cleaned(part, file, _below(entry, name), name) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.cleaned(part, file, _below(entry, number), key) for number, part in enumerate(value)]
        if not isinstance(value, str):
            return value
        text = self.without_paths(value)
        if key.rpartition("_")[2].rstrip("s") in QUOTING:
            return self._word.sub(lambda found: f"[{self._what(found[0])}]", text)[:LONGEST]
        self._refuse(text, file, entry)
        return text

    def without_paths(self, text: str) -> str:
        """A text in which an absolute path is only its last part, and no URL has a password."""
        text = without_credentials(text)
        for folder in dict.fromkeys((PROJECT, PROJECT.resolve())):
            text = text.replace(f"{folder}/", "")
        return _PATH.sub(self._shortened, text)

    def _shortened(self, found):
        path = found[0]
        if path.startswith(OF_THE_SYSTEM):
            return path
        parts = [part for part in re.split(r"[/\\]", path.rstrip(".")) if part]
        if len(parts) < 2 or parts[-2].lower() in ("home", "users") or path == self._home:
            return "…"
        return f"…/{parts[-1]}"

    def _what(self, word):
        return next(what for name, what in self._names.items() if name.lower() == word.lower())

    def _refuse(self, text, file, entry):
        if found := self._word.search(text):
            raise DataError(
                f"{file}: {entry}: holds '{found[0]}', the name of this {self._what(found[0])}; rename it, or pass "
                f"--keep {found[0]} if it is an ordinary word there."
            )


def _below(entry, name):
    return f"{entry}.{name}" if entry else str(name)

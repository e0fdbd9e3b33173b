"""Tell whether this interpreter can run the drivers: `python3 - 'lxml>=4.9' ... < probe.py`.

install.sh feeds it to the interpreter on stdin, because the drivers' user may not be able to read
the checkout. It answers with one line per shortcoming and exit status 1. Its syntax stays that of
Python 3.6, so that an old interpreter says that it is old instead of showing a traceback.
"""

import importlib
import re
import sys
import warnings

# What the drivers import, where that differs from the name of the package.
MODULES = {"lxml": "lxml.etree"}


def numbers(version):  # type: (str) -> list[int]
    """The leading numbers of a version; enough to compare with a lower bound."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in match.group().split(".")] if match else []


def shortcoming(requirement):  # type: (str) -> str
    """Why a requirement such as `lxml>=4.9` is not met, or an empty text."""
    from importlib import metadata

    name, _, bound = requirement.partition(">=")
    try:
        importlib.import_module(MODULES.get(name, name))
        found = metadata.version(name)
    except Exception as err:  # noqa: BLE001 - a broken binary module may raise anything
        return "{}: {}".format(name, str(err).replace("\n", " ") or type(err).__name__)
    if numbers(found) < numbers(bound):
        return f"{name}: {found} is older than {bound}"
    return ""


def main(requirements):  # type: (list[str]) -> int
    if sys.version_info < (3, 9):  # noqa: UP036 - this is where an older one is met
        sys.stdout.write("python {}.{} is older than 3.9\n".format(*sys.version_info[:2]))
        return 2
    # paramiko warns about ciphers that a newer cryptography is going to drop.
    warnings.simplefilter("ignore")
    found = [text for text in map(shortcoming, requirements) if text]
    sys.stdout.write("".join(text + "\n" for text in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A terminal of fixed width that understands what live displays send: what a person sees at the end."""

import re

_CONTROL = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r\n|\r|\n)|([^\x1b\r\n])")


def screen(sent: str, width: int) -> list[str]:
    """The lines of a terminal after it was sent some text; long lines go on at the beginning of the next one.

    Raises:
        ValueError: a control sequence is not known here.
    """
    lines, row, column = [""], 0, 0
    for match in _CONTROL.finditer(sent):
        argument, command, newline, character = match.groups()
        if command == "A":
            row = max(0, row - int(argument or 1))
        elif command == "K":
            lines[row] = "" if argument == "2" else lines[row][:column]
        elif command not in (None, "m", "h", "l"):
            raise ValueError(f"control sequence {match[0]!r}")
        elif newline:
            column = 0
            row += "\n" in newline
        elif character:
            if column == width:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]

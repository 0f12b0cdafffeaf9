"""Runs a program in its own terminal, like a shell, and simulates a user."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
import unicodedata

LIMIT_SECONDS = 60
# A control sequence, with its cursor position if it has one, or text.
WRITTEN = re.compile(r"(\x1b\[(?:(\d+);(\d+)H|[?\d;]*[A-Za-z]))|([^\x1b\r\n]+)")


class Terminal:
    """A pseudo-terminal, a shell that owns it, and the program as that shell's foreground job."""

    def __init__(self, arguments, columns=80, lines=24):
        self.screen, self.tty = pty.openpty()
        self.resize(columns, lines)
        self.settings = termios.tcgetattr(self.tty)
        # Output that is not parsed yet, and parsed output.
        self.output = self.written = b""
        self.at, self.cells = (1, 1), {}
        news, self.orders = os.pipe()
        self.messages, sender = os.pipe()
        self.shell = os.fork()
        if self.shell == 0:
            try:
                self._be_shell(arguments, news, sender)
            finally:
                os._exit(99)
        os.close(news)
        os.close(sender)

    def _be_shell(self, arguments, orders, tell):
        os.setsid()
        fcntl.ioctl(self.tty, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        for stream in range(3):
            os.dup2(self.tty, stream)
        job = os.fork()
        if job == 0:
            os.setpgid(0, 0)
            os.tcsetpgrp(self.tty, os.getpid())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            os.closerange(3, 64)
            os.execv(arguments[0], arguments)
        os.write(tell, f"started {job}\n".encode())
        while True:
            _, status = os.waitpid(job, os.WUNTRACED)
            os.tcsetpgrp(self.tty, os.getpid())
            if not os.WIFSTOPPED(status):
                os.write(tell, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
                os._exit(0)
            os.write(tell, b"stopped\n")
            os.read(orders, 1)
            os.tcsetpgrp(self.tty, job)
            os.killpg(job, signal.SIGCONT)

    def resize(self, columns, lines):
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys):
        os.write(self.screen, keys.encode())

    def until(self, words, gone=False):
        """Waits until these words are on the screen, or gone."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while (words in self.shown()) == gone:
            self._read(deadline, words)

    def shown(self):
        """The screen: the output as rendered by a terminal."""
        for command, row, column, text in WRITTEN.findall(self.output.decode(errors="ignore")):
            if row:
                self.at = int(row), int(column)
            elif command.endswith(("[2J", "[?1049h", "[?1049l")):
                self.cells = {}
            for character in text:
                row, column = self.at
                self.cells[row, column] = character
                self.at = row, column + (2 if unicodedata.east_asian_width(character) in "WF" else 1)
        self.written += self.output
        self.output = b""
        if not self.cells:
            return ""
        rows, columns = (max(at) + 1 for at in zip(*self.cells))
        line = lambda row: "".join(self.cells.get((row, column), " ") for column in range(1, columns))
        return "\n".join(map(line, range(1, rows)))

    def wait_for(self, what):
        """Waits for a message of the shell, while reading the output."""
        deadline = time.monotonic() + LIMIT_SECONDS
        message = b""
        while not message.endswith(b"\n"):
            if self._read(deadline, what, self.messages):
                message += os.read(self.messages, 1)
        message = message.decode().strip()
        assert message.startswith(what), (message, what, self.output)
        return message.removeprefix(what).strip()

    def _read(self, deadline, wanted, other=None):
        """Reads output; returns whether the other end has something to read."""
        readers = [self.screen] if other is None else [self.screen, other]
        ready, _, _ = select.select(readers, [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {wanted!r} within {LIMIT_SECONDS} s: {self.shown()}\n{self.written!r}"
        if self.screen in ready:
            written = os.read(self.screen, 65536)
            self.check(written)
            self.output += written
        return other in ready

    def check(self, written):
        for hostile in [b"\x1b]", b"\x07", "\u202e".encode(), "\u2066".encode()]:
            assert hostile not in written, written

    def is_raw(self):
        return not termios.tcgetattr(self.tty)[3] & termios.ICANON

    def ended(self, code):
        """Waits for this exit code, and checks that the terminal is restored."""
        ended = self.wait_for("ended")
        assert ended == str(code), (ended, self.output)
        self.check_restored()
        os.waitpid(self.shell, 0)

    def check_restored(self):
        while select.select([self.screen], [], [], 0.2)[0]:
            self.output += os.read(self.screen, 65536)
        assert termios.tcgetattr(self.tty) == self.settings
        assert self.shown() == "", self.shown()
        for on, off in [(b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h")]:
            # The main screen, and a cursor.
            assert self.written.rfind(off) > self.written.rfind(on), self.written


def keys(top):
    terminal = Terminal(top)
    terminal.wait_for("started")
    terminal.until("exec-2")
    terminal.until("q quit")
    assert terminal.is_raw()
    terminal.resize(40, 10)
    terminal.until("memory", gone=True)
    terminal.until("exec-2")
    terminal.resize(120, 40)
    terminal.until("memory")
    terminal.press("/exec-2\r")
    terminal.until("1 of 3 with")
    terminal.press("\r")
    terminal.until("sequences: ")
    terminal.press("?")
    terminal.until("^Z suspend")
    # A lone escape.
    terminal.press("\x1b")
    terminal.until("^Z suspend", gone=True)
    terminal.press("\x1b")
    terminal.until("sequences: ", gone=True)
    terminal.press("f")
    terminal.until("FROZEN for")
    terminal.press("f")
    terminal.until("live")
    terminal.press("\x1a")
    terminal.wait_for("stopped")
    terminal.check_restored()
    os.write(terminal.orders, b"c")
    terminal.until("live")
    assert terminal.is_raw()
    terminal.press("q")
    terminal.ended(0)


def signals(top):
    for name in ["TERM", "INT", "HUP"]:
        terminal = Terminal(top)
        job = int(terminal.wait_for("started"))
        terminal.until("exec-2")
        os.kill(job, getattr(signal, "SIG" + name))
        terminal.ended(0)
    terminal = Terminal(top)
    terminal.wait_for("started")
    terminal.until("exec-2")
    terminal.press("\x03")
    terminal.ended(0)


def away(top, path):
    """The source becomes unavailable, and available again."""
    terminal = Terminal(top)
    terminal.wait_for("started")
    terminal.until("exec-2")
    os.rename(path, path + ".away")
    terminal.until("AWAY")
    terminal.until("OLD, of")
    os.rename(path + ".away", path)
    terminal.until("live")
    terminal.press("q")
    terminal.ended(0)


if __name__ == "__main__":
    play, *rest = sys.argv[1:]
    if play == "away":
        away(rest[1:], rest[0])
    else:
        globals()[play](rest)

"""The engine's process with the fake model: `fake_child.py PARENT_PID FD`."""

import os
import socket
import sys

from fake_engine import FakeAssembled

from trivet.engine import child_main

if __name__ == "__main__":
    child_main._behave_as_child(int(sys.argv[1]))
    os._exit(child_main.serve(socket.socket(fileno=int(sys.argv[2])), FakeAssembled))

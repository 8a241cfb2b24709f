import multiprocessing.connection
from typing import Any

__all__ = ["Connection", "Pipe"]

class Connection(multiprocessing.connection.Connection):
    def parts(self) -> tuple[bytes, list[int]]: ...
    def attach(self, frame: bytes, fds: list[int], readable: bool, writable: bool) -> None: ...

def Pipe(duplex: object = True) -> tuple[Connection, Connection]: ...

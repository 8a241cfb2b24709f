import multiprocessing.connection

__all__ = ["Connection", "Pipe"]

class Connection(multiprocessing.connection.Connection): ...

def Pipe(duplex: object = True) -> tuple[Connection, Connection]: ...

"""What a run needs before it is begun: bytes of a process, forwards of a cycle, and what is printed of them."""

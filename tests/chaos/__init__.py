"""The proof from outside: real processes under load, a fault every second, and then every promise counted.

`make chaos` runs it (`python -m tests.chaos`). `fleet` and `proxy` are what is broken, `faults` breaks it, `load` asks
for work, `worker` does it and writes a `journal`, `evidence` gathers what is left at the end, `checks` judges it.
"""

"""The composition root: the only room that knows every other. It builds processes and sees to their end.

`control` is the API with the engine, `worker` one driver process, `up` everything in one process tree, `run` what the
command line starts of them. Import from these: a driver process must not load the API to do its work.
"""

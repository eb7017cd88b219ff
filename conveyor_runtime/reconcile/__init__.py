"""The SDK and the worker: an event comes in, user code reconciles it, the outcome goes out.

The life of one delivery is `dispatch.py`, top to bottom. User code meets this room only through `Driver`,
`DriverLogger` and `RunContext`.
"""

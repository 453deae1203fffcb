"""What a device family must offer; :mod:`orchestrator.backend` is where authors of one import it from.

base         what all devices do, and those with eager compute
tensors      devices that torch knows: their values are its tensors
compiling    devices that run compiled programs only
"""

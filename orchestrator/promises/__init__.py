"""Promises of authors (pad rules, ``Dim(batch=True)``), and the check that tries them on real values.

- ``walk``: a graph call by call, without plan and runner;
- ``check``: what is tried, on which request and device;
- ``tried``: a walk that tries each call as it comes by;
- ``calls``, ``batched``: what is tried at one call, along padded and along batch dims;
- ``targets``: the stages that run, and that nothing of them changes;
- ``padding``: values at a bucket beside the exact ones, with the padding that stages make of it;
- ``batches``: cutting, permuting and enlarging the values of a call;
- ``measure``: how far two results are from one another;
- ``report``: the table.
"""

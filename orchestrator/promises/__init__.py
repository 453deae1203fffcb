"""Promises of authors (pad rules, ``Dim(batch=True)``), and the check that tries them on real values.

- ``reference``: a graph call by call, without plan and runner;
- ``check``: what is tried, on which request and device;
- ``trial_run``: a run by hand that tries each call as it comes by;
- ``call_trial``, ``batch_trial``: the trials of one call, along padded and along batch dims;
- ``loop_end_trial``: the trial of loops that end by a value;
- ``stage_runner``: the stages that run, and that nothing of them changes;
- ``padding``: values at a bucket beside the exact ones, with the padding that stages make of it;
- ``batches``: cutting, permuting and enlarging the values of a call;
- ``measure``: how far two results are from one another;
- ``report``: the table.
"""

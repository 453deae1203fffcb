"""An emulated Neuron device: ordinary host memory that obeys the rules of the real one, refusals included.

    device     memory and counters: memory of each rank, moves over the link, a virtual clock
    tensor     tensors on it, which nothing but a move or a view may touch
    register   ``host.to("privateuseone:0")`` while a device is open
    trace      one program at one combination of buckets, exported
    graph_file a program's graph as data, in a file that runs nothing when it is read
    operators  which operators such a graph may hold
    explain    why one cannot be exported: the operation, the line, the way out
    manifest   the contents of a compiled application, as JSON
    compile    an application to a folder
    load       a folder to callables, with its weights
    runtime    a loaded application: router, weights on each rank, one output buffer for each program
    backend    the device family ``neuron-emulated``

Times are estimates by the figures of the cost model; nothing here tells how fast, or how exactly, a device computes.
"""

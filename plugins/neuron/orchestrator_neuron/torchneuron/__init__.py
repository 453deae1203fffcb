"""TorchNeuron: AWS's own device of torch, ``neuron``, as a device family.

installation   whether torch knows the device here, and which version gives it
backend        the family: a device group for each logical core
compilation    a stage's programs, one for each combination of sizes, all compiled at load
host_operations  the operations that the device hands to the host
simulated      a device under that name in host memory, to plan, test and count on without one

What is known of TorchNeuron is from AWS's documentation of Neuron 2.33 (torch-neuronx 2.13.3 and 2.14.3); none of this
has run on a device. The how-to page about the move says what that leaves open.
"""

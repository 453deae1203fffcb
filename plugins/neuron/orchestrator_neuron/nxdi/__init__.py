"""The device ``neuron``: NxD Inference itself, imported when a plan is compiled and not before.

    packages          what must be installed, and what to say when it is not
    classes           NxD Inference's base classes, filled in; importing it imports NxD Inference
    application       compiling and loading the programs of one stage
    calls             running a loaded program on ranked values
    adopt             stages that users wrote for NxD Inference
    user_application  a user's whole application, which compiles and loads itself
    read, checks      reading a user's objects, and what is wrong with them

The backend that puts it together is in ``backend``.
"""
